"""How much a model may ask for that its file does not explain.

A config of a few lines can ask for any memory, or for any time, before a weight is read. What it
may ask for is measured by the file: its weights, and the objects of its config. Sizes are bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import keras

from mlflow_ckpt import keras_internals, plain_json
from mlflow_ckpt.errors import ModelNotLoadable
from mlflow_ckpt.mapped import MappedWeights
from mlflow_ckpt.safe_config import work_of
from mlflow_ckpt.say import first_line

# Bytes of variables that a model may have beyond those in its file: seeds, metrics.
_SLACK = 64 << 20
# So many times its weights a model may need: an optimizer, which need not have any state in the
# file, makes up to five variables for each of them.
_WITH_OPTIMIZER = 6
# How many tensors Keras may describe to build a model, and how many more for each object of its
# config. Models in use have 2 for each, or 12 where layers are tried out; each takes about 80 us
# and 600 bytes.
STEPS, _STEPS_EACH = 20_000, 30
# Bytes that a line of a vocabulary takes in a lookup layer, with its text and twice in a table, and
# how many of them there may be beside the size of the weights.
_LINE, _LINES = 280, 256 << 20
# Where `str.splitlines` cuts.
_ENDS = tuple(mark.encode() for mark in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


def parsed(raw: bytes, name: str) -> Any:
    """The config of a model.

    Raises:
        ModelNotLoadable: If it is no JSON, or would take too much memory.
    """
    try:
        return plain_json.loads(raw)
    except ValueError as error:
        raise ModelNotLoadable(
            f"Expected a {name} as Keras writes it. Received: {first_line(error)} Take "
            "another checkpoint."
        ) from error


def advice(config: Any) -> str:
    """How to load a model that asks for more than its file explains."""
    found = "safe_mode=False allows it, for files you trust."
    if isinstance(config, dict) and config.get("compile_config"):
        return f"compile=False leaves out its optimizer and metrics; {found}"
    return found


def steps(config: Any) -> int:
    """How many tensors Keras may describe to build the model of a config."""
    return STEPS + _STEPS_EACH * work_of(config)


def check_vocabularies(weights: MappedWeights, names: Iterable[str]) -> None:
    """A vocabulary takes thirty times its size: its lines count against the size of the weights."""
    lines = 0
    for name in names:
        if name.endswith("/vocabulary.txt"):
            data = weights.member(name)
            lines += sum(data.count(end) for end in _ENDS) - data.count(b"\r\n") + 1
    allowed = (_LINES + len(weights.content)) // _LINE
    if lines > allowed:
        raise ModelNotLoadable(
            f"Expected at most {allowed} words in the vocabularies of a model whose weights have "
            f"{len(weights.content)} bytes. Received: {lines}. safe_mode=False allows it, for "
            "files you trust."
        )


def bounded(
    make: Callable[[], keras.Model], weights: MappedWeights, steps: int | None, advice: str
) -> keras.Model:
    """Make a model that has about as many bytes of variables as its file.

    Args:
        steps: How many tensors Keras may describe; `None`: nothing is bounded.
        advice: What to do where it asks for more.
    """
    stored = sum(each.size for each in weights.stored)
    state = sum(each.size for each in weights.stored if each.path.startswith("/optimizer/"))
    limit = _SLACK + max(2 * stored, _WITH_OPTIMIZER * (stored - state))
    bounds = (sys.maxsize, sys.maxsize) if steps is None else (limit, steps)
    with keras_internals.bounded_variables(*bounds) as budget:
        try:
            return make()
        except Exception as error:
            if budget.exceeded is None:
                raise
            raise ModelNotLoadable(f"The model asks for {budget.exceeded}. {advice}") from error
