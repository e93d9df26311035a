"""Measure a checkpoint of a run on the rows that the run never saw."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import data

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import evaluate_command


def load_test_set(_: Mapping[str, str]) -> tuple[Any, Any]:
    rows = data.load()[1]
    return data.inputs(rows), rows["target"].to_numpy()


if __name__ == "__main__":
    evaluate_command(load_test_set)()
