"""What a call is of: what its folder holds already, else this machine's GPUs, else what was said.

Nothing is guessed where something can be known, and what contradicts it is refused.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layerwise.scenarios.measure.diagnosis import SPEC_OF_NAME
from layerwise.scenarios.whole_host.predictions import read_prediction
from layerwise.sim.plan.errors import FileFormatError, SpecError
from layerwise.sim.plan.hardware import GPUS
from layerwise.sim.plan.reading import read_json

Device = Literal["cuda", "cpu"]
GUESSED_GPU = "h200"


@dataclass(frozen=True, kw_only=True)
class Settled:
    """Device, GPU and number of GPUs of a call. `said`: what to tell of how they were found."""

    device: Device
    gpu: str
    num_gpus: int
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a folder's predictions and its check of the machine are of."""

    device: Device
    gpu: str
    num_gpus: int


def held_by(out: Path | None) -> Held | None:
    """What a folder is of; None for one that is empty or not there. Raises FileFormatError."""
    path = out / "predictions.json" if out else None
    if path is None or (found := read_prediction(path)) is None:
        return None
    # A CPU's predictions are uncalibrated: of no profile.
    device: Device = "cuda" if found.profile_digest else "cpu"
    machine = path.with_name("machine.json")
    if machine.exists():
        ran_on = read_json(machine).get("environment", {}).get("device")
        if ran_on != device:
            raise FileFormatError(
                f"{out}: predictions.json is of device={device!r} and machine.json of {ran_on!r}; "
                "they are of two runs: use another folder"
            )
    return Held(device=device, gpu=found.gpu, num_gpus=found.num_gpus)


def settle(
    out: Path | None,
    device: Device | None,
    gpu: str,
    num_gpus: int,
    *,
    measures: bool = True,
    names: tuple[str, ...] | None = None,
) -> Settled:
    """What the call is of. `device` None, `gpu` "" and `num_gpus` 0 were not given.

    `measures`: on this machine, whose GPUs must then be those of the folder. `names`: of this
    machine's GPUs (None: asked of the driver). Raises SpecError for what the folder
    or the machine contradicts, and for what nothing tells.
    """
    held = held_by(out)
    if held is not None:
        for option, given, holds in (
            ("--device", device, held.device),
            ("--gpu", gpu, held.gpu),
            ("--gpus", num_gpus, held.num_gpus),
        ):
            if given and given != holds:
                raise SpecError(
                    option,
                    given,
                    f"contradicts {out}, which holds a run with {holds}",
                    f"leave it out, or give another --out than {out}",
                )
        if measures and held.device == "cuda":
            gpu_of(held.gpu, gpu_names() if names is None else names)
        return Settled(device=held.device, gpu=held.gpu, num_gpus=held.num_gpus)
    if not num_gpus:
        raise SpecError("--gpus", None, "is missing", "give 2, 4 or 8: all of the host's")
    chosen: Device = device or "cuda"
    if chosen == "cpu":
        return Settled(device="cpu", gpu=gpu or GUESSED_GPU, num_gpus=num_gpus)
    found, said = gpu_of(gpu, gpu_names() if names is None else names)
    return Settled(device="cuda", gpu=found, num_gpus=num_gpus, said=said)


def gpu_of(asked: str, names: tuple[str, ...]) -> tuple[str, str]:
    """(GPU type, what to say) from what was asked for and the names that devices report.

    Raises SpecError where they differ, and where a device's name is not known and none was given.
    """
    if not names:
        guess = f"--gpu was not given and no GPU is seen here: taken to be {GUESSED_GPU}"
        return (asked, "") if asked else (GUESSED_GPU, guess)
    shown = ", ".join(names)
    known = {SPEC_OF_NAME.get(name, "") for name in names}
    if known == {""}:
        if not asked:
            raise SpecError(
                "--gpu",
                None,
                f"is missing, and {shown} is not a known name",
                f"name the nearest of {', '.join(GPUS)}",
            )
        return asked, f"predicted as {asked}: {shown} is not a name that is known here"
    if len(known) > 1:
        raise SpecError("--gpus", shown, "are not alike", "show alike ones (CUDA_VISIBLE_DEVICES)")
    (found,) = known
    if asked and asked != found:
        raise SpecError(
            "--gpu", asked, f"is not what is here: {shown}", f"leave it out, or give {found}"
        )
    return found, "" if asked else f"predicted as {found}: {shown}"


def gpu_names() -> tuple[str, ...]:
    """The distinct names of this machine's GPUs; none where no driver answers.

    By the driver's own library, and by torch where that is missing or does not know which GPUs are
    shown to CUDA.
    """
    try:
        import pynvml
    except ImportError:
        return _names_by_torch()
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return _names_by_torch()
    try:
        pynvml.nvmlInit()
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        return tuple(sorted({str(pynvml.nvmlDeviceGetName(handle)) for handle in handles}))
    except pynvml.NVMLError:  # no driver, or one that does not answer
        return _names_by_torch()


def _names_by_torch() -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    indices = range(torch.cuda.device_count())
    return tuple(sorted({torch.cuda.get_device_name(index) for index in indices}))
