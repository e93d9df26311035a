"""What a run remembers of checkpoints, of those that are deleted too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlflow_ckpt import history
from mlflow_ckpt.errors import ManifestError
from mlflow_ckpt.history import History, Resumed
from mlflow_ckpt.record import Checkpoint, Position

pytestmark = pytest.mark.pure


def committed(step: int) -> Checkpoint:
    return Checkpoint(
        run_id="r",
        model_id=f"m-{step}",
        position=Position(series="ckpt", kind="epoch", epoch=step // 2, step=step, fit=1),
        metrics={"loss": 1.0},
        bytes=10 * step,
        digest="blake3:00",
        artifact_uri="file:///nowhere",
        created_at=1_000 + step,
    )


def noted() -> History:
    found = History(series="ckpt")
    found.add(committed(2), write_s=0.5, lag_s=1.5)
    found.add(committed(4), write_s=0.25, lag_s=1.0)
    found.resumed.append(Resumed(fit=1, epoch=1, step=2, at=1_003))
    return found


def test_what_was_noted_is_read_back() -> None:
    assert History.parse(noted().to_bytes(), "ckpt") == noted()


def test_a_commit_is_noted_once() -> None:
    found = noted()
    found.add(committed(4))
    assert [made.step for made in found.made] == [2, 4]


def test_a_stall_is_added_where_it_is_not_known_and_to_no_end_state() -> None:
    found = noted()
    found.measured({2: 7.0, 9: 1.0})
    found.measured({2: 8.0, 4: 3.0})
    assert [made.stall_ms for made in found.made] == [7.0, 3.0]


def test_the_newest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LONGEST", 1)
    assert [made.step for made in History.parse(noted().to_bytes(), "ckpt").made] == [4]


def test_fields_of_a_later_version_are_left_out() -> None:
    raw = json.loads(noted().to_bytes())
    raw |= {"format": "1.7", "more": [1]}
    raw["made"][0]["more"] = {"deep": [2]}
    assert History.parse(json.dumps(raw).encode(), "ckpt") == noted()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"format": "2.0"}, id="newer-major"),
        pytest.param({"format": None}, id="no-format"),
        pytest.param({"made": {"step": 1}}, id="no-list"),
        pytest.param({"made": [{"step": 1}]}, id="fields-missing"),
        pytest.param({"resumed": [{"fit": "1", "epoch": 1, "step": 1, "at": 1}]}, id="text"),
        pytest.param({"resumed": [{"fit": True, "epoch": 1, "step": 1, "at": 1}]}, id="boolean"),
        pytest.param({"resumed": [{"fit": 1, "epoch": 1, "step": 1, "at": 1e300}]}, id="huge"),
        pytest.param({"resumed": 7}, id="number"),
    ],
)
def test_what_is_no_history_is_refused(change: dict[str, Any]) -> None:
    raw = {**json.loads(noted().to_bytes()), **change}
    with pytest.raises(ManifestError, match="The history of series 'ckpt'"):
        History.parse(json.dumps(raw).encode(), "ckpt")


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 5_000, b'{"format": NaN}'])
def test_so_is_what_is_no_json_or_a_trap(data: bytes) -> None:
    with pytest.raises(ManifestError):
        History.parse(data, "ckpt")
