"""What a shell offers: driven in a real bash, and over the protocol of the other two."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calling import Cli

from mlflow_ckpt import cli, cli_completion

pytestmark = pytest.mark.pure

RUN, OTHER = "1b97644678bf4a588b4e6a3b90d4ddfe", "2c97644678bf4a588b4e6a3b90d4ddfe"
SELECTORS = ["latest", "best", "final", "step=", "epoch="]
SCRIPTS = Path(sys.executable).parent


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One run with one series, an older one with two, and what is no run."""
    folder = tmp_path / "spool"
    for age, (run, series) in enumerate([(RUN, "ckpt"), (OTHER, "finetune"), (OTHER, "head")]):
        journal = folder / run / series / "journal.json"
        journal.parent.mkdir(parents=True)
        journal.write_text(json.dumps({"format": "1.0"}))
        os.utime(journal, (1_000_000_000 - age, 1_000_000_000 - age))
    (folder / "lost+found").mkdir()
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(folder))
    monkeypatch.setenv("PATH", f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    return folder


def complete_in_bash(*words: str) -> list[str]:
    """What bash offers for the last of these words, in a shell of its own."""
    code = """
eval "$(mlflow-ckpt completion bash)"
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
_mlflow_ckpt_completion mlflow-ckpt
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "--norc", "-c", code, "bash", "mlflow-ckpt", *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


def complete(shell: str, *words: str) -> list[str]:
    """What the command answers to a shell."""
    done = subprocess.run(
        [SCRIPTS / "mlflow-ckpt"],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "_MLFLOW_CKPT_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": " ".join(["mlflow-ckpt", *words]),
            "COMP_CWORD": words[-1] if shell == "fish" else str(len(words)),
        },
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


# --- in bash ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        pytest.param(["p"], ["pull", "prove", "pin", "prune"], id="commands"),
        pytest.param(["show", ""], [RUN, OTHER], id="runs"),
        pytest.param(["show", "2c"], [OTHER], id="a-run"),
        pytest.param(["show", RUN, ""], SELECTORS, id="selectors"),
        pytest.param(["export", RUN, "b"], ["best"], id="a-selector"),
        pytest.param(["show", OTHER, "be"], ["best@finetune", "best@head"], id="series"),
        pytest.param(["show", "0" * 32, "la"], ["latest"], id="a-run-of-elsewhere"),
        pytest.param(["list", RUN, "--j"], ["--json"], id="options"),
        pytest.param(["export", RUN, "best", "--format", "ke"], ["keras"], id="choices"),
        pytest.param(["sync", "1"], [RUN], id="sync"),
        pytest.param(["completion", "z"], ["zsh"], id="shells"),
    ],
)
def test_bash_completes(words: list[str], offered: list[str], spool: Path) -> None:
    assert complete_in_bash(*words) == offered


def test_bash_sets_no_space_behind_what_needs_a_number(spool: Path) -> None:
    """Typed on a terminal: Tab, Tab."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null"},
    )
    os.close(theirs)
    os.write(ours, b'eval "$(mlflow-ckpt completion bash)"\n')
    os.write(ours, f"mlflow-ckpt show {RUN} ste\t5 --js\t\n".encode())
    os.write(ours, b"exit 7\n")
    shown = b""
    while piece := _read(ours):
        shown += piece
    os.close(ours)
    assert child.wait(timeout=60) == 7
    assert f"mlflow-ckpt show {RUN} step=5 --json " in shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so once the other side is closed.
        return b""


# --- in the others ------------------------------------------------------------


def test_zsh_is_told_of_series_too(spool: Path) -> None:
    told = complete("zsh", "show", "2c")
    assert told == ["plain", OTHER, "series finetune, head"]


def test_fish_is_told_what_each_selector_means(spool: Path) -> None:
    told = complete("fish", "show", RUN, "l")
    assert told == ["plain,latest\tthe newest"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_script_is_one_of_that_shell(shell: str, call: Cli) -> None:
    script = call("completion", shell).out
    assert f"_MLFLOW_CKPT_COMPLETE={shell}_complete" in script
    if path := shutil.which(shell):
        subprocess.run([path, "-n"], input=script, text=True, check=True)


# --- set up -------------------------------------------------------------------


def test_the_shell_is_the_one_of_the_environment(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert call("completion").out == call("completion", "fish").out
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = call("completion")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith(
        "Error: Expected one of bash, zsh, fish. Received: SHELL='tcsh'. "
        "Type: mlflow-ckpt completion bash\n"
    )


def test_a_terminal_is_told_where_to_put_it_and_a_file_is_not(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call("completion", "bash").err == ""
    monkeypatch.setattr(cli_completion, "_is_terminal", lambda: True)
    for shell, where in cli_completion.WHERE.items():
        assert call("completion", shell).err == f"{where}\n"


def test_the_page_says_the_same(call: Cli) -> None:
    page = (Path(__file__).parents[1] / "docs/cli.md").read_text(encoding="utf-8")
    for where in cli_completion.WHERE.values():
        for command in re.findall(r"(?:eval .*|mlflow-ckpt completion .*)$", where, re.MULTILINE):
            assert f"`{command}`" in page


def test_completing_imports_neither_mlflow_nor_keras(spool: Path) -> None:
    code = """
import os, sys
from mlflow_ckpt import cli
try:
    cli.main(prog_name="mlflow-ckpt")
except SystemExit:
    heavy = {"mlflow", "keras", "tensorflow", "pandas", "numpy", "rich", "sqlalchemy"}
    print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "_MLFLOW_CKPT_COMPLETE": "bash_complete",
            "COMP_WORDS": "mlflow-ckpt show 1",
            "COMP_CWORD": "2",
        },
    )
    assert done.stdout.splitlines() == [f"plain,{RUN}", "[]"]


def test_a_spool_that_cannot_be_read_offers_nothing(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(spool / "missing"))
    assert complete("bash", "show", "1") == [""]


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_run_id_and_selector_is_completed(name: str) -> None:
    for parameter in cli.main.commands[name].params:
        if parameter.name in ("run_id", "which"):
            assert parameter._custom_shell_complete is not None, parameter.name
