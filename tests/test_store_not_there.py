"""An artifact store that cannot be seen from here is no damage, and nothing to begin anew over."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
import stored
from builders import fit, history, mlp
from calling import Cli
from mlflow import MlflowClient

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, below
from mlflow_ckpt.errors import ArtifactsMissing, IntegrityError, StoreError
from mlflow_ckpt.orphans import Collector
from mlflow_ckpt.spool import Spool, journals

Forget = Callable[[], None]


def trained(epochs: int = 3) -> str:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=epochs)
    return str(run.info.run_id)


class Begun(keras.callbacks.Callback):
    """Which epochs were really begun: `History` has those before a resume too."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(epoch + 1)


def train_on(run_id: str, epochs: int, **options: Any) -> list[int]:
    """Continue the run; returns the epochs that were trained, from 1."""
    keras.utils.set_random_seed(11)
    begun = Begun()
    with mlflow.start_run(run_id=run_id):
        fit(mlp(), begun, MlflowCheckpoint(**{"keep": None} | options), epochs=epochs)
    return begun.epochs


def states(run_id: str) -> list[str]:
    experiment = mlflow.get_run(run_id).info.experiment_id
    found = MlflowClient().search_logged_models(
        [experiment], filter_string=f"source_run_id = '{run_id}'"
    )
    return [model.tags["ckpt.complete"] for model in found]


@contextmanager
def unmounted(place: Path) -> Iterator[None]:
    """An empty folder where the artifacts are, as a disk that is not mounted leaves it."""
    away = place.with_name("away")
    place.rename(away)
    place.mkdir()
    try:
        yield
    finally:
        place.rmdir()
        away.rename(place)


@pytest.fixture
def elsewhere(another_process: Forget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Forget:
    def move() -> None:
        another_process()
        monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "another"))

    return move


def test_nothing_is_marked_deleted_or_trained_anew(
    tmp_path: Path, elsewhere: Forget, call: Cli
) -> None:
    run_id = trained()
    elsewhere()
    with unmounted(tmp_path / "artifacts"):
        for use in (
            lambda: ckpt.load_model(run_id),
            lambda: ckpt.load_model(run_id, "epoch=2"),
            lambda: ckpt.download(run_id, "latest", tmp_path / "out"),
            lambda: train_on(run_id, 4),
            lambda: ckpt.prune(run_id, Keep(last=1)),
        ):
            with pytest.raises(ArtifactsMissing, match="A disk may not be mounted"):
                use()
        done = call("verify", run_id, "--json")
        assert (done.code, done.json()["ok"]) == (1, False)
        found = done.json()["verdicts"]
        assert {v["state"] for v in found} == {"unreadable"}
        assert all("A disk may not be mounted" in v["faults"][0]["found"] for v in found)
    assert set(states(run_id)) <= {"true", "deleting"}
    assert train_on(run_id, 4) == [4]
    assert len(history(run_id)["loss"]) == 4
    assert ckpt.verify(run_id).ok


def test_what_runs_that_are_gone_left_is_not_forgotten(tmp_path: Path) -> None:
    run_id = trained(1)
    files = Path(ckpt.resolve(run_id).artifact_uri.removeprefix("file://"))
    mlflow.delete_run(run_id)
    with unmounted(tmp_path / "artifacts"):
        (left,) = Collector(deleted_runs=True).collect("tests")
    assert not left.gone
    assert "A disk may not be mounted" in left.why
    assert files.exists()
    assert [o.gone for o in Collector(deleted_runs=True).collect("tests")] == [True]
    assert not files.parent.exists()


def test_a_resume_from_this_machine_begins_no_second_store(
    tmp_path: Path, call: Cli, another_process: Forget
) -> None:
    """What it trains waits in the spool; nothing is laid where the disk should be."""
    run_id = trained()
    another_process()
    with unmounted(tmp_path / "artifacts"):
        keep, spool = Keep(last=1), Spool(drain_timeout=2)
        assert train_on(run_id, 5, keep=keep, spool=spool) == [4, 5]
        assert list((tmp_path / "artifacts").iterdir()) == []
    assert states(run_id).count("true") == 3
    another_process()
    assert call("sync", run_id).code == 0
    assert ckpt.resolve(run_id).epoch == 5
    assert ckpt.verify(run_id).ok


@pytest.mark.parametrize("waits", [True, False])
def test_a_copy_that_its_disk_does_not_give_back_stays(
    waits: bool, monkeypatch: pytest.MonkeyPatch, another_process: Forget, tmp_path: Path
) -> None:
    run_id = trained(2)
    another_process()
    journal = next(journals(tmp_path / "spool"))
    real = below.open_below

    def failing(root: Path, path: str) -> Any:
        if "spool" in str(root) and path == "state/training_state.h5":
            raise OSError(errno.EIO if waits else errno.EMFILE, "not now")
        return real(root, path)

    monkeypatch.setattr("mlflow_ckpt.manifest.open_below", failing)
    if waits:
        assert train_on(run_id, 3) == [3]
    else:
        with pytest.raises(OSError, match="not now"):
            train_on(run_id, 3)
        assert journal.copy() is not None


def test_a_series_of_which_everything_is_corrupt_is_not_begun_anew(
    elsewhere: Forget, call: Cli
) -> None:
    run_id = trained(2)
    found = [ckpt.resolve(run_id, f"epoch={epoch}") for epoch in (1, 2)]
    whole = {c.model_id: stored.read(c, "data/model.keras") for c in found}
    for checkpoint in found:
        stored.DAMAGE["flipped"](checkpoint, "data/model.keras")
    elsewhere()
    for text in ("is damaged", "only ones that are marked as corrupt"):
        with pytest.raises(IntegrityError, match=text):
            train_on(run_id, 3)
    stored.write(found[0], "data/model.keras", whole[found[0].model_id])
    assert call("verify", run_id).code == 1
    assert ckpt.resolve(run_id).epoch == 1
    assert train_on(run_id, 3) == [2, 3]
    assert call("prune", run_id, "--corrupt").code == 0
    assert call("verify", run_id).code == 0


def test_a_file_that_the_disk_does_not_give_back_is_neither_damage_nor_a_riddle(
    monkeypatch: pytest.MonkeyPatch, call: Cli
) -> None:
    run_id = trained(2)
    rotten, real = ckpt.resolve(run_id), below.open_below

    def failing(root: Path, path: str) -> Any:
        if rotten.model_id in str(root) and path == "data/model.keras":
            raise OSError(errno.EIO, "Input/output error")
        return real(root, path)

    monkeypatch.setattr("mlflow_ckpt.manifest.open_below", failing)
    with pytest.raises(StoreError, match=r"read 'data/model\.keras' of ckpt-0002-.*Input/output"):
        ckpt.load_model(run_id)
    done = call("verify", run_id, "--json")
    assert done.code == 1
    first, second = done.json()["verdicts"]
    assert (first["state"], second["state"]) == ("whole", "unreadable")
    assert "Input/output error" in second["faults"][0]["found"]
    assert states(run_id) == ["true", "true"]


def test_tags_that_nobody_can_read_hide_no_other_fault(call: Cli) -> None:
    run_id = trained(2)
    bad, rotten = (ckpt.resolve(run_id, f"epoch={epoch}") for epoch in (1, 2))
    MlflowClient().set_logged_model_tags(bad.model_id, {"ckpt.step": "many"})
    stored.DAMAGE["flipped"](rotten, "data/model.keras")
    done = call("verify", "--experiment", "tests", "--json")
    assert done.code == 1
    found = {v["model_id"]: v["state"] for v in done.json()["verdicts"]}
    assert found == {bad.model_id: "unreadable", rotten.model_id: "corrupt"}
