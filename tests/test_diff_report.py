"""What a person sees of a comparison: in a pipe, on terminals, cut, and of a stranger's names."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mlflow_ckpt.comparison import (
    Alone,
    Comparison,
    Held,
    MetricChange,
    OptimizerChange,
    Side,
    Unlike,
)
from mlflow_ckpt.contrast import Contrast
from mlflow_ckpt.diff_report import View, print_comparison
from mlflow_ckpt.diff_rows import printable
from mlflow_ckpt.record import Checkpoint, Position
from mlflow_ckpt.weight_change import Sums, WeightChange, total
from mlflow_ckpt.weight_pairs import LayerChange, VariableChange

pytestmark = pytest.mark.pure

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
Show = Callable[..., str]


# --- what is shown ------------------------------------------------------------


def sums(a: Any, b: Any) -> Sums:
    found = Sums()
    found.add(np.asarray(a, np.float32), np.asarray(b, np.float32))
    return found


def layer(name: str, change: WeightChange, *, dtype_b: str = "float32") -> LayerChange:
    """A layer with a kernel and no more."""
    kernel = VariableChange(
        name_a=f"{name}/kernel",
        name_b=f"{name}/kernel",
        shape=(2,),
        dtype_a="float32",
        dtype_b=dtype_b,
        change=change,
    )
    return LayerChange(name_a=name, name_b=name, variables=(kernel,), change=change)


def side(epoch: int, **options: Any) -> Side:
    checkpoint = Checkpoint(
        run_id="a" * 32,
        model_id=f"m-{epoch}",
        position=Position(series="ckpt", kind="epoch", epoch=epoch, step=2 * epoch),
        metrics={},
        bytes=2048,
        digest=f"blake3:{str(epoch) * 64}",
        artifact_uri="",
        created_at=1_700_000_000_000,
    )
    given = {"run_name": "plain", "model_class": "Sequential", "elements": 6, "has_config": True}
    return Side(checkpoint=checkpoint, **{**given, **options})


CHANGES = {
    "first": sums([1, 1], [1, 1.001]),
    "second": sums([1, 1], [2, 3]),
    "third": sums([1, 1], [1, 1]),
}
ADAM = Held(class_name="Adam", learning_rate=0.001, schedule=None, iterations=2)


def comparison(**changed: Any) -> Comparison:
    """One of three layers, of which the second changed most."""
    base = Comparison(
        a=side(1),
        b=side(3),
        equal=False,
        architecture=(),
        compiled=(),
        optimizers=(),
        params=(),
        versions=(),
        input=(),
        metrics=(),
        layers=tuple(layer(name, each.result()) for name, each in CHANGES.items()),
        total=total(list(CHANGES.values())).result(),
        seeds=None,
        only_a=(),
        only_b=(),
        unlike=(),
    )
    return replace(base, **changed)


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """What a comparison prints: in a pipe, or on a terminal of a width."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def show(found: Comparison, *, width: int | None = None, **view: Any) -> str:
        if width is None:
            capsys.readouterr()
            print_comparison(found, View(**view))
            return capsys.readouterr().out
        screen = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", screen)
            patch.setenv("COLUMNS", str(width))
            patch.setenv("TERM", "xterm")
            print_comparison(found, View(**view))
        return ESCAPES.sub("", screen.getvalue())

    return show


def rows(text: str) -> list[str]:
    """The first words of the table of layers."""
    lines = text[text.index("\nWeights") :].splitlines()[3:]
    return [line.split()[0] for line in lines[: lines.index("")]]


# --- where it is shown --------------------------------------------------------


def test_a_pipe_gets_plain_text_with_every_column(shown: Show) -> None:
    text = shown(comparison())
    assert "\x1b" not in text
    head = next(line for line in text.splitlines() if "cosine" in line)
    assert " ".join(head.split()) == "elements relative change cosine max |change|"
    assert re.search(r"^second +2 +1.58 +0.980581 +2$", text, re.MULTILINE)
    assert re.search(r"^first +2 +0.000707 +1.000000 +0.001$", text, re.MULTILINE)
    assert re.search(r"^all 3 layers +6 ", text, re.MULTILINE)
    assert re.search(r"^checkpoint +ckpt-0001-00000002 +ckpt-0003-00000006$", text, re.MULTILINE)
    assert text.endswith("\n3 of 6 compared elements differ.\n")


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_a_terminal_gets_what_fits_and_is_told_what_does_not(shown: Show, width: int) -> None:
    text = shown(comparison(), width=width)
    table = text[text.index("\nWeights") :].splitlines()
    assert max(map(len, table)) <= width
    assert ("Left out at this width" in text) == (width < 70)
    assert "second" in text


# --- how much is shown --------------------------------------------------------


def test_the_most_changed_layer_comes_first(shown: Show) -> None:
    assert rows(shown(comparison())) == ["second", "first", "third", "all"]
    assert rows(shown(comparison(), sort="order")) == ["first", "second", "third", "all"]


def test_what_grew_from_zero_comes_before_all(shown: Show) -> None:
    grown = layer("grown", sums([0, 0], [1, 0]).result())
    text = shown(comparison(layers=(*comparison().layers, grown)))
    assert rows(text)[0] == "grown"
    assert re.search(r"^grown +2 +from zero +- +1$", text, re.MULTILINE)


def test_a_table_is_cut_and_says_so(shown: Show) -> None:
    text = shown(comparison(), rows=1)
    assert rows(text) == ["second", "all", "..."]
    assert "... and 2 more layers: --all" in text
    assert "all 3 layers" in text
    differences = tuple(Contrast(where=f"layer_{n}.units", a=n, b=n + 1) for n in range(5))
    text = shown(comparison(architecture=differences), rows=2)
    assert "... and 3 more differences: --all" in text
    assert "layer_4" not in text
    assert "layer_4" in shown(comparison(architecture=differences), rows=None)


def test_variables_have_rows_of_their_own_where_they_are_asked_for(shown: Show) -> None:
    text = shown(comparison(), variables=True)
    assert rows(text) == ["second/kernel", "first/kernel", "third/kernel", "all"]
    assert "all 3 variables" in text


# --- what is shown ------------------------------------------------------------


def test_columns_of_what_is_not_finite_are_there_where_there_is_any(shown: Show) -> None:
    assert "NaN" not in shown(comparison())
    spoilt = sums([1, np.inf], [np.nan, 1])
    text = shown(comparison(layers=(layer("spoilt", spoilt.result()),), total=spoilt.result()))
    head = next(line for line in text.splitlines() if "NaN B" in line)
    assert " ".join(head.split()).endswith("max |change| NaN B Inf A")


def test_a_dtype_that_differs_has_a_column(shown: Show) -> None:
    change = CHANGES["third"].result()
    text = shown(comparison(layers=(layer("narrow", change, dtype_b="bfloat16"),)))
    assert re.search(r"^narrow .* float32 -> bfloat16$", text, re.MULTILINE)


def test_an_optimizer_in_another_state_is_shown_with_its_slots(shown: Show) -> None:
    momentum = CHANGES["second"].result()
    optimizer = OptimizerChange(
        attribute="optimizer",
        a=ADAM,
        b=replace(ADAM, learning_rate=0.0001, iterations=6),
        arguments=(Contrast(where="optimizer.beta_1", a=0.9, b=0.8),),
        slots=(layer("momentum", momentum),),
        total=momentum,
        same=False,
    )
    text = shown(comparison(optimizers=(optimizer,)))
    for line in (
        r"learning rate +0.001 +0.0001",
        r"updates +2 +6",
        r"beta_1 +0.9 +0.8",
        r"optimizer: momentum +2 +1.58.*",
        r"optimizer: all slots +2 +1.58.*",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), line


def test_optimizers_that_are_not_the_same_are_shown_by_class_and_schedule(shown: Show) -> None:
    scheduled = Held(class_name="SGD", learning_rate=None, schedule="CosineDecay", iterations=None)
    base = OptimizerChange(
        attribute="d_optimizer", a=ADAM, b=None, arguments=(), slots=(), total=None, same=False
    )
    text = shown(comparison(optimizers=(base, replace(base, attribute="optimizer", b=scheduled))))
    assert re.search(r"\nOptimizer d_optimizer\n.*\nclass +Adam +-\n", text)
    assert re.search(
        r"\nOptimizer\n.*\nclass +Adam +SGD\nlearning rate +0.001 +CosineDecay\n", text
    )
    text = shown(comparison(optimizers=(replace(base, b=ADAM, same=True),)))
    assert "Optimizer d_optimizer: the same Adam, in the same state." in text


def test_metrics_say_which_is_better(shown: Show) -> None:
    rest = {"change": None, "mode": None, "better": None}
    metrics = (
        MetricChange(name="loss", a=1.0, b=0.5, change=-0.5, mode="min", better="b"),
        MetricChange(name="auc", a=0.5, b="nan", **rest),
        MetricChange(name="new", a=None, b=0.25, **rest),
    )
    text = shown(comparison(metrics=metrics))
    for line in ("loss +1 +0.5 +-0.5 +B", "auc +0.5 +nan +-", "new +- +0.25 +-"):
        assert re.search(f"^{line}$", text, re.MULTILINE), line


def test_what_was_not_compared_is_listed(shown: Show) -> None:
    text = shown(
        comparison(
            unlike=(Unlike(name="head/kernel", shape_a=(8,), shape_b=(8, 2)),),
            only_a=(Alone(name="old/bias", shape=(), dtype="float32"),),
            only_b=(Alone(name="new/bias", shape=(3,), dtype="int8"),),
        )
    )
    assert "Architecture: A is Sequential with 6 elements, B is Sequential" in text
    for line in (r"head/kernel +\(8,\) +\(8, 2\)", r"old/bias +\(\) float32 +-",
                 r"new/bias +- +\(3,\) int8"):  # fmt: skip
        assert re.search(f"^{line}$", text, re.MULTILINE), line


def test_runs_that_differ_are_told_by_what_differs(shown: Show) -> None:
    text = shown(
        comparison(
            params=(Contrast(where="lr", a="0.1", b=None),),
            versions=(Contrast(where="keras", a="3.12.0", b="3.15.1"),),
            input=(Contrast(where="input.batch_size", a=32, b=16),),
            compiled=(Contrast(where="compile.loss", a="mse", b={"class": "Huber"}),),
            seeds=CHANGES["second"].result(),
        )
    )
    for line in ("lr +0.1 +-", r"keras +3\.12\.0 +3\.15\.1", r"input\.batch_size +32 +16",
                 r'compile\.loss +mse +\{"class": "Huber"\}'):  # fmt: skip
        assert re.search(f"^{line}$", text, re.MULTILINE), line
    assert "Seed generators: 2 of 2 numbers differ." in text


def test_what_no_config_says_is_said(shown: Show) -> None:
    bare = side(1, has_config=False)
    assert "the same (Sequential with 6 elements), as far as shapes tell." in shown(
        comparison(a=bare)
    )
    other = Alone(name="x", shape=(), dtype="int8")
    assert "A holds no config: variables are compared" in shown(comparison(a=bare, only_a=(other,)))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        pytest.param({"equal": True}, "Equal bit by bit: the same model in the", id="equal"),
        pytest.param(
            {"total": CHANGES["third"].result()},
            "The weights are equal bit by bit; the rest above is not.",
            id="weights",
        ),
        pytest.param(
            {
                "total": CHANGES["third"].result(),
                "only_a": (Alone(name="x", shape=(), dtype="int8"),),
            },
            "What was compared is equal bit by bit; the rest above is not.",
            id="a-part",
        ),
        pytest.param(
            {"layers": (), "total": Sums().result()},
            "B is another model: nothing could be compared.",
            id="nothing",
        ),
    ],
)
def test_the_last_line_is_the_verdict(changed: dict[str, Any], text: str, shown: Show) -> None:
    assert shown(comparison(**changed)).splitlines()[-1].startswith(text)


def test_a_strangers_name_does_not_steer_the_terminal(shown: Show) -> None:
    name = "\x1b]0;owned\x07\ud800"
    hostile = comparison(layers=(layer(name, CHANGES["second"].result()),))
    for text in (shown(hostile), shown(hostile, width=120)):
        assert "\x1b]" not in text
        assert r"\x1b]0;owned\x07\ud800" in text
        text.encode()
    assert printable("größe 漢字") == "größe 漢字"
