"""Peak memory of a fit with checkpoints above the same fit without, in MiB.

Each fit runs in a process of its own, because a peak never goes down. It is Linux's
high-water mark of the resident set (`VmHWM`), which counts mapped files too. What a
variant imports is counted with it, as its user's memory would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import models, peers
from benchmarks.peers import CONTROL, KERAS, OURS
from benchmarks.process import call, say
from benchmarks.results import Bar, Figure, Sample, rotated

_VARIANTS = (CONTROL, OURS, KERAS)
_EPOCHS = 3


def collect(
    *, mib: float, repeats: int, scratch: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measure every variant `repeats` times, each in a process of its own."""
    rows: list[dict[str, Any]] = []
    for turn in range(repeats):
        for variant in rotated(_VARIANTS, turn):
            progress(f"round {turn + 1} of {repeats}: {variant}")
            arguments = {"mib": mib, "variant": variant}
            peak = call("benchmarks.memory:measure", arguments, scratch=scratch)
            rows.append({"turn": turn, "variant": variant, **peak})
    return {"mib": mib, "rows": rows}


def measure(*, mib: float, variant: str, scratch: Path) -> dict[str, float]:
    """Train once and return the process's peak and the size of the state, in bytes."""
    say(variant)
    peers.use_store(scratch)  # the control pays for MLflow's import too
    model = models.mlp(mib)
    dataset = models.data(model, mib)
    folder = scratch / "one"
    folder.mkdir()
    opened = {OURS: peers.ours, KERAS: peers.keras_model}.get(variant)
    if opened is None:
        models.fit(model, dataset, epochs=_EPOCHS, steps=3)
    else:
        with opened(folder) as callback:
            models.fit(model, dataset, epochs=_EPOCHS, steps=3, callbacks=[callback])
    peak = high_water()
    return {"peak": peak, "state": sum(tensor.nbytes for tensor in models.state(model))}


def high_water() -> int:
    """Peak of this process's resident set, in bytes."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """The figure, from what `collect` returned."""
    peaks = {(row["variant"], row["turn"]): row["peak"] / 2**20 for row in raw["rows"]}
    turns = sorted({turn for _, turn in peaks})
    above = {
        name: tuple(peaks[name, turn] - peaks[CONTROL, turn] for turn in turns)
        for name in (OURS, KERAS)
    }
    state = raw["rows"][0]["state"] / 2**20
    samples = {
        OURS: Sample(role="ours", unit="MiB", values=above[OURS]),
        KERAS: Sample(role="peer", unit="MiB", values=above[KERAS]),
        "size of the state": Sample(role="limit", unit="MiB", values=(state,)),
    }
    return [
        Figure(
            key="memory",
            title="Peak memory above the same fit without the callback",
            mib=raw["mib"],
            samples=samples,
            bars=[
                Bar(
                    text="peak above the control ÷ (1.1 × state + 100 MiB)",
                    value=samples[OURS].median,
                    divisor=1.1 * state + 100,
                    limit=1.0,
                )
            ],
            notes=[
                f"{samples[OURS].median / state:.2f} × state; "
                f"Keras {samples[KERAS].median / state:.2f} × state."
            ],
        )
    ]
