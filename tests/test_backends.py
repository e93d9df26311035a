"""What matters most, on every tracking server and artifact store, and who may do what."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import stored
from backends import BasicAuth, as_user
from builders import fit, history, mlp, same
from doubles import RaiseAt, StopHere
from mlflow.store.artifact import s3_artifact_repo

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.errors import DigestMismatch, SaveFailed, ServerAway, StoreError

pytestmark = pytest.mark.backends(quick=True)

Forget = Callable[[], None]
PROMPT_S = 30.0  # MLflow's own retries take minutes.


def train(run_id: str | None, epochs: int, *extra: Any, keep: Keep | None = None) -> Any:
    """What a script does; returns the run ID and the model."""
    keras.utils.set_random_seed(11)
    model = mlp()
    with mlflow.start_run(run_id=run_id) as run:
        fit(model, MlflowCheckpoint(keep=keep), *extra, epochs=epochs)
    return run.info.run_id, model


def new_run() -> str:
    with mlflow.start_run() as run:
        return str(run.info.run_id)


@pytest.fixture
def another_machine(
    another_process: Forget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Forget:
    """Call it to go on with an empty disk."""

    def move() -> None:
        another_process()
        monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "another"))

    return move


@contextmanager
def prompt() -> Iterator[None]:
    """What waiting does not mend is said at once."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PROMPT_S


@pytest.mark.backends(quick=("postgres-s3", "basic-auth"))
def test_what_a_fit_kept_is_found_and_loaded_and_the_rest_is_gone(tmp_path: Path) -> None:
    run_id, model = train(None, 5, keep=Keep(last=2, best=1))
    table = ckpt.list_checkpoints(run_id)
    losses = [value for _, value in history(run_id)["val_loss"]]
    best = losses.index(min(losses)) + 1
    assert list(table["epoch"]) == sorted({best, 4, 5})
    which = ("latest", "best", "best(val_loss,min)", "final", "step=8", "epoch=4@ckpt")
    found = [ckpt.resolve(run_id, each).epoch for each in which]
    assert found == [5, best, best, 5, 4, 4]
    assert same(ckpt.load_model(run_id, "final"), model)
    assert same(mlflow.keras.load_model(ckpt.resolve(run_id).uri), model)
    mine = mlp(optimizer="sgd")
    assert ckpt.load_weights(mine, run_id, "latest").epoch == 5
    assert all(map(np.array_equal, mine.get_weights(), model.get_weights()))
    folder = ckpt.download(run_id, "latest", tmp_path / "out")
    assert same(mlflow.keras.load_model(str(folder)), model)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    records = client.search_logged_models([experiment.experiment_id])
    assert {record.model_id for record in records} == set(table["model_id"])
    paths = [path.split("/") for path in stored.listing(experiment.artifact_location)]
    assert {path[1] for path in paths if path[0] == "models"} == set(table["model_id"])


def test_an_interrupted_fit_ends_like_a_whole_one_on_another_machine(
    another_machine: Forget,
) -> None:
    whole_run, whole = train(None, 4)
    another_machine()
    run_id = new_run()
    with pytest.raises(StopHere):
        train(run_id, 4, RaiseAt(3))
    another_machine()
    _, model = train(run_id, 4)
    assert same(model, whole)
    assert history(run_id) == history(whole_run)


@pytest.mark.backends(quick=("postgres-s3",))
def test_a_fork_goes_on_like_its_parent_and_leaves_it_alone(another_machine: Forget) -> None:
    parent, whole = train(None, 4)
    before = list(ckpt.list_checkpoints(parent)["model_id"])
    another_machine()
    run_id = ckpt.fork(parent, "epoch=2")
    _, model = train(run_id, 4)
    assert same(model, whole)
    assert history(run_id) == history(parent)
    assert list(ckpt.list_checkpoints(parent)["model_id"]) == before


def test_a_checkpoint_by_hand_is_ranked_and_comes_back() -> None:
    with mlflow.start_run() as run:
        saved = [ckpt.save(mlp(), metrics={"score": score}) for score in (0.5, 0.75, 0.25)]
    run_id = run.info.run_id
    assert ckpt.resolve(run_id, "best(score,max)") == saved[1]
    assert ckpt.resolve(run_id) == saved[2]
    assert mlflow.get_run(run_id).data.metrics["manual/score"] == 0.25
    assert ckpt.load_model(run_id, "step=1").count_params() == mlp().count_params()


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_file_is_an_error_and_no_reason_to_wait(damage: str) -> None:
    with mlflow.start_run() as run:
        saved = [ckpt.save(mlp()) for _ in range(2)]
    run_id = run.info.run_id
    stored.DAMAGE[damage](saved[1], "data/model.keras")
    with prompt(), pytest.raises(DigestMismatch, match=r"data/model\.keras"):
        ckpt.load_model(run_id, "step=2")
    with prompt():
        assert ckpt.load_weights(mlp(), run_id, "latest").step == 1


# --- who may do what ----------------------------------------------------------


READ = "READ to load, EDIT to train"


@pytest.mark.backends("basic-auth", quick=True)
def test_who_may_read_loads_and_is_told_what_it_takes_to_write(
    backend: BasicAuth, another_machine: Forget
) -> None:
    run_id, model = train(None, 2)
    reader = backend.permitted(run_id, "READ")
    another_machine()
    with as_user(reader):
        assert ckpt.resolve(run_id, "best").run_id == run_id
        assert list(ckpt.list_checkpoints(run_id)["epoch"]) == [1, 2]
        assert same(ckpt.load_model(run_id), model)
        with prompt(), pytest.raises(StoreError, match=READ) as saving:
            ckpt.save(mlp(), run_id)
        with prompt(), pytest.raises(StoreError, match=READ) as training:
            fit(mlp(), MlflowCheckpoint(run_id=run_id), epochs=3)
    for caught in (saving, training):
        assert not isinstance(caught.value, ServerAway)
        assert "403" not in str(caught.value)
    assert list(ckpt.list_checkpoints(run_id)["epoch"]) == [1, 2]


@pytest.mark.backends("basic-auth", quick=True)
@pytest.mark.parametrize("known", [False, True], ids=["no-credentials", "wrong-password"])
def test_who_is_not_known_is_told_so_at_once(known: bool, backend: BasicAuth) -> None:
    run_id, _ = train(None, 1)
    user = {**backend.environment, "MLFLOW_TRACKING_PASSWORD": "wrong password"} if known else {}
    name = user.get("MLFLOW_TRACKING_USERNAME")
    text = f"Set MLFLOW_TRACKING_USERNAME and .* Received: MLFLOW_TRACKING_USERNAME={name!r}"
    with as_user(user):
        for use in (
            lambda: ckpt.load_model(run_id),
            lambda: ckpt.save(mlp(), run_id),
            lambda: fit(mlp(), MlflowCheckpoint(run_id=run_id), epochs=2),
        ):
            with prompt(), pytest.raises(StoreError, match=text) as caught:
                use()
            assert not isinstance(caught.value, ServerAway)
            assert "wrong password" not in str(caught.value)


@pytest.mark.backends("basic-auth", quick=True)
def test_a_run_of_which_one_may_not_know_is_denied(backend: BasicAuth) -> None:
    run_id, _ = train(None, 1)
    with as_user(backend.new_user("stranger")), pytest.raises(StoreError, match=READ):
        ckpt.resolve(run_id)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Call it to be nobody to the artifact store: both clients remember who they were."""

    def forget() -> None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
        s3_artifact_repo._cached_get_s3_client.cache_clear()

    yield forget
    s3_artifact_repo._cached_get_s3_client.cache_clear()


@pytest.mark.backends("postgres-s3", quick=True)
def test_an_artifact_store_that_was_told_no_credentials_is_not_waited_for(
    no_credentials: Callable[[], None],
) -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp())
    no_credentials()
    text = "Unable to locate credentials.*Check the credentials of the artifact store"
    with prompt(), pytest.raises(SaveFailed, match=text):
        ckpt.save(mlp(), run.info.run_id)
    with prompt(), pytest.raises(StoreError, match=text) as caught:
        ckpt.load_model(run.info.run_id)
    assert not isinstance(caught.value, ServerAway)
