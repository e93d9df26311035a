"""A run that was copied, under new IDs and to another place, verifies, loads and continues.

`copy_run` does what `mlflow-export-import` does, through MLflow's public client alone; see
"Copying a run" in `docs/format.md` for what that tool leaves out and changes.
"""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import stored
import yaml
from builders import fit, history, mlp, same, weights
from doubles import NaNFrom, RaiseAt, StopHere
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, parts
from mlflow_ckpt.lease import Lease

Forget = Callable[[], None]
SELECTORS = ("latest", "best", "final", "epoch=2", "step=4", "best(accuracy,max)")


# --- the copier --------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a run is copied to.

    Attributes:
        uri: Tracking URI.
        experiment_id: The experiment there.
    """

    uri: str
    experiment_id: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri)

    def use(self) -> None:
        """Let everything below happen there."""
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_experiment(experiment_id=self.experiment_id)


@pytest.fixture
def here(tracking: str) -> Place:
    """Where the tests' own runs are."""
    found = MlflowClient().get_experiment_by_name("tests")
    assert found is not None
    return Place(tracking, found.experiment_id)


BOTH = pytest.mark.parametrize("there", ["same-server", "another-server"], indirect=True)


@pytest.fixture
def there(
    request: pytest.FixtureRequest, tracking: str, empty_database: Path, tmp_path: Path
) -> Place:
    """An experiment with artifacts in another folder, on another server unless it is `BOTH`."""
    uri = tracking
    if getattr(request, "param", "another-server") == "another-server":
        shutil.copy(empty_database, tmp_path / "other.db")
        uri = f"sqlite:///{tmp_path / 'other.db'}"
    location = (tmp_path / "elsewhere").as_uri()
    return Place(uri, MlflowClient(tracking_uri=uri).create_experiment("copies", location))


@dataclass(frozen=True)
class Copy:
    """What became of a copied run: its new ID, and the new ID of each of its models."""

    run_id: str
    models: dict[str, str]


def copy_run(
    run_id: str,
    source: Place,
    target: Place,
    *,
    bare: bool = False,
    tags_first: bool = False,
    change: Callable[[Path, Any], None] = lambda folder, model: None,
) -> Copy:
    """Copy a run with everything that it has.

    Args:
        bare: Whether to leave out what the document says may be left out.
        tags_first: Whether each model gets all tags before its files, as from the tool.
        change: Called with the files of each model before they are uploaded, and its copy.
    """
    one, other = source.client, target.client
    run = one.get_run(run_id)
    name = None if bare else run.info.run_name
    new = other.create_run(target.experiment_id, run_name=name).info.run_id
    tags = run.data.tags
    if bare:
        tags = {key: value for key, value in tags.items() if key.startswith("ckpt.series.")}
    params = {} if bare else run.data.params
    other.log_batch(
        new,
        params=[Param(key, value) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    for key in run.data.metrics:
        rows = one.get_metric_history(run_id, key)
        other.log_batch(new, metrics=[Metric(key, m.value, m.timestamp, m.step) for m in rows])
    if not bare:
        _copy_artifacts(run.info.artifact_uri, lambda folder: other.log_artifacts(new, str(folder)))
    models = {
        model.model_id: _copy_model(model, other, target, new, bare, tags_first, change)
        for model in _models(one, run)
        if model.status.value != "PENDING"
    }
    if not bare:
        _copy_links(run, new, other, models, same_server=source.uri == target.uri)
        other.set_terminated(new, run.info.status)
    return Copy(new, models)


def _models(client: MlflowClient, run: Any) -> list[Any]:
    """Every LoggedModel of a run, the oldest first."""
    found: list[Any] = []
    token = None
    while token is not None or not found:
        page = client.search_logged_models(
            [run.info.experiment_id],
            filter_string=f"source_run_id = '{run.info.run_id}'",
            order_by=[{"field_name": "creation_time", "ascending": True}],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            break
    return found


def _copy_model(
    model: Any,
    client: MlflowClient,
    target: Place,
    run_id: str,
    bare: bool,
    tags_first: bool,
    change: Callable[[Path, Any], None],
) -> str:
    tags = {key: value for key, value in model.tags.items() if key != "mlflow.modelVersions"}
    early = tags if tags_first else {k: v for k, v in tags.items() if k != "ckpt.complete"}
    made = client.create_logged_model(
        target.experiment_id,
        name=None if bare else model.name,
        source_run_id=run_id,
        tags=early,
        params={} if bare else model.params,
        model_type=model.model_type,
    )
    rows = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=made.model_id, run_id=run_id)
        for m in model.metrics or []
    ]
    client.log_batch(run_id, metrics=rows)

    def upload(folder: Path) -> None:
        change(folder, made)
        client.log_model_artifacts(made.model_id, str(folder))

    _copy_artifacts(model.artifact_location, upload)
    client.finalize_logged_model(made.model_id, model.status.value)
    if not tags_first:
        client.set_logged_model_tags(made.model_id, {"ckpt.complete": tags["ckpt.complete"]})
    return str(made.model_id)


def _copy_artifacts(uri: str, upload: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        upload(Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)))


def _copy_links(
    run: Any, new: str, client: MlflowClient, models: dict[str, str], *, same_server: bool
) -> None:
    outputs = run.outputs.model_outputs if run.outputs else []
    known = [LoggedModelOutput(models[o.model_id], o.step) for o in outputs if o.model_id in models]
    client.log_outputs(new, known)
    inputs = run.inputs.model_inputs if run.inputs else []
    # Elsewhere the model that a run began from has no ID, or another one.
    if inputs and same_server:
        client.log_inputs(new, models=[LoggedModelInput(i.model_id) for i in inputs])


# --- reading -----------------------------------------------------------------------


def train(run_id: str | None, epochs: int, *extra: Any, **checkpoint: Any) -> tuple[str, Any]:
    """What a script does: seed, build, fit."""
    keras.utils.set_random_seed(11)
    model = mlp()
    stopping = keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
    callback = MlflowCheckpoint(**{"keep": None, **checkpoint})
    with mlflow.start_run(run_id=run_id) as run:
        fit(model, stopping, callback, *extra, epochs=epochs)
    return run.info.run_id, model


def made(here: Place) -> str:
    """A finished run with params, tags, notes and files of the user's."""
    run_id, _ = train(None, 4)
    client = here.client
    client.log_param(run_id, "rate", 0.1)
    client.set_tag(run_id, "team", "vision")
    client.set_tag(run_id, "mlflow.note.content", "a note")
    client.log_text(run_id, "text", "notes/a.txt")
    return run_id


def facts(run_id: str) -> dict[str, Any]:
    """What selectors answer, but for the IDs."""
    found = {which: ckpt.resolve(run_id, which) for which in SELECTORS}
    return {which: (c.position, c.metrics, c.digest, c.final) for which, c in found.items()}


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@BOTH
def test_a_copied_run_answers_as_the_original_and_knows_nothing_of_it(
    here: Place, there: Place, tmp_path: Path
) -> None:
    run_id = made(here)
    expected, table = facts(run_id), ckpt.list_checkpoints(run_id)
    models = {which: weights(ckpt.load_model(run_id, which)) for which in SELECTORS}
    original = ckpt.download(run_id, "best", tmp_path / "original")
    copied = copy_run(run_id, here, there)
    there.use()
    assert copied.run_id != run_id
    assert facts(copied.run_id) == expected
    again = ckpt.list_checkpoints(copied.run_id)
    changing = ["model_id", "created_at", "uri"]
    same_columns = [name for name in table.columns if name not in changing]
    assert again[same_columns].equals(table[same_columns])
    assert list(again["model_id"]) == [copied.models[m] for m in table["model_id"]]
    for which, values in models.items():
        for a, b in zip(weights(ckpt.load_model(copied.run_id, which)), values, strict=True):
            np.testing.assert_array_equal(a, b)
    mine = mlp()
    loaded = ckpt.load_weights(mine, copied.run_id, "best")
    assert loaded.model_id in copied.models.values()
    for a, b in zip(mine.get_weights(), models["best"], strict=False):
        np.testing.assert_array_equal(a, b)
    assert files_below(ckpt.download(copied.run_id, "best", tmp_path / "out")) == files_below(
        original
    )
    exported = ckpt.export(copied.run_id, "best", tmp_path / "best.keras")
    assert same(keras.saving.load_model(exported), ckpt.load_model(copied.run_id, "best"))
    assert ckpt.verify(copied.run_id).ok


def test_no_digested_file_names_a_run_or_a_model(here: Place, there: Place) -> None:
    run_id = made(here)
    copied = copy_run(run_id, here, there)
    there.use()
    ids = [run_id, copied.run_id, *copied.models, *copied.models.values()]
    ids += [here.experiment_id] if len(here.experiment_id) > 4 else []
    for model_id in copied.models.values():
        place = there.client.get_logged_model(model_id).artifact_location
        for path in stored.listing(place):
            content = stored.read(place, path)
            assert [each for each in ids if each.encode() in content] == [], path


def test_what_a_copier_cannot_carry_over_is_not_needed(here: Place, there: Place) -> None:
    run_id = made(here)
    expected = facts(run_id)
    copied = copy_run(run_id, here, there, bare=True)
    there.use()
    assert facts(copied.run_id) == expected
    assert same(ckpt.load_model(copied.run_id), ckpt.load_model(copied.run_id, "epoch=4"))
    assert ckpt.verify(copied.run_id).ok


def test_a_diverged_run_is_copied_with_its_best(here: Place, there: Place) -> None:
    run_id, _ = train(None, 4, NaNFrom(3))
    copied = copy_run(run_id, here, there)
    best = ckpt.resolve(run_id, "best").position
    there.use()
    assert ckpt.resolve(copied.run_id, "best").position == best
    assert ckpt.resolve(copied.run_id).epoch == 4
    assert [repr(value) for _, value in history(copied.run_id)["loss"][2:]] == ["nan", "nan"]


def test_a_fork_of_a_copy_goes_on_like_the_original(
    here: Place, there: Place, another_process: Forget
) -> None:
    run_id, reference = train(None, 4)
    copied = copy_run(run_id, here, there)
    there.use()
    another_process()
    forked = ckpt.fork(copied.run_id, "epoch=2")
    _, model = train(forked, 4)
    assert same(model, reference)
    tags = there.client.get_run(forked).data.tags
    assert tags["ckpt.forked_from"] == copied.run_id
    assert tags["ckpt.forked_model"] in copied.models.values()


def test_a_fork_is_copied_and_needs_its_parent_no_more(
    here: Place, there: Place, another_process: Forget
) -> None:
    run_id, reference = train(None, 4)
    fork = ckpt.fork(run_id, "epoch=2")
    copied = copy_run(fork, here, there)
    mlflow.delete_run(run_id)
    another_process()
    there.use()
    _, model = train(copied.run_id, 4)
    assert same(model, reference)


# --- continuing --------------------------------------------------------------------


def interrupted(forget: Forget, **checkpoint: Any) -> str:
    """A training that was broken off inside epoch 4."""
    with mlflow.start_run() as run:
        pass
    with pytest.raises(StopHere):
        train(run.info.run_id, 6, RaiseAt(4), **checkpoint)
    forget()
    return str(run.info.run_id)


@BOTH
@pytest.mark.parametrize(
    ("checkpoint", "bare"),
    [
        pytest.param({}, False, id="after-an-epoch", marks=pytest.mark.slow),
        pytest.param({"save_freq": 1}, True, id="inside-an-epoch-bare"),
    ],
)
def test_a_copied_run_continues_to_the_end_of_the_original(
    here: Place, there: Place, checkpoint: Any, bare: bool, another_process: Forget
) -> None:
    reference_run, reference = train(None, 6)
    curves = history(reference_run)
    another_process()
    run_id = interrupted(another_process, **checkpoint)
    copied = copy_run(run_id, here, there, bare=bare)
    before = facts_of_models(here, run_id)
    there.use()
    origin = ckpt.resolve(copied.run_id)
    never = RaiseAt(0)  # The script that was broken off had one too.
    _, model = train(copied.run_id, 6, never, **{**checkpoint, "keep": Keep(last=1, best=None)})
    assert same(model, reference)
    found = history(copied.run_id)
    for key in ("loss", "val_loss", "accuracy", "val_accuracy"):
        assert found[key] == curves[key]
    tags = there.client.get_run(copied.run_id).data.tags
    assert tags["ckpt.resumed_from"] == f"step={origin.step} model={origin.model_id}"
    assert tags["ckpt.resume_exact"] == "true"
    assert "ckpt.resume_divergence" not in tags
    # Its keep policy has deleted copies, and nothing of the original.
    assert len(ckpt.list_checkpoints(copied.run_id)) < len(before)
    assert facts_of_models(here, run_id) == before
    here.use()
    assert ckpt.verify(run_id).ok


def facts_of_models(place: Place, run_id: str) -> list[Any]:
    found = _models(place.client, place.client.get_run(run_id))
    return [(m.model_id, m.tags, stored.listing(m.artifact_location)) for m in found]


@contextmanager
def live_process() -> Iterator[dict[str, Any]]:
    """Another process of this machine that is alive, as a lease names it."""
    code = (
        "import json, sys; from mlflow_ckpt.owner import Owner\n"
        "print(json.dumps(Owner.me().to_dict()), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def set_lease(place: Place, run_id: str, owner: dict[str, Any]) -> str:
    """Write another process's lease, once the thread that gives ours back is through."""
    deadline = time.monotonic() + 60
    while "ckpt.lease.ckpt" in place.client.get_run(run_id).data.tags:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    lease = json.dumps({**owner, "nonce": "theirs", "beat": 7})
    place.client.set_tag(run_id, "ckpt.lease.ckpt", lease)
    return lease


def test_the_lease_of_a_writer_that_lives_holds_a_copy_up_and_no_more(
    here: Place,
    there: Place,
    another_process: Forget,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parts, "Lease", functools.partial(Lease, ttl_s=1.0, beat_s=0.3))
    run_id = interrupted(another_process)
    with live_process() as owner:
        lease = set_lease(here, run_id, owner)
        copied = copy_run(run_id, here, there)
        there.use()
        assert there.client.get_run(copied.run_id).data.tags["ckpt.lease.ckpt"] == lease
        assert ckpt.load_model(copied.run_id) is not None
        train(copied.run_id, 4)
    out = capsys.readouterr().out
    assert f"pid {owner['pid']}: no sign of life in 1 s" in out
    assert ckpt.resolve(copied.run_id).epoch == 4
    assert here.client.get_run(run_id).data.tags["ckpt.lease.ckpt"] == lease


def test_the_lease_of_a_writer_that_has_died_holds_nothing_up(
    here: Place, there: Place, another_process: Forget, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = interrupted(another_process)
    with live_process() as owner:
        pass
    set_lease(here, run_id, owner)
    copied = copy_run(run_id, here, there)
    there.use()
    train(copied.run_id, 4)
    assert "which has died" in capsys.readouterr().out
    assert ckpt.resolve(copied.run_id).epoch == 4


# --- what the tool does differently ----------------------------------------------------


def test_a_copy_that_broke_off_goes_back_to_its_last_whole_checkpoint(
    here: Place, there: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, _ = train(None, 3)
    newest = ckpt.resolve(run_id).model_id

    class BrokeOff(Exception):
        pass

    def stop_at_newest(folder: Path, model: Any) -> None:
        if model.name == ckpt.resolve(run_id).name:
            raise BrokeOff

    assert here.client.get_logged_model(newest).name == "ckpt-0003-00000006"
    with pytest.raises(BrokeOff):
        copy_run(run_id, here, there, tags_first=True, change=stop_at_newest)
    there.use()
    (run,) = there.client.search_runs([there.experiment_id], max_results=1)
    model = ckpt.load_model(run.info.run_id)
    assert same(model, ckpt.load_model(run.info.run_id, "epoch=2"))
    assert "skipped ckpt-0003-00000006" in capsys.readouterr().out


def rewrite_card(folder: Path, model: Any) -> None:
    """Write the new IDs into `MLmodel`."""
    path = folder / "MLmodel"
    card = yaml.safe_load(path.read_text(encoding="utf-8"))
    card |= {"run_id": model.source_run_id, "model_id": model.model_id}
    card |= {"model_uuid": model.model_id, "artifact_path": model.artifact_location}
    path.write_text(yaml.safe_dump(card), encoding="utf-8")


def test_a_copier_that_rewrites_the_card_leaves_what_verifies_loads_and_continues(
    here: Place, there: Place, another_process: Forget, tmp_path: Path
) -> None:
    _, reference = train(None, 6)
    another_process()
    run_id = interrupted(another_process)
    expected = weights(ckpt.load_model(run_id))
    copied = copy_run(run_id, here, there, tags_first=True, change=rewrite_card)
    there.use()
    for a, b in zip(weights(ckpt.load_model(copied.run_id)), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    ckpt.load_weights(mlp(), copied.run_id, "best")
    assert ckpt.verify(copied.run_id).ok
    assert (ckpt.download(copied.run_id, "epoch=2", tmp_path / "out") / "MLmodel").exists()
    ckpt.fork(copied.run_id, "epoch=2")
    _, model = train(copied.run_id, 6)
    assert same(model, reference)
