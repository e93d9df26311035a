"""Compare what a run was trained with to what it is about to be continued with.

The architecture is compared variable by variable in `fingerprint.py`; this module
compares the rest: optimizers, the compiled loss, and the shape of the input. Epochs and
the learning rate are no difference, and the contents of the data are not compared.

    describe() -> training_state.h5 -> differences() -> refuse()
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.contrast import places, short
from mlflow_ckpt.errors import ResumeMismatch

# What a position within an epoch stands on.
DATA_PARTS = frozenset({"element_spec", "cardinality", "batch_size", "order"})

_NOT_COMPARED = frozenset({"learning_rate", "name"})


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was.

    Attributes:
        part: Which of `resume_option.PARTS`.
        where: What it is, such as `optimizer.clipnorm`.
        before, now: Its values, in short.
    """

    part: str
    where: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.where}: {self.before} in the checkpoint, {self.now} now"


def describe(model: keras.Model, feed: keras_internals.Feed | None) -> dict[str, Any]:
    """What `differences` compares, as plain data."""
    return {
        "optimizer": {
            attribute: {"class": type(optimizer).__name__, **_config(optimizer)}
            for attribute, optimizer in fingerprint.optimizers_of(model)
        },
        "loss": _loss(model),
        "data": None if feed is None else feed.facts(),
    }


def _config(optimizer: keras.optimizers.Optimizer) -> dict[str, Any]:
    try:
        config = optimizer.get_config()
    except NotImplementedError:
        return {}  # a schedule of the user's own, say; the class is compared all the same
    found = {k: v for k, v in config.items() if k not in _NOT_COMPARED}
    inner = found.pop("inner_optimizer", None)
    if isinstance(inner, dict):
        kept = {k: v for k, v in inner.get("config", {}).items() if k not in _NOT_COMPARED}
        found["inner"] = {"class": inner.get("class_name"), **kept}
    plain: dict[str, Any] = json.loads(json.dumps(found, default=_name))
    return plain


def _loss(model: keras.Model) -> Any:
    """The compiled loss as plain data: classes with their config, functions by name."""
    loss, weights = keras_internals.compiled_loss(model)
    if isinstance(loss, (list, tuple)) and len(loss) == 1:
        (loss,) = loss
    found = keras.tree.map_structure(_one_loss, loss)
    return found if weights is None else {"losses": found, "weights": weights}


def _one_loss(loss: Any) -> Any:
    """`"mse"`, its function and its class are one loss; what is left at its default is not told."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        return None if loss is None else _name(loss)
    function = getattr(loss, "fn", None)
    known = inspect.signature(function).parameters if callable(function) else {}
    config = {
        k: v
        for k, v in loss.get_config().items()
        if k not in ("name", "fn", "dtype") and (k not in known or known[k].default != v)
    }
    if config.get("reduction") == "sum_over_batch_size":
        del config["reduction"]
    name = _name(function if callable(function) else loss)
    return name if not config else f"{name}({json.dumps(config, default=_name, sort_keys=True)})"


def _name(value: Any) -> str:
    """A name without an address, which changes from process to process."""
    if isinstance(value, functools.partial):
        words = json.dumps([value.args, value.keywords], default=_name, sort_keys=True)
        return f"partial({_name(value.func)}, {words})"
    return str(getattr(value, "__name__", type(value).__name__))


def differences(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[Difference]:
    """Everything that differs; nothing where the checkpoint recorded nothing."""
    if before is None:
        return []
    found = [
        Difference("optimizer", where, short(old), short(new))
        for where, old, new in places(before["optimizer"], now["optimizer"], "model")
    ]
    found += [
        Difference("loss", where, short(old), short(new))
        for where, old, new in places(before["loss"], now["loss"], "loss")
    ]
    if before["data"] and now["data"]:
        found += _data_differences(before["data"], now["data"])
    return found


def _data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    parts = [(part, part) for part in sorted(DATA_PARTS)] + [("samples", "cardinality")]
    return [
        Difference(part, where, short(old), short(new))
        for name, part in parts
        if name in before and name in now  # not every kind of input has every one
        for where, old, new in places(before[name], now[name], f"input.{name}")
    ]


def refuse(found: Sequence[Difference], allow: Sequence[str], *, source: str) -> None:
    """Raise if something differs that is not allowed to.

    Raises:
        ResumeMismatch: With every difference, and what to write to accept it.
    """
    refused = [difference for difference in found if difference.part not in allow]
    if not refused:
        return
    parts = sorted({difference.part for difference in refused} | set(allow))
    names = ", ".join(map(repr, parts)) + ("," if len(parts) == 1 else "")
    lines = "\n".join(f"  {difference}" for difference in refused)
    raise ResumeMismatch(
        f"This fit is not the one that wrote {source}:\n{lines}\n"
        "Change it back; or accept it with MlflowCheckpoint(resume=Resume(which='latest', "
        f"allow=({names}))); or start a new run from there with ckpt.fork or ckpt.warm_start.",
        differences=tuple(map(str, refused)),
    )
