"""A checkpoint that is found by a URI stays the one that is read, unless it goes meanwhile."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import stored
from builders import mlp

import mlflow_ckpt as ckpt
from mlflow_ckpt import located
from mlflow_ckpt.address import Address
from mlflow_ckpt.errors import DigestMismatch
from mlflow_ckpt.located import Located, below
from mlflow_ckpt.store import Store

BEST = "ckpt:/experiment/tests/best(loss)"


def no_bar(_: int) -> Any:
    return nullcontext(SimpleNamespace(update=lambda: None))


@pytest.fixture
def run_id() -> str:
    with mlflow.start_run() as run:
        for step in (1, 2, 3):
            ckpt.save(mlp(), step=step, metrics={"loss": float(step)})
    return str(run.info.run_id)


def step_of(found: Located, folder: Path) -> int:
    """The step of the checkpoint whose manifest is copied."""
    with found.copies("manifest.json", folder, no_bar) as copies:
        [file] = copies.iterdir()
        text = file.read_text()
    return next(step for step in (1, 2, 3) if f'"step": {step}' in text)


def test_of_an_experiment_the_next_best_is_read_if_the_best_is_deleted_meanwhile(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Store.manifest
    store = Store()

    def deleting(self: Store, checkpoint: Any, directory: Path) -> Any:
        if checkpoint.step == 1:
            store.delete([checkpoint])
        return read(self, checkpoint, directory)

    monkeypatch.setattr(Store, "manifest", deleting)
    assert step_of(Located(Address.parse(BEST), None), tmp_path) == 2
    assert list(ckpt.list_checkpoints(run_id)["step"]) == [2, 3]


def test_it_is_not_asked_for_ever(
    run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(located, "_DELETED_MEANWHILE", 2)
    monkeypatch.setattr(Store, "reread", lambda *_: None)
    stored.write(ckpt.resolve(BEST), "manifest.json", b"{}")
    with pytest.raises(DigestMismatch):
        step_of(Located(Address.parse(BEST), None), tmp_path)


def test_of_an_experiment_damage_is_raised(run_id: str, tmp_path: Path) -> None:
    stored.write(ckpt.resolve(BEST), "data/model.keras", b"")
    found = Located(Address.parse(BEST), None)
    with (
        pytest.raises(DigestMismatch, match=r"data/model\.keras"),
        found.copies("data", tmp_path, no_bar),
    ):
        pass
    assert list(tmp_path.glob(".ckpt*")) == []
    assert step_of(found, tmp_path) == 1


def test_what_was_found_is_looked_for_again_once_it_is_gone(run_id: str, tmp_path: Path) -> None:
    found = Located(Address.parse(f"ckpt:/{run_id}/latest"), None)
    assert step_of(found, tmp_path) == 3
    Store().delete([ckpt.resolve(run_id)])
    assert step_of(found, tmp_path) == 2
    assert ckpt.resolve(run_id).step == 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("", ["a", "data/x", "data2"], id="all"),
        pytest.param("a", ["a"], id="file"),
        pytest.param("data", ["data/x"], id="folder"),
        pytest.param("dat", [], id="beginning"),
    ],
)
def test_what_lies_below_a_path(path: str, expected: list[str]) -> None:
    assert list(below(path, ["a", "data/x", "data2"])) == expected
