"""Measure a checkpoint of a run on the digits that the run never saw."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import data

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import evaluate_command


def load_test_set(settings: Mapping[str, str]) -> data.Split:
    return data.load(settings["dataset"])[1]


if __name__ == "__main__":
    evaluate_command(load_test_set)()
