"""Describe a model so that a checkpoint can be held against it before anything is assigned.

Two models fit each other when their variables agree one by one, by position, in
shape (and, for a resume, in dtype) and their optimizers by class and variables.
Names are for messages only: Keras numbers them per process (`dense_3`).

    model -> describe() -> manifest.json["model"] -> check_*() against another model
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from mlflow_ckpt import keras_internals
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import ModelMismatch, ModelNotBuilt

_ADVICE = "Build the model as it was when the checkpoint was made, or choose another checkpoint."


def describe(model: keras.Model) -> dict[str, Any]:
    """Fingerprint of architecture and optimizers.

    Returns:
        `class`; `variables`: one `[path, shape, dtype]` per entry of `model.weights`;
        `optimizers`: one mapping per optimizer attribute with `class`, `variables` and
        `trains` (positions in `model.weights` that it was built on); and the two digests
        `architecture` and `optimizer`, which ignore names.
    """
    weights = list(model.weights)
    positions = {id(v): i for i, v in enumerate(weights)}
    variables = [_leaf(v) for v in weights]
    optimizers: list[dict[str, Any]] = [
        {
            "attribute": attribute,
            "class": type(optimizer).__name__,
            "variables": [_leaf(v) for v in optimizer.variables],
            "trains": [
                positions[id(v)]
                for v in keras_internals.trained_variables(optimizer)
                if id(v) in positions
            ],
        }
        for attribute, optimizer in optimizers_of(model)
    ]
    return {
        "class": type(model).__name__,
        "variables": variables,
        "optimizers": optimizers,
        "architecture": _digest([leaf[1:] for leaf in variables]),
        "optimizer": _digest(
            [[o["attribute"], o["class"], [v[1:] for v in o["variables"]]] for o in optimizers]
        ),
    }


def optimizers_of(model: keras.Model) -> Iterator[tuple[str, keras.optimizers.Optimizer]]:
    """Each optimizer a model holds (`optimizer`, or a GAN's two), by attribute name."""
    for attribute, value in sorted(vars(model).items()):
        if isinstance(value, keras.optimizers.Optimizer):
            yield attribute, value


def state_variables(model: keras.Model) -> list[Any]:
    """Every variable that training changes and a checkpoint keeps: weights, then optimizers."""
    variables = list(model.weights)
    for _, optimizer in optimizers_of(model):
        variables.extend(optimizer.variables)
    return variables


def state_bytes(model: keras.Model) -> int:
    """Bytes of `state_variables`."""
    return sum(
        math.prod(v.shape) * keras_internals.dtype_of(v).itemsize for v in state_variables(model)
    )


def _leaf(variable: Any) -> list[Any]:
    return [variable.path, [int(n) for n in variable.shape], str(variable.dtype)]


def _digest(value: object) -> str:
    return digest_bytes(json.dumps(value, sort_keys=True).encode())


def check_architecture(
    model: keras.Model, recorded: Mapping[str, Any], *, source: str, strict_dtype: bool = False
) -> None:
    """Hold `model` against a recorded fingerprint, variable by variable.

    Raises:
        ModelNotBuilt: If the model has no variables yet although the checkpoint has some.
        ModelMismatch: If a variable differs; the first one is named.
    """
    expected: Sequence[Any] = recorded.get("variables", [])
    found = [_leaf(v) for v in model.weights]
    if expected and not found:
        raise ModelNotBuilt(
            f"{source} holds {len(expected)} variables and the model has none yet. "
            "Call it once on a batch, or give it an Input, before loading."
        )
    fields = 3 if strict_dtype else 2
    for index, (want, have) in enumerate(zip(expected, found, strict=False)):
        if want[1:fields] != have[1:fields]:
            raise ModelMismatch(
                f"The model does not fit {source}: variable {index} {have[0]!r} "
                f"(in the checkpoint {want[0]!r}). Expected: {_spell(want, fields)}. "
                f"Received: {_spell(have, fields)}. {_ADVICE}"
            )
    if len(expected) != len(found):
        longer, where = (expected, "checkpoint") if len(expected) > len(found) else (found, "model")
        first = longer[min(len(expected), len(found))]
        raise ModelMismatch(
            f"The model does not fit {source}. Expected: {len(expected)} variables. "
            f"Received: {len(found)}. The first one that only the {where} has: "
            f"{first[0]!r} {_spell(first, fields)}. {_ADVICE}"
        )


def _spell(leaf: Sequence[Any], fields: int) -> str:
    shape = "(" + ", ".join(str(n) for n in leaf[1]) + ("," if len(leaf[1]) == 1 else "") + ")"
    return f"shape {shape}" + (f" {leaf[2]}" if fields > 2 else "")


def build_optimizers(model: keras.Model, recorded: Mapping[str, Any], *, source: str) -> None:
    """Create every optimizer's variables on the recorded order, so that a load fills them.

    Keras skips an unbuilt optimizer with a warning while loading; a resume must not.

    Raises:
        ModelMismatch: If an optimizer is missing, is of another class or has other variables.
    """
    present = dict(optimizers_of(model))
    weights = list(model.weights)
    for want in recorded.get("optimizers", []):
        optimizer = present.get(want["attribute"])
        have = type(optimizer).__name__ if optimizer is not None else "none"
        if optimizer is None or have != want["class"]:
            raise ModelMismatch(
                f"The model does not fit {source}: `model.{want['attribute']}`. "
                f"Expected: {want['class']}. Received: {have}. Compile it with the same optimizer, "
                "or take the weights alone with load_weights(model, run_id, which)."
            )
        if not want["trains"]:
            continue
        if not optimizer.built:
            optimizer.build([weights[i] for i in want["trains"]])
        shapes = [list(_leaf(v)[1]) for v in optimizer.variables]
        if shapes != [leaf[1] for leaf in want["variables"]]:
            raise ModelMismatch(
                f"The model does not fit {source}: `model.{want['attribute']}` ({have}). "
                f"Expected: {len(want['variables'])} optimizer variables. Received: {len(shapes)}, "
                "or other shapes. Check its arguments (momentum, amsgrad, use_ema, "
                "gradient_accumulation_steps) and which layers are trainable."
            )


def io_spec(model: keras.Model) -> dict[str, list[list[Any]]] | None:
    """Inputs and outputs as `[name, dtype, shape]` with -1 for open dimensions.

    A single input has the name `None`. Returns `None` where the model does not know its
    inputs (subclassed), or where one of them has a fixed batch size: MLflow refuses that.
    """
    inputs = _tensors(getattr(model, "inputs", None))
    outputs = _tensors(getattr(model, "outputs", None))
    if not inputs or not outputs:
        return None
    spec = {"inputs": _named(inputs), "outputs": _named(outputs)}
    open_batch = all(shape and shape[0] == -1 for _, _, shape in spec["inputs"])
    return spec if open_batch else None


def _tensors(value: Any) -> list[Any]:
    return [] if value is None else list(keras.tree.flatten(value))


def _named(tensors: Sequence[Any]) -> list[list[Any]]:
    alone = len(tensors) == 1
    return [
        [
            None if alone else tensor.name,
            keras.backend.standardize_dtype(tensor.dtype),
            [-1 if n is None else int(n) for n in tensor.shape],
        ]
        for tensor in tensors
    ]
