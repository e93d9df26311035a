"""Finding a checkpoint: the two ways to name one, and that they are one."""

from __future__ import annotations

import re
from collections.abc import Callable

import mlflow
import pytest
from builders import mlp

import mlflow_ckpt as ckpt
from mlflow_ckpt.errors import NotFound, SelectorError
from mlflow_ckpt.selector import Selector


@pytest.fixture
def run_id() -> str:
    with mlflow.start_run() as run:
        for step in (1, 2):
            ckpt.save(mlp(), step=step, metrics={"loss": float(step)})
    return str(run.info.run_id)


@pytest.mark.parametrize(
    ("uri", "step"),
    [
        pytest.param("ckpt:/{}/latest", 2, id="latest"),
        pytest.param("ckpt:///{}/best(loss)/", 1, id="best"),
        pytest.param("ckpt:/{}/step%3D1@manual", 1, id="encoded"),
        pytest.param("ckpt:/experiment/tests/best(loss,max)", 2, id="experiment"),
    ],
)
def test_a_uri_is_resolved(run_id: str, uri: str, step: int) -> None:
    found = ckpt.resolve(uri.format(run_id))
    assert (found.run_id, found.step) == (run_id, step)


def test_a_run_and_a_selector_are_resolved(run_id: str) -> None:
    assert ckpt.resolve(run_id) == ckpt.resolve(run_id, "latest")
    assert ckpt.resolve(run_id=run_id, which="best(loss)").step == 1
    assert ckpt.resolve(run_id, Selector(kind="step", number=1)).step == 1


@pytest.mark.parametrize("which", ["latest", "best(loss)", Selector(kind="latest")])
def test_a_uri_stands_alone(run_id: str, which: str | Selector) -> None:
    expected = f"Received: 'ckpt:/{run_id}/best/' and '{which}'. Type ckpt:/{run_id}/best alone."
    with pytest.raises(SelectorError, match=re.escape(expected)):
        ckpt.resolve(f"ckpt:/{run_id}/best/", which)


def test_a_uri_of_a_file_is_no_checkpoint(run_id: str) -> None:
    with pytest.raises(SelectorError, match=rf"names 'data/x' in one\. Type ckpt:/{run_id}/best$"):
        ckpt.resolve(f"ckpt:/{run_id}/best/data/x")


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        pytest.param(lambda: ckpt.resolve("ckpt:/nope/best"), NotFound, id="run"),
        pytest.param(lambda: ckpt.resolve("ckpt:/experiment/x/best"), NotFound, id="experiment"),
        pytest.param(lambda: ckpt.resolve("ckpt:/nope"), SelectorError, id="no-selector"),
    ],
)
def test_what_is_not_there_is_an_error(ask: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ask()
