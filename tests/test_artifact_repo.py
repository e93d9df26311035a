"""`ckpt:/` URIs in MLflow's own APIs: what each of them answers, and what they never see."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import stored
import yaml
from builders import data, fit, mlp, same
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from test_serving import free_port, process

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.errors import (
    ConfigError,
    DigestMismatch,
    MetricNotFound,
    RunNotFound,
    SelectorError,
    SeriesNotFound,
)
from mlflow_ckpt.store import Store

MODEL = "data/model.keras"
FILES = [
    "MLmodel",
    "conda.yaml",
    "data/keras_module.txt",
    MODEL,
    "manifest.json",
    "python_env.yaml",
    "requirements.txt",
    "state/training_state.h5",
]


@dataclass(frozen=True)
class Trained:
    """A database with a run of two series, `ckpt` and `tune`."""

    uri: str
    run_id: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "runs.db")
    uri = f"sqlite:///{folder / 'runs.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("a/b %#?é", (folder / "artifacts").as_uri())
    return Trained(uri, train(experiment))


def train(experiment: str | None = None, **arguments: Any) -> str:
    """Two epochs, and two more in a second series, `tune`."""
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment) as run:
        fit(mlp(), MlflowCheckpoint(**arguments), epochs=2)
        fit(mlp(), MlflowCheckpoint(name="tune", **arguments), epochs=2)
    return str(run.info.run_id)


def by_hand() -> str:
    """A run with two checkpoints of equal models, which no fit has to make."""
    model = built()
    with mlflow.start_run() as run:
        for step in (1, 2):
            ckpt.save(model, step=step, epoch=step, metrics={"loss": 1.0 / step})
    return str(run.info.run_id)


@pytest.fixture
def trained(made: Trained, tracking: str) -> str:
    """ID of a run that no test changes."""
    mlflow.set_tracking_uri(made.uri)
    return made.run_id


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder to copy to."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def built(units: int = 8) -> keras.Model:
    """A model that can be saved without a fit."""
    model = mlp(units)
    model.optimizer.build(model.trainable_variables)
    return model


def files_below(folder: str | Path) -> list[str]:
    root = Path(folder)
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


# --- every API in this process ------------------------------------------------


def test_a_whole_checkpoint_is_copied(trained: str, out: Path) -> None:
    found = mlflow.artifacts.download_artifacts(f"ckpt:/{trained}/best@ckpt", dst_path=out)
    assert found == str(out / "best@ckpt")
    assert files_below(found) == FILES
    assert list(out.glob(".ckpt*")) == []


@pytest.mark.parametrize(
    ("spelled", "folder"),
    [
        pytest.param("latest@tune", "latest@tune", id="plain"),
        pytest.param("latest%40tune", "latest%40tune", id="at-encoded"),
        pytest.param("latest@tune/", "", id="slash-at-the-end"),
        pytest.param("epoch=2@tune", "epoch=2@tune", id="epoch"),
        pytest.param("epoch%3D2@tune", "epoch%3D2@tune", id="equals-encoded"),
        pytest.param("best(ckpt_step,max)@tune", None, id="no-such-metric"),
        pytest.param("best(loss,min)@tune", "best(loss,min)@tune", id="metric"),
        pytest.param("best%28loss%2Cmin%29%40tune", "best%28loss%2Cmin%29%40tune", id="encoded"),
    ],
)
def test_every_spelling_finds_the_same(
    trained: str, out: Path, spelled: str, folder: str | None
) -> None:
    uri = f"ckpt:/{trained}/{spelled}"
    if folder is None:
        with pytest.raises(MetricNotFound, match="has a finite 'ckpt_step'"):
            mlflow.artifacts.download_artifacts(uri, dst_path=out)
        assert list(out.iterdir()) == []
        return
    found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=out))
    assert found == out / folder
    assert json.loads((found / "manifest.json").read_text())["checkpoint"]["series"] == "tune"


def test_one_file_is_copied_and_no_other(trained: str, out: Path) -> None:
    uri = f"ckpt:/{trained}/best@ckpt/{MODEL}"
    found = mlflow.artifacts.download_artifacts(uri, dst_path=out)
    assert found == str(out / "model.keras")
    assert files_below(out) == ["model.keras"]
    assert same(keras.saving.load_model(found), ckpt.load_model(trained, "best@ckpt"))


def test_mlflows_own_bar_is_told_of_each_file(
    trained: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []

    class Bar:
        """Stands in for tqdm, which may not be installed: MLflow shows no bar then."""

        def __init__(self, *, total: int, desc: str) -> None:
            told.append((desc, total))

        def update(self, step: int) -> None:
            told.append(step)

        def refresh(self) -> None:
            pass

        def close(self) -> None:
            told.append("closed")

    monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Bar))
    monkeypatch.setitem(sys.modules, "tqdm", SimpleNamespace())
    uri = f"ckpt:/{trained}/best@ckpt"
    mlflow.artifacts.download_artifacts(uri, dst_path=out)
    assert told == [("Downloading artifacts", 7), *[1] * 7, "closed"]
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.artifacts.download_artifacts(uri, dst_path=out)
    assert len(told) == 9


def test_a_folder_is_copied(trained: str, out: Path) -> None:
    uri = f"ckpt:/{trained}/best@ckpt/data"
    mlflow.artifacts.download_artifacts(uri, dst_path=out)
    assert files_below(out) == ["data/keras_module.txt", MODEL]


def test_a_copy_goes_to_a_folder_of_its_own_if_none_is_named(trained: str) -> None:
    uri = f"ckpt:/{trained}/best@ckpt"
    first, second = (mlflow.artifacts.download_artifacts(uri) for _ in range(2))
    assert first != second
    (Path(first) / MODEL).write_bytes(b"mine")
    assert ckpt.verify(trained).ok
    for folder in (first, second):
        shutil.rmtree(Path(folder).parent)


def test_what_is_there_is_replaced_and_what_else_is_there_stays(trained: str, out: Path) -> None:
    for name in ("MLmodel", "mine.txt"):
        (out / name).write_text("old")
    mlflow.artifacts.download_artifacts(f"ckpt:/{trained}/best@ckpt/", dst_path=out)
    assert files_below(out) == sorted([*FILES, "mine.txt"])
    assert (out / "MLmodel").read_text() != "old"
    assert (out / "mine.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param(
            "best@ckpt",
            {
                "best@ckpt/MLmodel": False,
                "best@ckpt/conda.yaml": False,
                "best@ckpt/data": True,
                "best@ckpt/manifest.json": False,
                "best@ckpt/python_env.yaml": False,
                "best@ckpt/requirements.txt": False,
                "best@ckpt/state": True,
            },
            id="root",
        ),
        pytest.param(
            "best@ckpt/data", {"data/keras_module.txt": False, "data/model.keras": False}, id="data"
        ),
        pytest.param(f"best@ckpt/{MODEL}", {}, id="file"),
        pytest.param("best@ckpt/nothing", {}, id="missing"),
        pytest.param("best@ckpt/dat", {}, id="beginning-of-a-name"),
    ],
)
def test_a_listing_is_the_manifest(trained: str, path: str, expected: dict[str, bool]) -> None:
    """Paths, and a file or nothing having no listing, as MLflow's own repositories answer."""
    uri = f"ckpt:/{trained}/{path}"
    found = mlflow.artifacts.list_artifacts(uri)
    assert {info.path: info.is_dir for info in found} == expected
    own = ckpt.resolve(trained, "best@ckpt").artifact_uri
    of_mlflow = mlflow.artifacts.list_artifacts(uri.replace(f"ckpt:/{trained}/best@ckpt", own))
    assert [(i.is_dir, i.file_size) for i in found] == [(i.is_dir, i.file_size) for i in of_mlflow]


def test_text_is_read(trained: str) -> None:
    text = mlflow.artifacts.load_text(f"ckpt:/{trained}/latest@tune/MLmodel")
    assert yaml.safe_load(text)["flavors"]["keras"]["data"] == "data"


def test_a_dict_is_read(trained: str) -> None:
    found = mlflow.artifacts.load_dict(f"ckpt:/{trained}/epoch=1@ckpt/manifest.json")
    assert found["checkpoint"]["epoch"] == 1


def test_keras_loads_the_model(trained: str) -> None:
    loaded = mlflow.keras.load_model(f"ckpt:/{trained}/best(loss)@ckpt")
    assert same(loaded, ckpt.load_model(trained, "best(loss)@ckpt"))


def test_pyfunc_loads_the_model_and_predicts(trained: str) -> None:
    x, _ = data()
    served = mlflow.pyfunc.load_model(f"ckpt:/{trained}/best@ckpt")
    expected = ckpt.load_model(trained, "best@ckpt").predict(x, verbose=0)
    np.testing.assert_array_equal(served.predict(x), expected)


def test_the_model_info_has_the_signature(trained: str) -> None:
    info = mlflow.models.get_model_info(f"ckpt:/{trained}/best@ckpt")
    assert info.signature.inputs.inputs[0].shape == (-1, 8)


def test_models_predict_answers(trained: str, out: Path) -> None:
    x, _ = data()
    output = out / "out.json"
    mlflow.models.predict(
        f"ckpt:/{trained}/best@ckpt",
        input_data=x[:2],
        env_manager="local",
        output_path=str(output),
    )
    expected = ckpt.load_model(trained, "best@ckpt").predict(x[:2], verbose=0)
    np.testing.assert_allclose(json.loads(output.read_text())["predictions"], expected, rtol=1e-6)


def test_an_experiment_is_searched(trained: str, out: Path) -> None:
    uri = "ckpt:/experiment/a%2Fb%20%25%23%3F%C3%A9/best(loss)"
    found = Path(mlflow.artifacts.download_artifacts(uri, dst_path=out))
    assert found == out / "best(loss)"
    best = ckpt.resolve(uri)
    assert (found / "manifest.json").stat().st_size > 0
    assert json.loads((found / "manifest.json").read_text())["checkpoint"]["step"] == best.step
    assert same(mlflow.keras.load_model(uri), mlflow.keras.load_model(best.uri))
    assert [i.path for i in mlflow.artifacts.list_artifacts(f"{uri}/data")] == [
        "data/keras_module.txt",
        "data/model.keras",
    ]


# --- everywhere ---------------------------------------------------------------


@pytest.mark.backends(quick=())
def test_every_backend_lists_copies_loads_and_goes_back(out: Path) -> None:
    run_id = train(keep=None)
    name = mlflow.get_experiment(mlflow.get_run(run_id).info.experiment_id).name
    uri = f"ckpt:/{run_id}/latest@ckpt"
    assert len(mlflow.artifacts.list_artifacts(uri)) == 7
    found = mlflow.artifacts.download_artifacts(uri, dst_path=out)
    assert files_below(found) == FILES
    assert same(mlflow.keras.load_model(uri), ckpt.load_model(run_id, "latest@ckpt"))
    best = ckpt.resolve(f"ckpt:/experiment/{name}/best(loss)")
    assert best.run_id == run_id
    stored.DAMAGE["flipped"](ckpt.resolve(run_id, "latest@ckpt"), MODEL)
    assert same(mlflow.keras.load_model(uri), ckpt.load_model(run_id, "epoch=1@ckpt"))


# --- damage -------------------------------------------------------------------


@pytest.mark.parametrize("damage", stored.DAMAGE)
def test_damage_is_raised_and_leaves_nothing(damage: str, out: Path) -> None:
    run_id = by_hand()
    best = ckpt.resolve(run_id, "best(loss)")
    stored.DAMAGE[damage](best, MODEL)
    folder = out / "new"
    for uri in (f"ckpt:/{run_id}/best(loss)", f"ckpt:/{run_id}/best(loss)/{MODEL}"):
        with pytest.raises(DigestMismatch, match=r"data/model\.keras"):
            mlflow.artifacts.download_artifacts(uri, dst_path=str(folder))
        assert list(folder.iterdir()) == []
    with pytest.raises(DigestMismatch, match=r"data/model\.keras"):
        mlflow.pyfunc.load_model(f"ckpt:/{run_id}/best(loss)")
    # What is whole is still given.
    assert "flavors" in mlflow.artifacts.load_text(f"ckpt:/{run_id}/best(loss)/MLmodel")


def test_latest_goes_back_past_damage(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = by_hand()
    newest = ckpt.resolve(run_id, "latest")
    repository = get_artifact_repository(f"ckpt:/{run_id}")
    repository.list_artifacts("latest")
    stored.DAMAGE["flipped"](newest, MODEL)
    repository.download_artifacts("latest", str(out))
    manifest = json.loads((out / "latest/manifest.json").read_text())
    assert manifest["checkpoint"]["epoch"] == 1
    assert f"skipped {newest.name}" in capsys.readouterr().out
    assert files_below(out / "latest") == FILES[:-1]  # saved by hand: no training state
    tags = mlflow.MlflowClient().get_logged_model(newest.model_id).tags
    assert tags["ckpt.complete"] == "corrupt"


def test_a_folder_that_was_made_for_a_download_that_fails_goes_again(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = by_hand()
    stored.DAMAGE["flipped"](ckpt.resolve(run_id, "best(loss)"), MODEL)
    monkeypatch.setattr("tempfile.tempdir", str(out))
    with pytest.raises(DigestMismatch):
        mlflow.artifacts.download_artifacts(f"ckpt:/{run_id}/best(loss)")
    assert list(out.iterdir()) == []


# --- which checkpoint, and when it is looked for ------------------------------


def test_nothing_is_asked_before_something_is_wanted(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'nowhere.db'}"
    assert get_artifact_repository("ckpt:/nope/best", tracking_uri=uri) is not None
    assert not (tmp_path / "nowhere.db").exists()


def test_a_repository_stays_with_the_checkpoint_that_it_found() -> None:
    with mlflow.start_run() as run:
        first = ckpt.save(built(), step=1, metrics={"loss": 1.0})
        repository = get_artifact_repository(f"ckpt:/{run.info.run_id}")
        before = repository.list_artifacts("latest")
        second = ckpt.save(built(16), step=2, metrics={"loss": 0.5})
    assert repository.list_artifacts("latest") == before
    again = get_artifact_repository(f"ckpt:/{run.info.run_id}")
    assert again.list_artifacts("latest/data") != repository.list_artifacts("latest/data")
    assert (first.step, second.step) == (1, 2)


def test_the_search_is_made_once(trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    best = Store.best

    def counted(*args: Any) -> Any:
        asked.append(args[3])
        return best(*args)

    monkeypatch.setattr(Store, "best", counted)
    repository = get_artifact_repository(f"ckpt:/{trained}")
    for path in ("best@ckpt", "best@ckpt/data", "best%40ckpt/state"):
        assert repository.list_artifacts(path)
    assert asked == ["val_loss"]


def test_it_looks_where_mlflow_says(made: Trained, tracking: str, tmp_path: Path) -> None:
    uri = f"ckpt:/{made.run_id}/best@ckpt/MLmodel"
    with pytest.raises(RunNotFound, match=f"on the tracking server {re.escape(tracking)}"):
        mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "no"))
    assert mlflow.artifacts.list_artifacts(f"ckpt:/{made.run_id}/best@ckpt", tracking_uri=made.uri)
    found = mlflow.artifacts.download_artifacts(
        uri, dst_path=str(tmp_path / "yes"), tracking_uri=made.uri
    )
    assert Path(found).is_file()
    with pytest.raises(RunNotFound, match=f"on the tracking server {re.escape(made.uri)}"):
        mlflow.artifacts.list_artifacts("ckpt:/nope/best", tracking_uri=made.uri)


# --- what is refused ----------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        pytest.param("ckpt:/{}", SelectorError, "Type ckpt:/.*/latest", id="no-selector"),
        pytest.param("ckpt:/{}/best", SeriesNotFound, "such as 'best@ckpt'", id="which-series"),
        pytest.param("ckpt:/{}/nest@ckpt", SelectorError, "Type ckpt:/.*/best", id="typo"),
        pytest.param("ckpt:/{}/best@ckpt/../x", MlflowException, r"'\.\.'", id="up"),
        pytest.param("ckpt:/{}/best@ckpt/%2e%2e/x", SelectorError, r"'\.\.'", id="up-encoded"),
    ],
)
def test_a_wrong_uri_says_what_to_type(
    trained: str, out: Path, uri: str, error: type[Exception], message: str
) -> None:
    with pytest.raises((error, SelectorError), match=message):
        mlflow.artifacts.download_artifacts(uri.format(trained), dst_path=str(out))
    assert list(out.iterdir()) == []


def test_a_missing_file_is_an_error_that_names_the_others(trained: str, out: Path) -> None:
    with pytest.raises(
        MlflowException, match=r"No such artifact: 'nix'.* has: .*MLmodel"
    ) as caught:
        mlflow.artifacts.download_artifacts(f"ckpt:/{trained}/best@ckpt/nix", dst_path=out)
    assert caught.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert list(out.iterdir()) == []


def test_a_destination_has_to_be_a_folder(trained: str, out: Path) -> None:
    repository = get_artifact_repository(f"ckpt:/{trained}")
    (out / "file").touch()
    for name in ("file", "nothing"):
        with pytest.raises(MlflowException, match=f"{name} to exist"):
            repository.download_artifacts("best@ckpt", str(out / name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda r: r.log_artifact("x"), r"mlflow_ckpt\.save\(model\)", id="file"),
        pytest.param(lambda r: r.log_artifacts("x"), r"mlflow_ckpt\.save\(model\)", id="folder"),
        pytest.param(lambda r: r.delete_artifacts(), r"mlflow_ckpt\.prune\(run_id", id="delete"),
    ],
)
def test_nothing_is_written(change: Callable[[Any], None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        change(get_artifact_repository("ckpt:/run/best"))


def test_a_tracking_server_does_not_read_for_whoever_asks(
    trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", "/somewhere")
    with pytest.raises(MlflowException, match=r"A tracking server answers no ckpt:/ URI"):
        get_artifact_repository(f"ckpt:/{trained}").list_artifacts("best@ckpt")


def test_mlflow_registers_the_uri_itself_which_moves() -> None:
    """It asks nobody: docs/uri.md says what to register instead."""
    with mlflow.start_run() as run:
        ckpt.save(built(), step=1, metrics={"loss": 1.0})
        version = mlflow.register_model(f"ckpt:/{run.info.run_id}/latest", "moves")
        ckpt.save(built(16), step=2, metrics={"loss": 0.5})
    assert version.source == f"ckpt:/{run.info.run_id}/latest"
    assert mlflow.keras.load_model("models:/moves/1").layers[0].units == 16
    pinned = mlflow.register_model(ckpt.resolve(version.source).uri, "stays")
    assert pinned.source.startswith("models:/m-")


# --- in other processes -------------------------------------------------------


def test_importing_mlflow_costs_nothing_and_warns_of_nothing() -> None:
    code = """
import sys, time
import mlflow
from mlflow.store.artifact.artifact_repository_registry import get_registered_artifact_repositories
assert get_registered_artifact_repositories()["ckpt"].__name__ == "CheckpointRepository"
ours = sorted(name for name in sys.modules if name.partition(".")[0] == "mlflow_ckpt")
assert ours == ["mlflow_ckpt", "mlflow_ckpt.artifact_repo"], ours
assert not {"keras", "tensorflow", "h5py"} & set(sys.modules)
costs = []
for _ in range(5):
    for name in ours:
        del sys.modules[name]
    begin = time.perf_counter()
    import mlflow_ckpt.artifact_repo
    costs.append(time.perf_counter() - begin)
assert min(costs) < 0.010, costs
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def environment(tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other processes of this test find."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow starts `python` and `uvicorn` by name, also where no environment was activated.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def call_mlflow(*arguments: str) -> str:
    """What `mlflow` prints, once it has ended well."""
    command = [sys.executable, "-m", "mlflow", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_serving(uri: str, expected: Any, log: Path) -> None:
    """Serve a model, and hold its answer for the first two samples against what is expected."""
    x, _ = data()
    base = f"http://127.0.0.1:{(port := free_port())}"
    command = ["mlflow", "models", "serve", "-m", uri, "--env-manager", "local", "-p", str(port)]
    with process(command, f"{base}/ping", log):
        request = urllib.request.Request(
            f"{base}/invocations",
            data=json.dumps({"inputs": x[:2].tolist()}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)["predictions"]
    np.testing.assert_allclose(answer, expected, rtol=1e-6)


@pytest.mark.backends("local", "proxied")
@pytest.mark.usefixtures("environment")
def test_a_served_uri_answers_a_request(tmp_path: Path) -> None:
    run_id, (x, _) = train(), data()
    expected = ckpt.load_model(run_id, "best(val_loss,min)@tune").predict(x[:2], verbose=0)
    check_serving(f"ckpt:/{run_id}/best(val_loss,min)@tune", expected, tmp_path / "serve.log")


@pytest.mark.slow
@pytest.mark.backends("local", "proxied")
@pytest.mark.usefixtures("environment")
def test_an_experiments_best_is_served(tmp_path: Path) -> None:
    run_id, (x, _) = train(), data()
    name = mlflow.get_experiment(mlflow.get_run(run_id).info.experiment_id).name
    uri = f"ckpt:/experiment/{name}/best(loss)"
    expected = mlflow.keras.load_model(ckpt.resolve(uri).uri).predict(x[:2], verbose=0)
    check_serving(uri, expected, tmp_path / "serve.log")


@pytest.mark.slow
@pytest.mark.backends("local", "proxied")
@pytest.mark.usefixtures("environment")
def test_the_command_line_downloads_and_predicts(out: Path) -> None:
    run_id, (x, _) = train(), data()
    uri = f"ckpt:/{run_id}/best@ckpt"
    printed = call_mlflow("artifacts", "download", "-u", uri, "-d", str(out))
    assert printed.strip() == str(out / "best@ckpt")
    assert files_below(out / "best@ckpt") == FILES
    asked, answered = out / "in.json", out / "out.json"
    asked.write_text(json.dumps({"inputs": x[:2].tolist()}))
    words = ["models", "predict", "-m", uri, "--env-manager", "local"]
    call_mlflow(*words, "-i", str(asked), "-o", str(answered))
    expected = ckpt.load_model(run_id, "best@ckpt").predict(x[:2], verbose=0)
    found = json.loads(answered.read_text())["predictions"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


PROJECT = """
name: takes_checkpoints
entry_points:
  main:
    parameters:
      copied: path
      named: uri
    command: "python main.py {copied} {named}"
"""

SCRIPT = """
import os, sys, mlflow
copied, named = sys.argv[1:]
mlflow.log_param("files", ",".join(sorted(os.listdir(copied))))
model = mlflow.keras.load_model(named)
mlflow.log_metric("same", model.count_params() == mlflow.keras.load_model(copied).count_params())
"""


@pytest.mark.slow
@pytest.mark.backends("local", "proxied")
@pytest.mark.usefixtures("environment")
def test_a_project_takes_a_checkpoint_as_a_path_and_as_a_uri(out: Path) -> None:
    run_id = train()
    (out / "MLproject").write_text(PROJECT)
    (out / "main.py").write_text(SCRIPT)
    copied, named = f"ckpt:/{run_id}/best@tune", f"ckpt:/{run_id}/best(val_loss,min)@tune"
    experiment = mlflow.get_run(run_id).info.experiment_id
    done = mlflow.projects.run(
        str(out),
        parameters={"copied": copied, "named": named},
        env_manager="local",
        experiment_id=experiment,
    )
    logged = mlflow.get_run(done.run_id).data
    assert logged.params["files"].split(",")[:2] == ["MLmodel", "conda.yaml"]
    # MLflow notes what it put into the shell.
    assert logged.params["copied"] == shlex.quote(copied)
    assert logged.params["named"] == shlex.quote(named)
    assert logged.metrics == {"same": 1.0}
