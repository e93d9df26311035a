"""Why a selector finds what it finds: candidates, ties, NaNs, and what was skipped."""

from __future__ import annotations

from typing import Any

import keras
import mlflow
import pytest
import stored
from builders import fit, mlp
from calling import Cli

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.errors import SelectorError


class Scores(keras.callbacks.Callback):
    """Gives the epochs of a fit their `val_loss`."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        logs["val_loss"] = self.values[epoch]


def trained(*values: float) -> str:
    with mlflow.start_run() as run:
        fit(mlp(), Scores(*values), MlflowCheckpoint(keep=None), epochs=len(values))
    return str(run.info.run_id)


def verdicts(found: ckpt.Explanation) -> list[tuple[int, str]]:
    return [(candidate.epoch, candidate.verdict) for candidate in found.candidates]


def test_best_lists_ties_and_what_is_not_finite() -> None:
    run_id = trained(3.0, 1.0, float("nan"), 1.0, float("inf"))
    found = ckpt.explain(run_id, "best")
    assert found.chosen is not None
    assert found.chosen.model_id == ckpt.resolve(run_id, "best").model_id
    assert found.rule == "the lowest finite val_loss; of equal ones the latest step"
    assert verdicts(found) == [
        (4, "chosen"),
        (2, "a tie with ckpt-0004-00000008, which has the later step"),
        (1, "further back"),
        (5, "its val_loss is inf, which is never best"),
        (3, "its val_loss is nan, which is never best"),
    ]
    assert [candidate.value for candidate in found.candidates] == [1.0, 1.0, 3.0, None, None]
    assert [candidate.chosen for candidate in found.candidates] == [True] + [False] * 4


def test_what_is_corrupt_or_not_committed_is_listed_with_the_reason() -> None:
    run_id = trained(1.0, 2.0)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), "data/model.keras")
    ckpt.load_weights(mlp(), run_id)
    run = mlflow.get_run(run_id)
    mlflow.MlflowClient().create_logged_model(
        run.info.experiment_id,
        name="ckpt-0003-00000006",
        source_run_id=run_id,
        tags={"ckpt.series": "ckpt", "ckpt.complete": "pending", "ckpt.step": "6"},
    )
    found = ckpt.explain(run_id)
    assert found.chosen is not None
    assert found.chosen.epoch == 1
    by_name = {candidate.name: candidate.verdict for candidate in found.candidates}
    assert by_name["ckpt-0001-00000002"] == "chosen"
    assert by_name["ckpt-0002-00000004"].startswith("corrupt: ")
    assert "data/model.keras" in by_name["ckpt-0002-00000004"]
    assert by_name["ckpt-0003-00000006"] == "not committed: its upload runs, or was broken off"


@pytest.mark.parametrize("which", ["latest", "best", "final", "epoch=1", "step=4", "best(loss)"])
def test_the_answer_is_that_of_resolve(which: str) -> None:
    run_id = trained(2.0, 1.0, 1.0)
    found = ckpt.explain(run_id, which)
    assert found.chosen is not None
    assert found.chosen.model_id == ckpt.resolve(run_id, which).model_id
    [chosen] = [candidate for candidate in found.candidates if candidate.chosen]
    assert chosen.model_id == found.chosen.model_id
    assert len(found.candidates) == 3


def test_end_states_are_no_candidates_for_best() -> None:
    with mlflow.start_run() as run:
        ema = keras.optimizers.Adam(use_ema=True)
        fit(mlp(optimizer=ema), MlflowCheckpoint(keep=None), epochs=2)
    found = ckpt.explain(run.info.run_id, "best")
    assert found.candidates[-1].kind == "final"
    assert found.candidates[-1].verdict == "an end state: only final names it"


def test_that_nothing_fits_is_said_and_every_checkpoint_listed() -> None:
    run_id = trained(2.0, 1.0)
    found = ckpt.explain(run_id, "best(accurracy,max)")
    assert found.chosen is None
    assert "Did you mean 'best(accuracy)'?" in found.problem
    assert verdicts(found) == [(2, "it has no accurracy"), (1, "it has no accurracy")]
    with pytest.raises(SelectorError):
        ckpt.explain(run_id, "newest")


def test_the_command_prints_a_uri_or_the_reasons(call: Cli) -> None:
    run_id = trained(2.0, 1.0)
    best = ckpt.resolve(run_id, "best")
    assert call("resolve", run_id, "best").out == f"{best.uri}\n"
    why = call("resolve", run_id, "best", "--why")
    assert why.code == 0
    assert f"{best.name}  {best.uri}" in why.out
    assert "the lowest finite val_loss" in why.out
    assert why.out.count("ckpt-000") == 3
    found = call("resolve", run_id, "best", "--json").json()
    assert (found["uri"], found["chosen"]) == (best.uri, best.name)
    assert [candidate["chosen"] for candidate in found["candidates"]] == [True, False]
    missing = call("resolve", run_id, "epoch=9", "--why")
    assert missing.code == 1
    assert "The nearest: epoch=1, epoch=2." in missing.err
    assert "not epoch=9" in missing.out
