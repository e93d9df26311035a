"""What a shell offers for RUN_ID and SELECTOR: what the spool of this machine knows.

No server is asked, and neither MLflow nor Keras is imported: who presses Tab waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_SELECTORS = {
    "latest": "the newest",
    "best": "by the monitor of the series; best(METRIC[,min|max])",
    "final": "what the model held when fit returned",
    "step=": "after so many training batches",
    "epoch=": "after so many epochs",
}
_JOURNAL = "journal.json"


def run_ids(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Runs that were trained on this machine, the last one first."""
    from click.shell_completion import CompletionItem

    runs = sorted(_runs(), key=_age, reverse=True)
    return [
        CompletionItem(run.name, help=f"series {', '.join(_series(run))}")
        for run in runs
        if run.name.startswith(incomplete)
    ]


def selectors(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """The words of a selector, with each series where the run is known to have several."""
    from click.shell_completion import CompletionItem

    asked = context.params.get("run_id")
    series = next((_series(run) for run in _runs() if run.name == asked), [])
    behind = [f"@{name}" for name in series] if len(series) > 1 else [""]
    return [
        CompletionItem(word + end, help=meaning)
        for word, meaning in _SELECTORS.items()
        for end in ([""] if word.endswith("=") else behind)
        if (word + end).startswith(incomplete)
    ]


def _runs() -> Iterator[Path]:
    """The folders of runs in the spools of this machine, each named by a run's ID."""
    from mlflow_ckpt.spool import Spool

    for folder in Spool().folders():
        with suppress(OSError):
            yield from (run for run in folder.iterdir() if _series(run))


def _series(run: Path) -> list[str]:
    with suppress(OSError):
        return sorted(path.parent.name for path in run.glob(f"*/{_JOURNAL}"))
    return []


def _age(run: Path) -> float:
    with suppress(OSError):
        return max((run / name / _JOURNAL).stat().st_mtime for name in _series(run))
    return 0.0
