"""What a training process notes for `testing`, and what it is asked to do: files in a folder.

The process that is watched and the one that watches agree on this format and on nothing else:

    <folder>/task.json            what is asked: when to be killed, where the run stands
    <folder>/trace-<pid>.jsonl    one JSON object per line: fit, batch or end
    <folder>/killed.json          written just before the SIGKILL

Steps are training batches of one series, from 1. A count is the sum of the steps of all
series, so that it runs on through several fits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# Names the folder. Where it is set, `MlflowCheckpoint` records.
PROBE = "MLFLOW_CKPT_PROBE"

KILLED = "killed.json"
_TASK = "task.json"

Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process is asked to do.

    Attributes:
        kill_at: The count at which it is killed; `None` lets it end by itself.
        standing: The step of the newest committed checkpoint of each series.
    """

    kill_at: int | None = None
    standing: Mapping[str, int] = field(default_factory=dict)

    @property
    def begins_at(self) -> int:
        """The count from which the process should go on."""
        return sum(self.standing.values())

    def write(self, folder: Path) -> None:
        (folder / _TASK).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Task:
        return cls(**json.loads((folder / _TASK).read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fit that began: its run, its series, and all series that were written in it."""

    series: str
    members: tuple[str, ...]
    run_id: str
    step: int


@dataclass(frozen=True, kw_only=True)
class State:
    """What the model held after a batch, or at the end of a fit.

    Attributes:
        series, step: Where that was.
        count: The same over the whole process.
        ran: Batches trained since the state before; at an end, since the fit began.
        weights: How many of `digests` belong to weights. Optimizers, seeds and metrics follow.
        digests: One per variable.
    """

    series: str
    step: int
    count: int
    ran: int
    weights: int
    digests: tuple[str, ...]

    @property
    def key(self) -> Key:
        return self.series, self.step


@dataclass
class Trace:
    """What one process noted, each list in the order of time.

    Attributes:
        processes: How many processes trained; only the first one's notes are here.
        paths: Names of each series' variables.
        killed: Whether it was killed where it should be.
    """

    processes: int = 0
    fits: list[Fit] = field(default_factory=list)
    batches: list[State] = field(default_factory=list)
    ends: list[State] = field(default_factory=list)
    paths: dict[str, list[str]] = field(default_factory=dict)
    killed: bool = False

    @property
    def trained(self) -> int:
        """Batches trained."""
        return sum(state.ran for state in self.batches)

    @property
    def count(self) -> int:
        """Where the process stood when it was last seen."""
        seen = [*self.batches[-1:], *self.ends[-1:]]
        return max((state.count for state in seen), default=0)

    @property
    def began_at(self) -> int:
        """Where it stood before its first batch."""
        return self.batches[0].count - self.batches[0].ran if self.batches else self.count

    @classmethod
    def read(cls, folder: Path) -> Trace:
        """Read what a process left in `folder`."""
        files = sorted(folder.glob("trace-*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
        trace = cls(processes=len(files), killed=(folder / KILLED).exists())
        for path in files[:1]:
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    trace._take(json.loads(line))
        return trace

    def _take(self, line: dict[str, Any]) -> None:
        kind = line.pop("kind")
        if kind == "fit":
            self.fits.append(Fit(**{**line, "members": tuple(line["members"])}))
            return
        if (paths := line.pop("paths", None)) is not None:
            self.paths[line["series"]] = paths
        state = State(**{**line, "digests": tuple(line["digests"])})
        (self.batches if kind == "batch" else self.ends).append(state)
