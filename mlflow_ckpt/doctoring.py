"""Look whether this machine, a tracking server and its artifact store are fit for checkpoints.

    this machine -> tracking server -> who one is -> artifact store

What does not answer ends the look at what lies behind it, and nothing else. Nothing is left
behind: not on the server, and in the artifact store only what it cannot delete, which is named.

Each step has a bound: a client that tries again for minutes is left to itself.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from mlflow_ckpt import artifact_check, server_check, software, spool_check
from mlflow_ckpt.errors import CheckpointError, ServerAway
from mlflow_ckpt.finding import Finding, problem
from mlflow_ckpt.store import (
    Checkup,
    Store,
    current_uri,
    measure,
    portable_uri,
    use_tracking_uri,
)
from mlflow_ckpt.table import human_bytes

_Answer = TypeVar("_Answer")

SERVER_S = 20.0
ARTIFACTS_S = 120.0
_MIB = 1 << 20
_THREAD = "mlflow-ckpt-doctor"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be looked at.

    Attributes:
        tracking_uri: `None`: the one that is current.
        run_id: A run, in whose experiment artifacts are written.
        experiment: Its name, instead of a run's.
        size: Bytes of the file that measures.
        capture: Whether to import Keras, and try how a snapshot is taken.
    """

    tracking_uri: str | None = None
    run_id: str | None = None
    experiment: str | None = None
    size: int = 16 * _MIB
    capture: bool = True


def examine(wanted: Wanted, told: Callable[[str], None]) -> Iterator[Finding]:
    """Look at everything, one thing after the other.

    Args:
        told: Called with what is done next, where that takes a while.
    """
    told("looking at what is installed")
    yield from software.versions()
    yield software.plugin()
    if wanted.capture:
        told("importing Keras")
        yield _capture()
    fault = _use(wanted.tracking_uri)
    told("measuring the disk of the spool")
    yield from spool_check.look(portable_uri(current_uri()), wanted.size)
    if fault is not None:
        yield problem("tracking URI", fault)
        return
    yield server_check.address(wanted.tracking_uri)
    yield from _beyond(wanted, told)


def _use(uri: str | None) -> CheckpointError | None:
    try:
        use_tracking_uri(uri)
        Store()
    except CheckpointError as error:
        return error
    return None


def within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """Wait for an answer; what is still at it then goes on by itself.

    Raises:
        ServerAway: If there is none in time.
    """
    answers: list[_Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 (raised by whoever waits)
            errors.append(error)

    # MLflow keeps its workspace in a context variable, which no thread inherits.
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), name=_THREAD, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise ServerAway(f"No answer within {seconds:g} s.")
    return answers[0]


def still_waits() -> bool:
    """Whether somebody was left alone, whose threads would keep this process from ending."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def _beyond(wanted: Wanted, told: Callable[[str], None]) -> Iterator[Finding]:
    """What needs the server: once it does not answer, no further."""
    checkup = Checkup(current_uri())
    told("asking the tracking server")
    try:
        found = within(SERVER_S, lambda: server_check.server(checkup))
    except CheckpointError as error:
        yield server_check.dead(error)
        return
    yield found
    if found.verdict == "problem" or not found.facts["version"]:
        return
    try:
        run = within(SERVER_S, lambda: Store().run(wanted.run_id)) if wanted.run_id else None
        place = within(SERVER_S, lambda: checkup.place(run, wanted.experiment))
    except CheckpointError as error:
        yield problem("experiment", error)
        return
    yield from _asked("logged models", lambda: server_check.models(checkup, place, run))
    yield from _asked("user", lambda: server_check.visitor(checkup, place))
    if run is not None:
        yield from _asked("old checkpoints", lambda: server_check.deleting(checkup, run))
    yield artifact_check.store(checkup, place)
    told(f"writing and reading {human_bytes(wanted.size)} in the artifact store")
    try:
        measured = within(
            ARTIFACTS_S, lambda: measure(checkup.uri, place.artifact_uri, wanted.size)
        )
    except CheckpointError as error:
        yield problem("artifact speed", error)
        return
    yield artifact_check.speed(measured)
    yield artifact_check.deletion(measured)


def _asked(name: str, ask: Callable[[], Finding | None]) -> Iterator[Finding]:
    try:
        found = within(SERVER_S, ask)
    except CheckpointError as error:
        found = problem(name, error)
    if found is not None:
        yield found


def _capture() -> Finding:
    try:
        return software.capture()
    except Exception as error:  # noqa: BLE001 (a broken Keras or TensorFlow is what is looked for)
        return problem("capture", error)
