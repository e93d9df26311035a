"""The report of a run: when it is written, where, and that nothing depends on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from builders import fit, mlp
from calling import Cli

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, Spool, page, reporter
from mlflow_ckpt.errors import ConfigError, NoCheckpoints, ServerAway
from mlflow_ckpt.store import Store
from mlflow_ckpt.store._page import Page

NOTE = "mlflow.note.content"


def artifacts(run_id: str) -> set[str]:
    found = mlflow.MlflowClient().list_artifacts(run_id, "checkpoints")
    return {Path(info.path).name for info in found}


def tags(run_id: str) -> dict[str, str]:
    return dict(mlflow.get_run(run_id).data.tags)


@pytest.mark.backends("local", "proxied", "postgres-s3", "basic-auth", quick=("proxied",))
def test_a_fit_leaves_page_table_history_and_description() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    run_id = run.info.run_id
    assert artifacts(run_id) == {
        "ckpt.json",
        "ckpt.history.json",
        "checkpoints.json",
        "report.html",
    }
    assert list(mlflow.load_table(page.TABLE, run_ids=[run_id])["epoch"]) == [1, 2]
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/{page.REPORT}")
    assert f"ckpt:/{run_id}/best" in text
    assert tags(run_id)[NOTE].startswith("**2 checkpoints**")
    assert json.loads(tags(run_id)["mlflow.loggedArtifacts"]) == [
        {"path": page.TABLE, "type": "table"}
    ]


def test_what_the_user_wrote_stays() -> None:
    with mlflow.start_run(description="mine") as run:
        mlflow.log_table({"a": [1]}, "mine.json")
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    found = tags(run.info.run_id)
    assert found[NOTE] == "mine"
    paths = [each["path"] for each in json.loads(found["mlflow.loggedArtifacts"])]
    assert paths == ["mine.json", page.TABLE]


def test_a_description_of_ours_follows_the_run(another_process: Any) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=1)
        another_process()
        keras.utils.set_random_seed(7)
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    assert "latest: epoch 2" in tags(run.info.run_id)[NOTE]


@pytest.mark.parametrize("switch", ["argument", "environment"])
def test_it_can_be_switched_off(switch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if switch == "environment":
        monkeypatch.setenv(reporter.SWITCH, "false")
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(report=switch != "argument"), epochs=1)
        assert ckpt.verify(run.info.run_id).ok
    assert artifacts(run.info.run_id) == {"ckpt.json"}
    assert NOTE not in tags(run.info.run_id)


def test_it_is_refreshed_at_a_commit_when_its_turn_has_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    real = reporter.Reporter.refresh

    def refresh(self: reporter.Reporter) -> page.Facts:
        facts = real(self)
        seen.append(len(facts.held))
        return facts

    monkeypatch.setattr(reporter.Reporter, "refresh", refresh)
    monkeypatch.setattr(reporter, "_FIRST_S", 0.0)
    with mlflow.start_run():
        fit(mlp(), MlflowCheckpoint(), epochs=3)
    assert seen[-1] == 3
    assert len(seen) == 2  # At the first commit, and at the end: not again within 30 s.


def test_a_short_fit_gets_one_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = Page.put
    monkeypatch.setattr(reporter, "_FIRST_S", 3600.0)
    monkeypatch.setattr(Page, "put", lambda *args: (calls.append("put"), real(*args))[1])
    with mlflow.start_run():
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    assert calls == ["put"]


def test_a_fit_that_raises_gets_one_too() -> None:
    class Raises(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise RuntimeError("no more")

    with mlflow.start_run() as run:
        with pytest.raises(RuntimeError, match="no more"):
            fit(mlp(), MlflowCheckpoint(), Raises(), epochs=3)
        Store().run(run.info.run_id)  # It waits for what is being written.
    assert list(mlflow.load_table(page.TABLE, run_ids=[run.info.run_id])["epoch"]) == [1, 2]


@pytest.mark.parametrize("error", [ServerAway("no answer"), ZeroDivisionError("a mistake of ours")])
def test_what_goes_wrong_with_it_is_told_once_and_harms_nothing(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Page, "put", fails)
    monkeypatch.setattr(reporter, "_FIRST_S", 0.0)
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2]
    told = [line for line in capsys.readouterr().out.splitlines() if "the report of run" in line]
    assert len(told) == 1
    assert str(error) in told[0]


def test_a_history_that_cannot_be_read_is_told_and_begun_anew(
    another_process: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=1)
        mlflow.log_text("[", "checkpoints/ckpt.history.json")
        another_process()
        keras.utils.set_random_seed(7)
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    assert "The history of series 'ckpt'" in capsys.readouterr().out
    store = Store()
    found = reporter.read_histories(store, store.run(run.info.run_id))
    assert [made.epoch for made in found["ckpt"].made] == [2]


def test_saves_by_hand_are_reported() -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp(), metrics={"score": 0.5})
        Store().run(run.info.run_id)
    assert list(mlflow.load_table(page.TABLE, run_ids=[run.info.run_id])["kind"]) == ["manual"]


def test_a_series_may_have_the_name_of_the_table() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(name="checkpoints"), epochs=1)
    assert "checkpoints.series.json" in artifacts(run.info.run_id)
    assert list(mlflow.load_table(page.TABLE, run_ids=[run.info.run_id])["epoch"]) == [1]


# --- by hand ------------------------------------------------------------------


@pytest.fixture
def run_id(monkeypatch: pytest.MonkeyPatch) -> str:
    """A run with a checkpoint and no report."""
    with mlflow.start_run() as run, monkeypatch.context() as patch:
        patch.setenv(reporter.SWITCH, "false")
        ckpt.save(mlp(), metrics={"score": 0.5})
    return run.info.run_id


def test_a_file_is_written_and_only_a_report_is_replaced(run_id: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    assert ckpt.write_report(run_id, path) == str(path)
    assert ckpt.write_report(run_id, path) == str(path)
    assert run_id.encode() in path.read_bytes()
    assert artifacts(run_id) == {"manual.json"}
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists, and is no report. Choose another dst"):
        ckpt.write_report(run_id, path)
    assert path.read_text() == "mine"


def test_the_command_brings_that_of_the_run_up_to_date(run_id: str, call: Cli) -> None:
    done = call("report", run_id)
    assert (done.code, done.err) == (0, "")
    assert done.out.strip().endswith(f"{run_id}/artifacts/{page.REPORT}")
    assert {"report.html", "checkpoints.json"} <= artifacts(run_id)


def test_the_command_writes_a_file_and_json(run_id: str, call: Cli, tmp_path: Path) -> None:
    found = call("report", run_id, "--dst", tmp_path / "r.html", "--json").json()
    assert found == {
        "run_id": run_id,
        "where": str(tmp_path / "r.html"),
        "checkpoints": 1,
        "corrupt": 0,
        "bytes": ckpt.resolve(run_id).bytes,
    }


def test_a_run_without_checkpoints_has_nothing_to_report(call: Cli) -> None:
    with mlflow.start_run() as run:
        pass
    with pytest.raises(NoCheckpoints, match="holds no checkpoints. Add MlflowCheckpoint"):
        ckpt.write_report(run.info.run_id)
    assert call("report", run.info.run_id).code == 1


def test_a_spool_that_is_delivered_later_brings_it_up_to_date(
    call: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What another process left behind: the journal of a fit that could not deliver."""
    from mlflow_ckpt import deliverer

    with mlflow.start_run() as run, monkeypatch.context() as patch:

        def away(*_: Any) -> None:
            raise ServerAway("no answer")

        patch.setattr("mlflow_ckpt.delivery.Delivery.__call__", away)
        fit(mlp(), MlflowCheckpoint(spool=Spool(drain_timeout=0)), epochs=1)
        for one in list(deliverer._ALIVE):
            one.stop()
            assert one.join(10)
    assert artifacts(run.info.run_id) == set()
    assert call("sync", run.info.run_id).code == 0
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1]
    assert {"report.html", "checkpoints.json"} <= artifacts(run.info.run_id)
