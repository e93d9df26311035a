"""Write figures down: `results.json` for machines, `report.md` for people.

The report opens with one table, a line for each bar; below it, each figure has a table of
everything that was measured for it.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.results import Figure, Sample

_PACKAGES = (
    "mlflow-ckpt",
    "mlflow",
    "keras",
    "tensorflow",
    "tensorflow-cpu",
    "numpy",
    "h5py",
    "orbax-checkpoint",
    "wandb",
)


def environment() -> dict[str, Any]:
    """What the numbers depend on: versions, processor, cores, memory, time."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "system": platform.system(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(
    folder: Path,
    figures: Sequence[Figure],
    failures: Mapping[str, str],
    options: Mapping[str, Any],
) -> None:
    """Write both files into `folder`.

    Args:
        figures: What was measured.
        failures: Why a figure could not be measured, by its name.
        options: How it was measured, such as the number of repeats.
    """
    document = {
        "environment": environment(),
        "options": dict(options),
        "figures": [figure.to_dict() for figure in figures],
        "failures": dict(failures),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(figures, failures, options))


def markdown(
    figures: Sequence[Figure], failures: Mapping[str, str], options: Mapping[str, Any]
) -> str:
    """The whole report as Markdown."""
    facts = environment()
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    lines = [
        "# Benchmark of mlflow_ckpt",
        "",
        f"{facts['time']}, {facts['processor']}, {facts['cores']} cores, "
        f"{facts['memory_gib']} GiB, Python {facts['python']}, {packages}.",
        "",
        "Options: " + ", ".join(f"{key} {value}" for key, value in options.items()) + ".",
        "",
    ]
    if options.get("quick"):
        lines += ["**A quick run: it shows that everything runs. Its numbers mean nothing.**", ""]
    lines += [*_bars(figures), ""]
    for figure in figures:
        lines += [*_section(figure), ""]
    for name, text in failures.items():
        lines += [f"## {name}: not measured", "", "```", text.strip(), "```", ""]
    return "\n".join(lines)


def _bars(figures: Iterable[Figure]) -> list[str]:
    rows = [
        [
            figure.title,
            _size(figure.mib),
            bar.text,
            _number(bar.ratio),
            f"{'≥' if bar.at_least else '≤'} {_number(bar.limit)}",
            bar.verdict if bar.met else f"**{bar.verdict}**",
        ]
        for figure in figures
        for bar in figure.bars
    ]
    return _table(["figure", "size", "what is compared", "measured", "bar", "verdict"], rows)


def _section(figure: Figure) -> list[str]:
    size = f", {_size(figure.mib)}" if figure.mib else ""
    rows = [[name, sample.role, *_spread(sample)] for name, sample in figure.samples.items()]
    rows += [[name, "peer", error, "", "", ""] for name, error in figure.errors.items()]
    unit = next(iter(figure.samples.values())).unit if figure.samples else ""
    header = ["variant", "role", f"min ({unit})", "median", "max", "n"]
    notes = [f"- {note}" for note in figure.notes]
    table = _table(header, rows)
    return [f"## {figure.title}{size}", "", *table, *([""] if notes else []), *notes]


def _spread(sample: Sample) -> list[str]:
    numbers = [_number(value) for value in (sample.low, sample.median, sample.high)]
    return [numbers[0], f"**{numbers[1]}**", numbers[2], str(len(sample.values))]


def _size(mib: float | None) -> str:
    if mib is None:
        return "–"
    return f"{mib:,.0f} MiB" if mib >= 1000 else f"{mib:.4g} MiB"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.5f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in escaped),
    ]
