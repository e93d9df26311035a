"""Recall what a run was asked for: by `mlflow run` when it was made, and by resumes since.

Parameters are those that MLflow logged when it made the run, as far as the entry point has them:
a script may have logged others. They cannot change, so what a resume asked for instead stands
in a tag of the run, for the next one.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_ckpt.errors import ResumeError
from mlflow_ckpt.record import Run
from mlflow_ckpt.store import Launcher, Project

LAUNCH_TAG = "ckpt.launch"


def base(run: Run, project: Project, asked: Container[str]) -> dict[str, str]:
    """What `mlflow run` was given, or took for a default, when it made the run.

    Args:
        asked: Names of parameters that get another value.

    Raises:
        ResumeError: If MLflow has cut off a value.
    """
    logged = {name: run.params[name] for name in project.parameters if name in run.params}
    for name, value in logged.items():
        if len(value) >= Launcher.longest and name not in asked:
            raise ResumeError(
                f"The parameter {name!r} of run {run.run_id} is longer than MLflow keeps one. "
                f"Give all of it: mlflow-ckpt resume {run.run_id} -P {name}=..."
            )
    return {name: _unquoted(value) for name, value in logged.items()}


def _unquoted(value: str) -> str:
    """Undo the shell's quotes, with which MLflow logs a project's parameters."""
    with contextlib.suppress(ValueError):
        words = shlex.split(value)
        if len(words) == 1 and shlex.quote(words[0]) == value:
            return words[0]
    return value


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What the last resume asked for, as far as the run's own params and tags do not say it.

    Attributes:
        at: When, in milliseconds since the Unix epoch.
        params: By name, as they were typed.
        commit: What was launched; "" if it is the run's own, or not known.
        notes: What a person should know, a sentence each.
    """

    at: int = 0
    params: Mapping[str, str]
    commit: str = ""
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, run: Run) -> Memory:
        text = run.tags.get(LAUNCH_TAG)
        try:
            found: dict[str, Any] = json.loads(text) if text else {}
            params = {str(name): str(value) for name, value in found.get("params", {}).items()}
            return cls(
                at=int(found.get("at", 0)), params=params, commit=str(found.get("commit", ""))
            )
        except (AttributeError, TypeError, ValueError, RecursionError):
            return cls(params={}, notes=(f"The run's tag {LAUNCH_TAG} is unreadable: ignored.",))

    def text(self) -> str:
        return json.dumps({"at": self.at, "params": dict(self.params), "commit": self.commit})


def since(launcher: Launcher, run: Run, memory: Memory, project: Project) -> dict[str, str]:
    """What was asked for since the run was made, by attempts and by resumes such as this one."""
    asked = [(memory.at, memory.params)]
    for attempt in launcher.attempts(run):
        own = {k: _unquoted(v) for k, v in attempt.params.items() if k in project.parameters}
        if own:  # An evaluation of the run has the run's ID too, and none of these.
            asked.append((attempt.at, own))
            break
    return {k: v for _, params in sorted(asked, key=lambda a: a[0]) for k, v in params.items()}
