"""Launch a run's project again, into the run itself.

    tags and params of the run -> Launch: project, commit, entry point, parameters -> go()

No run is made around it, as by `mlflow run -e resume`, and no process either: the training takes
the place of the one that asked, hears its signals itself, and ends with its own exit code.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from mlflow_ckpt import recall, sources, syncing
from mlflow_ckpt.errors import NoCheckpoints, ResumeError
from mlflow_ckpt.launch import Launch, remarks
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.next_steps import environment_for
from mlflow_ckpt.recall import LAUNCH_TAG, Memory
from mlflow_ckpt.record import LEASE_TAG_PREFIX, Checkpoint, Run
from mlflow_ckpt.sources import Code, Source
from mlflow_ckpt.store import Launcher, Origin, Project, Store, origin_of

_PROJECT = "PROJECT"
_ISOLATED = ("conda", "uv", "virtualenv")


@dataclass(frozen=True, kw_only=True)
class Script:
    """A run that no project made: MLflow does not know how to start it.

    Attributes:
        run: The run.
        command: What to type, one or two lines.
        notes: What a person should know besides, a sentence each.
    """

    run: Run
    command: str
    notes: tuple[str, ...]


def plan(
    run_id: str,
    params: Mapping[str, str] | None = None,
    *,
    env_manager: str | None = None,
    project: str | None = None,
    any_commit: bool = False,
) -> Launch | Script:
    """Find out how a run was launched, and how that is done again. Nothing is changed.

    Args:
        run_id: The run, or an attempt at it that `mlflow run -e resume` has made.
        params: Replace those of the entry point, or are added as further options.
        env_manager: `local`, `uv`, `virtualenv` or `conda`; `None`: as the last time.
        project: Folder or URI of the project, where it is not where it was.
        any_commit: Whether to launch what is there now, at whatever commit it is.

    Raises:
        RunNotFound, RunDeleted: If there is no such run.
        NoCheckpoints: If it has nothing to go on from, on the server or this machine.
        ResumeError: If the project is gone, has changed, or cannot be launched that way.
    """
    store = Store()
    run = store.run(run_id)
    notes: tuple[str, ...] = ()
    if parent := _asked_for(run):
        notes = (f"Run {run.run_id} is an attempt at run {parent}, which is continued.",)
        run = store.run(parent)
    newest, waiting = _newest(store, run), bool(syncing.look(run.run_id))
    if newest is None and not waiting:
        raise NoCheckpoints(_nothing(run))
    origin = origin_of(run)
    if origin.kind != _PROJECT:
        if params or project:
            raise ResumeError(_no_project(run, origin))
        return _script(store, run, origin, notes)
    manager = _manager(run, origin, env_manager)
    memory, asked = Memory.of(run), params or {}
    launcher = Launcher(store.uri)
    recorded = memory.commit or origin.commit
    given = {*run.params, *memory.params, *asked}
    source = _find(run, origin, project)
    found, version, code = _fetch(
        launcher, run, source, recorded, given, any_commit, origin.entry_point
    )
    base = recall.base(run, found, asked)
    before = {**base, **recall.since(launcher, run, memory, found)}
    launch = Launch(
        run=run,
        newest=newest,
        waiting=waiting,
        source=source,
        version=version,
        commit=code.commit,
        recorded=origin.commit,
        entry_point=origin.entry_point,
        env_manager="docker" if found.in_docker else manager,
        project=found,
        params={**before, **asked},
        before=before,
        base=base,
        notes=(*notes, *code.notes, *memory.notes),
    )
    return replace(launch, notes=(*launch.notes, *remarks(launch)))


# --- which run ----------------------------------------------------------------


def _asked_for(run: Run) -> str | None:
    """The run that this one was made to continue, if it is such an attempt."""
    origin = origin_of(run)
    is_attempt = origin.kind == _PROJECT and run.params.get("run_id") == origin.parent
    return origin.parent if origin.parent and is_attempt and not run.series else None


def _newest(store: Store, run: Run) -> Checkpoint | None:
    """Where the run goes on, as far as the server knows."""
    found = [store.resume_point(run, series) for series in run.series.values()]
    there = [checkpoint for checkpoint in found if checkpoint is not None]
    return max(there, key=lambda checkpoint: checkpoint.created_at, default=None)


def _nothing(run: Run) -> str:
    return (
        f"Run {run.run_id} holds no checkpoint that a fit wrote, on the server or in the spool of "
        "this machine, so there is nothing to go on from: start it anew. If it was trained on "
        f"another machine, deliver what waits there first: mlflow-ckpt sync {run.run_id}"
    )


# --- a script -----------------------------------------------------------------


def _no_project(run: Run, origin: Origin) -> str:
    return (
        f"Expected a run that `mlflow run` has made. Received: run {run.run_id}, which "
        f"{origin.source or 'a script'} has: MLflow does not know its arguments, so give "
        f"them to it. What to type: mlflow-ckpt resume {run.run_id}"
    )


def _script(store: Store, run: Run, origin: Origin, notes: tuple[str, ...]) -> Script:
    name = Path(origin.source).name
    server = environment_for(store.uri, run)
    if origin.kind == "LOCAL" and name.endswith(".py") and not name.startswith("ipykernel"):
        command = f"{server}MLFLOW_RUN_ID={run.run_id} python {shlex.quote(origin.source)}"
        said = "No project made this run: start its script again, with the arguments it had."
        if not Path(origin.source).exists():
            notes = (*notes, f"{origin.source} is not in this folder.")
    else:
        command = f'with mlflow.start_run(run_id="{run.run_id}"):\n    model.fit(...)'
        said = "No project made this run: run its cells again, with the run's ID."
    return Script(run=run, command=command, notes=(*notes, said))


# --- the project --------------------------------------------------------------


def _manager(run: Run, origin: Origin, asked: str | None) -> str:
    if asked is None and origin.backend != "local":
        raise ResumeError(
            f"Run {run.run_id} was launched on the backend {origin.backend!r}, where MLflow can "
            "launch nothing into a run that exists. To continue it on this machine: "
            f"mlflow-ckpt resume {run.run_id} --env-manager local"
        )
    return asked or (origin.environment if origin.environment in _ISOLATED else "local")


def _find(run: Run, origin: Origin, project: str | None) -> Source:
    source = Source.parse(project or origin.source)
    if source.folder is None or source.folder.is_dir():
        return source
    command = f"mlflow-ckpt resume {run.run_id} --project"
    text = f"Expected the project of run {run.run_id} in {source.folder}, where no folder is. "
    if origin.repository and not project:
        _, _, below = origin.source.partition("#")
        clone = shlex.quote(origin.repository + (f"#{below}" if below else ""))
        text += f"It came from there: {command} {clone}. Or say"
    else:
        text += "Say"
    raise ResumeError(f"{text} where it is now: {command} FOLDER_OR_URI")


def _fetch(
    launcher: Launcher,
    run: Run,
    source: Source,
    recorded: str,
    given: Iterable[str],
    any_commit: bool,
    entry_point: str,
) -> tuple[Project, str, Code]:
    """Bring the project here; which commit of it was asked for, and what is there."""
    fetch = functools.partial(launcher.fetch, entry_point=entry_point, given=given)
    if source.folder is not None:
        code = sources.look(source.folder, recorded, run.run_id, any_commit=any_commit)
        return fetch(source.uri, None), "", code
    version = "" if any_commit else recorded
    project = fetch(source.uri, version or None)
    return project, version, sources.fetched(project.folder, recorded)


# --- go -----------------------------------------------------------------------


def go(launch: Launch, environment: Mapping[str, str]) -> NoReturn:
    """Become the training.

    Args:
        environment: What it gets besides what MLflow tells it.

    Raises:
        LeaseHeld: If another process, which is alive, writes to a series of the run.
        ResumeError: If the entry point has no command for these parameters.
        StoreError: If the server refuses.
    """
    store, run = Store(), launch.run
    program = Launcher(store.uri).program(
        run, launch.project, launch.entry_point, launch.params, launch.env_manager
    )
    _wait_for_writers(store, run)
    if text := launch.to_remember():
        store.set_tag(run, LAUNCH_TAG, text)
    told = {**environment, **program.variables}
    if launch.env_manager == "local":
        told["PATH"] = path_of_this_python(told.get("PATH", os.defpath))
    sys.stdout.flush()
    sys.stderr.flush()
    os.chdir(program.folder)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python; and it would be inherited
        signal.signal(ignored, signal.SIG_DFL)
    os.execvpe(program.words[0], program.words, told)


def path_of_this_python(path: str) -> str:
    """A search path on which `python` is the one of this environment."""
    here = Path(sys.executable).parent
    found = shutil.which("python", path=path)
    return path if found and Path(found).parent == here else f"{here}{os.pathsep}{path}"


def _wait_for_writers(store: Store, run: Run) -> None:
    """See that nobody writes to the run.

    The training would find out too, and its `with mlflow.start_run()` would mark the run, which
    somebody trains, as FAILED.
    """
    for key in run.tags:
        if key.startswith(LEASE_TAG_PREFIX):
            series = key.removeprefix(LEASE_TAG_PREFIX)
            where = f"run {run.run_id}, series {series!r}"
            lease = Lease(store.lease_tag(run, series), where=where)
            lease.acquire()
            lease.release()
