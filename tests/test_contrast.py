"""Two trees of plain values: where they differ, and what of it is JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from mlflow_ckpt.contrast import Contrast, contrasts, places, short, uneven

pytestmark = pytest.mark.pure


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param({"x": 1}, {"x": 1.0}, [], id="one-number"),
        pytest.param((1, 2), [1, 2], [], id="a-tuple-is-a-list"),
        pytest.param({"x": {"y": 1}}, {"x": {"y": 2}}, [("m.x.y", 1, 2)], id="deep"),
        pytest.param({}, {"x": 1}, [("m.x", None, 1)], id="missing"),
        pytest.param({}, {"x": None}, [], id="nothing-is-missing"),
        pytest.param(
            {"class": "A", "x": 1}, {"class": "B", "x": 2}, [("m.class", "A", "B")], id="class"
        ),
        pytest.param({"x": {}}, {"x": 1}, [("m.x", {}, 1)], id="another-kind"),
    ],
)
def test_the_places_at_which_two_trees_differ(a: Any, b: Any, expected: list[Any]) -> None:
    assert list(places(a, b, "m")) == expected
    assert [(c.where, c.a, c.b) for c in contrasts(a, b, "m")] == expected


def test_names_with_other_values_are_sorted() -> None:
    assert uneven({"b": 1, "a": 1, "c": 1}, {"b": 2, "d": 1, "c": 1}) == [
        Contrast(where="a", a=1, b=None),
        Contrast(where="b", a=1, b=2),
        Contrast(where="d", a=None, b=1),
    ]


def test_what_json_lacks_is_told_by_its_name() -> None:
    found = Contrast(where="x", a=math.nan, b={"y": [math.inf, 1]}).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "where": "x",
        "a": "nan",
        "b": {"y": ["inf", 1]},
    }


def test_a_long_value_is_cut() -> None:
    assert short(None) == "nothing"
    assert short([1, "a"]) == '[1, "a"]'
    assert len(short("x" * 500)) == 160
