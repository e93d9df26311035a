"""Draw each figure: one bar a variant, a whisker from the fastest to the slowest repeat.

Ours, peers, controls and physical limits have a colour each. The axis is logarithmic where
the variants differ by more than a factor of twenty.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from benchmarks.results import Figure, Role

_COLOURS: dict[Role, str] = {
    "ours": "#1f77b4",
    "peer": "#b0b0b0",
    "limit": "#2ca02c",
    "control": "#d9b44a",
}
_LABELS: dict[Role, str] = {
    "ours": "this package",
    "peer": "peer",
    "limit": "what the machine allows",
    "control": "without a callback",
}
_LOG_FROM = 20.0


def draw(figures: Iterable[Figure], folder: Path) -> list[Path]:
    """Write `<figure>[-<size>].png` into `folder` and return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw(figure, folder) for figure in figures if figure.samples]


def _draw(figure: Figure, folder: Path) -> Path:
    # Only plots need matplotlib; a `Figure` of its own needs no display and no global state.
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Patch

    names = list(figure.samples)
    samples = [figure.samples[name] for name in names]
    middle = [sample.median for sample in samples]
    canvas = Canvas(figsize=(9, 1.4 + 0.42 * len(names)), layout="constrained")
    axes = canvas.add_subplot()
    axes.barh(
        names,
        middle,
        xerr=[
            [m - s.low for m, s in zip(middle, samples, strict=True)],
            [s.high - m for m, s in zip(middle, samples, strict=True)],
        ],
        color=[_COLOURS[sample.role] for sample in samples],
        error_kw={"elinewidth": 1, "capsize": 3},
    )
    axes.invert_yaxis()
    if min(middle) > 0 and max(middle) / min(middle) > _LOG_FROM:
        axes.set_xscale("log")
    axes.set_xlabel(f"{samples[0].unit}, median of repeats, whiskers from min to max")
    size = f", {figure.mib:,.0f} MiB" if figure.mib else ""
    axes.set_title(f"{figure.title}{size}", loc="left")
    roles = list(dict.fromkeys(sample.role for sample in samples))
    handles = [Patch(color=_COLOURS[role], label=_LABELS[role]) for role in roles]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    suffix = f"-{figure.mib:.0f}" if figure.mib else ""
    path = folder / f"{figure.key}{suffix}.png"
    canvas.savefig(path, dpi=120)
    return path
