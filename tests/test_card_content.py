"""What an `MLmodel` says stays the same under new IDs and another layout, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import stored
import yaml
from builders import fit, mlp
from mlflow.models import infer_signature

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, card_content
from mlflow_ckpt.errors import DigestMismatch
from mlflow_ckpt.record import Checkpoint

CARD: dict[str, Any] = {
    "flavors": {"keras": {"data": "data", "keras_version": "3.15.1"}},
    "mlflow_version": "3.17.2",
    "utc_time_created": "2026-11-24 08:00:00",
}


def said(card: Any, **layout: Any) -> str | None:
    return card_content.digest(yaml.safe_dump(card, **layout).encode())


@pytest.mark.pure
@pytest.mark.parametrize("name", ["run_id", "model_id", "model_uuid", "artifact_path"])
def test_where_it_lies_does_not_count(name: str) -> None:
    assert said({**CARD, name: "new"}) == said({**CARD, name: "old"}) == said(CARD)


@pytest.mark.pure
def test_its_layout_does_not_count() -> None:
    assert said(CARD, default_flow_style=True) == said(CARD) == said(CARD, sort_keys=False)


@pytest.mark.pure
def test_everything_else_counts() -> None:
    other = {**CARD, "flavors": {"keras": {"data": "data", "keras_version": "3.15.0"}}}
    inside = {**CARD, "flavors": {"keras": {**CARD["flavors"]["keras"], "run_id": "x"}}}
    assert len({said(CARD), said(other), said(inside), said({**CARD, "signature": {}})}) == 4


@pytest.mark.pure
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"- a\n- b\n", id="no-mapping"),
        pytest.param(b"a: [", id="no-yaml"),
        pytest.param(b"\xff\xfe\x00", id="no-text"),
        pytest.param(b"a: &x [1]\nb: *x\n", id="reference"),
        pytest.param(b"a: !!python/object/apply:os.system ['true']\n", id="python-object"),
        pytest.param(b"[" * 5_000, id="deep"),
        pytest.param(b"a: b\n" * 60_000, id="large"),
        pytest.param(b"? [a]\n: b\n", id="key-that-is-no-text"),
    ],
)
def test_what_says_nothing_has_no_digest(data: bytes) -> None:
    assert card_content.digest(data) is None


def trained() -> str:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=2)
    return str(run.info.run_id)


def rewrite(found: Checkpoint, **changes: Any) -> None:
    card = yaml.safe_load(stored.read(found, "MLmodel"))
    stored.write(found, "MLmodel", yaml.safe_dump({**card, **changes}).encode())


def test_a_card_with_other_ids_is_the_committed_one(tmp_path: Path) -> None:
    run_id = trained()
    rewrite(
        ckpt.resolve(run_id), run_id="0" * 32, model_id="m-" + "0" * 32, artifact_path="elsewhere"
    )
    assert ckpt.verify(run_id).ok
    assert (ckpt.download(run_id, "latest", tmp_path) / "MLmodel").exists()


def test_a_signature_that_was_set_is_named_and_takes_nothing_away(tmp_path: Path) -> None:
    run_id = trained()
    newest = ckpt.resolve(run_id)
    mlflow.models.set_signature(newest.uri, infer_signature([[1.0]], [[2.0]]))
    found = ckpt.verify(run_id)
    assert not found.ok
    assert [verdict.state for verdict in found.verdicts] == ["whole", "altered"]
    assert [fault.path for fault in found.verdicts[1].faults] == ["MLmodel"]
    assert ckpt.load_weights(mlp(), run_id).model_id == newest.model_id
    with pytest.raises(DigestMismatch, match="'MLmodel'"):
        ckpt.download(run_id, "latest", tmp_path)
    assert ckpt.resolve(run_id).model_id == newest.model_id
