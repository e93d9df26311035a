"""The facts of a checkpoint and their way through tags."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.record import SERIES_TAG_PREFIX, Checkpoint, Position, Run, Series

pytestmark = pytest.mark.pure


def position(**changes: Any) -> Position:
    return dataclasses.replace(Position(series="ckpt", kind="epoch", epoch=5, step=1200), **changes)


def checkpoint(**changes: Any) -> Checkpoint:
    facts = Checkpoint(
        run_id="r",
        model_id="m-1",
        position=position(fit=2),
        metrics={"loss": 0.5},
        bytes=10,
        digest="blake3:00",
        artifact_uri="file:///a",
        created_at=1,
    )
    return dataclasses.replace(facts, **changes)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        pytest.param({}, "ckpt-0005-00001200", id="epoch"),
        pytest.param({"kind": "batch"}, "ckpt-0005-00001200", id="batch"),
        pytest.param({"kind": "final"}, "ckpt-0005-00001200-final", id="end-state"),
        pytest.param({"kind": "manual", "epoch": 0, "step": 0}, "ckpt-0000-00000000", id="zero"),
        pytest.param({"series": "a-b_9"}, "a-b_9-0005-00001200", id="series"),
        pytest.param({"epoch": 12345, "step": 10**9}, "ckpt-12345-1000000000", id="wide-numbers"),
    ],
)
def test_the_name_sorts_by_progress(changes: dict[str, Any], name: str) -> None:
    assert position(**changes).name == name
    assert not re.search(r"[/:.%'\"]", name), "MLflow refuses these in a LoggedModel name"


@pytest.mark.parametrize(
    ("series", "metric", "direction"),
    [
        pytest.param(Series(name="s"), "loss", None, id="unknown"),
        pytest.param(Series(name="s", monitor="x", mode="max"), "x", "max", id="monitor"),
        pytest.param(Series(name="s", monitor="x"), "x", None, id="monitor-without-mode"),
        pytest.param(
            Series(name="s", directions={"accuracy": "max"}), "val_accuracy", "max", id="val-twin"
        ),
        pytest.param(
            Series(name="s", directions={"a": "max", "val_a": "min"}),
            "val_a",
            "min",
            id="own-first",
        ),
        pytest.param(
            Series(name="s", monitor="a", mode="min", directions={"a": "max"}),
            "a",
            "min",
            id="recorded-mode-beats-keras",
        ),
        pytest.param(
            Series(name="s", directions={"val_a": "max"}), "a", None, id="no-twin-backwards"
        ),
    ],
)
def test_the_direction_of_a_metric(series: Series, metric: str, direction: str | None) -> None:
    assert series.direction(metric) == direction


def test_every_documented_attribute_of_a_checkpoint_exists() -> None:
    facts = checkpoint(local=Path("here"))
    for line in re.findall(r"^ {8}([\w, ]+): ", Checkpoint.__doc__ or "", flags=re.MULTILINE):
        for attribute in line.split(", "):
            assert getattr(facts, attribute) is not None, attribute
    assert facts.uri == "models:/m-1"
    assert facts.name == position().name


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint().digest = "other"  # type: ignore[misc]


def test_a_run_knows_its_series_in_the_order_of_their_names() -> None:
    tags = {series.tag: series.to_json() for series in (Series(name="head"), Series(name="ckpt"))}
    run = Run(run_id="r", experiment_id="0", tags={"user": "somebody", **tags})
    assert list(run.series) == ["ckpt", "head"]
    assert Run(run_id="r", experiment_id="0").series == {}


def test_unknown_fields_of_a_series_are_ignored() -> None:
    text = json.dumps({"prefix": "head/", "monitor": None, "color": "red"})
    assert Series.from_tags({SERIES_TAG_PREFIX + "head": text})["head"].prefix == "head/"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"prefix": "head/", "mon', id="cut-short"),
        pytest.param("[]", id="list"),
        pytest.param("3", id="number"),
        pytest.param("null", id="null"),
    ],
)
def test_an_unreadable_series_is_an_error_and_not_a_missing_series(text: str) -> None:
    with pytest.raises(ValueError):
        Series.from_tags({SERIES_TAG_PREFIX + "head": text})


@pytest.mark.parametrize("missing", ["ckpt.series", "ckpt.kind", "ckpt.epoch", "ckpt.step"])
def test_tags_without_a_position_are_refused(missing: str) -> None:
    tags = position().tags()
    del tags[missing]
    with pytest.raises(KeyError, match=missing):
        Position.from_tags(tags)


def test_tags_with_a_word_for_a_number_are_refused() -> None:
    with pytest.raises(ValueError, match="many"):
        Position.from_tags({**position().tags(), "ckpt.step": "many"})


@given(st.builds(Position, fit=st.integers(0)))
def test_a_position_survives_its_tags(facts: Position) -> None:
    tags = facts.tags()
    assert all(isinstance(value, str) for value in tags.values())
    assert Position.from_tags(tags) == facts


@given(st.builds(Series))
def test_a_series_survives_its_tag(facts: Series) -> None:
    assert Series.from_tags({facts.tag: facts.to_json()}) == {facts.name: facts}
