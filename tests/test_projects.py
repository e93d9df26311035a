"""The MLflow Project and the two under projects/, run as people run them."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import keras
import mlflow
import pytest
import yaml
from click.testing import CliRunner, Result

import mlflow_ckpt as ckpt

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = {"root": ROOT, "digits": ROOT / "projects/digits", "tabular": ROOT / "projects/tabular"}
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Workspace:
    """A folder from which commands run, with the embedded default store in it."""

    path: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.path / 'mlflow.db'}"

    @property
    def client(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(self.uri)

    def mlflow_run(self, project: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`mlflow run <project> --env-manager local`, in an experiment with a place of its own."""
        command = [sys.executable, "-m", "mlflow", "run", str(PROJECTS[project])]
        return self.call(
            *command, "--env-manager", "local", "--experiment-name", "projects", *arguments
        )

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command,
            cwd=self.path,
            env={**clean, **quiet},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def newest_run(self) -> Any:
        experiment = self.client.get_experiment_by_name("projects")
        assert experiment is not None
        return self.client.search_runs([experiment.experiment_id], max_results=1)[0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Workspace:
    path = tmp_path_factory.mktemp("projects")
    shutil.copy(empty_database, path / "mlflow.db")
    return Workspace(path)


@dataclass(frozen=True)
class Trained:
    run_id: str
    output: str


@pytest.fixture(scope="module")
def trained(workspace: Workspace) -> Trained:
    """Two epochs on the digits through the root project."""
    done = workspace.mlflow_run("root", "-P", "epochs=2", "-P", "learning_rate=1e-3")
    assert done.returncode == 0, done.stderr
    return Trained(workspace.newest_run().info.run_id, done.stdout)


def logged_epochs(workspace: Workspace, run_id: str, key: str = "val_loss") -> list[int]:
    return [m.step for m in workspace.client.get_metric_history(run_id, key)]


# --- through mlflow run -------------------------------------------------------


def test_main_shows_the_progress_bar_and_ends_with_what_to_type_next(
    workspace: Workspace, trained: Trained
) -> None:
    assert "Epoch 2/2" in trained.output
    assert "val_accuracy" in trained.output
    end = trained.output.rpartition("Epoch 2/2")[2]
    for text in (trained.run_id, "latest best", "mlflow ui", "mlflow-ckpt resume", "load_model"):
        assert text in end
    run = workspace.client.get_run(trained.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "dataset": "digits", "epochs": "2", "batch_size": "32", "learning_rate": "1e-3",
        "save_every": "1", "keep_last": "5", "seed": "0",
    }  # fmt: skip


def test_a_resume_continues_the_run_and_leaves_no_stray(
    workspace: Workspace, trained: Trained
) -> None:
    done = workspace.mlflow_run(
        "root", "-e", "resume", "-P", f"run_id={trained.run_id}", "-P", "epochs=3"
    )
    assert done.returncode == 0, done.stderr
    assert "continues after epoch 2" in done.stdout
    assert logged_epochs(workspace, trained.run_id) == [1, 2, 3]
    run, wrapper = workspace.client.get_run(trained.run_id), workspace.newest_run()
    assert (run.info.status, wrapper.info.status) == ("FINISHED", "FINISHED")
    assert wrapper.data.tags[PARENT] == trained.run_id
    assert wrapper.info.run_name == f"resume of {run.info.run_name}"
    assert not wrapper.data.metrics


def test_evaluate_logs_to_a_child_of_the_run(workspace: Workspace, trained: Trained) -> None:
    done = workspace.mlflow_run("digits", "-e", "evaluate", "-P", f"run_id={trained.run_id}")
    assert done.returncode == 0, done.stderr
    child = workspace.newest_run()
    assert child.data.tags[PARENT] == trained.run_id
    assert child.data.metrics.keys() == {"eval_accuracy", "eval_loss"}
    assert child.data.metrics["eval_accuracy"] > 0.8
    assert f"test accuracy {child.data.metrics['eval_accuracy']:.4f}" in done.stdout
    assert "eval_loss" not in workspace.client.get_run(trained.run_id).data.metrics


def test_tabular_runs_by_itself_and_its_checkpoint_takes_raw_values(workspace: Workspace) -> None:
    done = workspace.mlflow_run("tabular", "-P", "epochs=3")
    assert done.returncode == 0, done.stderr
    mlflow.set_tracking_uri(workspace.uri)
    best = ckpt.resolve(workspace.newest_run().info.run_id, "best")
    data = load_module(PROJECTS["tabular"] / "data.py")
    rows = data.inputs(data.load()[1].head(4))
    assert set(rows["size_class"].ravel()) <= {1, 2, 3}
    served = mlflow.pyfunc.load_model(best.uri).predict(rows)
    assert served.shape == (4, 1)
    assert ((served > 0) & (served < 1)).all()


def test_the_tutorial_restores_what_was_trained_to_the_last_digit(workspace: Workspace) -> None:
    done = workspace.mlflow_run("root", "-e", "tutorial", "-P", "epochs=6")
    assert done.returncode == 0, done.stdout + done.stderr
    for number in range(1, 12):
        assert f"\n{number}. " in done.stdout
    verdicts = [line for line in done.stdout.splitlines() if line.startswith("restored: ")]
    assert len(verdicts) == 9
    assert all(line.endswith(": equal") for line in verdicts)
    run = workspace.newest_run()
    assert run.info.status == "FINISHED"
    files = {f.path for f in workspace.client.list_artifacts(run.info.run_id, "exports")}
    assert "exports/tf_checkpoint.index" in files


@pytest.mark.slow
def test_a_failed_download_ends_the_run_as_failed(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))  # nothing cached
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # refuses at once
    done = workspace.mlflow_run("root", "-P", "dataset=mnist")
    assert done.returncode == 1
    assert done.stderr.count("Error: MNIST could not be downloaded") == 1
    assert "Traceback" not in done.stderr
    assert workspace.newest_run().info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize("project", ["digits", "tabular"])
def test_each_project_trains_resumes_and_evaluates_by_itself(
    workspace: Workspace, project: str
) -> None:
    done = workspace.mlflow_run(project, "-P", "epochs=2")
    assert done.returncode == 0, done.stderr
    run_id = workspace.newest_run().info.run_id
    for arguments in (["resume", "-P", "epochs=4"], ["resume"], ["evaluate", "-P", "which=latest"]):
        done = workspace.mlflow_run(project, "-P", f"run_id={run_id}", "-e", *arguments)
        assert done.returncode == 0, done.stderr
        assert workspace.newest_run().data.tags[PARENT] == run_id
    assert logged_epochs(workspace, run_id) == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_resume_that_fails_ends_both_runs_as_failed(workspace: Workspace) -> None:
    done = workspace.mlflow_run("digits", "-P", "epochs=1")
    assert done.returncode == 0, done.stderr
    run_id = workspace.newest_run().info.run_id
    mlflow.set_tracking_uri(workspace.uri)
    newest = ckpt.resolve(run_id)
    (Path(newest.artifact_uri) / "data/model.keras").unlink()
    longer = ["-P", f"run_id={run_id}", "-P", "epochs=2"]
    done = workspace.mlflow_run("digits", "-e", "resume", *longer)
    assert done.returncode == 1
    assert "Error: The file 'data/model.keras' of checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert workspace.client.get_run(run_id).info.status == "FAILED"
    wrapper = workspace.newest_run()
    assert (wrapper.info.status, wrapper.data.tags[PARENT]) == ("FAILED", run_id)


# --- the shared module, in this process ---------------------------------------


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"projects_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def common() -> ModuleType:
    return load_module(ROOT / "projects/common.py")


def train(common: ModuleType, *arguments: str) -> Result:
    """Run a training command that trains nothing and prints its settings."""

    @click.command(cls=common.Command)
    @common.continues_run
    @click.option("--epochs", type=common.Whole(min=1), default=20)
    @click.option("--learning-rate", type=common.Finite(min=0, min_open=True), default=0.001)
    def command(run_id: str | None, epochs: int, learning_rate: float) -> None:
        with mlflow.start_run(run_id=run_id):
            common.log_settings()
        click.echo(f"epochs={epochs} learning_rate={learning_rate}")

    return CliRunner().invoke(command, arguments)


def begun_run(**params: str) -> str:
    with mlflow.start_run() as run:
        mlflow.log_params(params)
    return str(run.info.run_id)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        pytest.param("--learning-rate", "nan", "'nan' is not a finite number.", id="nan"),
        pytest.param("--learning-rate", "inf", "'inf' is not a finite number.", id="inf"),
        pytest.param("--learning-rate", "0", "0.0 is not in the range x>0.", id="zero"),
        pytest.param("--learning-rate", "fast", "'fast' is not a valid number.", id="a-word"),
        pytest.param("--epochs", "0", "0 is not in the range x>=1.", id="no-epoch"),
        pytest.param("--epochs", "5.0", "'5.0' is not a valid whole number.", id="half-epochs"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(
    common: ModuleType, option: str, value: str, complaint: str
) -> None:
    done = train(common, option, value)
    assert done.exit_code == 2
    assert done.output == f"Error: Invalid value for '{option}': {complaint}\n"


def test_mnist_without_a_network_is_one_sentence_and_exit_code_2(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_module(PROJECTS["digits"] / "data.py")
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    command = click.command(cls=common.Command)(lambda: data.load("mnist"))
    done = CliRunner().invoke(command, [])
    assert done.exit_code == 2
    keras_says, sentence = done.output.splitlines()
    assert keras_says.startswith("Downloading data from https:")
    assert sentence.startswith("Error: MNIST could not be downloaded (URL fetch failure on https:")
    assert sentence.endswith("or train with dataset=digits, which needs no download.")


def test_a_continued_run_brings_its_own_settings(common: ModuleType) -> None:
    run_id = begun_run(epochs="7", learning_rate="1e-3")
    assert train(common, "--run-id", run_id).output == "epochs=7 learning_rate=0.001\n"
    assert mlflow.get_run(run_id).data.params == {"epochs": "7", "learning_rate": "1e-3"}


def test_a_lengthened_run_stays_as_long_at_the_next_resume(common: ModuleType) -> None:
    run_id = begun_run(epochs="7", learning_rate="0.01")
    assert train(common, "--run-id", run_id, "--epochs", "9").exit_code == 0
    assert train(common, "--run-id", run_id).output == "epochs=9 learning_rate=0.01\n"


def test_only_the_epochs_of_a_continued_run_may_change(common: ModuleType) -> None:
    run_id = begun_run(epochs="7", learning_rate="0.01")
    done = train(common, "--run-id", run_id, "--learning-rate", "0.1")
    assert done.exit_code == 1
    assert done.output == (
        "Error: A continued run keeps its own learning_rate: leave it out, or start a new run.\n"
    )


def test_a_run_of_something_else_is_refused_and_the_attempt_filed_under_it(
    common: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, wrapper = begun_run(epochs="7"), begun_run()
    monkeypatch.setenv("MLFLOW_RUN_ID", wrapper)
    done = train(common, "--run-id", run_id)
    assert done.exit_code == 2
    assert "was not made by this project's main entry point: it has no parameter" in done.output
    assert mlflow.get_run(wrapper).data.tags[PARENT] == run_id


def test_an_unknown_or_deleted_run_is_named(common: ModuleType) -> None:
    unknown = train(common, "--run-id", "nope")
    assert unknown.output.startswith("Error: No run 'nope' on the tracking server")
    run_id = begun_run(epochs="7", learning_rate="0.01")
    mlflow.MlflowClient().delete_run(run_id)
    assert f"mlflow runs restore --run-id {run_id}" in train(common, "--run-id", run_id).output


def test_a_relative_store_that_means_another_file_here_is_refused(
    common: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    done = train(common)
    assert done.exit_code == 1
    assert done.output.startswith("Error: MLFLOW_TRACKING_URI=sqlite:///elsewhere.db is relative")
    assert not (tmp_path / "elsewhere.db").exists()


def test_evaluate_names_the_checkpoint_and_fails_in_one_sentence(common: ModuleType) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile(loss="mse", metrics=["accuracy"])
    model.optimizer.build(model.trainable_variables)
    with mlflow.start_run() as run:
        saved = ckpt.save(model)
    command = common.evaluate_command(lambda _: (keras.ops.ones((4, 2)), keras.ops.ones((4, 2))))
    done = CliRunner().invoke(command, ["--run-id", run.info.run_id, "--which", "latest"])
    assert done.exit_code == 0, done.output
    assert f"{saved.name} ({saved.uri})" in done.output
    done = CliRunner().invoke(command, ["--run-id", run.info.run_id, "--which", "newest"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: Expected a selector: latest, final, best")


# --- what the project files say -----------------------------------------------


def entry_points(project: str) -> dict[str, Any]:
    text = (PROJECTS[project] / "MLproject").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)["entry_points"]
    return found


def test_the_root_project_is_the_digits_project() -> None:
    root, digits = entry_points("root"), entry_points("digits")
    assert list(root) == ["main", "resume", "evaluate", "tutorial"]
    for entry in root.values():
        entry["command"] = entry["command"].replace("projects/digits/", "")
    assert root == digits


@pytest.mark.parametrize("project", ["digits", "tabular"])
def test_each_environment_installs_this_repository(project: str) -> None:
    link = PROJECTS[project] / ".repo"
    assert link.is_symlink()
    assert link.readlink() == Path("../..")
    environment = yaml.safe_load((PROJECTS[project] / "conda.yaml").read_text(encoding="utf-8"))
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["./.repo"]}]


@pytest.mark.parametrize("project", PROJECTS)
def test_every_parameter_reaches_its_command(project: str) -> None:
    for name, entry in entry_points(project).items():
        for parameter in entry["parameters"]:
            option = parameter.replace("_", "-")
            assert f"--{option} {{{parameter}}}" in entry["command"], name
