"""Who moves bytes says so, and is heard only where somebody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from backends import Backend
from builders import fit, mlp

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, downloading, exporting, progress


class Told:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.expected = self.done = 0
        self.texts: list[str] = []

    def expect(self, amount: int) -> None:
        self.expected += amount

    def moved(self, amount: int) -> None:
        self.done += amount

    def turn_to(self, text: str, *, measured: bool) -> None:
        self.texts.append(text)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        self.texts.append("hidden")
        yield


@pytest.fixture
def told() -> Iterator[Told]:
    found = Told()
    with progress.watched_by(found):
        yield found


def saved(count: int = 1) -> str:
    with mlflow.start_run() as run:
        for step in range(1, count + 1):
            ckpt.save(mlp(), step=step, metrics={"score": step})
    return run.info.run_id


@pytest.mark.pure
def test_without_a_watcher_nothing_happens() -> None:
    progress.expect(1)
    progress.moved(1)
    progress.turn_to("on")
    with progress.hidden():
        pass


@pytest.mark.pure
def test_a_watcher_is_told_until_it_goes() -> None:
    told = Told()
    with progress.watched_by(told):
        progress.expect(3)
        progress.moved(2)
        progress.turn_to("on", measured=True)
        with progress.hidden():
            pass
    progress.moved(1)
    assert (told.expected, told.done, told.texts) == (3, 2, ["on", "hidden"])


@pytest.mark.backends("local", "proxied", quick=("proxied",))
def test_every_byte_of_a_download_is_told(backend: Backend, tmp_path: Path) -> None:
    run_id = saved()
    told = Told()
    with progress.watched_by(told):
        checkpoint, path = downloading.pull(run_id, "latest", tmp_path / "out")
    manifest = (path / "manifest.json").stat().st_size
    assert told.expected == checkpoint.bytes
    assert told.done == checkpoint.bytes + manifest


@pytest.mark.backends("local", "proxied", quick=("proxied",))
def test_every_byte_that_is_read_again_is_told(backend: Backend) -> None:
    run_id = saved(2)
    told = Told()
    with progress.watched_by(told):
        found = ckpt.verify(run_id)
    assert told.expected == found.bytes
    assert told.expected <= told.done < 2 * told.expected


def test_an_export_says_what_it_does(told: Told, tmp_path: Path) -> None:
    exporting.write(saved(), "latest", tmp_path / "a.keras", format="keras")
    assert told.texts == ["building the model", "writing a.keras"]
    assert told.expected > 0


def test_every_byte_of_an_upload_is_told(told: Told) -> None:
    with mlflow.start_run():
        assert ckpt.save(mlp()).bytes <= told.done


def test_what_is_deleted_is_counted() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=4)
    told = Told()
    with progress.watched_by(told):
        gone = [each for each in ckpt.prune(run.info.run_id, Keep(last=1, best=1)) if each.gone]
    assert len(gone) >= 2
    assert (told.expected, told.done) == (len(gone), len(gone))
