"""`mlflow-ckpt doctor`: what it finds, what it says to do, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from backends import Backend, BasicAuth, as_user
from builders import fit, mlp
from calling import Cli
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt import (
    MlflowCheckpoint,
    artifact_check,
    doctoring,
    server_check,
    software,
    spool_check,
)
from mlflow_ckpt.captured import _torn
from mlflow_ckpt.errors import ServerAway
from mlflow_ckpt.finding import Finding
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.store import Checkup, Place, _checkup, _speed

Record = Mapping[str, Any]


def examined(call: Cli, *words: object, code: int = 0) -> dict[str, Record]:
    """What the doctor says of each thing, with a small file and without Keras."""
    options = () if "--size" in words else ("--size", "1")
    done = call("doctor", *words, *options, "--no-capture", "--json")
    assert done.code == code, done.out + done.err
    found = done.json()
    worst = {r["verdict"] for r in found["findings"]}
    assert found["verdict"] == next(v for v in ("problem", "warning", "ok") if v in worst)
    return {record["name"]: record for record in found["findings"]}


def everything_below(folder: Path) -> set[Path]:
    return set(folder.rglob("*")) if folder.exists() else set()


@pytest.fixture(autouse=True)
def nobody_left_waiting() -> Iterator[None]:
    """A doctor that leaves a thread alone ends its process, and that is the one of the tests."""
    yield
    while doctoring.still_waits():
        time.sleep(0.01)


@pytest.fixture
def experiment(tracking: str, request: pytest.FixtureRequest) -> str:
    """Name of the test's own experiment, which the environment names too."""
    with mlflow.start_run() as probe:
        found = mlflow.get_experiment(probe.info.experiment_id)
    mlflow.delete_run(probe.info.run_id)
    return str(found.name)


# --- all is well --------------------------------------------------------------


@pytest.mark.backends("local", "proxied", "postgres-s3", "basic-auth", quick=("proxied",))
def test_everything_is_looked_at_and_nothing_left_behind(
    experiment: str, backend: Backend, call: Cli, tmp_path: Path
) -> None:
    before = everything_below(tmp_path) | everything_below(backend.folder / "served")
    runs = mlflow.search_runs(experiment_names=[experiment], output_format="list")
    found = examined(call, "--experiment", experiment)
    assert {r["verdict"] for r in found.values()} == {"ok"}, found
    after = everything_below(tmp_path) | everything_below(backend.folder / "served")
    assert {path for path in after - before if path.is_file()} == set()
    assert after - before == set() or backend.name != "local"
    assert mlflow.search_runs(experiment_names=[experiment], output_format="list") == runs

    http = backend.name != "local"
    server = found["tracking server"]
    assert (server["kind"] == "http") == http
    assert (server["version"] == mlflow.__version__) == http
    assert 0 < server["round_trip_seconds"] < 5
    assert found["artifact store"]["proxied"] == (backend.name in ("proxied", "basic-auth"))
    speed = found["artifact speed"]
    assert (speed["size"], speed["equal"]) == (1 << 20, True)
    assert speed["write_seconds"] > 0
    assert found["artifact deletion"]["deletes"]
    assert found["user"]["asks_who"] == (backend.name == "basic-auth")
    assert found["user"]["may_train"]
    assert found["spool disk"]["write_seconds"] > 0
    assert found["spool"]["folder"] == str(tmp_path / "spool")


def test_a_person_gets_one_line_for_each_and_no_keras_without_the_capture(
    experiment: str, tracking: str
) -> None:
    code = (
        "import sys\n"
        "from mlflow_ckpt.cli import main\n"
        "try:\n"
        f"    main(['doctor', '--no-capture', '--size', '1', '--experiment', {experiment!r}])\n"
        "finally:\n"
        "    print(sorted({'keras', 'tensorflow', 'mlflow.keras'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *lines, blank, last, imported = done.stdout.splitlines()
    assert all(line.startswith("ok       ") for line in lines)
    assert f"ok       tracking URI         {tracking}, from MLFLOW_TRACKING_URI" in lines
    assert (blank, last, imported) == ("", "All is well.", "[]")


def test_the_capture_mode_is_the_one_of_a_training() -> None:
    found = software.capture()
    assert (found.verdict, found.facts["strategy"]) == ("ok", "copy-on-write")
    _torn.append("training wrote into memory that a snapshot shared")
    try:
        found = software.capture()
    finally:
        _torn.clear()
    assert found.facts["strategy"] == "host-copy"
    assert "because training wrote into memory" in found.text


def test_a_keras_that_cannot_be_imported_is_a_problem(
    experiment: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Finding:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(software, "capture", broken)
    done = call("doctor", "--size", "1", "--experiment", experiment)
    assert done.code == 1
    assert "problem  capture              libcudart.so.12: cannot open" in done.out
    assert "artifact deletion" in done.out
    assert done.out.endswith("\n1 problem.\n")


# --- a run, an experiment -----------------------------------------------------


def test_a_run_names_the_experiment_and_what_may_be_deleted(tracking: str, call: Cli) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    found = examined(call, run.info.run_id)
    models = found["logged models"]
    assert (models["run_id"], models["experiment_id"]) == (
        run.info.run_id,
        run.info.experiment_id,
    )
    assert "(FINISHED, series: ckpt)" in models["text"]
    assert found["old checkpoints"]["may_delete"]
    assert examined(call, f"ckpt:/{run.info.run_id}/best")["logged models"] == models


def test_a_run_or_experiment_that_is_not_there_is_a_problem(tracking: str, call: Cli) -> None:
    found = examined(call, "nobody", code=1)
    assert found["experiment"]["text"].startswith("No run 'nobody' on the tracking server")
    assert found["tracking server"]["verdict"] == "ok"
    assert "artifact speed" not in found
    found = examined(call, "--experiment", "mnist", code=1)
    assert found["experiment"]["text"] == (
        "No experiment is called 'mnist' on this tracking server."
    )
    assert call("doctor", "abc", "--experiment", "mnist").code == 2


# --- the server ---------------------------------------------------------------


def test_a_server_that_refuses_is_said_at_once(tracking: str, call: Cli) -> None:
    began = time.monotonic()
    found = examined(call, "--tracking-uri", "http://me:secret@127.0.0.1:9", code=1)
    assert time.monotonic() - began < 5
    server = found["tracking server"]
    assert server["text"] == (
        "http://***@127.0.0.1:9 does not answer: connection refused (waited for 5 s at most)."
    )
    assert server["advice"].startswith("start it, or name another one")
    assert found["spool disk"]["verdict"] == "ok"
    assert "secret" not in json.dumps(found)


@pytest.fixture
def listener() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_server_that_never_answers_costs_a_bounded_time(
    listener: str, tracking: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checkup, "_VERSION_S", 0.3)
    began = time.monotonic()
    text = examined(call, "--tracking-uri", listener, code=1)["tracking server"]["text"]
    assert time.monotonic() - began < 5
    assert "does not answer: no answer in time (waited for 0.3 s at most)" in text


def test_what_is_no_mlflow_server_is_said(
    tracking: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answer:
        status_code, text = 404, "Not Found"

    monkeypatch.setattr(_checkup, "http_request", lambda *_, **__: Answer())
    found = examined(call, "--tracking-uri", "http://127.0.0.1:9", code=1)
    assert found["tracking server"]["text"] == (
        "Expected an MLflow server at http://127.0.0.1:9. Received: status 404 for /version."
    )
    Answer.status_code, Answer.text = 200, "2.22.0"
    found = examined(call, "--tracking-uri", "http://127.0.0.1:9", code=1)
    assert "Expected MLflow 3 or later" in found["tracking server"]["text"]
    Answer.status_code = 503
    found = examined(call, "--tracking-uri", "http://127.0.0.1:9", code=1)
    assert found["tracking server"]["text"] == "http://127.0.0.1:9 answers with status 503."


def test_a_client_that_tries_again_for_minutes_is_left_to_itself(
    experiment: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of such a client would be waited for when Python ends, so the process ends first."""
    over = threading.Event()
    ended: list[int] = []
    monkeypatch.setattr(doctoring, "ARTIFACTS_S", 0.2)
    monkeypatch.setattr(doctoring, "measure", lambda *_: over.wait(60))
    monkeypatch.setattr(os, "_exit", ended.append)
    try:
        found = examined(call, "--experiment", experiment, code=1)
    finally:
        over.set()
    assert found["artifact speed"]["text"] == "No answer within 0.2 s."
    assert ended == [1]


def test_an_answer_or_a_failure_comes_through_from_its_thread() -> None:
    assert doctoring.within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        doctoring.within(5, lambda: 1 / 0)
    with pytest.raises(ServerAway, match=r"No answer within 0\.01 s\."):
        doctoring.within(0.01, lambda: time.sleep(0.2))


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        pytest.param(
            "sqlite:////nowhere/typo.db", "No MLflow database at /nowhere/typo.db.", id="no-file"
        ),
        pytest.param("file:///runs", "The file store cannot hold checkpoints.", id="file-store"),
    ],
)
def test_a_tracking_uri_that_cannot_be_used_is_a_problem(
    uri: str, text: str, tracking: str, call: Cli
) -> None:
    found = examined(call, "--tracking-uri", uri, code=1)
    assert found["tracking URI"]["text"].startswith(text)
    assert found["spool disk"]["verdict"] == "ok"


def test_an_old_schema_says_how_to_upgrade(
    empty_database: Path, tracking: str, tmp_path: Path, call: Cli
) -> None:
    shutil.copy(empty_database, tmp_path / "old.db")
    with sqlite3.connect(tmp_path / "old.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
    database.close()
    uri = f"sqlite:///{tmp_path / 'old.db'}"
    server = examined(call, "--tracking-uri", uri, code=1)["tracking server"]
    assert "Received: 451aebb31d03." in server["text"]
    assert f"mlflow db upgrade {uri}" in server["advice"]
    (tmp_path / "new.db").touch()
    empty = examined(call, "--tracking-uri", f"sqlite:///{tmp_path / 'new.db'}")
    assert empty["tracking server"]["verdict"] == "warning"
    assert (tmp_path / "new.db").stat().st_size == 0


def test_a_slow_server_is_a_warning(tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkup, "round_trip", lambda _: 2.5)
    found = server_check.server(Checkup(tracking))
    assert (found.verdict, found.text[-22:]) == ("warning", "a search takes 2500 ms")


@pytest.mark.slow
@pytest.mark.backends("basic-auth")
def test_who_may_not_train_is_told_what_to_ask_for(
    experiment: str, backend: BasicAuth, call: Cli
) -> None:
    assert isinstance(backend, BasicAuth)
    with mlflow.start_run() as run:
        pass
    with as_user(backend.permitted(run.info.run_id, "READ")):
        found = examined(call, run.info.run_id, code=1)
        assert "may make no run in experiment" in found["user"]["text"]
        assert found["user"]["advice"].startswith("Ask for a permission on its experiment")
        assert found["artifact speed"]["verdict"] == "problem"
    with as_user(backend.permitted(run.info.run_id, "EDIT")):
        found = examined(call, run.info.run_id)
        assert found["user"]["may_train"]
        assert not found["artifact deletion"]["deletes"]
        assert (
            "this user may not delete there. Ask for a perm" in found["artifact deletion"]["text"]
        )
        left = found["artifact deletion"]["left"]
        assert left in found["artifact deletion"]["advice"]
    with as_user({}):
        server = examined(call, run.info.run_id, code=1)["tracking server"]
        assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in server["text"]


# --- the artifact store -------------------------------------------------------


class NoDelete(LocalArtifactRepository):
    """One of those that do not implement it."""

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError


class Pretends(LocalArtifactRepository):
    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        """Say nothing, and keep it."""


class Rots(LocalArtifactRepository):
    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        super().log_artifact(local_file, artifact_path)
        path = Path(self.artifact_dir) / Path(local_file).name
        path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        pytest.param(NoDelete, "the artifact store cannot delete", id="cannot"),
        pytest.param(Pretends, "it reports a deletion, and lists the file", id="pretends"),
    ],
)
def test_a_store_that_cannot_delete_is_left_with_an_empty_file_that_is_named(
    kind: type[LocalArtifactRepository],
    reason: str,
    experiment: str,
    call: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_speed, "get_artifact_repository", lambda uri, **_: kind(uri))
    found = examined(call, "--experiment", experiment)["artifact deletion"]
    assert found["verdict"] == "warning"
    assert reason in found["text"]
    left = Path(found["left"].removeprefix("file://"))
    assert [(p.name, p.stat().st_size) for p in left.iterdir()] == [("doctor.bin", 0)]
    assert str(left) in found["advice"]


def test_bytes_that_come_back_different_are_a_problem(
    experiment: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_speed, "get_artifact_repository", lambda uri, **_: Rots(uri))
    found = examined(call, "--experiment", experiment, code=1)
    assert "what was read is not what was written" in found["artifact speed"]["text"]
    assert found["artifact deletion"]["deletes"]


def test_a_folder_that_cannot_be_written_to_is_a_problem(tracking: str, call: Cli) -> None:
    mlflow.create_experiment("sealed", "/sys/mlflow-ckpt")  # not even by root
    found = examined(call, "--experiment", "sealed", code=1)
    assert found["artifact speed"]["text"].startswith("The artifact store /sys/mlflow-ckpt failed:")
    assert "/sys/mlflow-ckpt" in found["artifact speed"]["text"]


def test_a_server_whose_artifacts_stay_on_this_machine_is_a_warning() -> None:
    place = Place(
        experiment_id="1", experiment="e", artifact_uri="/runs/1", folder=Path("/runs/1"),
        proxied=False,
    )  # fmt: skip
    found = artifact_check.store(Checkup("http://me:secret@host:5000"), place)
    assert found.verdict == "warning"
    assert found.text == "/runs/1: a folder of this machine, although the server is host"
    assert "--artifacts-destination" in found.advice


def test_a_slow_store_says_what_that_means() -> None:
    measured = _speed.Measured(size=1 << 20, write=0.5, read=0.1, equal=True, left="", reason="")
    found = artifact_check.speed(measured)
    assert (found.verdict, found.advice[:37]) == (
        "warning",
        "a checkpoint of 1 GiB takes 9 minutes",
    )


# --- this machine -------------------------------------------------------------


def test_a_spool_that_cannot_be_written_to_is_a_problem(
    experiment: str, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", "/sys/mlflow-ckpt/spool")
    found = examined(call, "--experiment", experiment, code=1)
    assert "The spool /sys/mlflow-ckpt/spool cannot be written to" in found["spool"]["text"]
    assert "MLFLOW_CKPT_SPOOL" in found["spool"]["text"]
    assert found["artifact deletion"]["verdict"] == "ok"


def test_a_spool_that_others_may_look_into_is_a_warning(
    experiment: str, call: Cli, tmp_path: Path
) -> None:
    (tmp_path / "spool").mkdir(mode=0o755)
    found = examined(call, "--experiment", experiment)["spool"]
    assert (found["verdict"], found["mode"]) == ("warning", "0755")
    assert found["advice"] == f"chmod 700 {tmp_path}/spool"
    assert list((tmp_path / "spool").iterdir()) == []


MOUNTS = r"""
22 1 254:0 / / rw - ext4 /dev/root rw
23 22 0:21 / /scratch\040disk rw shared:1 - nfs4 server:/a rw
24 22 0:22 / /home rw - overlay none rw
25 24 0:23 / /home/me rw - tmpfs tmpfs rw
26 22 0:24 / /home rw - ext4 /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/var/spool", "ext4"),
        ("/scratch disk/a", "nfs4"),
        ("/home/me/a", "tmpfs"),
        ("/home", "ext4"),
    ],
)
def test_the_file_system_is_the_one_mounted_nearest(
    folder: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS.lstrip())
    monkeypatch.setattr(spool_check, "_MOUNTS", tmp_path / "mountinfo")
    assert spool_check.file_system(Path(folder)) == kind


@pytest.mark.parametrize(
    ("kind", "free", "verdict", "text"),
    [
        pytest.param("ext4", 2 << 30, "ok", "2.0 GiB free on ext4, ", id="well"),
        pytest.param("nfs4", 2 << 30, "warning", "a network disk", id="network"),
        pytest.param("overlay", 2 << 30, "warning", "goes with the container", id="container"),
        pytest.param("ext4", 100 << 20, "warning", "100.0 MiB are little", id="little"),
        pytest.param("ext4", 1 << 20, "problem", "1.0 MiB are little", id="full"),
    ],
)
def test_a_disk_that_is_unfit_is_said(
    kind: str,
    free: int,
    verdict: str,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spool_check, "file_system", lambda _: kind)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, free))
    found = spool_check._disk(tmp_path, 1 << 20)
    assert found.verdict == verdict
    assert text in found.text
    assert (found.facts["write_seconds"] is None) == (verdict == "problem")
    assert list(tmp_path.iterdir()) == [tmp_path / "mlflow.db"]


def journal(spool: Path, series: str, uri: str, *, alive: bool = False) -> Journal:
    spool.mkdir(mode=0o700, exist_ok=True)
    made = Journal.create(spool, "a" * 32, series, {"tracking_uri": uri})
    if not alive:
        gone = subprocess.Popen(["true"])
        dead = {**Owner.me().to_dict(), "pid": gone.pid, "started": 1}
        gone.wait()
        made.describe({**made.about, "writer": dead})
    made.append("tags", {"a": "b"})
    return made


def test_what_waits_is_counted_by_server(
    experiment: str, tracking: str, call: Cli, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    journal(spool, "trains", tracking, alive=True)
    found = examined(call, "--experiment", experiment)["waiting here"]
    assert (found["verdict"], found["series"], found["other_entries"]) == ("ok", 1, 1)
    left = journal(spool, "left", tracking)
    found = examined(call, "--experiment", experiment)["waiting here"]
    assert (found["verdict"], found["advice"]) == ("warning", "mlflow-ckpt sync")
    journal(spool, "far", "http://far:5000")
    elsewhere = examined(call, "--experiment", experiment)["waiting elsewhere"]
    assert elsewhere["text"].startswith("1 entry of 1 series for http://far:5000, ")
    assert elsewhere["advice"] == "mlflow-ckpt sync --all"
    (entry,) = left.waiting()
    left.refuse(entry, "quota")
    assert (
        "1 of it was refused" in examined(call, "--experiment", experiment)["waiting here"]["text"]
    )


def test_a_damaged_entry_is_a_problem_and_hides_no_other(
    experiment: str, tracking: str, call: Cli, tmp_path: Path
) -> None:
    broken = journal(tmp_path / "spool", "broken", tracking)
    journal(tmp_path / "spool", "whole", tracking)
    (entry,) = broken.waiting()
    (entry.path / "entry.json").write_text("{")
    found = examined(call, "--experiment", experiment, code=1)
    assert str(entry.path) in found["journals"]["text"]
    assert "Move that folder away." in found["journals"]["text"]
    assert found["waiting here"]["series"] == 1


def test_a_package_that_is_missing_or_too_old_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(name: str) -> str:
        if name == "h5py":
            raise metadata.PackageNotFoundError(name)
        return found[name]

    installed = ("mlflow-ckpt", "mlflow", "tensorflow", "numpy")
    found = {name: metadata.version(name) for name in installed} | {"keras": "2.15.0"}
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    told = {finding.name: finding for finding in software.versions()}
    assert told["keras"].text.startswith("Expected keras<4,>=3.12. Received: 2.15.0.")
    assert told["keras"].advice == "pip install 'keras<4,>=3.12'"
    assert told["h5py"].text == "Expected h5py>=3.11. Received: it is not installed."
    assert {f.verdict for f in told.values()} == {"ok", "problem"}


def test_an_entry_point_that_is_not_installed_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert software.plugin().verdict == "ok"
    monkeypatch.setattr(metadata, "entry_points", lambda **_: [])
    found = software.plugin()
    assert (found.verdict, shlex.split(found.advice)[:2]) == ("problem", ["pip", "install"])


def test_the_backend_is_the_one_that_keras_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert software.keras_backend() == keras.backend.backend()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_BACKEND", raising=False)
    assert software.keras_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    assert software.keras_backend() == "jax"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert software.keras_backend() == "torch"
