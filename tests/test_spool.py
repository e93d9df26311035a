"""The spool: where it is, how much room it takes, and what waits in it while a server is away."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from builders import fit, history, mlp, same
from doubles import tracking_server
from faults import Proxy, no_retries, while_down

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, Keep, MlflowCheckpoint, Spool
from mlflow_ckpt.errors import ConfigError, SaveFailed, SpoolError
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import COPIES, VARIABLE, journals, keep_newest_copies
from mlflow_ckpt.syncing import Waiting, sync

EPOCHS = 6


# --- options ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param({"dir": ""}, "dir=''", id="no-name"),
        pytest.param({"dir": 3}, "dir=3", id="dir-type"),
        pytest.param({"max_bytes": 0}, "more than 0 bytes.*max_bytes=0", id="no-bytes"),
        pytest.param({"max_bytes": -1}, "max_bytes=-1", id="fewer"),
        pytest.param({"max_bytes": 1e9}, "as an int.*max_bytes=1000000000.0", id="bytes-type"),
        pytest.param({"max_bytes": True}, "max_bytes=True", id="bytes-bool"),
        pytest.param({"drain_timeout": -1}, "drain_timeout=-1", id="negative"),
        pytest.param({"drain_timeout": float("inf")}, "finite.*=inf", id="for-ever"),
        pytest.param({"drain_timeout": float("nan")}, "=nan", id="nan"),
        pytest.param({"drain_timeout": "10"}, "drain_timeout='10'", id="text"),
        pytest.param({"drain_timeout": True}, "drain_timeout=True", id="bool"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Spool(**arguments)


def test_the_callback_takes_a_spool_a_folder_or_nothing(tmp_path: Path) -> None:
    given = Spool(max_bytes=1)
    assert Spool.parse(given) is given
    assert Spool.parse(None) == Spool()
    assert Spool.parse(tmp_path) == Spool(dir=tmp_path)
    assert Spool.parse("~/spool").folder() == Path.home() / "spool"
    with pytest.raises(ConfigError, match=r"Expected Spool\(\.\.\.\), a folder or None.*spool=5"):
        MlflowCheckpoint(spool=5)  # type: ignore[arg-type]


# --- where it is --------------------------------------------------------------


def test_the_default_is_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if sys.platform == "linux":
        assert Spool().folder() == tmp_path / "cache" / "mlflow_ckpt" / "spool"
    folder = Spool().open()
    assert folder == Spool().folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_argument_beats_the_environment_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "relative")
    assert Spool().folder() == tmp_path / "relative"
    assert Spool(dir=tmp_path / "mine").folder() == tmp_path / "mine"
    monkeypatch.setenv(VARIABLE, "")
    assert Spool().folder().name == "spool"


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a cache folder; returns where temporary files go."""
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_default_that_cannot_be_written_to_is_replaced_with_a_line(
    homeless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Spool().folder()
    folder = Spool().open()
    assert folder.parent == homeless
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    said = capsys.readouterr().out
    assert f"The spool {before} cannot be written to (" in said
    assert f"checkpoints wait in {folder} instead" in said
    assert VARIABLE in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_the_replacement_is_never_a_folder_of_somebody_else(homeless: Path) -> None:
    """Its name can be guessed, and everybody may make a folder where temporary files go."""
    foreign = homeless / f"mlflow-ckpt-{os.getuid()}"
    foreign.mkdir(mode=0o777)
    os.chown(foreign, 65534, 65534)
    with pytest.raises(SpoolError, match=VARIABLE):
        Spool().open()


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_named_spool_that_cannot_be_written_to_is_an_error(
    how: str, homeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = homeless.parent / "file" / "spool"
    if how == "variable":
        monkeypatch.setenv(VARIABLE, str(named))
    spool = Spool(dir=named) if how == "argument" else Spool()
    with pytest.raises(SpoolError, match=rf"{named} cannot be written to: Not a directory.*Name a"):
        spool.open()
    assert list(homeless.iterdir()) == []


def test_a_fit_whose_spool_cannot_be_used_ends_before_the_first_batch(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with mlflow.start_run() as run, pytest.raises(SpoolError):
        fit(mlp(), MlflowCheckpoint(spool=tmp_path / "file" / "spool"))
    assert history(run.info.run_id) == {}


# --- room ---------------------------------------------------------------------


def journal_with_copy(spool: Path, run_id: str, size: int, asked_at: float) -> Journal:
    journal = Journal.create(spool, run_id, "ckpt", {})
    room = journal.room()
    (journal.files_of(room) / "weights").write_bytes(bytes(size))
    journal.keep_copy(journal.append("checkpoint", {}, room), {})
    os.utime(journal.path / "copy", (asked_at, asked_at))
    return journal


def test_copies_make_room_the_one_that_was_asked_for_longest_ago_first(tmp_path: Path) -> None:
    spool = Spool(dir=tmp_path / "spool", max_bytes=50_000)
    folder = spool.open()
    kept = [journal_with_copy(folder, f"run{n}", 10_000, asked_at=n) for n in (3, 1, 2)]
    spool.make_room(folder, 10_000)
    assert all(journal.copy() for journal in kept)
    spool.make_room(folder, 25_000)
    assert [bool(journal.copy()) for journal in kept] == [True, False, True]
    spool.make_room(folder, 35_000)
    assert [bool(journal.copy()) for journal in kept] == [True, False, False]
    with pytest.raises(SpoolError, match=r"may hold 50,000; this checkpoint needs 60,000"):
        spool.make_room(folder, 60_000)


def test_what_waits_makes_no_room(tmp_path: Path) -> None:
    spool = Spool(dir=tmp_path / "spool", max_bytes=20_000)
    folder = spool.open()
    copy = journal_with_copy(folder, "run1", 5_000, asked_at=1)
    room = copy.room()
    (copy.files_of(room) / "weights").write_bytes(bytes(15_000))
    copy.append("checkpoint", {}, room)
    with pytest.raises(SpoolError, match=rf"The spool {folder} holds 1\d,\d\d\d bytes that wait"):
        spool.make_room(folder, 10_000)
    assert copy.copy() is None
    assert len(copy.waiting()) == 1


def test_without_a_bound_nothing_goes(tmp_path: Path) -> None:
    folder = Spool(dir=tmp_path / "spool").open()
    journal = journal_with_copy(folder, "run1", 1_000, asked_at=1)
    Spool(dir=folder).make_room(folder, 10**15)
    assert journal.copy() is not None


def test_the_copies_of_the_series_asked_for_last_are_kept(tmp_path: Path) -> None:
    folder = Spool(dir=tmp_path / "spool").open()
    made = [journal_with_copy(folder, f"run{n}", 10, asked_at=n) for n in range(COPIES + 2)]
    made[0].touch_copy()
    keep_newest_copies(folder)
    assert [bool(journal.copy()) for journal in made] == [True, False, False] + [True] * 4


def test_a_spool_that_is_too_small_costs_checkpoints_and_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(max_bytes=1)
    callback = MlflowCheckpoint(spool=spool)
    model = mlp()
    with mlflow.start_run() as run, pytest.raises(SaveFailed) as caught:
        fit(model, callback, epochs=3)
    needed = r"may hold 1; this checkpoint needs \d,\d\d\d\. Raise Spool\(max_bytes=\)"
    assert caught.match(needed)
    assert caught.match(str(spool.folder()))
    assert isinstance(caught.value.reason, SpoolError)
    assert len([n for n in caught.value.__notes__ if n.startswith("After it: ")]) >= 2
    assert model.optimizer.iterations == 6
    assert [step for step, _ in history(run.info.run_id)["val_loss"]] == [1, 2, 3]
    assert ckpt.list_checkpoints(run.info.run_id).empty
    assert capsys.readouterr().out.count("this checkpoint needs") >= 3
    (journal,) = journals(spool.folder())
    assert journal.waiting() == []
    assert list((journal.path / "making").iterdir()) == []


def test_the_copy_of_another_run_makes_room_for_a_new_checkpoint(tmp_path: Path) -> None:
    with mlflow.start_run():
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    (old,) = journals(Spool().folder())
    assert old.copy() is not None
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(spool=Spool(max_bytes=old.bytes + 100)), epochs=1)
    assert len(ckpt.list_checkpoints(run.info.run_id)) == 1
    assert old.copy() is None


# --- an outage ----------------------------------------------------------------


@pytest.fixture
def proxy(
    tmp_path: Path, tracking: str, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> Iterator[Proxy]:
    """MLflow's own server, behind something that breaks."""
    no_retries(monkeypatch)
    (tmp_path / "server").mkdir()
    database = tmp_path / "server" / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    with tracking_server(database, tmp_path / "served") as server, Proxy(server.uri) as between:
        mlflow.set_tracking_uri(between.uri)
        mlflow.set_experiment("outages")
        yield between
        mlflow.set_tracking_uri(tracking)


class Outage(keras.callbacks.Callback):
    """Takes the server away for some epochs (counted from 1), and looks at what waits meanwhile.

    Attributes:
        waited: At the end of each epoch of the outage, names of the checkpoints that wait.
    """

    def __init__(
        self, proxy: Proxy, checkpoint: MlflowCheckpoint, epochs: range, *, ends: bool = True
    ) -> None:
        super().__init__()
        self._checkpoint, self._epochs, self._ends = checkpoint, epochs, ends
        self.down = threading.Event()
        self.waited: list[tuple[str, ...]] = []
        proxy.fault = while_down(self.down)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        writer = self._checkpoint._tail.session.writer
        self.journal: Journal = writer.journal
        if epoch + 1 == self._epochs.start:
            writer.join()
            self.down.set()
        if epoch in self._epochs:
            writer.join_written()
            until(lambda: writer.fault is not None)
            self.waited.append(Waiting.read(self.journal).checkpoints)
        if epoch + 1 == self._epochs.stop:
            self.down.clear()

    def on_train_end(self, logs: Any = None) -> None:
        if self._ends:
            self.down.clear()


def until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.01)


def train(
    proxy: Proxy, outage: range | None, keep: Keep, **options: Any
) -> tuple[str, keras.Model, list[tuple[str, ...]]]:
    """Six epochs, with the server away in some of them; the run, the model and what waited."""
    keras.utils.set_random_seed(7)
    model = mlp(optimizer=keras.optimizers.Adam(0.05))
    callback = MlflowCheckpoint(keep=keep, **options)
    breaks = [Outage(proxy, callback, outage)] if outage else []
    with mlflow.start_run() as run:
        fit(model, callback, *breaks, epochs=EPOCHS)
    return run.info.run_id, model, breaks[0].waited if breaks else []


def test_a_run_whose_server_was_away_is_the_run_whose_server_was_not(proxy: Proxy) -> None:
    keep = Keep(last=1, best=1, every=3)
    calm, model, _ = train(proxy, None, keep)
    stormy, other, waited = train(proxy, range(2, EPOCHS), keep)
    assert same(model, other)
    expected, found = ckpt.list_checkpoints(calm), ckpt.list_checkpoints(stormy)
    columns = ["name", "epoch", "step", "kind", "metrics.val_loss", "is_best", "is_final"]
    assert found[columns].equals(expected[columns])
    assert history(stormy) == history(calm)
    for which in ("best", "latest"):
        assert same(ckpt.load_model(stormy, which), ckpt.load_model(calm, which))
    # What waits is what the policy keeps, and the one that is delivered next.
    assert len(waited) == EPOCHS - 2
    assert [names[-1] for names in waited] == [
        f"ckpt-{e:04d}-{2 * e:08d}" for e in range(2, EPOCHS)
    ]
    assert [f"ckpt-{3:04d}-{6:08d}" in names for names in waited] == [False, True, True, True]
    assert max(map(len, waited)) <= 4
    assert [journal for journal in journals(Spool().folder()) if journal.waiting()] == []


def test_what_waits_fills_the_spool_and_no_training_ends_for_it(
    proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Room for about two: the first ones wait, later ones fail, and the end says so."""
    with mlflow.start_run():
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    (journal,) = journals(Spool().folder())
    bound = 2 * journal.bytes + 1_000
    journal.drop_copy()
    keras.utils.set_random_seed(7)
    model = mlp()
    callback = MlflowCheckpoint(keep=None, spool=Spool(max_bytes=bound))
    outage = Outage(proxy, callback, range(2, EPOCHS))
    with mlflow.start_run() as run, pytest.raises(SaveFailed) as caught:
        fit(model, callback, outage, epochs=EPOCHS)
    assert caught.match(rf"{Spool().folder()} holds \d+,\d+ bytes that wait.*may hold {bound:,}")
    assert model.optimizer.iterations == 2 * EPOCHS
    assert capsys.readouterr().out.count("bytes that wait for the server") >= 2
    assert [step for step, _ in history(run.info.run_id)["val_loss"]] == [*range(1, EPOCHS + 1)]
    found = list(ckpt.list_checkpoints(run.info.run_id)["epoch"])
    assert found[:2] == [1, 2]
    assert 2 <= len(found) < EPOCHS


def test_an_end_without_a_server_waits_no_longer_than_it_may(
    proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = mlflow.get_experiment_by_name("outages").experiment_id
    run = mlflow.MlflowClient().create_run(experiment)
    callback = MlflowCheckpoint(
        save_freq=Every(epochs=2), run_id=run.info.run_id, spool=Spool(drain_timeout=0.3)
    )
    outage = Outage(proxy, callback, range(2, 100), ends=False)
    began = time.monotonic()
    fit(mlp(), callback, outage, epochs=4)
    assert time.monotonic() - began < 15
    said = capsys.readouterr().out
    assert "the server is away (" in said
    assert "2 checkpoints and " in said
    assert f"wait in {outage.journal.path}." in said
    assert f"mlflow-ckpt sync {run.info.run_id}" in said
    assert Waiting.read(outage.journal).checkpoints == ("ckpt-0002-00000004", "ckpt-0004-00000008")
    outage.down.clear()
    (synced,) = sync(run.info.run_id)
    assert (synced.error, outage.journal.waiting()) == (None, [])
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [2, 4]
