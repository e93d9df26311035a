"""The best checkpoint of an experiment: of all its runs and series, by one search."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import mlflow
import pytest
from builders import fit, mlp
from mlflow import MlflowClient

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.errors import (
    MetricNotFound,
    NoCheckpoints,
    NotFound,
    SelectorError,
    SeriesNotFound,
)
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    DIGEST_TAG,
    FORK_STATE_TAG,
    FORKING,
    MODEL_TYPE,
    STEP_METRIC,
    Position,
    Series,
)
from mlflow_ckpt.store import _across


@dataclass
class Of:
    """A run whose checkpoints are records without files: nothing here reads a byte."""

    series: dict[str, Series] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with mlflow.start_run() as run:
            mlflow.set_tags(self.tags)
        self.run_id = run.info.run_id
        self.experiment_id = run.info.experiment_id

    def has(self, name: str = "ckpt", **facts: Any) -> Of:
        """Record a series."""
        self.series[name] = series = Series(name=name, **facts)
        MlflowClient().set_tag(self.run_id, series.tag, series.to_json())
        return self

    def saved(
        self,
        step: int,
        series: str = "ckpt",
        *,
        kind: Any = "epoch",
        complete: str = "true",
        status: str = "READY",
        **metrics: float,
    ) -> Of:
        """Commit a checkpoint, or leave it in another state."""
        client, prefix = MlflowClient(), self.series[series].prefix
        position = Position(series=series, kind=kind, epoch=step, step=step)
        model = client.create_logged_model(
            self.experiment_id,
            name=position.name,
            source_run_id=self.run_id,
            tags={**position.tags(), DIGEST_TAG: "blake3:0", COMPLETE_TAG: complete},
            model_type=MODEL_TYPE,
        )
        for key, value in {STEP_METRIC: step, **metrics}.items():
            client.log_metric(self.run_id, prefix + key, value, step=step, model_id=model.model_id)
        client.finalize_logged_model(model.model_id, status)
        return self


def best(which: str = "best(val_loss)") -> tuple[str, str, int]:
    """Run, series and step of the best one."""
    found = ckpt.resolve(f"ckpt:/experiment/tests/{which}")
    return found.run_id, found.series, found.step


def test_the_best_of_all_runs_wins() -> None:
    Of().has().saved(1, val_loss=0.5, accuracy=0.9).saved(2, val_loss=0.4, accuracy=0.8)
    other = Of().has().saved(1, val_loss=0.3, accuracy=0.7).saved(2, val_loss=0.6, accuracy=0.1)
    assert best() == (other.run_id, "ckpt", 1)
    assert best("best(accuracy,min)") == (other.run_id, "ckpt", 2)
    assert ckpt.resolve("ckpt:/experiment/tests/best(accuracy)").metrics["accuracy"] == 0.9


def test_of_equal_ones_the_later_step_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_across, "_MODELS", 2)
    first = Of().has()
    for step in (1, 9, 3):
        first.saved(step, val_loss=0.5)
    second = Of().has().saved(4, val_loss=0.5).saved(10, val_loss=0.7)
    assert best() == (first.run_id, "ckpt", 9)
    assert best("best(val_loss,max)") == (second.run_id, "ckpt", 10)


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"complete": "pending"}, id="pending"),
        pytest.param({"complete": "corrupt"}, id="corrupt"),
        pytest.param({"complete": "deleting"}, id="deleting"),
        pytest.param({"status": "FAILED"}, id="failed"),
        pytest.param({"kind": "final"}, id="end-state"),
    ],
)
def test_what_a_run_would_not_find_is_not_found(state: dict[str, Any]) -> None:
    run = Of().has().saved(1, val_loss=0.5).saved(2, val_loss=0.1, **state)
    assert best() == (run.run_id, "ckpt", 1)


def test_a_value_that_was_not_finite_never_wins() -> None:
    """MLflow stores it as the largest number that there is."""
    run = Of().has().saved(1, score=1.0).saved(2, score=sys.float_info.max)
    run.saved(3, other=1.0)
    assert best("best(score,max)") == (run.run_id, "ckpt", 1)


def test_deleted_runs_and_forks_that_are_not_whole_take_no_part() -> None:
    run = Of().has().saved(1, val_loss=0.5)
    gone = Of().has().saved(2, val_loss=0.1)
    Of(tags={FORK_STATE_TAG: FORKING}).has().saved(3, val_loss=0.2)
    MlflowClient().delete_run(gone.run_id)
    assert best() == (run.run_id, "ckpt", 1)
    MlflowClient().restore_run(gone.run_id)
    assert best() == (gone.run_id, "ckpt", 2)


def test_a_metric_is_one_however_a_series_spells_it() -> None:
    """A later series of a run logs `tune/val_loss`, which is its own `val_loss`."""
    both = Of().has().has("tune", prefix="tune/").saved(1, val_loss=0.5)
    both.saved(2, "tune", val_loss=0.2)
    alone = Of().has("tune").saved(3, "tune", val_loss=0.3)
    assert best() == (both.run_id, "tune", 2)
    assert ckpt.resolve("ckpt:/experiment/tests/best(val_loss)").metrics == {"val_loss": 0.2}
    both.saved(4, val_loss=0.1)
    assert best() == (both.run_id, "ckpt", 4)
    assert best("best(val_loss)@tune") == (both.run_id, "tune", 2)
    alone.saved(5, "tune", val_loss=0.1)
    assert best("best(val_loss)@tune") == (alone.run_id, "tune", 5)


def test_without_a_metric_the_monitor_decides_on_which_all_agree() -> None:
    Of().has(monitor="score", mode="max").saved(1, score=0.5)
    run = Of().has(monitor="score", mode="max").has("by_hand").saved(1, score=0.7)
    assert best("best") == (run.run_id, "ckpt", 1)
    Of().has(monitor="other", mode="min").saved(1, other=0.5)
    with pytest.raises(
        SelectorError,
        match=r"recorded different monitors: other, score\. Name a metric: "
        r"ckpt:/experiment/tests/best\(other\)",
    ):
        best("best")


def test_without_any_monitor_a_metric_has_to_be_named() -> None:
    Of().has().saved(1, loss=0.5)
    with pytest.raises(SelectorError, match=r"no monitor\. Name a metric: .*/best\(val_loss\)"):
        best("best")


def test_the_recorded_direction_beats_the_name() -> None:
    run = Of().has(directions={"loss": "max"}).saved(1, loss=0.5).saved(2, loss=0.1)
    assert best("best(loss)") == (run.run_id, "ckpt", 1)
    assert best("best(val_loss,min)".replace("val_", "")) == (run.run_id, "ckpt", 2)


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        pytest.param([{}, {}], "It is not known whether 'score'", id="nobody-knows"),
        pytest.param(
            [{"score": "min"}, {"score": "max"}], "do not agree whether 'score'", id="contradiction"
        ),
    ],
)
def test_a_direction_that_is_missing_has_to_be_typed(
    directions: list[dict[str, Any]], message: str
) -> None:
    for each in directions:
        Of().has(directions=each).saved(1, score=0.5)
    typed = r"Type ckpt:/experiment/tests/best\(score,min\) or ckpt:/.*/best\(score,max\)"
    with pytest.raises(SelectorError, match=rf"{message}.*{typed}"):
        best("best(score)")
    assert best("best(score,max)")[2] == 1


def test_a_metric_that_nothing_has_is_an_error_that_names_the_others() -> None:
    Of().has().has("tune", prefix="tune/").saved(1, val_loss=0.5).saved(2, "tune", auc=0.5)
    with pytest.raises(MetricNotFound, match=r"finite 'val_los'\. There are: auc, val_loss\. Did"):
        best("best(val_los)")
    with pytest.raises(MetricNotFound, match=r"of the series 'tune' of .*There are: auc\."):
        best("best(val_loss)@tune")


def test_a_series_that_nothing_has_is_an_error_that_names_the_others() -> None:
    Of().has().has("tune", prefix="tune/")
    with pytest.raises(SeriesNotFound, match=r"has a series 'head'\. There are: ckpt, tune\."):
        best("best@head")


def test_an_experiment_without_checkpoints_says_how_to_get_some() -> None:
    with mlflow.start_run():
        mlflow.log_metric("val_loss", 0.1)
    with pytest.raises(NoCheckpoints, match=r"Add MlflowCheckpoint\(\) to the callbacks"):
        best()


def test_an_experiment_that_is_not_there_is_named_with_what_is() -> None:
    with pytest.raises(NotFound, match=r"No experiment is called 'test' .* There are: 'tests'"):
        ckpt.resolve("ckpt:/experiment/test/best(val_loss)")
    experiment = mlflow.create_experiment("old")
    mlflow.delete_experiment(experiment)
    with pytest.raises(NotFound, match=rf"restore --experiment-id {experiment}"):
        ckpt.resolve("ckpt:/experiment/old/best(val_loss)")


def test_one_search_is_made_for_each_spelling(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        run = Of().has(monitor="val_loss", mode="min").has("tune", prefix="tune/")
        run.saved(1, val_loss=0.5).saved(2, val_loss=0.4).saved(3, "tune", val_loss=0.3)
    asked: list[str] = []
    search = MlflowClient.search_logged_models

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["order_by"][0]["field_name"])
        return search(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "search_logged_models", counted)
    assert best("best") == (run.run_id, "tune", 3)
    assert asked == ["metrics.val_loss", "metrics.tune/val_loss"]


@pytest.mark.backends(quick=())
def test_the_best_of_real_fits_is_found() -> None:
    for epochs in (1, 2):
        with mlflow.start_run() as run:
            fit(mlp(), MlflowCheckpoint(), epochs=epochs)
    name = mlflow.get_experiment(run.info.experiment_id).name
    found = ckpt.resolve(f"ckpt:/experiment/{name}/best")
    runs = mlflow.search_runs([run.info.experiment_id])["run_id"]
    best_of_each = [ckpt.resolve(run_id, "best").metrics["val_loss"] for run_id in runs]
    assert len(best_of_each) == 2
    assert found.metrics["val_loss"] == min(best_of_each)
