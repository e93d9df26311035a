"""The page about a run's checkpoints: what stands in it, of a run that went through a lot."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import mlflow
import plotly.graph_objects as go
import pytest
from builders import fit, mlp

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, page, reporter, resume
from mlflow_ckpt.history import History
from mlflow_ckpt.page import Facts
from mlflow_ckpt.record import MetricRow
from mlflow_ckpt.store import Store

EVIL = "<script>alert('x')</script>"


@dataclass(frozen=True)
class Told:
    """A run that was interrupted, continued, forked, damaged, verified, and trained further."""

    uri: str
    run_id: str
    fork: str


class Interrupts(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 4:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Told:
    folder = tmp_path_factory.mktemp("told")
    shutil.copy(empty_database, folder / "runs.db")
    uri = f"sqlite:///{folder / 'runs.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("told", (folder / "artifacts").as_uri())
    keep = Keep(last=3, best=1)
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment, run_name=f"run {EVIL}") as run:
        with pytest.raises(KeyboardInterrupt):
            fit(mlp(), MlflowCheckpoint(keep=keep), Interrupts(), epochs=6)
        resume._PROGRESS.clear()
        fit(mlp(), MlflowCheckpoint(keep=keep), epochs=6)
        ckpt.pin(run.info.run_id, "epoch=5")
        fork = ckpt.fork(run.info.run_id, "epoch=5")
        callback = MlflowCheckpoint(name="second", monitor="loss", save_weights_only=True)
        fit(mlp(), callback, epochs=1)
    damaged = ckpt.resolve(run.info.run_id, "epoch=4@ckpt")
    file = Path(damaged.artifact_uri.removeprefix("file://")) / "data/model.keras"
    file.write_bytes(b"rot" + file.read_bytes()[3:])
    assert not ckpt.verify(run.info.run_id).ok
    return Told(uri, run.info.run_id, fork)


@pytest.fixture
def facts(told: Told) -> Facts:
    mlflow.set_tracking_uri(told.uri)
    store = Store()
    run = store.run(told.run_id)
    return page.gather(store, run, reporter.read_histories(store, run))


def names(figure: Mapping[str, Any]) -> dict[str, Any]:
    return {trace["name"]: trace for trace in figure["data"]}


# --- facts --------------------------------------------------------------------


def test_every_checkpoint_is_known_the_deleted_ones_too(facts: Facts) -> None:
    first, second = facts.parts
    assert [part.series.name for part in facts.parts] == ["ckpt", "second"]
    assert [made.epoch for made in first.ever] == [1, 2, 3, 4, 5, 6]
    assert [each.checkpoint.epoch for each in first.held] == [4, 5, 6]
    assert [each.checkpoint.weights_only for each in second.held] == [True]
    assert all(made.lag_s and made.write_s for made in first.history.made)
    assert [made.epoch for made in first.history.made if made.stall_ms is not None][:3] == [1, 2, 3]


def test_resumes_forks_and_verdicts_are_known(facts: Facts, told: Told) -> None:
    (first, _), store = facts.parts, Store()
    assert [(one.epoch, one.step) for one in first.history.resumed] == [(4, 8)]
    assert facts.resumes == 1
    assert {each.checkpoint.epoch: each.state for each in first.held} == {
        4: "corrupt",
        5: "verified",
        6: "verified",
    }
    assert {each.checkpoint.epoch: each.forks for each in first.held if each.forks} == {
        5: (told.fork,)
    }
    assert first.held[0].reason.startswith("data/model.keras: expected ")
    parent = page.gather(store, store.run(told.fork), {}).parent
    assert parent == (told.run_id, "10")


def test_what_a_killed_process_could_not_note_is_known_by_its_step(facts: Facts) -> None:
    part = replace(facts.parts[0], history=History(series="ckpt"))
    assert [(made.epoch, made.step) for made in part.ever] == [
        (-1, 2),
        (-1, 4),
        (-1, 6),
        (4, 8),
        (5, 10),
        (6, 12),
    ]


# --- figures ------------------------------------------------------------------


def test_plotlys_own_classes_take_the_figures(facts: Facts) -> None:
    found = page.figures(facts)
    assert set(found) == {"curves", "costs", "timeline"}
    for figure in found.values():
        go.Figure(figure)  # It refuses what the schema does not have.
        json.dumps(figure, allow_nan=False)


def test_the_curve_has_the_checkpoints_on_it(facts: Facts) -> None:
    found = names(page.figures(facts)["curves"])
    curve = dict(zip(found["val_loss"]["x"], found["val_loss"]["y"], strict=True))
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    for name, epochs in (("ckpt: deleted by now", [1, 2, 3]), ("ckpt: checkpoints", [4, 5, 6])):
        assert found[name]["x"] == epochs
        assert found[name]["y"] == [curve[epoch] for epoch in epochs]
    assert found["ckpt: latest"]["x"] == [6]
    assert found["ckpt: best"]["x"] == [ckpt.resolve(facts.run.run_id, "best@ckpt").epoch]
    assert found["second/loss"]["visible"] is True
    assert found["accuracy"]["visible"] == "legendonly"


def test_the_timeline_has_fits_resumes_and_forks(facts: Facts, told: Told) -> None:
    found = names(page.figures(facts)["timeline"])
    assert len(found["ckpt: deleted by now"]["x"]) == 3
    assert len(found["ckpt: checkpoints"]["x"]) == 3
    assert found["ckpt: resumed"]["text"] == ["resumed at epoch 4, step 8"]
    assert found["ckpt: forked"]["text"] == [f"run {told.fork} began here, at step 10"]
    stretches = found["ckpt: training"]["x"]
    assert len(stretches) == 6
    assert stretches[3] == found["ckpt: resumed"]["x"][0]
    assert sorted(x for x in stretches if x) == [x for x in stretches if x]


def test_sizes_stalls_and_lags_are_drawn_by_step(facts: Facts) -> None:
    found = names(page.figures(facts)["costs"])
    assert found["ckpt: size"]["x"] == [2, 4, 6, 8, 10, 12]
    assert set(found["ckpt: stall"]["x"]) <= {2, 4, 6, 8, 10, 12}
    assert found["ckpt: lag"]["x"] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.7976931348623157e308])
def test_what_is_not_finite_leaves_a_gap(value: float, facts: Facts) -> None:
    rows = (MetricRow(key="val_loss", value=value, timestamp=1, step=1),)
    found = page.figures(replace(facts, curves={"val_loss": rows}))
    assert names(found["curves"])["val_loss"]["y"] == [None]
    json.dumps(found, allow_nan=False)


# --- page, table, description -------------------------------------------------


def test_the_page_asks_no_network_and_runs_nothing_of_the_runs(facts: Facts) -> None:
    key = f"{EVIL}--><!--</script>"
    rows = (MetricRow(key=key, value=1.0, timestamp=1, step=1),)
    text = page.html(replace(facts, curves={**facts.curves, key: rows})).decode()
    assert "default-src 'none'" in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert EVIL not in text
    assert text.count("</script>") == 3
    figures = text.split('id="figures-json">')[1].split("</script>")[0]
    assert not set("<>&") & set(figures)
    assert set(json.loads(figures)) == {"curves", "costs", "timeline"}


def test_the_page_says_what_a_person_wants_to_know(facts: Facts, told: Told) -> None:
    text = re.sub(r"<[^>]+>", " ", page.html(facts).decode().split("<script")[0])
    text = " ".join(text.split())
    for words in (
        "Checkpoints 4 ",
        "Latest of ckpt epoch 6 step 12, val_loss ",
        "Resumed 1 time exact: true",
        "Verified 1 corrupt",
        "ckpt-0004-00000008 is corrupt: data/model.keras: expected ",
        f"ckpt:/{told.run_id}/best@ckpt",
        f"mlflow-ckpt resume {told.run_id}",
    ):
        assert words in text


def test_the_table_is_one_of_mlflows(facts: Facts, told: Told) -> None:
    found = mlflow.load_table(page.TABLE, run_ids=[told.run_id])
    listed = ckpt.list_checkpoints(told.run_id)
    whole = found[found["state"] != "corrupt"].reset_index(drop=True)
    assert list(whole["model_id"]) == list(listed["model_id"])
    assert list(whole["is_best"]) == list(listed["is_best"])
    assert whole["metrics.val_loss"].to_list() == pytest.approx(
        listed["metrics.val_loss"].to_list(), nan_ok=True
    )
    assert list(found["state"]) == ["corrupt", "verified", "verified", "verified"]
    raw = json.loads(page.table(facts))
    assert {len(row) for row in raw["data"]} == {len(raw["columns"])}


def test_the_description_leads_to_the_report_and_back_to_the_run(facts: Facts, told: Told) -> None:
    text = page.note(facts)
    assert text.startswith("**4 checkpoints**, ")
    assert "latest: epoch 6, step 12, `val_loss " in text
    assert "**1 corrupt**" in text
    assert f'load_weights(model, "{told.run_id}", "best@ckpt")' in text
    assert mlflow.get_run(told.run_id).data.tags["mlflow.note.content"] == text


@pytest.mark.parametrize(
    ("text", "ours"),
    [("", True), (" \n", True), ("mine", False), ("<!-- mlflow_ckpt blake3:00 -->", False)],
)
def test_a_description_is_left_alone_unless_it_is_ours(text: str, ours: bool) -> None:
    assert page.is_ours(text) is ours


def test_so_is_one_of_ours_that_somebody_has_changed(facts: Facts) -> None:
    text = page.note(facts)
    assert page.is_ours(text)
    assert not page.is_ours(text.replace("**4", "**5"))
    assert not page.is_ours("And: " + text)
    assert not page.is_ours(text + "\nmine")
