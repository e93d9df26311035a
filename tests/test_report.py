"""What a person sees: the table on a terminal and in a pipe, one checkpoint, what to type next."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import NoConfig, fit, mlp

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, formats, next_steps, report, table
from mlflow_ckpt.errors import DigestMismatch, RunNotFound, SeriesNotFound

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would make rich take a pipe for a terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> SimpleNamespace:
    """A database with three runs: one series, several series, no checkpoints."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "runs.db")
    found = SimpleNamespace(uri=f"sqlite:///{folder / 'runs.db'}", folder=folder)
    mlflow.set_tracking_uri(found.uri)
    experiment = mlflow.create_experiment("report", (folder / "artifacts").as_uri())
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment, run_name="plain") as run:
        fit(mlp(), MlflowCheckpoint())
        found.plain = run.info.run_id
    with mlflow.start_run(experiment_id=experiment, run_name="two") as run:
        model = mlp()
        fit(model, MlflowCheckpoint(name="head"), epochs=1)
        fit(
            model,
            MlflowCheckpoint(name="tail", monitor="val_accuracy", save_weights_only=True),
            epochs=1,
        )
        ckpt.save(model, metrics={"score": 1e-7})
        found.several = run.info.run_id
    with mlflow.start_run(experiment_id=experiment, run_name="none") as run:
        found.empty = run.info.run_id
    return found


@pytest.fixture
def runs(trained: SimpleNamespace, tracking: str) -> SimpleNamespace:
    mlflow.set_tracking_uri(trained.uri)
    return trained


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call with a width and a function: what the function prints on such a terminal."""

    def call(width: int, function: Callable[..., None], *args: Any) -> str:
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setenv("COLUMNS", str(width))
            patch.setenv("TERM", "xterm")
            function(*args)
        return screen.getvalue()

    return call


# --- the table ----------------------------------------------------------------


def test_a_pipe_gets_plain_text_with_every_column(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_checkpoints(runs.plain)
    title, head, *rows, ranked_by = capsys.readouterr().out.splitlines()
    assert title.startswith(f"Run {runs.plain} (plain): 3 checkpoints, ")
    assert " ".join(head.split()) == (
        "series epoch step kind val_loss accuracy loss val_accuracy size created name model ID"
    )
    records = report.records(runs.plain)
    for row, record in zip(rows, records, strict=True):
        assert record["name"] in row
        assert row.endswith(record["model_id"])
        assert row.startswith("latest") == record["is_latest"]
        assert (" best " in f" {row}") == record["is_best"]
    assert ranked_by == "best: lowest val_loss"
    assert "\x1b" not in "".join(rows)


@pytest.mark.parametrize("run", ["plain", "several"])
@pytest.mark.parametrize("width", [60, 80, 100, 140, 220])
def test_a_terminal_gets_what_fits_and_is_told_what_does_not(
    runs: SimpleNamespace, terminal: Callable[..., str], width: int, run: str
) -> None:
    text = terminal(width, report.print_checkpoints, getattr(runs, run))
    assert "\x1b[32m" in text
    lines = ESCAPES.sub("", text).splitlines()
    head = next(line for line in lines if line.lstrip().startswith(("series", "epoch")))
    end = next(i for i, line in enumerate(lines) if line.startswith("best"))
    assert max(len(line) for line in lines[1:end]) <= width
    assert all(name in head for name in ("epoch", "step", "val_loss"))
    last = lines[-1]
    for title in ("kind", "size", "created", "name", "model ID", "series"):
        assert (title in head) != (last.startswith("Left out") and title in last)


def test_a_wide_terminal_leaves_nothing_out(
    runs: SimpleNamespace, terminal: Callable[..., str]
) -> None:
    assert "Left out" not in terminal(220, report.print_checkpoints, runs.plain)


def test_a_run_of_several_series_names_the_ranking_of_each(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_checkpoints(runs.several)
    out = capsys.readouterr().out
    assert "best of head: lowest val_loss" in out
    assert "best of tail: highest val_accuracy" in out
    assert "epoch (weights)" in out
    assert "1.000e-07" in out
    assert " - " in out


def test_one_series_can_be_listed_alone(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_checkpoints(runs.several, "head")
    out = capsys.readouterr().out
    assert "head-0001" in out
    assert "tail" not in out
    with pytest.raises(SeriesNotFound):
        report.print_checkpoints(runs.several, "nose")


def test_a_run_without_checkpoints_says_so(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_checkpoints(runs.empty)
    assert capsys.readouterr().out == f"Run {runs.empty} (none) holds no checkpoints.\n"


# --- records ------------------------------------------------------------------


def test_records_are_json_with_null_and_utc(runs: SimpleNamespace) -> None:
    frame = ckpt.list_checkpoints(runs.several)
    records = report.records(runs.several)
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert [list(record) for record in records] == [list(frame.columns)] * len(frame)
    assert records[0]["metrics.score"] is None
    assert records[0]["metrics.val_loss"] == frame["metrics.val_loss"][0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", records[0]["created_at"])


def test_a_description_is_the_record_with_its_manifest(runs: SimpleNamespace) -> None:
    found = report.describe(runs.plain, "epoch=2")
    assert found.items() >= report.records(runs.plain)[1].items()
    assert found["run_id"] == runs.plain
    assert found["manifest"]["checkpoint"]["epoch"] == 2
    assert json.loads(json.dumps(found, allow_nan=False))


def test_a_description_verifies_the_manifest(tracking: str) -> None:
    with mlflow.start_run() as run:
        made = ckpt.save(mlp())
    manifest = Path(made.artifact_uri.removeprefix("file://")) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(DigestMismatch, match=r"manifest\.json"):
        report.describe(run.info.run_id, f"step={made.step}")


# --- one checkpoint -----------------------------------------------------------


def test_one_checkpoint_is_shown_in_full(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_checkpoint(runs.plain, "best")
    out = capsys.readouterr().out
    found = report.describe(runs.plain, "best")
    for entry in found["manifest"]["files"]:
        assert re.search(rf"^  {re.escape(entry['path'])} .*{entry['digest']}$", out, re.MULTILINE)
    for text in (found["uri"], found["digest"], "Adam, 10 variables", "(monitor, min)"):
        assert text in out
    assert re.search(rf"^  keras +{re.escape(keras.__version__)}$", out, re.MULTILINE)
    assert f'  model = ckpt.load_model("{runs.plain}", "best")\n' in out


def test_digests_are_shortened_where_the_terminal_is_narrow(
    runs: SimpleNamespace, terminal: Callable[..., str]
) -> None:
    digest = report.describe(runs.plain, "latest")["manifest"]["files"][0]["digest"]
    narrow = ESCAPES.sub("", terminal(80, report.print_checkpoint, runs.plain, "latest"))
    assert digest not in narrow
    assert digest[:19] in narrow
    assert digest in terminal(120, report.print_checkpoint, runs.plain, "latest")


def test_a_model_that_cannot_be_rebuilt_is_shown_its_way_back(
    tracking: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert next_steps._CONFIG == formats.CONFIG
    model = NoConfig(lambda: 2)
    model(np.zeros((1, 3)))
    with mlflow.start_run() as run:
        ckpt.save(model, weights_only=True)
    report.print_checkpoint(run.info.run_id, "latest")
    out = capsys.readouterr().out
    assert f'  ckpt.load_weights(model, "{run.info.run_id}", "latest")' in out
    assert "load_model" not in out


# --- the summary of a run ---------------------------------------------------


@pytest.mark.parametrize("run", ["plain", "several", "empty"])
def test_the_summary_ends_with_commands_that_are_never_broken(
    runs: SimpleNamespace, terminal: Callable[..., str], run: str
) -> None:
    run_id = getattr(runs, run)
    lines = ESCAPES.sub("", terminal(40, report.print_run_summary, run_id)).splitlines()
    commands = lines[lines.index("Next") + 1 :]
    assert commands[0] == f"  mlflow ui --backend-store-uri {runs.uri}"
    assert run_id in commands[1]
    assert len(commands) == (2 if run == "empty" else 3)


def test_the_load_command_can_be_pasted(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    report.print_run_summary(runs.several)
    assign, python, flag, code = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert (assign, python, flag) == (f"MLFLOW_TRACKING_URI={runs.uri}", "python", "-c")
    exec(code)
    assert "Trainable params" in capsys.readouterr().out


def test_a_summary_of_an_unknown_run_is_refused(tracking: str) -> None:
    with pytest.raises(RunNotFound):
        report.print_run_summary("nobody")


# --- words --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "text"),
    [
        pytest.param(0, "0 B", id="nothing"),
        pytest.param(1023, "1023 B", id="bytes"),
        pytest.param(1024, "1.0 KiB", id="kib"),
        pytest.param(1536 * 1024, "1.5 MiB", id="mib"),
        pytest.param(3 * 1024**3, "3.0 GiB", id="gib"),
        pytest.param(2048 * 1024**4, "2048.0 TiB", id="beyond"),
    ],
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert table.human_bytes(size) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        pytest.param([0.5, None, -2.0], ["0.5000", "-", "-2.0000"], id="plain"),
        pytest.param([0.0, 1.0], ["0.0000", "1.0000"], id="zero-is-plain"),
        pytest.param([1e-5, 0.5], ["1.000e-05", "5.000e-01"], id="small"),
        pytest.param([1e9, 0.0], ["1.000e+09", "0.000e+00"], id="large"),
        pytest.param([None], ["-"], id="none"),
    ],
)
def test_numbers_of_a_column_share_a_notation(values: list[float | None], texts: list[str]) -> None:
    assert table.numbers(values) == texts
