"""Run training processes that record what they do, one after another.

Each has a folder of its own below the proof's; see `trace.py` for what lies in it.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.spool import VARIABLE
from mlflow_ckpt.trace import PROBE, Task, Trace

_TAIL = 20  # lines of a failed process's output


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that is over: what it noted, its exit code, the end of what it printed."""

    trace: Trace
    code: int
    output: str


class Processes:
    """Starts one command again and again.

    Args:
        command: `{run_id}` and `{experiment_id}` in it are filled in.
        folder: Where the processes leave their traces and their output.
        environment: Theirs, but for what says where to train.
        tracking_uri, experiment_id: Where the runs are.

    Attributes:
        spool: Where their checkpoints wait: not with those of the user.
    """

    def __init__(
        self,
        command: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        *,
        tracking_uri: str,
        experiment_id: str,
    ) -> None:
        self._command = command
        self._folder = folder
        self._experiment_id = experiment_id
        self.spool = folder / "spool"
        self._environment = {
            **{k: v for k, v in environment.items() if not k.startswith("MLFLOW_EXPERIMENT_")},
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_EXPERIMENT_ID": experiment_id,
            VARIABLE: str(self.spool),
        }
        self._started = 0

    def run(self, run_id: str, task: Task) -> Ended:
        """Train in a new process until it ends, or kills itself as its task says.

        Raises:
            ConfigError: If the command cannot be started.
        """
        self._started += 1
        folder = self._folder / f"process-{self._started}"
        # What a killed process leaves in its temporary folder goes with this one.
        temporary = folder / "tmp"
        temporary.mkdir(parents=True)
        task.write(folder)
        fields = {"{run_id}": run_id, "{experiment_id}": self._experiment_id}
        words = [_fill(word, fields) for word in self._command]
        environment = {
            **self._environment,
            "MLFLOW_RUN_ID": run_id,
            "TMPDIR": str(temporary),
            PROBE: str(folder),
        }
        out, err = folder / "stdout", folder / "stderr"
        code = _run(words, environment, out, err)
        return Ended(trace=Trace.read(folder), code=code, output=_tail(err, out))


def failure(text: str, ended: Ended) -> str:
    """`text`, with how the process ended and the last that it said."""
    code = f"exit code {ended.code}" if ended.code >= 0 else signal.Signals(-ended.code).name
    return f"{text}, with {code}. The last it said:\n{ended.output}"


def _run(words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path) -> int:
    """Run a command to its end; returns its exit code.

    Its output goes to files, not to pipes: what a killed process has started may hold a
    pipe open for ever. If we are interrupted, it goes, with all it has started.
    """
    with out.open("wb") as stdout, err.open("wb") as stderr:
        try:
            child = subprocess.Popen(
                words,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(
                f"The command cannot be started: {error}. Received: {list(words)!r}"
            ) from error
        try:
            return child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise


def _fill(word: str, fields: Mapping[str, str]) -> str:
    for field, value in fields.items():
        word = word.replace(field, value)
    return word


def _tail(*files: Path) -> str:
    """The last lines of the first file that has any."""
    for file in files:
        lines = file.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
        if lines:
            return "\n".join(f"  {line}" for line in lines[-_TAIL:])
    return "  (it printed nothing)"
