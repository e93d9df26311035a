"""Refuse what a model's config would run or read, before Keras sees it.

A config names classes and functions, and Keras makes them. Its safe mode stops at what its
authors knew when a version was released; here a config may name Keras's own building blocks
and what this process has registered, and nothing else. Nor may it make Keras compute something,
or fill lists, before there is a variable to be counted.

    config.json -> loads -> refuse_code -> Keras

A layer of the user's may hold data that looks similar. What is an object is decided as Keras's
`deserialize_keras_object` does: it has a class name and a config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from mlflow_ckpt import keras_internals
from mlflow_ckpt.errors import ModelNotLoadable

# Below `keras.` and `keras.src.`; what else is there reads files, downloads, or sets options.
_PARTS = frozenset({
    "activations", "constraints", "distillation", "dtype_policies", "initializers", "layers",
    "losses", "metrics", "models", "ops", "optimizers", "quantizers", "random", "regularizers",
})  # fmt: skip
_OF_UTILS = frozenset({"Cross", "Feature", "FeatureSpace"})
_OF_APPLICATIONS = frozenset({"CustomScaleLayer", "LayerScale", "StochasticDepth"})
_READERS = ("load", "save", "clone", "model_from")
_CODE = {
    "TFSMLayer": "loads a SavedModel, which is code, from a path",
    "TorchModuleWrapper": "loads a module of PyTorch, which is code",
    "JaxLayer": "calls a function that its file names",
    "FlaxLayer": "calls a function that its file names",
}
_VALUES = frozenset({"__keras_tensor__", "__bytes__", "__ellipsis__", "__slice__"})
_ARRAYS = frozenset({"__tensor__", "__numpy__"})
_DTYPE = re.compile(r"bool|string|(u?int|b?float|complex)\d{1,3}(_e\dm\d(fn)?)?")
# These repeat a step as often as an axis is long or an argument says, and to learn what a `Lambda`
# gives Keras tries its function out.
_REPEATING = frozenset({
    "array_split", "diff", "dsplit", "hsplit", "split", "unstack", "vsplit",
})  # fmt: skip
# Parameters of Keras's own classes from which they make lists, and how long those may be together:
# about 60 bytes and 1 us for each.
_LENGTHS = ("num_thresholds", "num_classes", "rank", "pool_dimensions", "ngrams")
_MAX_LENGTH = 1_000_000
_MAX_STACK = 1000
_TRUST = "safe_mode=False allows it, for files you trust."


def refuse_code(config: Any, known: Mapping[str, Any]) -> None:
    """Raise if making the objects of `config` could run code or read a file of this machine.

    Args:
        config: A whole `config.json`.
        known: Custom objects by the name that Keras stores.

    Raises:
        ModelNotLoadable: With the object, the reason, and what allows it.
    """
    length = 0
    for node in _objects(config):
        name = node["class_name"]
        if not isinstance(name, str):
            continue
        _check(name, node, known)
        _check_calls(name, node)
        length += _lengths(name, node, known)
        if length > _MAX_LENGTH:
            raise ModelNotLoadable(
                f"Expected at most {_MAX_LENGTH} for {', '.join(_LENGTHS)}, together. Received: "
                f"{length}, with {_spell(name, node['config'])}. compile=False leaves out the "
                f"metrics; {_TRUST}"
            )


def work_of(config: Any) -> int:
    """How much Keras has to do for a config, in objects.

    It builds a `Sequential` anew for each of its layers: half of their number squared. (A model
    in which more than about a thousand layers follow each other it does not build at all.)
    """
    work = 0
    for node in _objects(config):
        inner = node["config"]
        stack = inner.get("layers") if isinstance(inner, dict) else None
        if isinstance(stack, list) and "input_layers" not in inner:
            work += min(sum(isinstance(each, dict) for each in stack), _MAX_STACK) ** 2 // 2
        work += 1
    return work


def _objects(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in `config` that may be an object: Keras never makes one of another."""
    row = [config]
    while row:
        each = row.pop()
        if isinstance(each, dict):
            if _is_object(each):
                yield each
            row.extend(each.values())
        elif isinstance(each, list):
            row.extend(each)


def _is_object(node: Mapping[str, Any]) -> bool:
    return "class_name" in node and "config" in node


def _check(name: str, node: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    inner = node["config"]
    # Keras knows these before it looks for anything else.
    if name == "__lambda__":
        raise ModelNotLoadable(f"The model holds Python code, a lambda. {_TRUST}")
    if name in _ARRAYS:
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not (isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
            raise ModelNotLoadable(f"Expected an array of numbers. Received: dtype={dtype!r}")
    elif name in _VALUES or _known(name, node, known) is not None or _is_data(name, node):
        return
    elif name == "function":
        _check_function(node, known)
    else:
        _check_class(name, node)


def _known(name: str, node: Mapping[str, Any], known: Mapping[str, Any]) -> Any:
    """What this process has registered for an object, or was given; `None` if nothing."""
    stored = node["config"] if name == "function" else node.get("registered_name", name)
    # Without a module Keras may go by the class's name alone.
    if isinstance(stored, str) and stored in known and "module" in node:
        return known[stored]
    return known.get(name)


def _is_data(name: str, node: Mapping[str, Any]) -> bool:
    """Whether a mapping of the user's only looks like an object: Keras finds nothing for it."""
    found = {"module", "registered_name"} & set(node) or name in _CODE or name.startswith("__")
    return not (found or keras_internals.is_own_name(name))


def _check_class(name: str, node: Mapping[str, Any]) -> None:
    inner = node["config"]
    if name in _CODE:
        raise ModelNotLoadable(f"The layer {_spell(name, inner)} {_CODE[name]}. {_TRUST}")
    if isinstance(inner, dict):
        _check_inner(name, inner)
    if not _is_of_keras(name, node.get("module")):
        raise _unknown(node.get("registered_name") or name, node.get("module"))


def _check_function(node: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    name, module = node["config"], node.get("module")
    # Keras stores no more than the name of most functions, the user's included.
    placed = module not in (None, "builtins")
    if placed:
        fits = _is_of_keras(name, module)
    else:
        fits = isinstance(name, str) and keras_internals.is_own_function(name, known)
    if not fits:
        raise _unknown(name, module if placed else None)
    if name in _REPEATING:
        raise ModelNotLoadable(
            f"The model calls {name!r}, whose work grows with the numbers of the file. {_TRUST}"
        )


def _unknown(stored: Any, module: Any) -> ModelNotLoadable:
    short = str(stored).rpartition(">")[2]
    where = f" of the module {module!r}" if module else ""
    given = f", or pass custom_objects={{{short!r}: {short}}}" if short.isidentifier() else ""
    return ModelNotLoadable(
        f"The model names {stored!r:.200}{where}, which is not Keras's own and not registered in "
        f"this process. If you trust it, import what registers it{given}."
    )


def _check_calls(name: str, node: Mapping[str, Any]) -> None:
    """Refuse to call a layer on no tensor of the model: it would compute instead of describe."""
    calls = node.get("inbound_nodes")
    for call in calls if isinstance(calls, list) else ():
        if isinstance(call, dict) and call and not _has_tensor(call):
            raise ModelNotLoadable(
                f"The layer {_spell(name, node['config'])} is called on numbers and on no tensor "
                f"of the model, which Keras never writes. {_TRUST}"
            )


def _has_tensor(call: Mapping[str, Any]) -> bool:
    row = [call.get("args"), call.get("kwargs")]
    while row:
        each = row.pop()
        if isinstance(each, list):
            row.extend(each)
        elif isinstance(each, dict):
            if not _is_object(each):
                row.extend(each.values())
            elif each["class_name"] == "__keras_tensor__":
                return True
    return False


def _lengths(name: str, node: Mapping[str, Any], known: Mapping[str, Any]) -> int:
    """How long the lists are together that Keras makes for this object."""
    inner = node["config"]
    if not isinstance(inner, dict) or _is_data(name, node):
        return 0
    own = _known(name, node, known)
    if own is not None and not (isinstance(own, type) and issubclass(own, keras.metrics.Metric)):
        return 0
    return sum(abs(v) for v in map(inner.get, _LENGTHS) if isinstance(v, int))


def _check_inner(name: str, inner: Mapping[str, Any]) -> None:
    if name == "Lambda" and not all(
        _is_no_code(inner.get(part)) for part in ("function", "output_shape", "mask")
    ):
        raise ModelNotLoadable(
            f"The layer {_spell(name, inner)} holds Python code, a lambda. {_TRUST} A function "
            "with a name can be registered with keras.saving.register_keras_serializable instead."
        )
    for part in ("vocabulary", "idf_weights"):
        if isinstance(inner.get(part), str):
            raise ModelNotLoadable(
                f"The layer {_spell(name, inner)} reads its {part} from the file "
                f"{inner[part][:200]!r} of this machine. {_TRUST}"
            )


def _is_no_code(value: Any) -> bool:
    """Whether a `Lambda` has a named function or a shape there: code is a list or a marker."""
    if isinstance(value, list):
        return all(each is None or isinstance(each, int) for each in value)
    return not (isinstance(value, dict) and value.get("class_name") in ("__lambda__", None))


def _is_of_keras(name: Any, module: Any) -> bool:
    """Whether Keras will look for it among its own building blocks alone."""
    # Keras puts the two together: a name with a dot would lead elsewhere.
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        return False
    if module in (None, "builtins"):
        return keras_internals.is_own_name(name)
    package, _, rest = str(module).partition(".")
    parts = rest.removeprefix("src.").split(".")
    if package != "keras":
        return False
    if parts[0] == "applications":
        return name in _OF_APPLICATIONS
    if parts[0] == "utils" or "feature_space" in parts:
        return name in _OF_UTILS
    return (not rest or parts[0] in _PARTS) and not name.startswith(_READERS)


def _spell(name: str, inner: Any) -> str:
    called = inner.get("name") if isinstance(inner, dict) else None
    return f"{called!r} ({name})" if isinstance(called, str) else name
