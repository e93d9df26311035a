"""How `mlflow-ckpt` ends: misspelt, interrupted, or with nobody reading any more."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Cli, Result

from mlflow_ckpt import report

SCRIPT = Path(sys.executable).with_name("mlflow-ckpt")

# A command that says that it has begun, and then works for a long time.
BUSY = """
import sys, time
from mlflow_ckpt import cli_options, report
from mlflow_ckpt.cli import main
cli_options.use = lambda uri: None
def work(*_):
    print("begun", flush=True)
    {work}
report.print_checkpoints = work
main(["list", "run", *sys.argv[1:]])
"""


def start(work: str, *words: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(work=work), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"begun\n"
    return child


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lst", "list"), ("resole", "resolve"), ("exports", "export"), ("Verify", "verify")],
)
def test_a_misspelt_command_is_answered_with_the_nearest(typed: str, meant: str, call: Cli) -> None:
    done = call(typed, "run")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(f"Error: No such command {typed!r}. Did you mean {meant!r}?\n")


def test_a_command_like_none_is_sent_to_the_help(call: Cli) -> None:
    assert call("zzz").err.endswith("Error: No such command 'zzz'. See: mlflow-ckpt --help\n")


def test_a_misspelt_option_is_answered_with_the_nearest(call: Cli) -> None:
    assert call("list", "run", "--serie", "x").err.endswith("Did you mean '--series'?\n")


def test_ctrl_c_ends_with_130_and_without_a_traceback() -> None:
    child = start("time.sleep(60)")
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (130, b"", b"\n")


def test_ctrl_c_is_no_failure_that_would_be_a_document() -> None:
    child = start("time.sleep(60)", "--debug")
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60) == (b"", b"\n")
    assert child.returncode == 130


@pytest.mark.parametrize(
    "work",
    [
        pytest.param("[print('x' * 99, flush=True) for _ in iter(int, 1)]", id="print"),
        pytest.param(
            "from mlflow_ckpt.table import console\\n"
            "    [console().print('x' * 99) for _ in iter(int, 1)]",
            id="rich",
        ),
        pytest.param("time.sleep(0.5); print('x')", id="at-the-end"),
    ],
)
def test_a_reader_that_goes_ends_it_quietly(work: str) -> None:
    child = start(work.replace("\\n", "\n"))
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == b""
    assert child.wait(timeout=60) == 141


def test_a_broken_socket_is_a_failure_like_any_other(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the errno of a pipe that nobody reads."""
    broken = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def fail(*_: object) -> None:
        raise broken

    monkeypatch.setattr(report, "print_checkpoints", fail)
    monkeypatch.setattr("mlflow_ckpt.cli_options.is_stdout_closed", lambda: False)
    assert call("list", "run") == Result(1, "", "Error: [Errno 32] Broken pipe\n")


def test_head_takes_what_it_wants_of_the_help() -> None:
    took = subprocess.run(
        f"set -o pipefail; {SCRIPT} --help | head -n 1; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        check=True,
    )
    first, code = took.stdout.splitlines()
    assert first == "Usage: mlflow-ckpt [OPTIONS] COMMAND [ARGS]..."
    assert code in ("0", "141")
    assert took.stderr == ""
