"""`mlflow-ckpt resume`: how a run was launched, and that it is launched again into itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from builders import fit, mlp
from calling import Cli
from leash import Leash, until

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, relaunching
from mlflow_ckpt.errors import LeaseHeld, NoCheckpoints, ResumeError, RunDeleted, RunNotFound
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.recall import LAUNCH_TAG
from mlflow_ckpt.sources import Source
from mlflow_ckpt.store import Launcher, Store
from mlflow_ckpt.tenure import Record

ROOT = Path(__file__).resolve().parents[1]

MLPROJECT = """
name: tiny
entry_points:
  main:
    parameters:
      epochs: {type: float, default: 4}
      title: {type: string, default: two words}
      die_in: {type: float, default: 0}
    command: python train.py {epochs} {title} {die_in}
  other:
    parameters:
      table: {type: path, default: table.csv}
      size: float
    command: python other.py {table} {size}
"""

TRAIN = """
import os, signal, sys
import keras, mlflow, numpy as np
from mlflow_ckpt import MlflowCheckpoint

class Die(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == int(float(sys.argv[3])) and batch == 1:
            os.killpg(0, signal.SIGKILL)
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch + 1

keras.utils.set_random_seed(1)
x = np.random.default_rng(0).random((64, 4), dtype="float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(1)])
model.compile("adam", "mse")
with mlflow.start_run():
    print("title", sys.argv[2])
    model.fit(x, x[:, :1], epochs=int(sys.argv[1]), batch_size=16, verbose=0,
              callbacks=[MlflowCheckpoint(monitor="loss"), Die()])
"""


# --- a run to go on from ------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    database: Path
    run_id: str
    empty: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Trained:
    """A run of one epoch, and one without checkpoints; to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = mlflow.create_experiment("relaunching", (folder / "artifacts").as_uri())
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment) as run:
        fit(mlp(), MlflowCheckpoint(spool=folder / "spool"), epochs=1)
    with mlflow.start_run(experiment_id=experiment) as empty:
        pass
    return Trained(folder / "mlflow.db", run.info.run_id, empty.info.run_id)


@dataclass(frozen=True)
class Workplace:
    """A folder with a project, and a run that was launched from it."""

    run_id: str
    project: Path

    def tag(self, **tags: str) -> None:
        for name, value in tags.items():
            mlflow.MlflowClient().set_tag(self.run_id, name.replace("__", "."), value)

    def params(self, **params: str) -> None:
        for name, value in params.items():
            mlflow.MlflowClient().log_param(self.run_id, name, value)

    def child(self, **params: str) -> str:
        """What `mlflow run -P run_id=...` makes around its script."""
        client = mlflow.MlflowClient()
        tags = {"mlflow.source.type": "PROJECT", "mlflow.parentRunId": self.run_id}
        experiment = client.get_run(self.run_id).info.experiment_id
        made = client.create_run(experiment, tags=tags)
        for name, value in {"run_id": self.run_id, **params}.items():
            client.log_param(made.info.run_id, name, value)
        return str(made.info.run_id)


def write_project(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "MLproject").write_text(MLPROJECT)
    (folder / "train.py").write_text(TRAIN)
    return folder


@pytest.fixture
def place(trained: Trained, tmp_path: Path) -> Workplace:
    shutil.copy(trained.database, tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    made = Workplace(trained.run_id, write_project(tmp_path / "tiny"))
    source = {"mlflow__source__type": "PROJECT", "mlflow__source__name": str(made.project)}
    made.tag(**source, mlflow__project__entryPoint="main", mlflow__project__backend="local")
    return made


def planned(call: Cli, *words: object) -> Any:
    done = call("resume", *words, "--dry-run", "--json")
    assert done.code == 0, done.err
    return done.json()


# --- parameters ---------------------------------------------------------------


def test_the_parameters_of_the_entry_point_are_those_of_the_run(
    place: Workplace, call: Cli
) -> None:
    place.params(epochs="4", title="'it is $5'", optimizer="Adam", batch_size="32")
    found = planned(call, place.run_id)
    assert found["params"] == {"epochs": "4", "title": "it is $5"}
    assert found["changed"] == {}
    assert found["left_to_the_script"] == ["batch_size", "optimizer"]
    assert (found["project"], found["entry_point"]) == (str(place.project), "main")
    assert (found["epoch"], found["step"], found["env_manager"]) == (1, 2, "local")


def test_a_dry_run_says_what_it_would_type(place: Workplace, call: Cli) -> None:
    place.params(epochs="4", title="'two words'")
    done = call("resume", place.run_id, "-P", "epochs=9", "-P", "verbose=1", "--dry-run")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert "entry point main, with epochs=9 instead of 4, verbose=1." in lines[0]
    assert "The run's parameter epochs stays 4: MLflow's cannot change." in lines
    words = shlex.split(lines[-1])
    assert words[:3] == ["mlflow", "run", str(place.project)]
    assert words[words.index("--run-id") + 1] == place.run_id
    assert [w for w in words if "=" in w] == ["epochs=9", "title=two words", "verbose=1"]
    assert LAUNCH_TAG not in mlflow.get_run(place.run_id).data.tags


def test_what_the_last_resume_asked_for_is_remembered(place: Workplace, call: Cli) -> None:
    place.params(epochs="4")
    launch = relaunching.plan(place.run_id, {"epochs": "9", "verbose": "1"})
    assert isinstance(launch, relaunching.Launch)
    place.tag(ckpt__launch=launch.to_remember() or "")
    assert planned(call, place.run_id)["params"] == {"epochs": "9", "verbose": "1"}
    assert planned(call, place.run_id, "-P", "epochs=4")["changed"] == {"epochs": "4"}
    again = relaunching.plan(place.run_id, {"epochs": "4"})
    assert isinstance(again, relaunching.Launch)
    assert json.loads(again.to_remember() or "")["params"] == {"verbose": "1"}


@pytest.mark.parametrize("text", ["{", "[]", '{"params": 3}', '{"params": {}, "at": "now"}'])
def test_a_tag_that_somebody_else_wrote_is_passed_over(
    text: str, place: Workplace, call: Cli
) -> None:
    place.params(epochs="4")
    place.tag(ckpt__launch=text)
    found = planned(call, place.run_id)
    assert found["params"] == {"epochs": "4"}
    assert f"The run's tag {LAUNCH_TAG} is unreadable: ignored." in found["notes"]


def test_what_is_too_long_for_a_tag_is_said(place: Workplace) -> None:
    launch = relaunching.plan(place.run_id, {"title": "long " * 1_200})
    assert isinstance(launch, relaunching.Launch)
    assert launch.to_remember() is None
    assert any("too long to be remembered" in note for note in launch.notes)


def test_a_parameter_that_mlflow_cut_off_is_asked_for(place: Workplace, call: Cli) -> None:
    place.params(title="x" * 6_000)
    done = call("resume", place.run_id, "--dry-run")
    assert done.code == 1
    assert "longer than MLflow keeps one" in done.err
    assert "-P title=..." in done.err
    assert planned(call, place.run_id, "-P", "title=y")["params"] == {"title": "y"}


def test_a_parameter_without_a_value_is_asked_for(place: Workplace, call: Cli) -> None:
    place.tag(mlflow__project__entryPoint="other")
    done = call("resume", place.run_id, "--dry-run")
    assert (done.code, done.out) == (1, "")
    assert "missing parameters: 'size' Give it with -P NAME=VALUE." in done.err
    assert planned(call, place.run_id, "-P", "size=3")["params"] == {"size": "3"}


def test_a_relative_path_is_one_of_this_folder(place: Workplace, call: Cli, tmp_path: Path) -> None:
    place.tag(mlflow__project__entryPoint="other")
    place.params(size="3", table="table.csv")
    said = f"The parameter table is a path in this folder: {tmp_path / 'table.csv'}."
    assert said in planned(call, place.run_id)["notes"]
    done = call("resume", place.run_id)
    assert done.code == 1
    assert "no such file or directory was found" in done.err


# --- attempts of the old way --------------------------------------------------


def test_an_attempt_at_a_run_continues_that_run(place: Workplace, call: Cli) -> None:
    place.params(epochs="4")
    child = place.child(epochs="9")
    found = planned(call, child)
    assert (found["run_id"], found["params"]) == (place.run_id, {"epochs": "9"})
    assert f"Run {child} is an attempt at run {place.run_id}, which is continued." in found["notes"]


def test_the_newest_attempt_says_for_how_long_the_run_trains(place: Workplace, call: Cli) -> None:
    place.params(epochs="4")
    place.child(epochs="7")
    place.child(epochs="9")
    place.child(which="best")  # an evaluation
    assert planned(call, place.run_id)["params"] == {"epochs": "9"}
    later = json.dumps({"at": int(time.time() * 1000) + 9, "params": {"epochs": "12"}})
    place.tag(ckpt__launch=later)
    assert planned(call, place.run_id)["params"] == {"epochs": "12"}
    place.tag(ckpt__launch=later.replace('"at": ', '"at": 1, "was": '))
    assert planned(call, place.run_id)["params"] == {"epochs": "9"}


def test_a_finished_run_is_told_to_train_nothing(place: Workplace, call: Cli) -> None:
    place.params(epochs="1")
    said = "The run has ended as FINISHED at epoch 1: it trains nothing unless"
    assert any(note.startswith(said) for note in planned(call, place.run_id)["notes"])
    assert planned(call, place.run_id, "-P", "epochs=2")["notes"] == [
        "The run's parameter epochs stays 1: MLflow's cannot change."
    ]


# --- runs that are no project's, or cannot go on -------------------------------


def test_the_command_of_a_script_is_printed_and_nothing_launched(
    place: Workplace, call: Cli, tmp_path: Path
) -> None:
    place.tag(mlflow__source__type="LOCAL", mlflow__source__name="my train.py")
    (tmp_path / "my train.py").touch()
    done = call("resume", place.run_id)
    assert done.code == 0
    assert done.out == f"MLFLOW_RUN_ID={place.run_id} python 'my train.py'\n"
    assert "with the arguments it had" in done.err
    elsewhere = call("resume", place.run_id, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    assert elsewhere.out == done.out


def test_the_command_reaches_the_server_that_was_asked(
    trained: Trained, place: Workplace, call: Cli
) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{trained.database}")
    client.set_tag(trained.run_id, "mlflow.source.type", "LOCAL")
    client.set_tag(trained.run_id, "mlflow.source.name", "/gone/train.py")
    uri = f"sqlite:///{trained.database}"
    done = call("resume", trained.run_id, "--json", "--tracking-uri", uri)
    assert done.json() == {
        "run_id": trained.run_id,
        "launched": False,
        "notes": [
            "/gone/train.py is not in this folder.",
            "No project made this run: start its script again, with the arguments it had.",
        ],
        "command": f"MLFLOW_TRACKING_URI={uri} MLFLOW_RUN_ID={trained.run_id} "
        "python /gone/train.py",
    }


@pytest.mark.parametrize(
    ("kind", "name"),
    [("LOCAL", "/env/ipykernel_launcher.py"), ("NOTEBOOK", "/Users/me/a.ipynb"), ("LOCAL", "-c")],
)
def test_cells_are_run_again_with_the_run(
    kind: str, name: str, place: Workplace, call: Cli
) -> None:
    place.tag(mlflow__source__type=kind, mlflow__source__name=name)
    done = call("resume", place.run_id)
    assert (done.code, done.out.splitlines()[0]) == (
        0,
        f'with mlflow.start_run(run_id="{place.run_id}"):',
    )


def test_options_of_a_project_are_refused_for_a_script(place: Workplace) -> None:
    place.tag(mlflow__source__type="LOCAL", mlflow__source__name="train.py")
    for options in ({"params": {"epochs": "3"}}, {"project": "."}):
        with pytest.raises(ResumeError, match=r"MLflow does not know its arguments"):
            relaunching.plan(place.run_id, **options)  # type: ignore[arg-type]


def test_what_cannot_go_on_is_an_error_that_says_so(place: Workplace, trained: Trained) -> None:
    with pytest.raises(RunNotFound):
        relaunching.plan("nobody")
    with pytest.raises(NoCheckpoints, match=r"nothing to go on from: start it anew.*sync"):
        relaunching.plan(trained.empty)
    place.tag(mlflow__project__backend="kubernetes")
    with pytest.raises(ResumeError, match=r"backend 'kubernetes'.*--env-manager local"):
        relaunching.plan(place.run_id)
    assert isinstance(relaunching.plan(place.run_id, env_manager="local"), relaunching.Launch)
    mlflow.delete_run(place.run_id)
    with pytest.raises(RunDeleted):
        relaunching.plan(place.run_id)


# --- where the code is --------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *who, "-C", folder, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(place: Workplace, tmp_path: Path) -> Path:
    """The project in a git repository, as MLflow records one."""
    root = tmp_path / "code base"
    write_project(root / "projects/a.b")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    commit = git(root, "rev-parse", "HEAD")
    source = f"file://{root}#projects/a.b"
    place.tag(mlflow__source__name=source, mlflow__source__git__commit=commit)
    return root


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        pytest.param("file://{here}/a b#c", "{here}/a b/c", id="git-as-mlflow-records-it"),
        pytest.param("file://{here}/a%20b#c", "{here}/a b/c", id="quoted"),
        pytest.param("/else/file:{here}/a b#c", "{here}/a b/c", id="file-uri-as-mlflow-records-it"),
        pytest.param("{here}/a b", "{here}/a b", id="folder"),
        pytest.param("a b#c", "{here}/a b/c", id="relative"),
        pytest.param("https://host/r.git#c", None, id="git"),
        pytest.param("git@host:me/r.git#c", None, id="ssh"),
        pytest.param("{here}/a b.zip", None, id="archive"),
    ],
)
def test_a_source_is_read_as_mlflow_records_it(
    text: str, folder: str | None, tmp_path: Path
) -> None:
    (tmp_path / "a b").mkdir()
    text = text.replace("{here}", str(tmp_path))
    found = Source.parse(text)
    expected = folder and Path(folder.replace("{here}", str(tmp_path)))
    assert found == Source(uri=str(expected) if expected else text, folder=expected or None)


def test_a_password_in_a_project_s_uri_is_not_shown() -> None:
    shown = Source.parse("https://me:secret@host/r.git#c").shown
    assert shown == "https://***@host/r.git#c"
    assert Source.parse("ssh://git@host/r.git").shown == "ssh://git@host/r.git"


def test_a_folder_at_the_recorded_commit_is_launched(
    place: Workplace, repository: Path, call: Cli
) -> None:
    found = planned(call, place.run_id)
    assert found["project"] == str(repository / "projects/a.b")
    assert found["commit"] == git(repository, "rev-parse", "HEAD")
    (repository / "projects/a.b/train.py").write_text("# changed")
    (repository / "new.txt").touch()
    assert (
        "Uncommitted changes are launched as they are: projects/a.b/train.py."
        in (planned(call, place.run_id)["notes"])
    )


def test_another_commit_is_refused_until_it_is_asked_for(
    place: Workplace, repository: Path, call: Cli
) -> None:
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "commit", "-qm", "the same files", "--allow-empty")
    assert planned(call, place.run_id)["notes"][:1] != []
    (repository / "projects/a.b/train.py").write_text("# changed")
    git(repository, "commit", "-qam", "other files")
    done = call("resume", place.run_id)
    assert (done.code, done.out) == (1, "")
    assert f"was launched at commit {first[:10]} of {repository}/projects/a.b" in done.err
    assert "(projects/a.b/train.py differ)" in done.err
    assert f"git -C '{repository}' checkout {first[:10]}" in done.err
    assert f"mlflow-ckpt resume {place.run_id} --any-commit" in done.err

    launch = relaunching.plan(place.run_id, any_commit=True)
    assert isinstance(launch, relaunching.Launch)
    newest = git(repository, "rev-parse", "HEAD")
    assert f"Launches commit {newest[:10]}; before it was commit {first[:10]}." in launch.notes
    place.tag(ckpt__launch=launch.to_remember() or "")
    assert planned(call, place.run_id)["commit"] == newest  # is what it goes on with


def test_a_folder_that_is_in_git_no_more_is_another_commit(
    place: Workplace, repository: Path, call: Cli
) -> None:
    shutil.rmtree(repository / ".git")
    assert "which is in no git repository now. Launch what" in call("resume", place.run_id).err
    assert planned(call, place.run_id, "--any-commit")["commit"] is None


def test_a_project_that_is_gone_is_asked_for(
    place: Workplace, repository: Path, call: Cli, tmp_path: Path
) -> None:
    repository.rename(tmp_path / "moved")
    done = call("resume", place.run_id)
    assert (done.code, done.out) == (1, "")
    assert f"in {repository}/projects/a.b, where no folder is. Say where it is now" in done.err
    place.tag(mlflow__source__git__repoURL="https://host/r.git")
    said = "--project 'https://host/r.git#projects/a.b'. Or say where it is now: mlflow-ckpt"
    assert said in call("resume", place.run_id).err
    there = tmp_path / "moved/projects/a.b"
    assert planned(call, place.run_id, "--project", there)["project"] == str(there)


def test_a_folder_without_a_project_is_one_line(
    place: Workplace, call: Cli, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = call("resume", place.run_id, "--project", tmp_path / "empty")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert f"The entry point 'main' of {tmp_path / 'empty'} cannot be launched: Could not find" in (
        done.err
    )


# --- what is launched ---------------------------------------------------------


def test_an_environment_of_its_own_is_made_by_mlflow(place: Workplace) -> None:
    place.tag(mlflow__project__env="uv")
    place.params(epochs="4")
    launch = relaunching.plan(place.run_id)
    assert isinstance(launch, relaunching.Launch)
    store = Store()
    made = Launcher(store.uri).program(
        launch.run, launch.project, "main", launch.params, launch.env_manager
    )
    assert made.words[:4] == (sys.executable, "-m", "mlflow", "run")
    assert made.words[made.words.index("--env-manager") + 1] == "uv"
    assert made.variables == {"MLFLOW_TRACKING_URI": store.uri}


def test_python_is_the_one_of_this_environment(tmp_path: Path) -> None:
    here = str(Path(sys.executable).parent)
    assert relaunching.path_of_this_python(f"{here}:/usr/bin") == f"{here}:/usr/bin"
    assert relaunching.path_of_this_python("/usr/bin") == f"{here}:/usr/bin"


def test_a_database_in_this_folder_is_named_from_anywhere(place: Workplace, tmp_path: Path) -> None:
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    launch = relaunching.plan(place.run_id)
    assert isinstance(launch, relaunching.Launch)
    made = Launcher(Store().uri).program(launch.run, launch.project, "main", {}, "local")
    assert made.variables["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_run_that_somebody_trains_is_left_alone(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is started: the training would mark the run as FAILED on its way out."""
    monkeypatch.setattr(relaunching, "Lease", quick_lease)
    tag = Store().lease_tag(Store().run(place.run_id), "ckpt")
    somebody = Owner(boot="", namespace="", host="gpu3", pid=4711, started=0)
    tag.write(Record(somebody, "n").text())
    launch = relaunching.plan(place.run_id)
    assert isinstance(launch, relaunching.Launch)
    assert "host gpu3, pid 4711 may still write to 'ckpt'." in launch.notes
    done = threading.Event()

    def live() -> None:
        beat = 0
        while not done.wait(0.05):
            beat += 1
            tag.write(Record(somebody, "n", beat).text())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(LeaseHeld, match=r"Received: host gpu3, pid 4711, which is alive\."):
            relaunching.go(launch, os.environ)
    finally:
        done.set()
        thread.join()
    assert mlflow.get_run(place.run_id).info.status == "FINISHED"


def quick_lease(tag: Any, *, where: str) -> Lease:
    return Lease(tag, where=where, ttl_s=3.0, beat_s=1.0)


# --- for real -----------------------------------------------------------------


@dataclass(frozen=True)
class Shell:
    """Commands as a person types them, in a folder, with the tracking server of the test."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *words: object, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        process = self.begin(*words)
        leash = Leash(process)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            leash.end()
        done = subprocess.CompletedProcess(words, process.returncode, out.decode(), err.decode())
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def begin(self, *words: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(word) for word in words],
            cwd=self.folder,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )


@pytest.fixture
def shell(tracking: str, tmp_path: Path) -> Shell:
    """On a path where `python` is another one: `mlflow-ckpt` is called by its own."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_RUN_ID")}
    told = {
        "MLFLOW_TRACKING_URI": tracking,
        "MLFLOW_EXPERIMENT_ID": experiment_here(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": f"{Path(sys.executable).parent}:{clean['PATH']}",
    }
    return Shell(tmp_path, clean | told)


def experiment_here() -> str:
    """The test's own: MLflow keeps the one that `set_experiment` was told."""
    with mlflow.start_run() as probe:
        experiment = probe.info.experiment_id
    mlflow.MlflowClient().delete_run(probe.info.run_id)
    return str(experiment)


def runs_of(shell: Shell) -> list[Any]:
    return list(mlflow.MlflowClient().search_runs([shell.environment["MLFLOW_EXPERIMENT_ID"]]))


MLFLOW_RUN = ("mlflow", "run", "--env-manager", "local")


@pytest.mark.backends("local", "proxied")
def test_a_run_that_was_killed_goes_on_in_itself(shell: Shell, tmp_path: Path) -> None:
    """Four processes that import TensorFlow or MLflow: the whole promise, as it is typed."""
    project = write_project(tmp_path / "tiny")
    killed = shell.run(*MLFLOW_RUN, project, "-P", "die_in=3", "-P", "title=a b", code=None)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (run,) = runs_of(shell)
    assert run.info.status == "RUNNING"

    elsewhere = Shell(tmp_path / "tiny", {**shell.environment, "PATH": os.defpath})
    script = Path(sys.executable).with_name("mlflow-ckpt")
    done = elsewhere.run(script, "resume", run.info.run_id, "-P", "die_in=0", "-P", "epochs=5")
    assert "title a b" in done.stdout
    assert re.search(r"continues after epoch [12], step [48]\.", done.stdout)
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in done.stderr
    (ended,) = runs_of(shell)
    assert (ended.info.run_id, ended.info.status) == (run.info.run_id, "FINISHED")
    assert ended.data.params == {"epochs": "4", "title": "'a b'", "die_in": "3"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [row.step for row in history] == [1, 2, 3, 4, 5]
    assert ckpt.resolve(run.info.run_id).epoch == 5
    remembered = json.loads(ended.data.tags[LAUNCH_TAG])
    assert remembered["params"] == {"die_in": "0", "epochs": "5"}


@pytest.mark.slow
@pytest.mark.parametrize("project", ["", "projects/tabular"])
def test_the_projects_here_train_on_and_remember_for_how_long(shell: Shell, project: str) -> None:
    script = Path(sys.executable).with_name("mlflow-ckpt")
    shell.run(*MLFLOW_RUN, ROOT / project, "-P", "epochs=2", "-P", "learning_rate=1e-3")
    (run,) = runs_of(shell)
    force = ("--any-commit", "--json")
    done = shell.run(script, "resume", run.info.run_id, "-P", "epochs=4", *force)
    assert json.loads(done.stdout)["changed"] == {"epochs": "4"}
    assert "continues after epoch 2" in done.stderr
    again = shell.run(script, "resume", run.info.run_id, *force)
    found = json.loads(again.stdout)
    assert (found["params"]["epochs"], found["params"]["learning_rate"]) == ("4", "1e-3")
    assert any("it trains nothing unless" in note for note in found["notes"])
    old = ("-e", "resume", "-P", f"run_id={run.info.run_id}", "-P", "epochs=5")
    shell.run(*MLFLOW_RUN, ROOT / project, *old)
    (child,) = (r for r in runs_of(shell) if r.info.run_id != run.info.run_id)
    last = json.loads(shell.run(script, "resume", child.info.run_id, *force).stdout)
    assert (last["run_id"], last["params"]["epochs"]) == (run.info.run_id, "5")
    assert [r.info.status for r in runs_of(shell)] == ["FINISHED", "FINISHED"]
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    assert [row.step for row in history] == [1, 2, 3, 4, 5]


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A git repository with the project below it, and its URI."""
    root = tmp_path / "remote"
    write_project(root / "below/tiny")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--export-all", f"--base-path={tmp_path}", "--listen=127.0.0.1", f"--port={port}"]
    process = subprocess.Popen(
        ["git", "daemon", "--reuseaddr", *options, str(tmp_path)], start_new_session=True
    )
    leash = Leash(process)
    uri = f"git://127.0.0.1:{port}/remote"
    try:
        asked = ["git", "ls-remote", uri]
        assert until(lambda: subprocess.run(asked, capture_output=True).returncode == 0, 20)
        yield root, f"{uri}#below/tiny"
    finally:
        leash.end()


@pytest.mark.slow
def test_a_git_uri_is_launched_at_the_commit_that_was_launched(
    shell: Shell, remote: tuple[Path, str]
) -> None:
    root, uri = remote
    script = Path(sys.executable).with_name("mlflow-ckpt")
    shell.run(*MLFLOW_RUN, uri, "-P", "die_in=3", code=-signal.SIGKILL)
    (run,) = runs_of(shell)
    first = git(root, "rev-parse", "HEAD")
    (root / "below/tiny/train.py").write_text("raise SystemExit(7)")
    git(root, "commit", "-qam", "broken")
    shell.run(script, "resume", run.info.run_id, "--any-commit", code=7)
    said = shell.run(script, "resume", run.info.run_id, "--dry-run").stdout
    assert git(root, "rev-parse", "HEAD")[:10] in said  # the last launch
    mlflow.MlflowClient().delete_tag(run.info.run_id, LAUNCH_TAG)
    planned = shell.run(script, "resume", run.info.run_id, "--dry-run").stdout
    assert f"-v {first}" in planned
    shell.run(script, "resume", run.info.run_id, "-P", "die_in=0")
    (ended,) = runs_of(shell)
    assert ended.info.status == "FINISHED"
    assert ckpt.resolve(run.info.run_id).epoch == 4


@pytest.mark.slow
def test_the_training_hears_the_signal_and_its_code_is_the_one_that_counts(
    shell: Shell, tmp_path: Path
) -> None:
    script = Path(sys.executable).with_name("mlflow-ckpt")
    project = write_project(tmp_path / "tiny")
    shell.run(*MLFLOW_RUN, project, "-P", "epochs=2")
    (run,) = runs_of(shell)
    process = shell.begin(script, "resume", run.info.run_id, "-P", "epochs=100000")
    leash = Leash(process)
    try:
        assert until(lambda: ckpt.resolve(run.info.run_id).epoch > 3, 120)
        process.send_signal(signal.SIGTERM)  # to no other process
        _, err = process.communicate(timeout=120)
    finally:
        leash.end()
    assert process.returncode == 128 + signal.SIGTERM, err.decode()
    assert "SIGTERM: saves a checkpoint" in err.decode()
    assert mlflow.get_run(run.info.run_id).info.status == "KILLED"
    (project / "train.py").write_text("raise SystemExit('the disk is full')")
    failed = shell.run(script, "resume", run.info.run_id, code=1)
    assert failed.stderr.endswith("the disk is full\n")
