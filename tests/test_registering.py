"""Registering: what a version says and serves, what stays of it, and what a failure leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import keras
import mlflow
import numpy as np
import pytest
import stored
from backends import BasicAuth, as_user
from builders import Subclassed, data, fit, mlp
from calling import Cli
from doubles import NaNFrom
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import (
    ENDPOINT_NOT_FOUND,
    INVALID_PARAMETER_VALUE,
    PERMISSION_DENIED,
    TEMPORARILY_UNAVAILABLE,
)
from test_serving import free_port, process

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, Registered, slim_copy
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import (
    CheckpointNotFound,
    ConfigError,
    DigestMismatch,
    ManifestError,
    NotFound,
    ServerAway,
    StoreError,
    UnsupportedStore,
)
from mlflow_ckpt.manifest import FILENAME
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import Registry, SlimCopies, Store, _delete


def trained(epochs: int = 3, run_id: str | None = None, **options: Any) -> str:
    with mlflow.start_run(run_id=run_id) as run:
        fit(mlp(), MlflowCheckpoint(**{"keep": None, **options}), epochs=epochs)
    return str(run.info.run_id)


def models(run_id: str) -> list[Any]:
    run = mlflow.get_run(run_id)
    return list(
        MlflowClient().search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
    )


def copies(run_id: str) -> list[Any]:
    """Slim copies, in whatever state."""
    return [model for model in models(run_id) if "ckpt.slim_of" in model.tags]


def versions(name: str = "digits") -> list[Any]:
    return sorted(
        MlflowClient().search_model_versions(f"name = '{name}'"), key=lambda v: int(v.version)
    )


def names() -> list[str]:
    return [found.name for found in MlflowClient().search_registered_models()]


@dataclass(frozen=True)
class Shared:
    """A database with one run, and what tells its checkpoints from what a test makes."""

    uri: str
    run_id: str


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Shared:
    folder = tmp_path_factory.mktemp("shared")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("shared", (folder / "artifacts").as_uri())
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment) as run:
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=3)
    return Shared(uri, run.info.run_id)


@pytest.fixture
def run_id(shared: Shared, tracking: str) -> Iterator[str]:
    """The shared run, of whose checkpoints none is damaged or deleted; the rest goes behind it."""
    mlflow.set_tracking_uri(shared.uri)
    yield shared.run_id
    client = MlflowClient()
    for registered in names():
        client.delete_registered_model(registered)
    for model in models(shared.run_id):
        if model.model_type != "keras-checkpoint":
            shutil.rmtree(Path(urlsplit(model.artifact_location).path), ignore_errors=True)
            client.delete_logged_model(model.model_id)
        elif model.tags.keys() & {"mlflow.modelVersions", "ckpt.pinned"}:
            for tag in {"mlflow.modelVersions", "ckpt.pinned"} & model.tags.keys():
                client.delete_logged_model_tag(model.model_id, tag)


@pytest.fixture
def name() -> str:
    """Of a registered model: a server keeps those of all tests."""
    return f"digits-{uuid.uuid4().hex[:8]}"


def files_of(model: Any) -> list[str]:
    return stored.listing(model.artifact_location)


def epochs(run_id: str) -> list[int]:
    return list(ckpt.list_checkpoints(run_id)["epoch"])


# --- what a version says ------------------------------------------------------


@pytest.mark.backends(quick=("proxied",))
def test_a_version_names_a_slim_copy_and_says_where_it_came_from(name: str) -> None:
    run_id = trained()
    best = ckpt.resolve(run_id, "best")
    found = ckpt.register(run_id, "best", name, alias="champion", tags={"team": "a", "n": 1})
    (slim,) = copies(run_id)
    (version,) = versions(name)
    assert found == Registered(
        name=name,
        version=1,
        alias="champion",
        source=f"models:/{slim.model_id}",
        model_id=best.model_id,
        run_id=run_id,
        series="ckpt",
        step=best.step,
        epoch=best.epoch,
        metrics=best.metrics,
        slim=True,
        keeps_optimizer=False,
        bytes_before=best.bytes,
        bytes=int(slim.tags["ckpt.slim_bytes"]),
    )
    assert found.uri == f"models:/{name}/1"
    assert (version.source, version.run_id) == (found.source, run_id)
    assert version.tags == {
        "team": "a",
        "n": "1",
        "ckpt.run_id": run_id,
        "ckpt.series": "ckpt",
        "ckpt.step": str(best.step),
        "ckpt.epoch": str(best.epoch),
        "ckpt.model_id": best.model_id,
        "ckpt.manifest_digest": best.digest,
        "ckpt.slim": "true",
        **{f"ckpt.metric.{key}": repr(value) for key, value in best.metrics.items()},
    }
    assert version.description == (
        f"{best.name} of run {run_id}, found as best: epoch {best.epoch}, step {best.step}; "
        "without training state and optimizer."
    )
    assert int(MlflowClient().get_model_version_by_alias(name, "champion").version) == 1
    assert (slim.name, slim.model_type, slim.status.value) == (
        f"{best.name}-slim",
        "keras",
        "READY",
    )
    assert slim.tags["mlflow.note.content"] == (
        f"What a registered version of {best.name} serves: its model, without training state, "
        "optimizer and compilation. To continue the training, use the run."
    )
    noted = json.loads(slim.tags.pop("mlflow.modelVersions"))
    assert [(each["name"], int(each["version"])) for each in noted] == [(name, 1)]
    assert {key: slim.tags[key] for key in ("ckpt.slim_of", "ckpt.slim_maker")} == {
        "ckpt.slim_of": best.model_id,
        "ckpt.slim_maker": "",
    }
    assert found.bytes < found.bytes_before / 2


@pytest.mark.backends
def test_what_is_registered_predicts_like_the_checkpoint_without_warnings(name: str) -> None:
    run_id = trained()
    found = ckpt.register(run_id, "epoch=2", name, "champion")
    (slim,) = copies(run_id)
    listed = files_of(slim)
    x, _ = data()
    expected = ckpt.load_model(run_id, "epoch=2").predict(x, verbose=0)
    folder = mlflow.artifacts.download_artifacts(found.source)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = keras.saving.load_model(f"{folder}/data/model.keras")
        for uri in (found.uri, f"models:/{name}@champion", found.source):
            model = mlflow.keras.load_model(uri)
            assert not model.compiled
            np.testing.assert_array_equal(model.predict(x, verbose=0), expected)
        served = mlflow.pyfunc.load_model(f"models:/{name}@champion")
        np.testing.assert_array_equal(served.predict(x), expected)
    np.testing.assert_array_equal(plain.predict(x, verbose=0), expected)
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, 8)
    assert listed == [
        "MLmodel", "conda.yaml", "data/keras_module.txt", "data/model.keras", "manifest.json",
        "python_env.yaml", "requirements.txt",
    ]  # fmt: skip


def test_the_card_is_as_mlflow_writes_one(run_id: str) -> None:
    ckpt.register(run_id, "latest", "digits")
    (slim,) = copies(run_id)
    with mlflow.start_run(run_id=run_id):
        theirs = mlflow.keras.log_model(mlp(), name="theirs", pip_requirements=["keras"])
    mine, other = (
        Model.load(mlflow.artifacts.download_artifacts(f"models:/{model_id}"))
        for model_id in (slim.model_id, theirs.model_id)
    )
    assert (mine.model_id, mine.model_uuid, mine.run_id) == (slim.model_id, slim.model_id, run_id)
    assert mine.artifact_path == slim.artifact_location
    location = MlflowClient().get_logged_model(theirs.model_id).artifact_location
    assert (other.artifact_path, other.model_uuid) == (location, theirs.model_id)
    assert mine.flavors == other.flavors
    assert {*mine.to_dict()} == {*other.to_dict()} | {
        "signature", "is_signature_from_type_hint", "type_hint_from_example",
    }  # fmt: skip
    size = len(stored.read(slim.artifact_location, "data/model.keras"))
    assert mine.model_size_bytes == size + len("keras")


@pytest.mark.backends
def test_the_metrics_are_on_the_copy_and_no_row_is_twice_on_the_curves(name: str) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), NaNFrom(3), epochs=3)
    run_id, rows = run.info.run_id, raw_rows(run.info.run_id)
    for which in ("epoch=2", "epoch=3"):
        ckpt.register(run_id, which, name)
    assert raw_rows(run_id) == rows
    second, third = sorted(copies(run_id), key=lambda model: model.name)
    best = ckpt.resolve(run_id, "epoch=2")
    assert {m.key: m.value for m in second.metrics} == best.metrics
    assert "val_loss" in best.metrics
    broken = ckpt.resolve(run_id, "epoch=3")
    assert {m.key: m.value for m in third.metrics or []} == broken.metrics
    assert "loss" not in broken.metrics
    assert not any(key.endswith(".loss") for key in versions(name)[1].tags)


def raw_rows(run_id: str) -> list[Any]:
    client = MlflowClient()
    return sorted(
        (key, m.step, m.timestamp, repr(m.value))
        for key in client.get_run(run_id).data.metrics
        for m in client.get_metric_history(run_id, key)
    )


def test_a_series_with_a_prefix_is_registered_under_keras_own_names() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(name="head"), epochs=1)
        fit(mlp(), MlflowCheckpoint(name="tune"), epochs=2)
    run_id = run.info.run_id
    found = ckpt.register(run_id, "best@tune", "digits")
    assert found.series == "tune"
    (slim,) = copies(run_id)
    assert {m.key for m in slim.metrics} == {f"tune/{key}" for key in found.metrics}
    assert "ckpt.metric.val_loss" in versions()[0].tags


def test_a_moving_selector_is_pinned(another_process: Callable[[], None]) -> None:
    run_id = trained(1)
    found = ckpt.register(run_id, "latest", "digits", "champion")
    another_process()
    trained(3, run_id)
    assert ckpt.resolve(run_id).epoch == 3
    (version,) = versions()
    assert version.source == found.source
    assert found.epoch == 1
    x, _ = data()
    np.testing.assert_array_equal(
        mlflow.keras.load_model("models:/digits@champion").predict(x, verbose=0),
        ckpt.load_model(run_id, "epoch=1").predict(x, verbose=0),
    )


@pytest.mark.filterwarnings("ignore:.*does not have a signature")
def test_a_subclassed_model_with_a_loss_of_its_own_is_served_by_its_class_alone() -> None:
    model = Subclassed()
    with mlflow.start_run() as run:
        model.compile("adam", Own())
        fit(model, MlflowCheckpoint(), epochs=1)
    found = ckpt.register(run.info.run_id, "latest", "digits")
    x, _ = data()
    served = mlflow.keras.load_model(found.uri)
    np.testing.assert_array_equal(served.predict(x, verbose=0), model.predict(x, verbose=0))


class Own(keras.losses.Loss):
    """A loss that nobody has registered."""

    def call(self, y: Any, predicted: Any) -> Any:
        return keras.ops.mean(predicted**2, axis=-1)


@keras.saving.register_keras_serializable("tests")
class Holding(keras.optimizers.SGD):
    """An optimizer that holds a layer."""

    layer: Any = None


def test_a_copy_that_keeps_its_optimizer_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = mlp(optimizer=Holding())
    model.optimizer.layer = keras.layers.Dense(1)
    model.optimizer.layer.build((None, 1))
    with mlflow.start_run() as run:
        saved = ckpt.save(model, run.info.run_id)
    found = [ckpt.register(run.info.run_id, "latest", "digits") for _ in range(2)]
    assert [each.keeps_optimizer for each in found] == [True, True]
    assert found[0].source == found[1].source
    said = capsys.readouterr().out
    assert "keeps its optimizer, and needs the class of it: `model.optimizer` stores more" in said
    assert versions()[0].description.endswith("; without training state.")
    (slim,) = copies(run.info.run_id)
    kept = stored.read(slim.artifact_location, "data/model.keras")
    assert kept == stored.read(saved, "data/model.keras")


# --- once more ----------------------------------------------------------------


@pytest.mark.backends
def test_a_slim_copy_that_is_whole_is_taken_again(name: str) -> None:
    run_id = trained()
    found = [ckpt.register(run_id, which, name) for which in ("latest", "step=6")]
    other = ckpt.register(run_id, "latest", f"{name}-2")
    assert {each.source for each in (*found, other)} == {found[0].source}
    assert [each.version for each in (*found, other)] == [1, 2, 1]
    (slim,) = copies(run_id)
    noted = json.loads(slim.tags["mlflow.modelVersions"])
    assert [(each["name"], int(each["version"])) for each in noted] == [
        (name, 1),
        (name, 2),
        (f"{name}-2", 1),
    ]


@pytest.mark.parametrize("is_registered", [True, False], ids=["registered", "not-registered"])
@pytest.mark.parametrize("damage", stored.DAMAGE)
def test_a_damaged_copy_is_made_anew(
    run_id: str, damage: str, is_registered: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    first = ckpt.register(run_id, "latest", "digits")
    (slim,) = copies(run_id)
    if not is_registered:
        MlflowClient().delete_registered_model("digits")
        MlflowClient().delete_logged_model_tag(slim.model_id, "mlflow.modelVersions")
    stored.DAMAGE[damage](slim.artifact_location, "data/model.keras")
    capsys.readouterr()
    second = ckpt.register(run_id, "latest", "digits")
    assert second.source != first.source
    assert (slim.model_id in {c.model_id for c in copies(run_id)}) == is_registered
    said = f"the slim copy {slim.model_id}, which is registered, is damaged"
    assert (said in capsys.readouterr().out) == is_registered
    assert mlflow.keras.load_model(second.uri).built
    assert ckpt.verify(run_id).ok


def test_a_copy_with_a_signature_of_the_users_is_no_damaged_one(run_id: str) -> None:
    first = ckpt.register(run_id, "latest", "digits")
    signature = mlflow.models.infer_signature(*data())
    mlflow.models.set_signature(first.source, signature)
    assert ckpt.register(run_id, "latest", "digits").source == first.source


def test_what_another_process_is_making_is_left_alone(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sources = SlimCopies.finish, list[str]()

    def meanwhile(self: Any, *arguments: Any, **named: Any) -> Any:
        if not sources:
            sources.append("")
            sources.append(ckpt.register(run_id, "latest", "digits").source)
        return real(self, *arguments, **named)

    monkeypatch.setattr(SlimCopies, "finish", meanwhile)
    found = ckpt.register(run_id, "latest", "digits")
    assert {found.source, sources[1]} == {f"models:/{c.model_id}" for c in copies(run_id)}
    assert [v.version for v in versions()] == [1, 2]


def half_made(run_id: str, maker: str) -> Any:
    checkpoint, store = ckpt.resolve(run_id), Store()
    return Registry(store.uri).slim.begin(store.run(run_id), checkpoint, maker, "").model


ELSEWHERE = {"boot": "b", "namespace": "n", "host": "far", "pid": 1, "started": 1, "nonce": "x"}


@pytest.mark.parametrize(
    ("maker", "age_ms", "goes"),
    [
        pytest.param(json.dumps(ELSEWHERE), 0, False, id="elsewhere"),
        pytest.param(json.dumps(ELSEWHERE), slim_copy._DAY_MS + 1, True, id="elsewhere-old"),
        pytest.param("nonsense", 0, False, id="unreadable"),
        pytest.param("[" * 4000, slim_copy._DAY_MS + 1, True, id="unreadable-old"),
    ],
)
def test_who_makes_a_copy_where_it_cannot_be_seen_has_a_day(
    run_id: str, maker: str, age_ms: int, goes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, now = half_made(run_id, maker), slim_copy.now_ms()
    monkeypatch.setattr(slim_copy, "now_ms", lambda: now + age_ms)
    ckpt.register(run_id, "latest", "digits")
    assert (begun.model_id in {c.model_id for c in copies(run_id)}) != goes
    assert len(copies(run_id)) == 2 - goes


# --- no checkpoint ------------------------------------------------------------


@pytest.mark.backends
def test_nobody_takes_a_slim_copy_for_a_checkpoint(
    name: str, another_process: Callable[[], None]
) -> None:
    run_id = trained(4)
    best = ckpt.resolve(run_id, "best").epoch
    before = ckpt.list_checkpoints(run_id)
    for epoch in (best, 4):
        ckpt.register(run_id, f"epoch={epoch}", name)
    half_made(run_id, json.dumps(ELSEWHERE))
    there = {model.model_id for model in copies(run_id)}
    assert ckpt.list_checkpoints(run_id).equals(before)
    selectors = ("latest", "best", "final", "best(val_loss,min)", "epoch=4", "step=8")
    assert not {ckpt.resolve(run_id, each).model_id for each in selectors} & there
    assert {v.model_id for v in ckpt.verify(run_id).verdicts} == set(before["model_id"])
    assert not {c.model_id for c in ckpt.explain(run_id, "best").candidates} & there
    store = Store()
    series = store.run(run_id).series["ckpt"]
    assert store.drop_unfinished(store.run(run_id), "ckpt", (), alone=True) == 0
    assert store.resume_point(store.run(run_id), series) == ckpt.resolve(run_id, "epoch=4")
    pruned = ckpt.prune(run_id, Keep(last=1, best=1))
    assert not {p.checkpoint.model_id for p in pruned} & there
    another_process()
    fit_more(run_id, Keep(last=1, best=None))
    assert {model.model_id for model in copies(run_id)} == there


def fit_more(run_id: str, keep: Keep) -> None:
    """Continue, pruning after every epoch."""
    with mlflow.start_run(run_id=run_id):
        fit(mlp(), MlflowCheckpoint(keep=keep), epochs=6)
    assert ckpt.resolve(run_id).epoch == 6


def test_many_slim_copies_are_in_nobodys_way(run_id: str) -> None:
    """The newest and the best are looked for among the first few models of a run."""
    newest, best = ckpt.resolve(run_id), ckpt.resolve(run_id, "best")
    for checkpoint in (newest, best):
        prepared = slim_copy.prepare(Store(), checkpoint, Path.cwd())
        for _ in range(6):
            store = Store()
            slim_copy.make(Registry(store.uri).slim, store.run(run_id), checkpoint, prepared)
    assert ckpt.resolve(run_id) == newest
    assert ckpt.resolve(run_id, "best") == best
    assert len(copies(run_id)) == 12


def test_gc_and_a_second_run_leave_it_alone(call: Cli) -> None:
    run_id = trained(2)
    found = ckpt.register(run_id, "latest", "digits")
    mlflow.delete_run(run_id)
    assert call("gc", "--all", "--deleted-runs").code == 0
    assert mlflow.keras.load_model(found.uri).built
    assert {f"models:/{model.model_id}" for model in models(run_id)} == {found.source}


def test_the_checkpoint_may_go_and_what_is_served_stays() -> None:
    run_id = trained(4)
    epoch = next(e for e in (1, 2, 3) if e != ckpt.resolve(run_id, "best").epoch)
    found = ckpt.register(run_id, f"epoch={epoch}", "digits")
    ckpt.prune(run_id, Keep(last=1, best=1))
    assert epoch not in epochs(run_id)
    assert mlflow.keras.load_model(found.uri).built


# --- the whole checkpoint -----------------------------------------------------


@pytest.mark.backends
def test_a_whole_checkpoint_is_registered_itself_and_held_from_then_on(name: str) -> None:
    run_id = trained(4)
    best = ckpt.resolve(run_id, "best").epoch
    old = next(e for e in (1, 2, 3) if e != best)
    found = ckpt.register(run_id, f"epoch={old}", name, None, False)
    checkpoint = ckpt.resolve(run_id, f"epoch={old}")
    assert found.source == checkpoint.uri
    assert (found.slim, found.keeps_optimizer) == (False, True)
    assert found.bytes == found.bytes_before == checkpoint.bytes
    assert checkpoint.held == ("registered",)
    assert copies(run_id) == []
    (version,) = versions(name)
    assert version.tags["ckpt.slim"] == "false"
    assert version.description.endswith("; the whole checkpoint.")
    ckpt.prune(run_id, Keep(last=1, best=1))
    assert epochs(run_id) == sorted({old, best, 4})
    assert mlflow.keras.load_model(found.uri).optimizer is not None


@pytest.mark.parametrize("by", ["prune", "fit"])
def test_a_policy_that_comes_in_between_leaves_it(
    by: str, monkeypatch: pytest.MonkeyPatch, another_process: Callable[[], None]
) -> None:
    run_id = trained(4)
    old = next(e for e in (1, 2, 3) if e != ckpt.resolve(run_id, "best").epoch)
    real = Registry.add_version

    def meanwhile(self: Any, *arguments: Any) -> int:
        if by == "prune":
            ckpt.prune(run_id, Keep(last=1, best=1))
        else:
            another_process()
            fit_more(run_id, Keep(last=1, best=None))
        return real(self, *arguments)

    monkeypatch.setattr(Registry, "add_version", meanwhile)
    found = ckpt.register(run_id, f"epoch={old}", "digits", slim=False)
    assert old in epochs(run_id)
    assert mlflow.keras.load_model(found.uri).built
    assert ckpt.resolve(run_id, f"epoch={old}").held == ("registered",)


def test_one_that_is_being_deleted_at_this_moment_is_not_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`latest` is asked again, and finds the one before; an epoch is gone."""
    run_id = trained(3)
    newest, real, said = ckpt.resolve(run_id), _delete.remove, []

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        with pytest.raises(CheckpointNotFound) as caught:
            ckpt.register(run_id, "epoch=3", "gone", slim=False)
        said.append(str(caught.value))
        said.append(ckpt.register(run_id, "latest", "digits", slim=False).epoch)
        return real(*arguments, **named)

    pin = Store().upkeep.__class__.pin

    def delete_first(self: Any, checkpoint: Checkpoint) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(_delete, "remove", meanwhile)
        Store().delete([checkpoint])
        pin(self, checkpoint)

    monkeypatch.setattr(Store().upkeep.__class__, "pin", delete_first)
    found = ckpt.register(run_id, "latest", "digits", slim=False)
    assert (said[1], found.epoch) == (2, 2)
    assert "has no checkpoint at epoch=3" in said[0]
    assert "gone" not in names()
    assert epochs(run_id) == [1, 2]
    assert newest.model_id not in {model.model_id for model in models(run_id)}


def test_a_pin_of_the_users_stays(run_id: str) -> None:
    ckpt.pin(run_id, "epoch=1")
    ckpt.register(run_id, "epoch=1", "digits", slim=False)
    assert ckpt.resolve(run_id, "epoch=1").held == ("pinned", "registered")


def test_a_refusal_leaves_no_pin(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowClient, "create_model_version", raising(INVALID_PARAMETER_VALUE))
    with pytest.raises(StoreError, match="refused to add a version"):
        ckpt.register(run_id, "epoch=1", "digits", slim=False)
    assert ckpt.resolve(run_id, "epoch=1").held == ()
    assert names() == []


def test_a_damaged_latest_is_passed_over_and_any_other_one_raises(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = trained(3)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), "data/model.keras")
    for slim in (True, False):
        with pytest.raises(DigestMismatch, match=r"data/model\.keras"):
            ckpt.register(run_id, "epoch=3", "digits", slim=slim)
    assert names() == []
    assert ckpt.register(run_id, "latest", "digits").epoch == 2
    assert "skipped ckpt-0003-00000006" in capsys.readouterr().out


# --- refused, with nothing left -----------------------------------------------


def raising(code: int, text: str = "no") -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> Any:
        raise MlflowException(text, error_code=code)

    return refuse


@pytest.mark.pure
@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", ".", "..", None, 3])
def test_a_name_that_mlflow_refuses_is_named_at_once(name: Any) -> None:
    with pytest.raises(ConfigError, match="Expected a name for the registered model.*Received"):
        ckpt.register("no-run", "best", name)


@pytest.mark.pure
@pytest.mark.parametrize("alias", ["latest", "Latest", "v1", "V22", "", "a b", "a/b", "x" * 256])
def test_an_alias_that_mlflow_refuses_is_named_at_once(alias: str) -> None:
    with pytest.raises(
        ConfigError, match="Expected an alias .*such as 'champion'.*Received: alias"
    ):
        ckpt.register("no-run", "best", "digits", alias)


@pytest.mark.pure
@pytest.mark.parametrize("key", ["ckpt.run_id", "", 3])
def test_a_tag_that_says_where_it_came_from_is_not_the_users_to_set(key: Any) -> None:
    with pytest.raises(ConfigError, match="do not begin with 'ckpt.'"):
        ckpt.register("no-run", "best", "digits", tags={key: "x"})


def test_what_mlflow_allows_is_allowed(run_id: str) -> None:
    for name, alias in (("größe 漢字's", "größe_1-b"), ("-", "v"), ("a.b", "latest-one")):
        found = ckpt.register(run_id, "latest", name, alias)
        assert MlflowClient().get_model_version_by_alias(name, alias).version == found.version


def test_weights_are_no_model_to_serve() -> None:
    run_id = trained(1, save_weights_only=True)
    for slim in (True, False):
        with pytest.raises(ConfigError, match="holds weights only. Load them into your model with"):
            ckpt.register(run_id, "latest", "digits", slim=slim)
    assert (names(), copies(run_id)) == ([], [])


def test_what_is_not_there_is_an_error_and_makes_no_model(run_id: str) -> None:
    for run, which in ((run_id, "epoch=9"), (run_id, "best(nope)"), ("no-run", "best")):
        with pytest.raises(NotFound):
            ckpt.register(run, which, "digits")
    assert (names(), copies(run_id)) == ([], [])


def test_a_server_without_a_registry_is_named(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = raising(ENDPOINT_NOT_FOUND)
    monkeypatch.setattr(MlflowClient, "delete_registered_model_tag", refuse)
    with pytest.raises(UnsupportedStore, match="no model registry.*MLFLOW_REGISTRY_URI"):
        ckpt.register(run_id, "latest", "digits")
    assert (names(), copies(run_id)) == ([], [])


REFUSED = {
    "create-copy": (MlflowClient, "create_logged_model"),
    "finalize": (MlflowClient, "finalize_logged_model"),
    "link": (MlflowClient, "log_outputs"),
    "metrics": (MlflowClient, "log_batch"),
    "create-model": (MlflowClient, "create_registered_model"),
    "create-version": (MlflowClient, "create_model_version"),
}


@pytest.mark.parametrize(
    ("at", "code"),
    [*((at, INVALID_PARAMETER_VALUE) for at in REFUSED), ("create-version", PERMISSION_DENIED)],
)
def test_a_refusal_leaves_neither_a_copy_nor_a_model(
    run_id: str, at: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    before = stored.listing(experiment.artifact_location)
    with monkeypatch.context() as patch:
        patch.setattr(*REFUSED[at], raising(code))
        with pytest.raises(StoreError) as caught:
            ckpt.register(run_id, "latest", "digits", "champion")
    assert not isinstance(caught.value, ServerAway)
    assert (names(), copies(run_id)) == ([], [])
    assert stored.listing(experiment.artifact_location) == before
    assert ckpt.register(run_id, "latest", "digits", "champion").version == 1


@pytest.mark.parametrize("at", ["create-copy", "finalize", "metrics", "create-version"])
def test_what_a_server_that_went_away_left_goes_at_the_next_time(
    run_id: str, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*REFUSED[at], raising(TEMPORARILY_UNAVAILABLE))
        with pytest.raises(ServerAway):
            ckpt.register(run_id, "latest", "digits")
    assert versions() == []
    left = {model.model_id: model.status.value for model in copies(run_id)}
    assert [*left.values()] == {"create-copy": [], "create-version": ["READY"]}.get(at, ["PENDING"])
    found = ckpt.register(run_id, "latest", "digits")
    (slim,) = copies(run_id)
    assert (slim.model_id in left) == (at == "create-version")
    assert found.source == f"models:/{slim.model_id}"


def test_a_model_that_was_there_stays_where_its_next_version_is_refused(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ckpt.register(run_id, "epoch=1", "digits")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", raising(INVALID_PARAMETER_VALUE))
        for which in ("epoch=1", "epoch=2"):
            with pytest.raises(StoreError, match="refused to add a version"):
                ckpt.register(run_id, which, "digits")
    assert [v.source for v in versions()] == [first.source]
    assert [f"models:/{c.model_id}" for c in copies(run_id)] == [first.source]


def test_an_alias_that_fails_behind_the_version_says_what_to_type(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", raising(PERMISSION_DENIED))
    text = (
        r"models:/digits/1 is registered, without that alias. Set it with: python -c .*"
        r"set_registered_model_alias\('digits', 'champion', 1\)"
    )
    with pytest.raises(StoreError, match=text):
        ckpt.register(run_id, "latest", "digits", "champion")


def test_a_full_disk_is_named_and_leaves_nothing(
    run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:

    def full(*_: Any) -> bool:
        raise OSError(28, "No space left on device", "/artifacts/x")

    monkeypatch.setattr("mlflow_ckpt.store._draft.link_or_copy", full)
    with pytest.raises(StoreError, match="at /artifacts/x: No space left on device. Free some"):
        ckpt.register(run_id, "latest", "digits")
    assert (names(), copies(run_id)) == ([], [])


def test_interrupting_it_leaves_nothing(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for owner, name in (REFUSED["finalize"], REFUSED["create-version"]):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupt)
            with pytest.raises(KeyboardInterrupt):
                ckpt.register(run_id, "latest", "digits")
        assert (names(), copies(run_id)) == ([], [])


KILLED = """
import os, signal, sys
import mlflow_ckpt as ckpt
from mlflow import MlflowClient
from mlflow_ckpt.store import Registry, SlimCopies

points = [
    (SlimCopies, "write_card"), (SlimCopies, "publish"), (SlimCopies, "finish"),
    (MlflowClient, "finalize_logged_model"), (Registry, "add_version"),
]
for owner, name in points:
    child = os.fork()
    if not child:
        setattr(owner, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        ckpt.register(sys.argv[1], "latest", "digits")
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, name
assert "keras" not in sys.modules
"""


def test_a_kill_at_any_point_leaves_nothing_that_is_served_and_the_next_time_clears_up(
    run_id: str,
) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    command = [sys.executable, "-c", KILLED, run_id]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert versions() == []
    states = [model.status.value for model in copies(run_id)]
    # Each one clears up behind the one before; the last one had only the version to make.
    assert sorted(states) == ["READY"]
    assert ckpt.register(run_id, "latest", "digits").version == 1
    assert len(copies(run_id)) == 1


# --- who may ------------------------------------------------------------------


@pytest.mark.backends("basic-auth", quick=True)
def test_who_may_not_is_told_what_to_ask_for_and_leaves_nothing(
    backend: BasicAuth, name: str
) -> None:
    run_id = trained(1)
    reader, editor = (backend.permitted(run_id, permission) for permission in ("READ", "EDIT"))
    for slim in (True, False):
        with (
            as_user(reader),
            pytest.raises(StoreError, match="READ to load, EDIT to train and save"),
        ):
            ckpt.register(run_id, "latest", name, slim=slim)
    assert copies(run_id) == []
    first = ckpt.register(run_id, "latest", name)
    text = f"does not permit to .*{name}.*Ask for the permission EDIT on the registered model"
    with as_user(editor), pytest.raises(StoreError, match=text):
        ckpt.register(run_id, "latest", name)
    with as_user(editor):
        mine = ckpt.register(run_id, "latest", f"{name}-2", "champion")
    assert mine.source == first.source
    assert len(copies(run_id)) == 1
    assert len(versions(name)) == 1


# --- files of others ----------------------------------------------------------


def recommit(checkpoint: Checkpoint, path: str, content: bytes) -> None:
    """Put a file into a committed checkpoint, as somebody does who may write everything."""
    raw = json.loads(stored.read(checkpoint, FILENAME))
    for entry in raw["files"]:
        if entry["path"] == path:
            entry.pop("content", None)
            entry.update(size=len(content), digest=digest_bytes(content))
    manifest = json.dumps(raw).encode()
    stored.write(checkpoint, path, content)
    stored.write(checkpoint, FILENAME, manifest)
    MlflowClient().set_logged_model_tags(
        checkpoint.model_id, {"ckpt.manifest_digest": digest_bytes(manifest)}
    )


def test_a_card_that_has_other_code_loaded_is_not_served() -> None:
    run_id = trained(1)
    checkpoint = ckpt.resolve(run_id)
    card = stored.read(checkpoint, "MLmodel")
    recommit(checkpoint, "MLmodel", card.replace(b"mlflow.keras", b"os.path"))
    with pytest.raises(ManifestError, match="MLmodel of MLflow's keras flavor, without code"):
        ckpt.register(run_id, "latest", "digits")
    assert (names(), copies(run_id)) == ([], [])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((b"mlflow.keras", b"os.path"), id="another-loader"),
        pytest.param((b"loader_module:", b"code: code\n    loader_module:"), id="code"),
        pytest.param((b"  python_function:", b"  other:"), id="another-flavor"),
        pytest.param((b"flavors:", b"a: &a [1]\nb: *a\nflavors:"), id="references"),
        pytest.param((b"flavors:", b"- flavors:"), id="no-yaml"),
        pytest.param((b"flavors:", b"flavours:"), id="no-flavors"),
    ],
)
def test_only_a_card_that_mlflow_would_write_is_taken(
    run_id: str, change: tuple[bytes, bytes], tmp_path: Path
) -> None:
    card = stored.read(ckpt.resolve(run_id), "MLmodel")
    assert change[0] in card
    (tmp_path / "MLmodel").write_bytes(card.replace(*change, 1))
    store = Store()
    slim = Registry(store.uri).slim
    copy = slim.begin(store.run(run_id), ckpt.resolve(run_id), "", "")
    with pytest.raises(ManifestError, match="MLmodel of MLflow's keras flavor, without code"):
        slim.write_card(copy, store.run(run_id), tmp_path)


# --- the command --------------------------------------------------------------


def test_the_command_prints_the_uri_and_how_to_serve_it(run_id: str, call: Cli) -> None:
    done = call("register", run_id, "best", "--name", "digits", "--alias", "champion")
    best = ckpt.resolve(run_id, "best")
    (slim,) = copies(run_id)
    assert (done.code, done.out) == (0, "models:/digits/1\n")
    said, serve, command = done.err.splitlines()
    assert said.startswith(f"Epoch {best.epoch}, step {best.step}: models:/{slim.model_id}, ")
    assert said.endswith(" KiB, without training state and optimizer.")
    assert serve == "Serve it with:"
    assert command.endswith("mlflow models serve -m models:/digits@champion --env-manager local")
    full = call("register", run_id, "epoch=1", "--name", "two words", "--full")
    assert full.out == "models:/two words/1\n"
    assert "-m 'models:/two words/1' --env-manager local" in full.err


def test_the_command_prints_json_and_nothing_else(run_id: str, call: Cli) -> None:
    found = call("register", run_id, "epoch=1", "--name", "digits", "--full", "--json").json()
    checkpoint = ckpt.resolve(run_id, "epoch=1")
    assert found == {
        "uri": "models:/digits/1",
        "name": "digits",
        "version": 1,
        "alias": None,
        "source": checkpoint.uri,
        "model_id": checkpoint.model_id,
        "run_id": run_id,
        "series": "ckpt",
        "step": 2,
        "epoch": 1,
        "metrics": dict(checkpoint.metrics),
        "slim": False,
        "keeps_optimizer": True,
        "bytes_before": checkpoint.bytes,
        "bytes": checkpoint.bytes,
    }


def test_the_command_fails_in_one_line(run_id: str, call: Cli) -> None:
    done = call("register", run_id, "best", "--name", "digits", "--alias", "latest")
    assert (done.code, done.out) == (1, "")
    assert done.err.count("\n") == 1
    assert "'latest' and 'v1', 'v2', ... are MLflow's own names" in done.err
    assert call("register", run_id, "best").code == 2
    assert names() == []


# --- serving ------------------------------------------------------------------


@pytest.mark.backends
def test_a_registered_checkpoint_answers_by_its_signature(
    tracking: str, tmp_path: Path, name: str
) -> None:
    run_id = trained(2)
    ckpt.register(run_id, "best", name, "champion")
    x, _ = data()
    expected = ckpt.load_model(run_id, "best").predict(x[:2], verbose=0)
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", f"models:/{name}@champion"]
    command += ["--env-manager", "local", "--port", str(port)]
    base = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        # MLflow starts `uvicorn` by name, also where the environment was not activated.
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        with process(command, f"{base}/ping", tmp_path / "serve.log"):
            answer = ask(base, {"inputs": x[:2].tolist()})
            with pytest.raises(urllib.error.HTTPError) as wrong_shape:
                ask(base, {"inputs": x[:2, :5].tolist()})
            with pytest.raises(urllib.error.HTTPError) as wrong_type:
                ask(base, {"inputs": [["a"] * 8]})
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-6)
    assert (wrong_shape.value.code, wrong_type.value.code) == (400, 400)
    with wrong_shape.value, wrong_type.value:
        assert "(-1, 8)" in wrong_shape.value.read().decode()


def ask(base: str, body: Any) -> Any:
    request = urllib.request.Request(
        f"{base}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)
