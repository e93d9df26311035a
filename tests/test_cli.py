"""The command line: what it prints, what it refuses, and what it never imports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import click
import keras
import mlflow
import pytest
from builders import mlp
from calling import Cli, Result
from cli_runs import Trained, train

import mlflow_ckpt as ckpt
from mlflow_ckpt import cli, cli_group, cli_take, errors, report
from mlflow_ckpt.errors import RunNotFound, StoreError
from mlflow_ckpt.exporting import Format
from mlflow_ckpt.store import use_tracking_uri

ROOT = Path(__file__).parents[1]
SCRIPT = Path(sys.executable).with_name("mlflow-ckpt")
PAGE = (ROOT / "docs/cli.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Trained:
    return train(tmp_path_factory.mktemp("trained"), empty_database)


# --- help ---------------------------------------------------------------------


def test_help_needs_no_heavy_import() -> None:
    """Seconds lie between `--help` with them and without."""
    code = """
import sys
from mlflow_ckpt.cli import main
for words in [[], *([name] for name in main.commands)]:
    main([*words, "--help"], standalone_mode=False)
heavy = {"mlflow", "keras", "tensorflow", "pandas", "numpy", "rich", "sqlalchemy"}
print("imported:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Usage:") == 1 + len(cli.main.commands)
    assert done.stdout.endswith("imported: []\n")
    assert done.stderr == ""


def test_looking_at_a_run_never_imports_keras(trained: Trained) -> None:
    """A new process, on the URI from the environment; stdout holds JSON and nothing else."""
    code = f"""
import sys
from mlflow_ckpt.cli import main
for words in (["list", "--json"], ["show", "best@ckpt", "--json"], ["show", "best@ckpt"]):
    main([words[0], "{trained.run_id}", *words[1:]], standalone_mode=False)
    print("----")
print(sorted({{"keras", "tensorflow", "mlflow.keras"}} & set(sys.modules)))
"""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": trained.uri}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    listed, shown, text, imported = done.stdout.split("----\n")
    assert [record["epoch"] for record in json.loads(listed)] == [2, 4, 0]
    assert json.loads(shown)["is_best"]
    assert trained.run_id in text
    assert imported == "[]\n"
    assert done.stderr == ""


COMMANDS = sorted(cli.main.commands)
NEEDS_NO_SERVER = ("completion",)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_documented(name: str, call: Cli) -> None:
    out = call(name, "--help").out
    assert re.search(rf"Example:\n +mlflow-ckpt {name} ", out)
    shared = ("--debug",) if name in NEEDS_NO_SERVER else ("--tracking-uri", "--json", "--debug")
    assert all(option in out for option in shared)
    assert not cli.main.commands[name].get_short_help_str(60).endswith("...")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    if "## Command line" in text:
        assert f"mlflow-ckpt {name}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_stands_on_its_page_with_every_option(name: str) -> None:
    _, found, rest = PAGE.partition(f"\n### {name}\n")
    assert found, f"docs/cli.md has no section {name!r}"
    section = re.split(r"\n##", rest)[0]
    assert f"`mlflow-ckpt {name}" in section
    for parameter in cli.main.commands[name].params:
        if isinstance(parameter, click.Option):
            assert any(f"`{word}" in section for word in parameter.opts), parameter.opts
    if name not in NEEDS_NO_SERVER:
        assert "\nKeys: " in section


def test_the_page_links_to_every_command() -> None:
    assert all(f"[{name}](#{name})" in PAGE for name in COMMANDS)


def test_help_groups_the_commands_in_the_order_of_their_use(call: Cli) -> None:
    out = call("--help").out
    titles = ["Look", "Take out", "Trust", "Keep", "Move on", "Repair", "Set up"]
    places = [out.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    assert all(re.search(rf"^  {name} +[A-Z]", out, re.MULTILINE) for name in COMMANDS)


def test_help_and_page_say_the_exit_codes(call: Cli) -> None:
    out, page = call("--help").out, PAGE.partition("## Exit codes")[2]
    for code in (0, 1, 2, cli_group.INTERRUPTED, cli_group.BROKEN_PIPE):
        assert re.search(rf"^  {code} ", out.partition("Exit codes:")[2], re.MULTILINE)
        assert f"\n| {code} | " in page


def test_help_answers_at_once() -> None:
    """Of processor time, of which a busy machine takes no more: the least of five."""
    took = []
    for _ in range(5):
        before = os.times()
        subprocess.run([SCRIPT, "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        took.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(took) < 0.3


def test_every_example_can_be_parsed() -> None:
    for name, command in cli.main.commands.items():
        examples = re.findall(rf"^ *mlflow-ckpt {name} (.*)$", command.help or "", re.MULTILINE)
        needed = {p.name for p in command.params if isinstance(p, click.Argument) and p.required}
        for words in examples:
            arguments = [word.strip("'") for word in words.split()]
            found = command.make_context(name, arguments).params
            assert all(found[each] for each in needed)


def test_the_version_is_printed(call: Cli) -> None:
    assert call("--version").out == f"mlflow-ckpt {ckpt.__version__}\n"


def test_the_installed_script_starts() -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"mlflow-ckpt {ckpt.__version__}\n"


# --- list and show ------------------------------------------------------------


def test_list_prints_a_table(trained: Trained, call: Cli) -> None:
    done = call("list", trained.run_id, "--tracking-uri", trained.uri)
    assert (done.code, done.err) == (0, "")
    for frame_name in ckpt.list_checkpoints(trained.run_id)["name"]:
        assert frame_name in done.out


def test_list_prints_the_columns_as_json(trained: Trained, call: Cli) -> None:
    done = call("list", trained.run_id, "--json", "--tracking-uri", trained.uri)
    found = json.loads(done.out)
    frame = ckpt.list_checkpoints(trained.run_id)
    assert [list(record) for record in found] == [list(frame.columns)] * len(frame)
    assert found[-1]["metrics.val_loss"] is None
    assert done.err == ""


def test_list_takes_one_series(trained: Trained, call: Cli) -> None:
    common = ("list", trained.run_id, "--tracking-uri", trained.uri, "--series")
    assert "ckpt-0002" not in call(*common, "manual").out
    assert call(*common, "head").err == (
        f"Error: Run {trained.run_id} has no series 'head'. It has: ckpt, manual.\n"
    )


def test_a_run_without_checkpoints_is_an_empty_list(trained: Trained, call: Cli) -> None:
    done = call("list", trained.empty, "--json", "--tracking-uri", trained.uri)
    assert (done.code, json.loads(done.out)) == (0, [])


def test_show_prints_one_checkpoint(trained: Trained, call: Cli) -> None:
    done = call("show", trained.run_id, "epoch=2@ckpt", "--tracking-uri", trained.uri)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("ckpt-0002-00000004")


def test_show_takes_the_latest_if_none_is_named(tracking: str, call: Cli) -> None:
    with mlflow.start_run() as run:
        made = ckpt.save(mlp())
    found = json.loads(call("show", run.info.run_id, "--json").out)
    assert (found["model_id"], found["run_id"]) == (made.model_id, run.info.run_id)
    assert found["manifest"]["format"] == "1.0"


# --- pull and export ----------------------------------------------------------


def test_pull_prints_the_folder(trained: Trained, call: Cli, tmp_path: Path) -> None:
    common = ("--dst", tmp_path / "new", "--tracking-uri", trained.uri)
    done = call("pull", trained.run_id, "best@ckpt", *common)
    folder = Path(done.out.removesuffix("\n"))
    assert folder.parent == tmp_path / "new"
    assert (folder / "data" / "model.keras").is_file()
    again = call("pull", trained.run_id, "best@ckpt", *common)
    assert (again.code, again.out) == (1, "")
    assert again.err == f"Error: {folder} already exists. Remove it, or choose another dst.\n"


def test_export_prints_the_path(trained: Trained, call: Cli, tmp_path: Path) -> None:
    target = tmp_path / "new" / "best.keras"
    common = ("--format", "keras", "--dst", target, "--tracking-uri", trained.uri)
    done = call("export", trained.run_id, "best@ckpt", *common)
    assert (done.code, done.out) == (0, f"{target}\n")
    assert keras.saving.load_model(target).optimizer.built


def test_the_formats_are_those_of_export() -> None:
    assert get_args(Format) == cli_take.FORMATS


# --- failures -----------------------------------------------------------------


@pytest.mark.parametrize("name", errors.__all__)
def test_every_expected_failure_is_one_line(
    name: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = getattr(errors, name)

    def fail(*_: object) -> None:
        raise error.__new__(error, "Expected this.\n  Received: that.")

    monkeypatch.setattr(report, "print_checkpoints", fail)
    done = call("list", "some-run")
    assert done == Result(1, "", "Error: Expected this. Received: that.\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        pytest.param(["list", "nobody"], "No run 'nobody' on the tracking server", id="run"),
        pytest.param(["show", "{empty}"], "holds no checkpoints", id="no-checkpoints"),
        pytest.param(["show", "{run}"], "several series: ckpt, manual", id="series"),
        pytest.param(["show", "{run}", "newest"], "Expected a selector: latest", id="selector"),
        pytest.param(["show", "{run}", "epoch=9@ckpt"], "nearest: epoch=2, epoch=4", id="epoch"),
        pytest.param(
            ["export", "{run}", "best@ckpt", "--format", "h5", "--dst", "x.keras"],
            "writes a file ending in '.h5'",
            id="suffix",
        ),
    ],
)
def test_bad_input_is_one_line(words: list[str], text: str, trained: Trained, call: Cli) -> None:
    names = {"run": trained.run_id, "empty": trained.empty}
    done = call(*(word.format_map(names) for word in words), "--tracking-uri", trained.uri)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: ")
    assert text in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["list"], id="no-run"),
        pytest.param(["look", "run"], id="no-command"),
        pytest.param(["show", "ckpt:/run/best", "latest"], id="selector-twice"),
        pytest.param(["pull", "ckpt:/run/best/data"], id="a-file"),
        pytest.param(["export", "run", "best", "--dst", "x"], id="no-format"),
        pytest.param(["export", "run", "best", "--format", "pb", "--dst", "x"], id="format"),
        pytest.param(["pull", "run", "--dst", __file__], id="dst-is-a-file"),
    ],
)
def test_a_wrong_command_line_exits_with_2(words: list[str], call: Cli) -> None:
    done = call(*words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: mlflow-ckpt")


def test_a_failure_nobody_foresaw_names_its_class(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(report, "print_checkpoints", fail)
    done = call("list", "some-run")
    assert done == Result(
        1, "", "Error: ZeroDivisionError: by zero (--debug shows the traceback)\n"
    )


def test_debug_lets_the_traceback_through(trained: Trained) -> None:
    words = ["list", "nobody", "--tracking-uri", trained.uri, "--debug"]
    with pytest.raises(RunNotFound):
        cli.main(words, prog_name="mlflow-ckpt")


# --- where the run is ---------------------------------------------------------


def test_a_missing_database_is_not_created(
    call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person meets who types `mlflow-ckpt list` in the wrong folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow.set_tracking_uri(None)
    done = call("list", "some-run")
    assert done.code == 1
    assert f"No MLflow database at {tmp_path}/elsewhere/mlflow.db." in done.err
    assert "--tracking-uri" in done.err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param("sqlite:///typo.db", id="relative"),
        pytest.param("sqlite:////nowhere/typo.db", id="folder"),
        pytest.param("sqlite:///typo.db?timeout=5", id="query"),
        pytest.param("sqlite+pysqlite:///typo.db", id="driver"),
    ],
)
def test_a_mistyped_database_is_refused(uri: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError, match=r"No MLflow database at /.*/typo\.db\. "):
        use_tracking_uri(uri)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database")
    with pytest.raises(StoreError, match=r"Expected an SQLite database. Received: .*notes\.db"):
        use_tracking_uri("sqlite:///notes.db")


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "sqlite://", "sqlite:///:memory:", "postgresql://me@host/db"]
)
def test_what_is_no_file_is_left_to_mlflow(uri: str) -> None:
    use_tracking_uri(uri)
    assert mlflow.get_tracking_uri() == uri


def test_the_default_database_is_found_in_a_folder_with_a_space(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    shutil.copy(empty_database, "mlflow.db")
    mlflow.set_tracking_uri(None)
    use_tracking_uri(None)
    with pytest.raises(RunNotFound):
        ckpt.list_checkpoints("nobody")
