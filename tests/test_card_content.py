"""What an `MLmodel` says stays the same under new IDs and another layout, and nothing else does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import stored
import yaml
from builders import fit, mlp
from hypothesis import given
from hypothesis import strategies as st
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
        pytest.param(b'a: !!int ""', id="index-error"),
        pytest.param(b'a: !!timestamp "x"', id="attribute-error"),
        pytest.param(b'a: !!bool "x"', id="key-error"),
        pytest.param(b"a: 1:" + b"0:" * 250 + b"0.5", id="overflow-error"),
        pytest.param(b"a: 2026-99-99", id="value-error"),
        pytest.param(b"a: 0x_", id="no-digits"),
        pytest.param(b"a: 0x" + b"f" * 200_000, id="huge-integer"),
        pytest.param(b"a: 1" + b":0" * 100_000, id="huge-integer-in-sixties"),
        pytest.param(b"a: " + b"[" * 2_000 + b"]" * 2_000, id="deep-value"),
        pytest.param(b"a: " + b"{a: " * 2_000 + b"}" * 2_000, id="deep-mapping"),
        pytest.param(b"<<: {" * 400 + b"}" * 400, id="deep-merge"),
        pytest.param(b"a: !!set {x, y}", id="set-which-has-no-order"),
        pytest.param(b"a: !!str 1", id="tag"),
        pytest.param(b"a: &x [*x]", id="inside-itself"),
        pytest.param(
            b"a: &a [1]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9))
                for c in range(ord("b"), ord("k"))
            ),
            id="references-to-references",
        ),
        pytest.param(b"--- {a: 1}\n--- {a: 2}\n", id="two-documents"),
        pytest.param(b"%YAML 9.9\n---\na: 1\n", id="another-yaml"),
    ],
)
def test_what_says_nothing_has_no_digest(data: bytes) -> None:
    assert card_content.digest(data) is None


@pytest.mark.pure
@given(st.text(max_size=60) | st.text("a:1.0_-!&*<>[]{}?#|'\" \n", max_size=40))
def test_any_text_says_something_or_nothing(text: str) -> None:
    told = card_content.digest(text.encode("utf-8", "surrogatepass"))
    assert told is None or told.startswith("blake3:")


@pytest.mark.pure
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"a: [" + b"1," * 131_000 + b"1]", id="many-values"),
        pytest.param(b"a: [" + b"[]," * 87_000 + b"1]", id="many-lists"),
        pytest.param(
            b"".join(b"%d: 1\n" % (n * (2**61 - 1)) for n in range(1, 9_500)), id="equal-hashes"
        ),
    ],
)
def test_the_worst_that_fits_takes_seconds(data: bytes) -> None:
    assert len(data) <= card_content.MAX_BYTES
    began = time.process_time()
    card_content.digest(data)
    assert time.process_time() - began < 30  # 2.5 s on two busy cores


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


@pytest.mark.parametrize(
    "content", [b'a: !!int ""\n', b"a: 1:" + b"0:" * 250 + b"0.5", b"[" * 5_000]
)
def test_a_card_that_no_parser_survives_is_an_altered_one(content: bytes, tmp_path: Path) -> None:
    run_id = trained()
    newest = ckpt.resolve(run_id)
    stored.write(newest, "MLmodel", content)
    found = ckpt.verify(run_id)
    assert [verdict.state for verdict in found.verdicts] == ["whole", "altered"]
    with pytest.raises(DigestMismatch, match="'MLmodel'"):
        ckpt.download(run_id, "latest", tmp_path)
    assert ckpt.load_weights(mlp(), run_id).model_id == newest.model_id
