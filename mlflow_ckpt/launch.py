"""How a run's project is launched again into the run, and what there is to say of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_ckpt.next_steps import environment_for
from mlflow_ckpt.recall import LAUNCH_TAG, Memory
from mlflow_ckpt.record import LEASE_TAG_PREFIX, Checkpoint, Run
from mlflow_ckpt.sources import Source
from mlflow_ckpt.store import Launcher, Project, Store, now_ms
from mlflow_ckpt.tenure import Record

_MOST_CHARACTERS = 5_000  # MLflow cuts off a tag that is too long, without a word.
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a run is continued.

    Attributes:
        run: The run.
        newest: Where it goes on, as far as the server knows.
        waiting: Whether the spool of this machine may know better.
        source: The project.
        version: The commit that is fetched from a git URI.
        commit: The commit that is launched; "" if it is not known.
        recorded: The one that the run was made with.
        entry_point: Of the project.
        env_manager: What makes its environment; `local` takes that of this process.
        project: What MLflow read of it.
        params: Parameters of the entry point that have a value, by name.
        before: What the run was asked for the last time.
        base: What it was made with.
        notes: What a person should know, a sentence each.
    """

    run: Run
    newest: Checkpoint | None
    waiting: bool
    source: Source
    version: str
    commit: str
    recorded: str
    entry_point: str
    env_manager: str
    project: Project
    params: Mapping[str, str]
    before: Mapping[str, str]
    base: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def changed(self) -> dict[str, str]:
        """Parameters that are not as the last time."""
        return {k: v for k, v in self.params.items() if self.before.get(k) != v}

    @property
    def left_out(self) -> list[str]:
        """Params of the run that are not the entry point's, by name."""
        return sorted(self.run.params.keys() - self.params.keys())

    @property
    def command(self) -> str:
        """MLflow's own command for the same, to be typed in this folder."""
        store = Store()
        words = Launcher.command(
            self.run,
            self.source.shown,
            self.version or None,
            self.entry_point,
            self.params,
            self.env_manager,
        )
        return environment_for(store.uri, self.run) + shlex.join(words)

    def to_remember(self) -> str | None:
        """The tag for the next resume.

        Returns:
            "" if the run's own params and tags say all of it; `None` if it is too long for one.
        """
        commit = self.commit if self.commit != self.recorded else ""
        asked = {k: v for k, v in self.params.items() if self.base.get(k) != v}
        if not (asked or commit or self.run.tags.get(LAUNCH_TAG)):
            return ""
        text = Memory(at=now_ms(), params=asked, commit=commit).text()
        return text if len(text) <= _MOST_CHARACTERS else None


def remarks(launch: Launch) -> Iterator[str]:
    """What a person should know before a run is launched again, a sentence each."""
    run = launch.run
    if run.status == "FINISHED" and not launch.changed:
        where = f" at epoch {launch.newest.epoch}" if launch.newest else ""
        yield (
            f"The run has ended as FINISHED{where}: it trains nothing unless it is asked for more, "
            "such as by -P epochs=<n>."
        )
    kept = {k: run.params[k] for k in launch.changed if k in run.params}
    for name in kept:
        yield f"The run's parameter {name} stays {kept[name]}: MLflow's cannot change."
    if launch.to_remember() is None:
        yield "What is asked for is too long to be remembered: the next resume needs it again."
    if names := launch.left_out:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        yield (
            f"Left to the script, because the entry point {launch.entry_point!r} has no such "
            f"parameter: {', '.join(names[:_SHOWN])}{more}."
        )
    for name, kind in launch.project.parameters.items():
        value = launch.params.get(name, "")
        if kind == "path" and "://" not in value and not Path(value).is_absolute():
            yield f"The parameter {name} is a path in this folder: {Path(value).absolute()}."
    for key, text in run.tags.items():
        record = Record.parse(text) if key.startswith(LEASE_TAG_PREFIX) else None
        if record is not None and not (record.done or record.owner.is_dead()):
            yield f"{record.owner} may still write to {key.removeprefix(LEASE_TAG_PREFIX)!r}."
