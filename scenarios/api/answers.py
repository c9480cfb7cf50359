"""What the questions of `import layerwise` return: fields in SI units, dictionaries, tables."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from layerwise.sim.cost.model import Belief
from layerwise.sim.plan.scenario import Scenario
from layerwise.sim.profile import Profile
from layerwise.sim.resolve import Plan, resolve
from layerwise.sim.trace import Row
from layerwise.sim.uncertainty import Interval

if TYPE_CHECKING:
    from rich.console import Console

    from layerwise.scenarios.compare.choosing import Compared
    from layerwise.scenarios.compare.joined import Comparison
    from layerwise.scenarios.predict.alone import PredictedRun
    from layerwise.scenarios.predict.beliefs import ThreeBeliefs
    from layerwise.scenarios.rank.asked import Candidate
    from layerwise.scenarios.rank.ranking import Ranking
    from layerwise.scenarios.sweep.run import Outcome
    from layerwise.scenarios.sweep.spec import Sweep
    from layerwise.sim.predict import Prediction

NUM_ROWS_SHOWN = 20


class Answer:
    """An answer to a question: its repr is the table that the command line prints."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything it says, with SI units in the keys, as JSON holds it."""
        raise NotImplementedError

    def _print(self, out: Console) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        from layerwise.scenarios.tables import WIDTH, PlainConsole

        text = io.StringIO()
        self._print(PlainConsole(file=text, highlight=False, emoji=False, width=WIDTH))
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_html_(self) -> str:
        from layerwise.scenarios.tables import WIDTH, PlainConsole

        out = PlainConsole(
            file=io.StringIO(), highlight=False, emoji=False, width=WIDTH, record=True
        )
        self._print(out)
        return out.export_html(
            inline_styles=True, code_format='<pre style="line-height:1.2">{code}</pre>'
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class PredictAnswer(Answer):
    """What a placement does, under the best belief there is.

    `prediction` has every figure; those that most people ask for are fields here too.
    """

    scenario: Scenario
    profile: Profile | None
    prediction: Prediction

    @property
    def belief(self) -> Belief:
        """What the figures rest on: "calibrated" with a profile, else "uncalibrated"."""
        return self.prediction.belief

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second over all GPUs."""
        return self.prediction.tokens_per_s

    @property
    def tokens_per_s_interval(self) -> Interval | None:
        """Where 90 % of measured rates lie; None without a profile."""
        return self.prediction.tokens_per_s_interval

    @property
    def step_s(self) -> float:
        """The time between two steps of a decode, or of a whole prefill."""
        return self.prediction.step_s

    @property
    def step_s_interval(self) -> Interval | None:
        """Where 90 % of measured steps lie; None without a profile."""
        return self.prediction.interval

    @property
    def tpot_s(self) -> float:
        """The time between two tokens of one sequence."""
        return self.prediction.tpot_s

    @property
    def inverse_throughput_s(self) -> float:
        """Seconds per token over the whole batch: what the paper calls TPOT."""
        return self.prediction.inverse_throughput_s

    @property
    def num_microbatches(self) -> int:
        """The scenario's number of microbatches, or the best one found."""
        return self.prediction.num_microbatches

    @property
    def fits(self) -> bool:
        """Whether every GPU's memory suffices."""
        return self.prediction.fits

    @property
    def peak_memory_bytes(self) -> int:
        """Bytes that the fullest GPU holds."""
        return self.prediction.peak_memory_bytes

    @cached_property
    def _plan(self) -> Plan:
        return resolve(self.scenario, self.profile)

    @cached_property
    def beliefs(self) -> ThreeBeliefs:
        """The speed of light, the uncalibrated and the calibrated prediction, side by side."""
        from layerwise.scenarios.predict.beliefs import predict_all

        return predict_all(self._plan)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to know before trusting it, a sentence each."""
        from layerwise.scenarios.predict.beliefs import warnings_of

        return warnings_of(self.scenario, self.prediction)

    def to_dict(self) -> dict[str, Any]:
        from layerwise.scenarios.predict.beliefs import predicted_as_data

        return predicted_as_data(self.scenario, self._plan, self.beliefs)

    def _print(self, out: Console) -> None:
        from layerwise.scenarios.predict.tables import print_predicted

        print_predicted(self.scenario, self._plan, self.beliefs, out)


@dataclass(frozen=True, kw_only=True, repr=False)
class SimulateAnswer(Answer):
    """One simulated run, op by op, as a measurement would execute it."""

    scenario: Scenario
    belief: Belief
    run: PredictedRun

    @property
    def step_s(self) -> float:
        """The steady step of a decode, or the whole prefill."""
        return self.run.step_s

    @property
    def step_end_s(self) -> tuple[float, ...]:
        """When each step ended on its last rank, from the run's start."""
        return self.run.simulation.step_end_s

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every op of every rank in every step."""
        return self.run.rows

    def seconds_by_op(self) -> dict[str, float]:
        """Return the mean seconds per rank and step of each op, layers and microbatches together."""
        rows = [row for row in self.rows if not row.replaced]
        spans = len({(row.step, row.rank) for row in rows}) or 1
        found: dict[str, float] = defaultdict(float)
        for row in rows:
            found[_without_layer(row.op)] += row.duration_s / spans
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.scenario.name,
            "belief": self.belief,
            "step_s": self.step_s,
            "step_end_s": list(self.step_end_s),
            "seconds_by_op": self.seconds_by_op(),
        }

    def _print(self, out: Console) -> None:
        from layerwise.scenarios import tables

        title = f"{self.scenario.name}: step {tables.seconds(self.step_s)} ({self.belief})"
        made = tables.table(title, "op", "us per rank and step")
        for name, seconds in self.seconds_by_op().items():
            made.add_row(tables.escape(name), tables.microseconds(seconds))
        out.print(made)


@dataclass(frozen=True, kw_only=True, repr=False)
class RankAnswer(Answer):
    """Every placement of a model, best first, and how sure that order is."""

    ranking: Ranking

    @property
    def winner(self) -> Candidate | None:
        """The best placement that fits and meets the bar; None when none does."""
        return self.ranking.winner

    @property
    def tied(self) -> tuple[Candidate, ...]:
        """Placements whose difference from the winner cannot be told."""
        return self.ranking.tied

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Every placement at every number of microbatches, from the best."""
        return self.ranking.candidates

    @property
    def verdict(self) -> str:
        """The answer in a sentence or two."""
        from layerwise.scenarios.rank.words import verdict

        return verdict(self.ranking)

    def to_dict(self) -> dict[str, Any]:
        from layerwise.scenarios.rank.as_data import ranking_as_data

        return ranking_as_data(self.ranking)

    def _print(self, out: Console) -> None:
        from layerwise.scenarios.rank.tables import print_ranking

        print_ranking(self.ranking, out)


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepAnswer(Answer):
    """Every point of a sweep: `rows` hold a dictionary each, what varied and what was predicted."""

    sweep: Sweep
    outcome: Outcome
    rows: Sequence[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.sweep.name,
            "num_points": self.outcome.num_points,
            "statuses": dict(self.outcome.statuses),
            "rows": list(self.rows),
        }

    def _print(self, out: Console) -> None:
        from layerwise.scenarios import tables

        shown = [*self.sweep.keys, "tokens_per_s", "tpot_s", "status"]
        columns = [key for key in shown if self.rows and key in self.rows[0]]
        made = tables.table(f"{self.sweep.name}: {self.outcome.num_points:,} points", *columns)
        for row in self.rows[:NUM_ROWS_SHOWN]:
            made.add_row(*(tables.escape(_cell(row[key])) for key in columns))
        out.print(made)
        if len(self.rows) > NUM_ROWS_SHOWN:
            out.print(f"and {len(self.rows) - NUM_ROWS_SHOWN:,} more", style="dim")


@dataclass(frozen=True, kw_only=True, repr=False)
class CompareAnswer(Answer):
    """A measured run beside its prediction."""

    compared: Compared

    @property
    def comparison(self) -> Comparison:
        """Every line of every level."""
        return self.compared.comparison

    @property
    def predicted_s(self) -> float:
        """The predicted step."""
        return self.comparison.stage.predicted_s

    @property
    def measured_s(self) -> float:
        """The measured step, the median over its repeats with no tracer attached."""
        return self.comparison.stage.measured_s

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.comparison.stage.error

    def to_dict(self) -> dict[str, Any]:
        from layerwise.scenarios.compare.choosing import comparisons_as_data

        return comparisons_as_data((self.compared,))

    def _print(self, out: Console) -> None:
        from layerwise.scenarios.compare.tables import print_comparisons

        print_comparisons((self.compared,), out, level=None)


def _without_layer(op: str) -> str:
    """`L07.attn.qkv@m3` as `attn.qkv`; what belongs to no layer keeps its name."""
    name = op.partition("@")[0]
    first, _, rest = name.partition(".")
    return rest if first[:1] == "L" and first[1:].isdigit() else name


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
