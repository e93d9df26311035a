"""Run one measuring function in a fresh process and bring its answer back.

A figure must not feel what an earlier one left behind: warm allocators, JAX's threads, a
model that a legacy saver damaged. So each gets an interpreter of its own, and a folder
that is removed with everything written below it.

    call("benchmarks.hooks:measure", {...}) -> what the function returned, through JSON
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[1]
_MARK = "::progress:: "


class MeasurementFailed(RuntimeError):
    """A measuring process ended without an answer; the message has the end of its output."""


def say(text: str) -> None:
    """Tell the parent process what is being measured now."""
    print(_MARK + text, flush=True)


def call(
    function: str,
    arguments: Mapping[str, Any],
    *,
    scratch: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Any:
    """Call `module:function` with `arguments` and `scratch=<a folder of its own>`.

    Args:
        function: What to call; its answer must be plain JSON data.
        arguments: Keyword arguments, plain JSON data.
        scratch: Folder below which the process gets one of its own.
        progress: Called with each line that the process passes to `say`.

    Raises:
        MeasurementFailed: If the process fails.
    """
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        question, answer = folder / "question.json", folder / "answer.json"
        question.write_text(json.dumps({"function": function, "arguments": dict(arguments)}))
        command = [sys.executable, "-m", "benchmarks.process", str(question), str(answer)]
        with subprocess.Popen(
            command,
            cwd=folder,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:
            try:
                tail = _listen(child, progress)
            except BaseException:
                child.terminate()
                raise
        if child.returncode or not answer.is_file():
            raise MeasurementFailed(
                f"{function} ended with code {child.returncode} and no answer. Its last lines:\n"
                + "".join(tail)
            )
        return json.loads(answer.read_text())


def _listen(child: subprocess.Popen[str], progress: Callable[[str], None]) -> list[str]:
    tail: list[str] = []
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(_MARK):
            progress(line.removeprefix(_MARK).strip())
        else:
            tail = [*tail[-29:], line]
    return tail


def _environment(folder: Path) -> dict[str, str]:
    """The caller's, without what would point MLflow or W&B elsewhere, and without a network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "WANDB_"))}
    wandb = {f"WANDB_{name}_DIR": str(folder) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    return kept | wandb | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])),
        "TMPDIR": str(folder),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "KERAS_BACKEND": "tensorflow",
        "JAX_PLATFORMS": "cpu",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder),
    }  # fmt: skip


def stop_on_sigterm() -> None:
    """Let SIGTERM raise `SystemExit`, so that servers and folders are cleaned up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _serve(question: Path, answer: Path) -> None:
    stop_on_sigterm()
    asked = json.loads(question.read_text())
    module, _, name = asked["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    answer.write_text(json.dumps(function(**asked["arguments"], scratch=answer.parent)))


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
