"""A bar on stderr where that is a terminal, and nothing of it anywhere else."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import Trained, train
from rich.progress import Progress

from mlflow_ckpt import progress
from mlflow_ckpt.cli_bar import _Bar, shown

SCRIPT = Path(sys.executable).with_name("mlflow-ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Trained:
    return train(tmp_path_factory.mktemp("trained"), empty_database)


def on_a_terminal(uri: str, *words: str, both: bool = False, **more: str) -> tuple[str, str]:
    """What a command prints on stdout, and what its stderr, a terminal, shows."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [SCRIPT, *words, "--tracking-uri", uri],
        stdout=theirs if both else subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", **more},
    )
    os.close(theirs)
    shown = b""
    while piece := _read(ours):
        shown += piece
    os.close(ours)
    out = child.communicate(timeout=60)[0]
    assert child.returncode == 0, shown
    return (out or b"").decode(), shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so once the other side is closed.
        return b""


def plain(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def left(shown: str) -> list[str]:
    """The lines that a person sees in the end: a terminal that knows what a bar needs of it."""
    lines, row, column = [""], 0, 0
    for match in re.finditer(
        r"\x1b\[(\d*)([a-zA-Z])|\x1b\[\?25[lh]|(\r)|(\n)|([^\x1b\r\n]+)", shown
    ):
        count, letter, back, down, text = match.groups()
        if back:
            column = 0
        elif down:
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
            column += len(text)
        elif letter == "A":
            row = max(0, row - int(count or 1))
        elif letter == "K":
            lines[row] = "" if count == "2" else lines[row][:column]
    return [line.rstrip() for line in lines if line.strip()]


def test_a_download_shows_bytes_and_leaves_nothing(trained: Trained, tmp_path: Path) -> None:
    out, shown = on_a_terminal(trained.uri, "pull", trained.run_id, "best@ckpt", "--dst", "out")
    assert out == "out/ckpt-0004-00000008\n"
    assert re.search(r"downloading .*━.* KiB of \d+\.\d KiB", plain(shown))
    assert left(shown) == []


def test_lines_and_bar_share_a_terminal(trained: Trained) -> None:
    _, shown = on_a_terminal(trained.uri, "verify", trained.run_id, both=True)
    assert "reading" in plain(shown)
    lines = left(shown)
    assert [line.split()[0] for line in lines] == ["whole", "whole", "whole", "3"]
    assert lines[-1].endswith("all whole.")


def test_with_json_the_bar_is_on_stderr_still(trained: Trained) -> None:
    out, shown = on_a_terminal(trained.uri, "verify", trained.run_id, "--json")
    assert out.startswith("{\n")
    assert "\x1b" not in out
    assert "reading" in plain(shown)


def test_a_terminal_that_cannot_be_drawn_on_is_not(trained: Trained, tmp_path: Path) -> None:
    words = ("pull", trained.run_id, "best@ckpt", "--dst", "out")
    assert on_a_terminal(trained.uri, *words, TERM="dumb")[1] == ""


@pytest.mark.parametrize("force", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "forced"])
def test_a_pipe_gets_nothing_of_it(trained: Trained, tmp_path: Path, force: dict[str, str]) -> None:
    done = subprocess.run(
        [SCRIPT, "verify", trained.run_id, "--tracking-uri", trained.uri],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **force},
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 4


@pytest.mark.pure
def test_rich_is_imported_only_for_a_terminal() -> None:
    code = """
import sys
from mlflow_ckpt.cli_bar import _Bar, shown
with shown("x"):
    print("rich" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.pure
def test_what_is_read_twice_is_not_more_than_all_of_it() -> None:
    drawn = Progress(disable=True)
    with progress.watched_by(_Bar(drawn, "reading", "bytes")):
        progress.expect(2048)
        progress.moved(2048)
        progress.moved(2048)
    (task,) = drawn.tasks
    assert (task.completed, task.total) == (2048, 2048)
    assert task.fields["amount"].startswith("2.0 KiB of 2.0 KiB")


@pytest.mark.pure
def test_checkpoints_are_counted_as_such() -> None:
    drawn = Progress(disable=True)
    bar = _Bar(drawn, "deleting", "checkpoints")
    bar.expect(3)
    bar.moved(1)
    assert drawn.tasks[0].fields["amount"] == "1 of 3 checkpoints"
    bar.turn_to("and now", measured=False)
    assert (drawn.tasks[0].total, drawn.tasks[0].description) == (None, "and now")


@pytest.mark.pure
def test_nothing_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with shown("reading"):
        progress.expect(1)
        progress.moved(1)
    assert capsys.readouterr() == ("", "")
