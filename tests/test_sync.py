"""`mlflow-ckpt sync`: what waits is listed, delivered once, and never lost."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from builders import fit, mlp
from doubles import tracking_server
from faults import Answer, BlackHole, Proxy, always, no_retries

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, cli, cli_options, parcel, syncing
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import LeaseLost
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.spool import journals
from mlflow_ckpt.store import Store

HERE = Path(__file__).parent
EPOCHS = 4
# Keep(last=2, best=1) of four epochs; the one that was about to be delivered is never dropped.
WAITED = ["ckpt-0001-00000002", "ckpt-0003-00000006", "ckpt-0004-00000008"]
LEFT = ["ckpt-0003-00000006", "ckpt-0004-00000008"]


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def failure(self) -> str:
        """What stands on stderr but for lines such as the one about the lease of the dead."""
        lines = self.err.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("mlflow_ckpt: "))


Cli = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `mlflow-ckpt` with these arguments, in this process."""
    for name, value in cli_options.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(arg) for arg in args], prog_name="mlflow-ckpt")
        return Result(int(caught.value.code or 0), *capsys.readouterr())

    return run


@dataclass(frozen=True)
class Away:
    """Two runs whose process is gone, and a spool with all that they had to say.

    Attributes:
        folder: Holds `mlflow.db` and `spool`.
        uri: Of the database.
        runs: IDs.
    """

    folder: Path
    uri: str
    runs: tuple[str, str]

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    def journal(self, index: int = 0) -> Journal:
        return Journal(self.spool / self.runs[index] / "ckpt")

    def copy(self, folder: Path) -> Away:
        """The same once more, on a database of its own."""
        made = Away(folder, f"sqlite:///{folder / 'mlflow.db'}", self.runs)
        shutil.copytree(self.spool, made.spool)
        shutil.copy(self.folder / "mlflow.db", folder)
        made.aim(made.uri)
        return made

    def aim(self, uri: str, *indices: int) -> None:
        """Let journals name another tracking server; all of them, if none is named."""
        for index in indices or (0, 1):
            journal = self.journal(index)
            journal.describe({**journal.about, "tracking_uri": uri})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Away:
    folder = tmp_path_factory.mktemp("away")
    shutil.copy(empty_database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("away", (folder / "artifacts").as_uri())
    runs = (client.create_run(experiment), client.create_run(experiment))
    away = Away(folder, uri, (runs[0].info.run_id, runs[1].info.run_id))
    command = [sys.executable, HERE / "away_script.py", uri, str(EPOCHS), *away.runs]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "MLFLOW_CKPT_SPOOL": str(away.spool)},
    )
    return away


@pytest.fixture
def away(template: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Away:
    """In place of this test's own store and spool."""
    made = template.copy(tmp_path / "away")
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(made.spool))
    mlflow.set_tracking_uri(made.uri)
    return made


def process(*args: object, **environment: str) -> subprocess.Popen[str]:
    """`mlflow-ckpt sync` as a user starts it."""
    return subprocess.Popen(
        [Path(sys.executable).with_name("mlflow-ckpt"), "sync", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def committed(run_id: str) -> list[str]:
    return list(ckpt.list_checkpoints(run_id)["name"])


def losses(run_id: str) -> list[int]:
    """Steps of the run's curve, each point that the server has."""
    return [row.step for row in mlflow.MlflowClient().get_metric_history(run_id, "loss")]


def state(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its time of change."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def assert_delivered(away: Away, *indices: int) -> None:
    for index in indices:
        run_id = away.runs[index]
        assert committed(run_id) == LEFT
        assert losses(run_id) == [1, 2, 3, 4]
        assert ckpt.resolve(run_id, "final").step == ckpt.resolve(run_id).step == 8
        assert ckpt.load_model(run_id).optimizer.iterations == 8
        assert mlflow.get_run(run_id).info.status == "FINISHED"
        assert away.journal(index).waiting() == []


# --- what waits ---------------------------------------------------------------


def test_a_dry_run_lists_what_waits_and_changes_nothing(away: Away, call: Cli) -> None:
    before = state(away.spool)
    done = call("sync", "--dry-run")
    assert (done.code, done.err) == (0, "")
    for run_id in away.runs:
        assert f"run {run_id}, series 'ckpt', for {away.uri}\n" in done.out
    assert done.out.count(f"  checkpoints    {', '.join(WAITED)}\n") == 2
    assert re.search(rf"  on disk        \d+\.\d KiB in {away.journal().path}\n", done.out)
    assert done.out.endswith(
        "6 checkpoints and 12 other entries of 2 series in all. Deliver with: mlflow-ckpt sync\n"
    )
    assert state(away.spool) == before
    assert committed(away.runs[0]) == []


def test_a_dry_run_as_json_names_everything(away: Away, call: Cli) -> None:
    entry = away.journal().waiting()[0]
    away.journal().refuse(entry, "The tracking server\nrefused it")
    (found,) = json.loads(call("sync", away.runs[0], "--dry-run", "--json").out)
    assert found == {
        "run_id": away.runs[0],
        "series": "ckpt",
        "tracking_uri": away.uri,
        "path": str(away.journal().path),
        "checkpoints": WAITED,
        "other_entries": 6,
        "refused": ["The tracking server\nrefused it"],
        "bytes": away.journal().bytes,
        "fault": None,
    }
    text = call("sync", away.runs[0], "--dry-run").out
    assert "  refused        The tracking server refused it\n" in text
    assert text.endswith(f"Deliver with: mlflow-ckpt sync {away.runs[0]}\n")


def test_a_dry_run_asks_no_server(away: Away, call: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    no_retries(monkeypatch, timeout_s=60)
    with BlackHole() as hole:
        away.aim(hole.uri)
        mlflow.set_tracking_uri(hole.uri)
        began = time.monotonic()
        assert call("sync", "--dry-run").out.count(f"for {hole.uri}\n") == 2
        assert call("sync", "--all", "--dry-run").code == 0
        assert time.monotonic() - began < 5


# --- delivering ---------------------------------------------------------------


def test_a_run_is_delivered_and_the_others_are_left(away: Away, call: Cli) -> None:
    done = call("sync", away.runs[0])
    assert (done.code, done.failure) == (0, "")
    assert done.out.endswith(f"run {away.runs[0]}, series 'ckpt': delivered 3 checkpoints\n")
    assert_delivered(away, 0)
    assert committed(away.runs[1]) == []
    again = call("sync", away.runs[0])
    assert again == Result(0, f"Nothing of run {away.runs[0]} waits in {away.spool}.\n", "")


def test_the_result_as_json_is_all_that_stdout_holds(away: Away, call: Cli) -> None:
    """The line about the lease of the dead process goes to stderr."""
    done = call("sync", away.runs[0], "--json")
    (found,) = json.loads(done.out)
    assert found == {
        "run_id": away.runs[0],
        "series": "ckpt",
        "tracking_uri": away.uri,
        "path": str(away.journal().path),
        "delivered": WAITED,
        "refused": [],
        "left": {"checkpoints": [], "other_entries": 0},
        "error": None,
    }
    assert (done.code, "which has died" in done.err) == (0, True)
    assert json.loads(call("sync", away.runs[0], "--json").out) == []


def test_without_a_run_those_of_the_current_server_are_delivered(
    away: Away, call: Cli, tmp_path: Path
) -> None:
    other = tmp_path / "other.db"
    shutil.copy(away.folder / "mlflow.db", other)
    away.aim(f"sqlite:///{other}", 1)
    done = call("sync")
    assert done.out.count("delivered 3 checkpoints") == 1
    assert_delivered(away, 0)
    done = call("sync")
    assert done == Result(
        0,
        f"Nothing waits for {away.uri} in {away.spool}. For other tracking servers: 3 checkpoints "
        "and 6 other entries of 1 series. See: mlflow-ckpt sync --all --dry-run\n",
        "",
    )
    assert call("sync", "--all").out.endswith("delivered 3 checkpoints\n")
    assert mlflow.get_tracking_uri() == away.uri
    mlflow.set_tracking_uri(f"sqlite:///{other}")
    assert_delivered(away, 1)


def test_the_uri_says_whose_runs(away: Away, call: Cli, tmp_path: Path) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    assert call("sync", "--tracking-uri", away.uri).out.count("delivered 3 checkpoints") == 2
    assert_delivered(away, 0, 1)
    typo = call("sync", "--tracking-uri", f"sqlite:///{tmp_path}/typo.db")
    assert (typo.code, "No MLflow database at" in typo.err) == (1, True)


def test_a_run_that_mlflow_has_ended_keeps_its_status(away: Away, call: Cli) -> None:
    mlflow.MlflowClient().set_terminated(away.runs[0], "KILLED")
    assert call("sync", away.runs[0]).code == 0
    assert mlflow.get_run(away.runs[0]).info.status == "KILLED"


def test_metrics_alone_are_delivered_too(away: Away, call: Cli) -> None:
    for entry in away.journal().waiting():
        if entry.kind == parcel.CHECKPOINT:
            away.journal().drop(entry)
        elif entry.kind == parcel.FINAL:
            away.journal().remove(entry)
    done = call("sync", away.runs[0])
    assert done.out.endswith("series 'ckpt': delivered metrics and tags\n")
    assert (losses(away.runs[0]), committed(away.runs[0])) == ([1, 2, 3, 4], [])


def test_a_terminal_on_stderr_gets_a_bar_and_stdout_none_and_no_keras(away: Away) -> None:
    code = """
import sys
from mlflow_ckpt.cli import main
for words in (["sync", "--dry-run"], ["sync"]):
    main(words, standalone_mode=False)
print(sorted({"keras", "tensorflow", "mlflow.keras", "mlflow.tensorflow"} & set(sys.modules)))
"""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={
            **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
            "MLFLOW_TRACKING_URI": away.uri,
            "TERM": "xterm",
            "COLUMNS": "120",
        },
    )
    os.close(theirs)
    shown = b""
    while piece := _read(ours):
        shown += piece
    os.close(ours)
    out = child.communicate(timeout=60)[0].decode()
    assert child.returncode == 0
    assert b"delivered 3 of 6 checkpoints" in shown
    assert out.count(": delivered 3 checkpoints\n") == 2
    assert out.endswith("[]\n")
    assert "\x1b" not in out
    assert_delivered(away, 0, 1)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux says so once the other side is closed.
        return b""


# --- nothing to do ------------------------------------------------------------


@pytest.mark.parametrize("makes", [True, False], ids=["empty", "missing"])
@pytest.mark.parametrize("dry", [True, False])
def test_an_empty_spool_is_said_to_be_empty(
    makes: bool, dry: bool, call: Cli, tmp_path: Path, tracking: str
) -> None:
    spool = tmp_path / "elsewhere"
    if makes:
        spool.mkdir()
    words = ("sync", "--spool", spool, *(["--dry-run"] if dry else []))
    assert call(*words) == Result(0, f"Nothing waits for {tracking} in {spool}.\n", "")
    assert call(*words, "--all") == Result(0, f"Nothing waits in {spool}.\n", "")
    assert call(*words, "--json") == Result(0, "[]\n", "")
    assert spool.exists() is makes


def test_a_named_spool_is_taken_before_that_of_the_environment(
    away: Away, call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "none"))
    assert call("sync").out.startswith("Nothing waits")
    hint = call("sync", away.runs[0], "--dry-run", "--spool", away.spool).out
    assert hint.endswith(f"mlflow-ckpt sync {away.runs[0]} --spool {away.spool}\n")
    assert call("sync", "--spool", away.spool).code == 0
    assert_delivered(away, 0, 1)


def test_a_local_copy_of_what_was_delivered_is_not_listed(away: Away, call: Cli) -> None:
    call("sync")
    assert all(journal.copy() is not None for journal in journals(away.spool))
    assert call("sync", "--dry-run").out == f"Nothing waits for {away.uri} in {away.spool}.\n"


# --- wrong command lines and spools -------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["some-run", "--all"], id="run-and-all"),
        pytest.param(["--spool", __file__], id="spool-is-a-file"),
        pytest.param(["one", "two"], id="two-runs"),
    ],
)
def test_a_wrong_command_line_exits_with_2(words: list[str], call: Cli) -> None:
    done = call("sync", *words)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: mlflow-ckpt sync")


def test_a_spool_that_is_a_file_is_not_taken_for_an_empty_one(
    call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "file"))
    done = call("sync", "--dry-run")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: Expected a folder that this user may read.")


def test_what_others_may_not_read_is_not_taken_for_an_empty_spool(
    away: Away, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != away.spool)
    done = call("sync")
    assert (done.code, done.out) == (1, "")
    assert f"Received: {away.spool}. Name another one" in done.err


# --- what cannot be delivered -------------------------------------------------


def test_while_the_server_is_away_everything_stays(
    away: Away, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_retries(monkeypatch)
    away.aim("http://127.0.0.1:9", 0)
    before = sorted(path.name for path in away.journal().path.iterdir())
    done = call("sync", "--all")
    assert done.code == 1
    left = f"left in {away.journal().path}: 3 checkpoints and 6 other entries"
    where = f"run {away.runs[0]}, series 'ckpt'"
    assert done.failure.startswith(
        f"Error: {where}: delivered nothing; {left}; The tracking server"
    )
    assert done.failure.count("\n") == 1
    assert sorted(path.name for path in away.journal().path.iterdir()) == before
    assert_delivered(away, 1)
    (found,) = json.loads(call("sync", away.runs[0], "--json").out)
    assert found["left"] == {"checkpoints": WAITED, "other_entries": 6}
    assert "could not read run" in found["error"]
    away.aim(away.uri, 0)
    assert call("sync").code == 0
    assert_delivered(away, 0)


def test_a_server_that_goes_away_half_way_gets_the_rest_later(
    away: Away, call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_retries(monkeypatch)
    with tracking_server(away.folder / "mlflow.db", tmp_path / "served") as server:
        with Proxy(server.uri) as proxy:
            away.aim(proxy.uri)
            mlflow.set_tracking_uri(proxy.uri)
            finalized: list[str] = []

            def one_commit(_: int, request: str) -> Answer | None:
                if request.startswith("PATCH") and request.endswith("/tags"):
                    finalized.append(request)
                return Answer(503) if len(finalized) > 1 else None

            proxy.fault = one_commit
            done = call("sync", away.runs[0])
            assert done.code == 1
            assert "delivered 1 checkpoint; left in" in done.err
            assert "2 checkpoints and" in done.err
            proxy.fault = lambda index, request: None
            assert call("sync", away.runs[0]).out.endswith("delivered 2 checkpoints\n")
        mlflow.set_tracking_uri(away.uri)
        assert_delivered(away, 0)


def test_what_the_server_refuses_is_said_kept_and_asked_again(
    away: Away, call: Cli, template: Away
) -> None:
    journal = away.journal()
    journal.append(parcel.ROWS, {"rows": [["no such/../name%", 1.0, 1, 1]]})
    done = call("sync", away.runs[0])
    assert done.code == 1
    where = f"run {away.runs[0]}, series 'ckpt'"
    assert done.failure.startswith(
        f"Error: {where}: delivered 3 checkpoints; refused: The tracking"
    )
    assert done.failure.endswith(f"left in {journal.path}: 1 entry\n")
    assert done.failure.count("\n") == 1
    assert committed(away.runs[0]) == LEFT
    assert len(journal.refused()) == 1
    (found,) = json.loads(call("sync", away.runs[0], "--json").out)
    assert found["delivered"] == []
    assert len(found["refused"]) == 1
    assert found["left"] == {"checkpoints": [], "other_entries": 1}
    assert "  refused        The tracking server" in call("sync", "--dry-run").out
    (bad,) = journal.refused()
    raw = {"uid": bad.uid, "kind": bad.kind, "data": {"rows": [["late", 1.0, 1, 1]]}}
    (bad.path / "entry.json").write_text(json.dumps(raw))
    assert call("sync", away.runs[0]).code == 0
    assert mlflow.get_run(away.runs[0]).data.metrics["late"] == 1.0


def test_an_artifact_store_that_fails_loses_nothing(away: Away, call: Cli, template: Away) -> None:
    artifacts = template.folder / "artifacts"
    aside = artifacts.rename(artifacts.with_name("aside")) if artifacts.exists() else None
    artifacts.write_text("in the way")
    try:
        done = call("sync", away.runs[0])
        assert done.code == 1
        assert "left in" in done.failure
        assert done.failure.count("\n") == 1
    finally:
        artifacts.unlink()
        if aside:
            aside.rename(artifacts)
    assert call("sync", away.runs[0]).code == 0
    assert_delivered(away, 0)


def test_a_run_that_was_deleted_is_named_and_stays(away: Away, call: Cli) -> None:
    mlflow.MlflowClient().delete_run(away.runs[0])
    done = call("sync")
    assert done.code == 1
    assert "is deleted. Restore it with: mlflow runs restore" in done.err
    assert_delivered(away, 1)
    mlflow.MlflowClient().restore_run(away.runs[0])
    assert call("sync").code == 0
    assert_delivered(away, 0)


def test_a_database_that_is_gone_holds_up_nobody_else(
    away: Away, call: Cli, tmp_path: Path
) -> None:
    first, second = sorted(away.runs)
    away.aim(f"sqlite:///{tmp_path}/gone.db", away.runs.index(first))
    done = call("sync", "--all")
    assert done.code == 1
    assert f"run {first}" in done.err
    assert "No MLflow database at" in done.err
    assert not (tmp_path / "gone.db").exists()
    assert_delivered(away, away.runs.index(second))


def test_the_current_database_need_not_exist(
    away: Away, call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A person in another folder, whose `./mlflow.db` is none."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow.set_tracking_uri(None)
    assert call("sync", away.runs[0]).code == 0
    assert call("sync", "--all").code == 0
    assert list(Path().iterdir()) == []
    mlflow.set_tracking_uri(away.uri)
    assert_delivered(away, 0, 1)


def test_a_journal_that_cannot_be_read_holds_up_nobody_else(away: Away, call: Cli) -> None:
    first, second = sorted(away.runs)
    broken = away.journal(away.runs.index(first))
    about = json.dumps({**broken.about, "format": "2.0"})
    (broken.path / "journal.json").write_text(about)
    done = call("sync")
    assert done.code == 1
    assert "has format 2.0" in done.err
    assert_delivered(away, away.runs.index(second))
    assert (broken.path / "journal.json").read_text() == about


# --- at once ------------------------------------------------------------------


def test_two_at_once_deliver_everything_once(away: Away) -> None:
    both = [process(away.runs[0], MLFLOW_TRACKING_URI=away.uri) for _ in range(2)]
    said = [each.communicate(timeout=90) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert_delivered(away, 0)
    experiment = mlflow.get_run(away.runs[0]).info.experiment_id
    models = mlflow.MlflowClient().search_logged_models([experiment])
    assert sorted(m.name for m in models if m.source_run_id == away.runs[0]) == LEFT


def test_a_lease_that_another_sync_took_in_that_instant_is_asked_for_again(
    away: Away, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, losses_left = syncing.deliver_now, [1]

    def lost_once(*arguments: Any, **named: Any) -> Any:
        if losses_left:
            losses_left.pop()
            raise LeaseLost("taken over")
        return real(*arguments, **named)

    monkeypatch.setattr(syncing, "deliver_now", lost_once)
    assert call("sync", away.runs[0]).code == 0
    assert_delivered(away, 0)


class Syncing(keras.callbacks.Callback):
    """Types `mlflow-ckpt sync` into another terminal while this `fit` is in its second epoch."""

    def __init__(self, spool: Path, uri: str) -> None:
        super().__init__()
        self.spool, self.uri = spool, uri
        self.done = Result(-1, "", "")
        self.late: list[Entry] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            (journal,) = journals(self.spool)
            with self._held_up(journal):
                rows = [["late", 1.0, 1, 1]]
                self.late = [journal.append(parcel.ROWS, {"rows": rows})]
                child = process(MLFLOW_TRACKING_URI=self.uri)
                out, err = child.communicate(timeout=60)
                self.done = Result(child.returncode, out, err)

    def _held_up(self, journal: Journal) -> AbstractContextManager[Any]:
        """Nothing is delivered, so that there is something left for the other terminal."""
        while journal.waiting():
            time.sleep(0.01)
        return journal.lock().acquire(timeout=30)


def test_a_run_that_is_training_is_left_alone(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Lease.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "beat_s", 0.3)
    syncing = Syncing(tmp_path / "spool", tracking)
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=Keep(last=1)), syncing, epochs=3)
    assert syncing.done.code == 1
    assert "waits up to 30 s for a sign of life of host" in syncing.done.err
    where = f"run {run.info.run_id}, series 'ckpt'"
    assert syncing.done.failure.startswith(f"Error: {where}: delivered nothing; left in")
    assert f"pid {os.getpid()}, which is alive." in syncing.done.err
    assert syncing.done.failure.count("\n") == 1
    assert losses(run.info.run_id) == [1, 2, 3]
    assert mlflow.get_run(run.info.run_id).data.metrics["late"] == 1.0
    assert len(committed(run.info.run_id)) == 1


def test_an_outage_of_one_server_is_no_reason_to_ask_the_other_one_twice(
    away: Away, call: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each journal is tried once: a person at a terminal decides when to try again."""
    no_retries(monkeypatch)
    database = away.folder / "mlflow.db"
    with tracking_server(database, tmp_path / "served") as server, Proxy(server.uri) as proxy:
        away.aim(proxy.uri)
        proxy.fault = always(Answer(503))
        done = call("sync", "--all")
    assert (done.code, done.err.count("\n"), len(proxy.log)) == (1, 2, 2)
    mlflow.set_tracking_uri(away.uri)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (["end"], "FINISHED"),
        (["end", "KILLED"], "KILLED"),
        (["KILLED", "end"], "FINISHED"),
        (["end", "elsewhere"], "FINISHED"),
        (["elsewhere"], "RUNNING"),
    ],
)
def test_a_run_ends_as_the_last_that_happened_to_it_says(
    said: list[str], status: str, call: Cli, tracking: str, tmp_path: Path
) -> None:
    """A `fit` in a run's `with` block, one elsewhere, or a signal while a fit waits."""
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    run_id = run.info.run_id
    mlflow.MlflowClient().update_run(run_id, status="RUNNING")
    journal = Journal(tmp_path / "spool" / run_id / "ckpt")
    series = Store().run(run_id).series["ckpt"]
    for what in said:
        if what == "KILLED":
            journal.append(parcel.STATUS, {"status": "KILLED"})
        else:
            data = {"active": what == "end", "series": parcel.pack_series(series)}
            journal.append(parcel.END, data)
    dead = replace(Owner.me(), pid=2**22 - 1, started=1)
    journal.describe({**journal.about, "writer": dead.to_dict()})
    assert call("sync", run_id).code == 0
    assert mlflow.get_run(run_id).info.status == status
