"""The text that names a checkpoint: read the same everywhere, and nothing else is read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.errors import ConfigError, SelectorError
from mlflow_ckpt.selector import Selector, validate_series

pytestmark = pytest.mark.pure

SERIES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
METRIC = st.text(st.characters(exclude_characters="(),@"), min_size=1).filter(
    lambda text: text.strip() == text
)


def selector(kind: Any, **fields: Any) -> Selector:
    return Selector(kind=kind, **fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("latest", selector("latest"), id="latest"),
        pytest.param("final", selector("final"), id="final"),
        pytest.param("best", selector("best"), id="best"),
        pytest.param("best(val_loss)", selector("best", metric="val_loss"), id="metric"),
        pytest.param("best(a/b c.d)", selector("best", metric="a/b c.d"), id="metric-of-words"),
        pytest.param("best(x,min)", selector("best", metric="x", mode="min"), id="min"),
        pytest.param("best(x,max)", selector("best", metric="x", mode="max"), id="max"),
        pytest.param("best(min)", selector("best", metric="min"), id="metric-named-min"),
        pytest.param("best(max,max)", selector("best", metric="max", mode="max"), id="named-max"),
        pytest.param("step=1200", selector("step", number=1200), id="step"),
        pytest.param("epoch=5", selector("epoch", number=5), id="epoch"),
        pytest.param("epoch=0005", selector("epoch", number=5), id="leading-zeros"),
        pytest.param("step=" + "9" * 18, selector("step", number=10**18 - 1), id="longest"),
        pytest.param("latest@head", selector("latest", series="head"), id="series"),
        pytest.param(
            "step=3@a-b_C9", selector("step", number=3, series="a-b_C9"), id="step-series"
        ),
        pytest.param("best@latest", selector("best", series="latest"), id="series-named-latest"),
        pytest.param(
            "best(x,min)@head", selector("best", metric="x", mode="min", series="head"), id="all"
        ),
        pytest.param("  latest\n", selector("latest"), id="spaces-around"),
        pytest.param("latest @head", selector("latest", series="head"), id="space-before-series"),
        pytest.param(
            "best(  x ,  min  )", selector("best", metric="x", mode="min"), id="spaces-inside"
        ),
        pytest.param("step = 3", selector("step", number=3), id="spaces-at-equals"),
    ],
)
def test_what_a_text_means(text: str, expected: Selector) -> None:
    assert Selector.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("newest", id="unknown-word"),
        pytest.param("Latest", id="upper-case"),
        pytest.param("latest()", id="latest-takes-nothing"),
        pytest.param("best()", id="best-of-nothing"),
        pytest.param("best( )", id="best-of-a-space"),
        pytest.param("best( ,min)", id="best-of-a-space-with-mode"),
        pytest.param("best(,min)", id="mode-alone"),
        pytest.param("best(x,)", id="no-mode-behind-comma"),
        pytest.param("best(x,up)", id="unknown-mode"),
        pytest.param("best(x,MIN)", id="upper-case-mode"),
        pytest.param("best(x,min,max)", id="two-modes"),
        pytest.param("best(x", id="unclosed"),
        pytest.param("best((x))", id="nested"),
        pytest.param("best(x)y", id="text-behind"),
        pytest.param("step", id="step-of-nothing"),
        pytest.param("step=", id="no-number"),
        pytest.param("step=-1", id="negative"),
        pytest.param("step=1.5", id="fraction"),
        pytest.param("step=1e3", id="exponent"),
        pytest.param("step=" + "9" * 19, id="beyond-64-bits"),
        pytest.param("step=1 2", id="two-numbers"),
        pytest.param("latest@", id="series-empty"),
        pytest.param("@head", id="series-alone"),
        pytest.param("latest@ head", id="space-in-front-of-series"),
        pytest.param("latest@a@b", id="two-series"),
        pytest.param("latest@-head", id="series-begins-with-dash"),
        pytest.param("latest@a/b", id="series-with-slash"),
        pytest.param("latest@" + "a" * 65, id="series-too-long"),
        pytest.param("latest'; drop", id="quote"),
    ],
)
def test_what_is_not_a_selector(text: str) -> None:
    with pytest.raises(SelectorError, match="Expected a se"):
        Selector.parse(text)


@pytest.mark.parametrize("value", [None, 5, b"latest", ["latest"], float("nan")])
def test_what_is_not_even_text(value: Any) -> None:
    with pytest.raises(SelectorError, match="Received: "):
        Selector.parse(value)


def test_a_parsed_selector_passes_through() -> None:
    parsed = selector("best", metric="x")
    assert Selector.parse(parsed) is parsed


def test_the_error_shows_the_grammar_and_the_whole_input() -> None:
    with pytest.raises(
        SelectorError, match=r"best\(<metric>\[,min\|max\]\).*Received: 'bset@head'"
    ):
        Selector.parse("bset@head")
    with pytest.raises(SelectorError, match=r"Expected a series name .* Received: 'best@he ad'"):
        Selector.parse("best@he ad")


@pytest.mark.parametrize(
    "name",
    ["", "-a", "_a", "a b", "a/b", "a.b", "a:b", "a%b", "a'b", "a\n", "é", "a" * 65, None, 3],
)
def test_a_series_name_holds_nothing_that_mlflow_or_a_selector_needs(name: Any) -> None:
    with pytest.raises(ConfigError, match="1 to 64 letters, digits"):
        validate_series(name)


@pytest.mark.parametrize("name", ["a", "0", "head-2_B", "a" * 64])
def test_a_valid_series_name_comes_back(name: str) -> None:
    assert validate_series(name) == name


@given(
    st.one_of(
        st.sampled_from(["latest", "final", "best"]).map(lambda kind: {"kind": kind}),
        st.fixed_dictionaries(
            {
                "kind": st.just("best"),
                "metric": METRIC,
                "mode": st.sampled_from([None, "min", "max"]),
            }
        ),
        st.fixed_dictionaries(
            {"kind": st.sampled_from(["step", "epoch"]), "number": st.integers(0, 10**18 - 1)}
        ),
    ),
    st.none() | SERIES,
)
def test_the_text_of_a_selector_means_the_same_selector(
    fields: dict[str, Any], series: str | None
) -> None:
    written = Selector(**fields, series=series)
    assert Selector.parse(str(written)) == written


# --- misspelt -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("lates", "latest"),
        ("newest", "latest"),
        ("BEST", "best"),
        ("last@head", "latest@head"),
        ("5", "epoch=5"),
        ("epoch5", "epoch=5"),
        ("Step: 10", "step=10"),
        ("step", "step=1"),
        ("best val_loss", "best(val_loss)"),
        ("best[val_loss]", "best(val_loss)"),
        ("best(val_loss,maximum)@head", "best(val_loss,max)@head"),
        ("head-0004-00000008", "step=8@head"),
    ],
)
def test_what_is_misspelt_is_answered_with_what_was_meant(text: str, meant: str) -> None:
    with pytest.raises(SelectorError) as caught:
        Selector.parse(text)
    assert str(caught.value).endswith(f"Received: {text!r}. Did you mean {meant!r}?")
    Selector.parse(meant)


@pytest.mark.parametrize("text", ["zzz", "m-3a5c", "best()@", "epoch="])
def test_nothing_is_guessed_of_what_is_like_nothing(text: str) -> None:
    with pytest.raises(SelectorError, match=r"Received: [^.]*$"):
        Selector.parse(text)
