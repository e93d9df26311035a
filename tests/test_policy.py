"""When a checkpoint is due, which ones stay, and which one is better."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.policy import Candidate, Every, Keep, Moment, due, improves, infer_mode, kept

pytestmark = pytest.mark.pure

NAN, INF = math.nan, math.inf


def moment(step: int = 0, previous: int = 0, **facts: Any) -> Moment:
    found = {"epoch": 0, "epoch_ended": False, "seconds": 0.0, **facts}
    return Moment(step=step, previous_step=previous, **found)


def epoch_end(epoch: int) -> Moment:
    return moment(epoch=epoch, epoch_ended=True)


def history(*values: float | None) -> list[Candidate]:
    """One checkpoint per epoch, with these metrics; its key is its epoch."""
    return [
        Candidate(key=str(n), step=10 * n, epoch=n, epoch_ended=True, created=n, value=value)
        for n, value in enumerate(values, start=1)
    ]


@pytest.mark.parametrize(
    ("every", "at", "expected"),
    [
        pytest.param(Every(epochs=5), epoch_end(5), True, id="epoch"),
        pytest.param(Every(epochs=5), moment(epoch=5), False, id="inside-the-epoch-after"),
        pytest.param(Every(steps=100), moment(100, 99), True, id="step"),
        pytest.param(Every(steps=100), moment(99, 98), False, id="step-before"),
        pytest.param(Every(steps=100), moment(112, 96), True, id="multiple-is-passed"),
        pytest.param(Every(steps=100), moment(116, 100), False, id="multiple-began-the-jump"),
        pytest.param(Every(steps=10), moment(64, 32), True, id="jump-over-several"),
        pytest.param(
            Every(steps=100), moment(100, 100, epoch_ended=True), False, id="asked-before"
        ),
        pytest.param(Every(steps=1), moment(1, 0), True, id="every-step"),
        pytest.param(Every(seconds=60), moment(seconds=60.0), True, id="seconds"),
        pytest.param(Every(seconds=60), moment(seconds=59.9), False, id="seconds-before"),
        pytest.param(Every(epochs=2, steps=7), epoch_end(2), True, id="combo-epoch"),
        pytest.param(Every(epochs=2, steps=7), moment(7, 6, epoch=1), True, id="combo-step"),
        pytest.param(Every(epochs=2, steps=7), moment(8, 7, epoch=2), False, id="combo-neither"),
    ],
)
def test_when_a_checkpoint_is_due(every: Every, at: Moment, expected: bool) -> None:
    assert due(every, at) is expected


@pytest.mark.parametrize(
    ("values", "keep", "mode", "expected"),
    [
        pytest.param([3, 2, 1], None, "min", "1 2 3", id="none-keeps-all"),
        pytest.param([1, 2, 3], Keep(last=1), "min", "1 3", id="best-min"),
        pytest.param([3, 2, 1], Keep(last=1), "max", "1 3", id="best-max"),
        pytest.param([1, 1, 5], Keep(last=1), "min", "2 3", id="tie-goes-to-the-later-step"),
        pytest.param([2, NAN, NAN], Keep(last=1), "min", "1 3", id="nan-never-evicts"),
        pytest.param([2, INF, 1], Keep(last=1), "max", "1 3", id="infinity-is-not-best"),
        pytest.param([NAN, NAN], Keep(last=1), "min", "2", id="all-nan"),
        pytest.param([None, 5, None], Keep(last=1), "min", "2 3", id="missing-metric-is-not-best"),
        pytest.param([1, 2, 3], Keep(last=1), None, "3", id="no-mode-no-best"),
        pytest.param([1, 2, 3], Keep(last=None, best=None), "min", "3", id="newest-stays-anyway"),
        pytest.param(range(6), Keep(last=1, best=None, every=2), "min", "2 4 6", id="every"),
        pytest.param(range(5), Keep(last=1, best=1, every=3), "min", "1 3 5", id="all-three-rules"),
        pytest.param([], Keep(), "min", "", id="empty"),
    ],
)
def test_what_is_kept(values: Any, keep: Keep | None, mode: Any, expected: str) -> None:
    assert kept(history(*values), keep, mode) == set(expected.split())
    assert kept(reversed(history(*values)), keep, mode) == set(expected.split())


def test_a_protected_checkpoint_does_not_push_out_the_newest_resume_point() -> None:
    by_hand = Candidate(key="hand", step=999, epoch=0, epoch_ended=False, created=0, protected=True)
    assert kept([by_hand, *history(1, 2)], Keep(last=1, best=None), "min") == {"hand", "2"}


def test_of_two_with_one_step_the_later_made_is_newer_and_wins_the_tie() -> None:
    first, second, third = history(5, 5, 6)
    again = replace(second, key="again", created=7)
    assert kept([again, first, second], Keep(last=1, best=None), "min") == {"again"}
    assert kept([again, first, second, third], Keep(last=1), "min") == {"again", "3"}


def test_every_counts_ended_epochs_alone() -> None:
    inside = [replace(c, epoch_ended=False) for c in history(1, 2, 3, 4)]
    by_hand = Candidate(key="0", step=1, epoch=0, epoch_ended=True, created=0)
    assert kept([by_hand, *inside], Keep(last=1, best=None, every=2), None) == {"4"}


@pytest.mark.parametrize(
    ("value", "best", "mode", "expected"),
    [
        pytest.param(1.0, None, "min", True, id="first"),
        pytest.param(NAN, None, "min", False, id="nan-is-no-first"),
        pytest.param(-INF, 1.0, "min", False, id="infinity-is-no-better"),
        pytest.param(2.0, 1.0, "max", True, id="larger"),
        pytest.param(2.0, 2.0, "min", False, id="equal-min"),
    ],
)
def test_what_improves(value: float, best: float | None, mode: Any, expected: bool) -> None:
    assert improves(value, best, mode) is expected


@pytest.mark.parametrize(
    ("names", "mode"),
    [
        ("loss val_loss d_loss RMSE val_mean_absolute_error kl-divergence head/loss", "min"),
        ("accuracy val_acc AUC auc_1 top_k_categorical_accuracy mean-iou head/f1_score r2", "max"),
        ("lr learning_rate glossary backlash accent valloss metric", None),
    ],
)
def test_the_direction_that_a_name_suggests(names: str, mode: str | None) -> None:
    assert {name: infer_mode(name) for name in names.split()} == dict.fromkeys(names.split(), mode)


@pytest.mark.parametrize(
    ("cls", "arguments", "text"),
    [
        (Every, {}, r"Received: Every\(\)"),
        (Every, {"epochs": 0}, r"at least 1. Received: Every\(epochs=0\)"),
        (Every, {"epochs": True}, r"Every\(epochs=True\)"),
        (Every, {"seconds": 0}, r"positive seconds. Received: Every\(seconds=0\)"),
        (Every, {"seconds": NAN}, r"Every\(seconds=nan\)"),
        (Every, {"seconds": True}, r"Every\(seconds=True\)"),
        (Keep, {"best": -2}, r"Keep\(best=-2\)"),
        (Keep, {"every": 2.0}, r"Keep\(every=2.0\)"),
    ],
)
def test_options_are_checked_when_made(cls: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        cls(**arguments)


def test_save_freq_is_read_as_keras_reads_it() -> None:
    assert Every.parse("epoch") == Every(epochs=1)
    assert Every.parse(20) == Every(steps=20)
    assert Every.parse(Every(seconds=3)) == Every(seconds=3)
    for wrong in ("batch", 0, -5, 2.0, True, None):
        with pytest.raises(ConfigError, match="Expected"):
            Every.parse(wrong)  # type: ignore[arg-type]


@given(st.integers(1, 20), st.lists(st.integers(1, 64), max_size=20))
def test_a_jump_saves_if_it_reaches_or_passes_a_multiple(every: int, jumps: list[int]) -> None:
    step = 0
    for jump in jumps:
        passed = [n % every == 0 for n in range(step + 1, step + jump + 1)]
        assert due(Every(steps=every), moment(step + jump, step)) is any(passed)
        step += jump


@given(
    st.lists(
        st.builds(
            Candidate,
            key=st.uuids().map(str),
            step=st.integers(0, 12),
            epoch=st.integers(0, 12),
            created=st.integers(0, 5),
            value=st.none() | st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, 2.5]),
            protected=st.booleans(),
        ),
        unique_by=lambda c: (c.step, c.created),
    ),
    st.builds(Keep, **{n: st.none() | st.integers(1, 4) for n in ("last", "best", "every")}),
    st.sampled_from(["min", "max", None]),
)
def test_the_rules_of_keep(found: list[Candidate], keep: Keep, mode: Any) -> None:
    keys = kept(found, keep, mode)
    survivors = [c for c in found if c.key in keys]
    assert kept(survivors, keep, mode) == keys, "pruning twice is pruning once"

    newest_last = sorted(found, key=lambda c: (c.step, c.created))
    free = [c for c in newest_last if not c.protected]
    must = {c.key for c in found if c.protected} | {c.key for c in free[-(keep.last or 1) :]}
    if keep.every:
        must |= {c.key for c in found if c.epoch_ended and c.epoch and not c.epoch % keep.every}
    assert must <= keys
    assert len(keys - must) <= (keep.best or 0)
    finite = [c for c in newest_last if c.value is not None and math.isfinite(c.value)]
    if finite and mode and keep.best:
        best = (min if mode == "min" else max)(c.value for c in finite)
        assert [c.key for c in finite if c.value == best][-1] in keys
