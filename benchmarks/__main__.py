"""The command line: measure the figures that were asked for, one after another, and report.

python -m benchmarks --figures hooks,loads --sizes 112 --repeats 5
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import (
    cost,
    hooks,
    loads,
    memory,
    outage,
    peers,
    plots,
    report,
    resolve,
    resuming,
    sparse,
    thousand,
)
from benchmarks.process import MeasurementFailed, call, stop_on_sigterm
from benchmarks.results import LARGE_MIB, Figure

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        sizes: MiB of state: every one for figures of a size, the smallest for those of
            whole fits every ten seconds, the largest for loads and memory.
        repeats: Rounds of every figure but `thousand`, which has `long_repeats`, and `memory`,
            which has `fresh_repeats` if that is not `None`.
        apart_s: Seconds between dense checkpoints, for each MiB of state, and at least.
        dense: Checkpoints of a dense fit, the first included, below and from 1 GiB.
        sparse_s, sparse_epochs: Seconds between checkpoints, and checkpoints, of a sparse fit.
        counts: Checkpoints of the runs in which one is searched.
        many: Checkpoints of the longest fit.
        batches: Batches of an epoch before it is broken off and continued.
        outage: Epochs, and steps of each, that are trained without a server.
    """

    sizes: tuple[float, ...] = (112, 1062)
    repeats: int = 5
    apart_s: tuple[float, float] = (0.004, 1.0)
    dense: tuple[int, int] = (7, 3)
    sparse_s: float = 10.0
    sparse_epochs: int = 3
    counts: tuple[int, ...] = (10, 1_000, 10_000)
    many: int = 1_000
    batches: int = 10_000
    outage: tuple[int, int] = (12, 30)
    long_repeats: int = 1
    fresh_repeats: int | None = None


QUICK = Plan(
    sizes=(1,),
    repeats=2,
    apart_s=(0.0, 0.3),
    dense=(3, 3),
    sparse_s=0.5,
    counts=(10, 30),
    many=30,
    batches=20,
    outage=(4, 3),
    fresh_repeats=1,
)


class Bench:
    """Measure figures below one scratch folder.

    Args:
        plan: How much.
        scratch: Folder for everything that is written meanwhile.
        progress: Called with what is measured now.
    """

    def __init__(self, plan: Plan, scratch: Path, progress: Progress) -> None:
        self._plan = plan
        self._scratch = scratch
        self._progress = progress

    def hooks(self) -> list[Figure]:
        names = [variant.name for variant in peers.VARIANTS]
        return [
            figure
            for mib in self._plan.sizes
            for figure in hooks.figures(self._call(hooks, mib=mib, variants=names))
        ]

    def cost(self) -> list[Figure]:
        found: list[Figure] = []
        for mib in self._plan.sizes:
            rate, least = self._plan.apart_s
            found += cost.figures(
                self._call(
                    cost,
                    mib=mib,
                    checkpoints=self._plan.dense[mib >= LARGE_MIB],
                    apart_s=max(least, rate * mib),
                )
            )
        return found

    def fit(self) -> list[Figure]:
        plan = self._plan
        return sparse.figures(
            self._call(
                sparse, mib=min(plan.sizes), epochs=plan.sparse_epochs, apart_s=plan.sparse_s
            )
        )

    def loads(self) -> list[Figure]:
        return loads.figures(self._call(loads, mib=max(self._plan.sizes)))

    def memory(self) -> list[Figure]:
        raw = memory.collect(
            mib=max(self._plan.sizes),
            repeats=self._plan.fresh_repeats or self._plan.repeats,
            scratch=self._scratch,
            progress=self._progress,
        )
        return memory.figures(raw)

    def outage(self) -> list[Figure]:
        raw = outage.collect(
            mib=min(self._plan.sizes),
            epochs=self._plan.outage[0],
            steps=self._plan.outage[1],
            repeats=self._plan.repeats,
            scratch=self._scratch,
            progress=self._progress,
        )
        return outage.figures(raw)

    def resolve(self) -> list[Figure]:
        return resolve.figures(self._call(resolve, counts=self._plan.counts))

    def resume(self) -> list[Figure]:
        raw = resuming.collect(
            batches=self._plan.batches,
            repeats=self._plan.repeats,
            scratch=self._scratch,
            progress=self._progress,
        )
        return resuming.figures(raw)

    def thousand(self) -> list[Figure]:
        raw = thousand.collect(
            count=self._plan.many,
            repeats=self._plan.long_repeats,
            scratch=self._scratch,
            progress=self._progress,
        )
        return thousand.figures(raw)

    def _call(self, module: Any, **arguments: Any) -> Any:
        return call(
            f"{module.__name__}:measure",
            {"repeats": self._plan.repeats, **arguments},
            scratch=self._scratch,
            progress=self._progress,
        )


FIGURES = ("hooks", "cost", "fit", "loads", "memory", "outage", "resolve", "resume", "thousand")


def run(
    figures: Iterable[str],
    plan: Plan,
    scratch: Path,
    progress: Callable[[str, str], None],
    keep: Callable[[list[Figure], dict[str, str]], None] = lambda *_: None,
) -> tuple[list[Figure], dict[str, str]]:
    """Measure figures by their names; what fails is returned with its reason.

    `keep` is called after each figure with everything so far: an hour's work is not to be
    lost with its last minute.
    """
    found: list[Figure] = []
    failures: dict[str, str] = {}
    for name in figures:
        progress(name, "starting")
        bench = Bench(plan, scratch, lambda text, name=name: progress(name, text))  # type: ignore[misc]
        try:
            found += getattr(bench, name)()
        except MeasurementFailed as error:
            failures[name] = str(error)
        keep(found, failures)
    return found, failures


def _numbers(_: click.Context, parameter: click.Parameter, text: str | None) -> Any:
    try:
        return tuple(sorted(float(part) for part in text.split(","))) if text else None
    except ValueError as error:
        raise click.BadParameter(
            f"Expected numbers such as 112,1062. Received: {text!r}"
        ) from error


def _names(_: click.Context, parameter: click.Parameter, text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    if unknown := [name for name in names if name not in FIGURES]:
        raise click.BadParameter(f"Expected some of {', '.join(FIGURES)}. Received: {unknown!r}")
    return names


@click.command()
@click.option("--figures", default=",".join(FIGURES), show_default=True, callback=_names)
@click.option("--sizes", callback=_numbers, help="MiB of state.  [default: 112,1062]")
@click.option("--repeats", type=click.IntRange(1), help="Rounds.  [default: 5]")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("benchmark-results"),
    show_default=True,
)
@click.option(
    "--scratch",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for checkpoints, on the disk to be measured; a dozen GiB.",
)
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, measures nothing.")
def main(
    figures: list[str],
    sizes: tuple[float, ...] | None,
    repeats: int | None,
    out: Path,
    scratch: Path | None,
    quick: bool,
) -> None:
    """Measure checkpoints against peers and limits. Let nothing else run meanwhile.

    Example: python -m benchmarks --figures hooks,loads --sizes 112
    """
    plan = _plan(QUICK if quick else Plan(), sizes=sizes, repeats=repeats)
    options = {"sizes": list(plan.sizes), "repeats": plan.repeats, "quick": quick}
    if importlib.util.find_spec("matplotlib") is None:
        raise click.ClickException('The plots need matplotlib: pip install -e ".[bench]"')
    console = Console()
    stop_on_sigterm()
    if scratch:
        scratch.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=scratch, prefix="bench-") as folder,
        console.status("starting") as status,
    ):
        found, failures = run(
            figures,
            plan,
            Path(folder),
            lambda name, text: status.update(f"{name}: {text}"),
            lambda found, failures: _keep(console, out, found, failures, options),
        )
    plots.draw(found, out)
    console.print(f"See {out / 'report.md'}")
    if failures:
        raise SystemExit(1)


def _keep(
    console: Console,
    out: Path,
    figures: list[Figure],
    failures: dict[str, str],
    options: Mapping[str, Any],
) -> None:
    report.write(out, figures, failures, options)
    console.print(f"{time.strftime('%H:%M:%S')} {len(figures)} figures so far")
    _summary(console, figures, failures)


def _plan(plan: Plan, **changes: Any) -> Plan:
    known: Mapping[str, Any] = {key: value for key, value in changes.items() if value is not None}
    return Plan(**{**vars(plan), **known})


def _summary(console: Console, figures: Iterable[Figure], failures: Mapping[str, str]) -> None:
    for figure in figures:
        size = f" {figure.mib:,.0f} MiB" if figure.mib else ""
        for bar in figure.bars:
            sign = "≥" if bar.at_least else "≤"
            console.print(
                f"{bar.verdict:6} {figure.key}{size}: {bar.text} = {bar.ratio:.3g} "
                f"({sign} {bar.limit:g})"
            )
    for name, reason in failures.items():
        console.print(f"failed {name}: {reason}", markup=False)


if __name__ == "__main__":
    main()
