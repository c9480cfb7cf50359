"""A part of a page: its title and its markup. Charts are numbered over the whole page."""

from __future__ import annotations

from dataclasses import dataclass, field

from layerwise.scenarios.report.markup import Chart, Html, chart, paragraph, safe
from layerwise.sim.predict import Prediction


@dataclass(kw_only=True)
class Section:
    """One part, written top down. `key` is its anchor, unique on the page."""

    title: str
    key: str
    parts: list[Html] = field(default_factory=list[Html])
    num_charts: int = 0

    def add(self, *parts: Html) -> None:
        """Markup that is done."""
        self.parts += parts

    def say(self, text: object, style: str = "") -> None:
        """A paragraph."""
        self.add(paragraph(text, style))

    def say_left_out(self, num_rows: int, most: int) -> None:
        """That a table shows `most` rows, where there are more."""
        if num_rows > most:
            self.say(f"The first {most:,} of {num_rows:,} rows; the file has all.", "quiet")

    def draw(self, figure: Chart) -> None:
        """A chart."""
        self.add(self.drawn(figure))

    def drawn(self, figure: Chart) -> Html:
        """A chart's markup, to be put inside something else."""
        self.num_charts += 1
        return chart(figure, f"{self.key}-{self.num_charts}")

    @property
    def html(self) -> Html:
        """The whole part."""
        return Html(
            f'<section id="{safe(self.key)}"><h2>{safe(self.title)}</h2>{"".join(self.parts)}</section>'
        )


def shares_of(prediction: Prediction) -> dict[str, float]:
    """Bottlenecks and bubble of a mean step."""
    return {**prediction.share, "bubble": prediction.bubble}
