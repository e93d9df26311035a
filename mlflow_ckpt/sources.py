"""Find the code that a run was launched from, and tell whether it is still the same.

MLflow records a project as what was typed, or, in a git repository, as `file://<root>#<folder>`,
and the commit that was checked out. Changes that were not committed it does not record.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow_ckpt.errors import ResumeError

_GIT_S = 60.0
_SHOWN = 3
# MLflow 3.17 takes `file:///a/b` for the name of a folder when it records it.
_MANGLED = re.compile(r"/.*/file:(?=/)")
_SSH = re.compile(r"[\w.-]+@[\w.-]+:")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a project is.

    Attributes:
        uri: For MLflow: the project's folder, or a URI of a git repository or an archive.
        folder: That folder, if it is one of this machine.
    """

    uri: str
    folder: Path | None

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read a project's address, as it was typed or as MLflow has recorded it."""
        address = _MANGLED.sub("file:", text, count=1)
        base, _, below = address.partition("#")
        scheme = urlsplit(base).scheme
        if base.endswith(".zip") or scheme not in ("", "file") or _SSH.match(base):
            return cls(uri=address, folder=None)
        root = _local(base) if scheme == "file" else Path(base)
        folder = (root / below).absolute()
        return cls(uri=str(folder), folder=folder)

    @property
    def shown(self) -> str:
        """For a person: a password that stands in the URI is left out."""
        return re.sub(r"(?<=://)[^/@]*:[^/@]*@", "***@", self.uri)


def _local(uri: str) -> Path:
    """The path of a file URI; MLflow quotes nothing in those that it makes."""
    path = urlsplit(uri).path
    return Path(path) if Path(path).exists() else Path(unquote(path))


@dataclass(frozen=True, kw_only=True)
class Code:
    """What is checked out in a folder.

    Attributes:
        commit: Its hash; "" outside of a git repository.
        notes: What a person should know of it, a sentence each.
    """

    commit: str = ""
    notes: tuple[str, ...] = ()


def look(folder: Path, recorded: str, run_id: str, *, any_commit: bool) -> Code:
    """See whether a folder still has the code of the commit that the run was launched at.

    Another commit with the same files is none.

    Raises:
        ResumeError: If it is not, and `any_commit` does not say that this is as it should be.
    """
    commit = _git(folder, "rev-parse", "HEAD") or ""
    if recorded and commit != recorded:
        changed = _git(folder, "diff", "--name-only", recorded, "HEAD") if commit else None
        if changed != "":
            if not any_commit:
                raise ResumeError(_moved(folder, recorded, commit, changed, run_id))
            return Code(commit=commit, notes=_other(commit, recorded))
    return Code(commit=commit, notes=_uncommitted(folder) if commit else ())


def fetched(folder: Path, recorded: str) -> Code:
    """What was fetched into `folder`; says where it is not what the run was launched at."""
    commit = _git(folder, "rev-parse", "HEAD") or ""
    return Code(commit=commit, notes=_other(commit, recorded) if commit != recorded else ())


def _other(commit: str, recorded: str) -> tuple[str, ...]:
    there = f"commit {commit[:10]}" if commit else "files that are in no git repository"
    return (f"Launches {there}; before it was commit {recorded[:10]}.",) if recorded else ()


def _moved(folder: Path, recorded: str, commit: str, changed: str | None, run_id: str) -> str:
    is_at = f"which is at {commit[:10]} now" if commit else "which is in no git repository now"
    files = f" ({_some(changed.splitlines())} differ)" if changed else ""
    root = shlex.quote(_git(folder, "rev-parse", "--show-toplevel") or str(folder))
    back = (
        f"Go back with: git -C {root} checkout {recorded[:10]}. Or launch" if commit else "Launch"
    )
    return (
        f"Run {run_id} was launched at commit {recorded[:10]} of {folder}, {is_at}{files}. {back} "
        f"what is there: mlflow-ckpt resume {run_id} --any-commit"
    )


def _uncommitted(folder: Path) -> tuple[str, ...]:
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not changed:
        return ()
    names = [line[3:] for line in changed.splitlines()]
    return (f"Uncommitted changes are launched as they are: {_some(names)}.",)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; `None` if there is none, or it fails."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_GIT_S, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
