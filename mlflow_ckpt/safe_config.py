"""Refuse what a model's config would run or read, before Keras sees it.

A config names classes and functions, and Keras makes them. Its safe mode stops at what its
authors knew when a version was released; here a config may name Keras's own building blocks
and what this process has registered, and nothing else.

    config.json -> loads -> refuse_code -> Keras
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_ckpt.errors import ModelNotLoadable

# Below `keras.` and `keras.src.`; what else is there reads files, downloads, or sets options.
_PARTS = frozenset({
    "activations", "constraints", "distillation", "dtype_policies", "initializers", "layers",
    "losses", "metrics", "models", "ops", "optimizers", "quantizers", "random", "regularizers",
})  # fmt: skip
_OF_UTILS = frozenset({"Cross", "Feature", "FeatureSpace"})
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
_TRUST = "safe_mode=False allows it, for files you trust."


def refuse_code(config: Any, known: Mapping[str, Any]) -> None:
    """Raise if making the objects of `config` could run code or read a file of this machine.

    Args:
        config: A whole `config.json`.
        known: Custom objects by the name that Keras stores.

    Raises:
        ModelNotLoadable: With the object, the reason, and what allows it.
    """
    for node in _named(config):
        name = node["class_name"]
        if isinstance(name, str):
            _check(name, node, known)


def _named(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping in `config` that names a class or a function."""
    row = [config]
    while row:
        each = row.pop()
        if isinstance(each, dict):
            if "class_name" in each:
                yield each
            row.extend(each.values())
        elif isinstance(each, list):
            row.extend(each)


def _check(name: str, node: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    inner = node.get("config")
    stored = inner if name == "function" else node.get("registered_name", name)
    # Without a module Keras may go by the class's name alone.
    if name in known or (isinstance(stored, str) and stored in known and "module" in node):
        return
    if name == "__lambda__":
        raise ModelNotLoadable(f"The model holds Python code, a lambda. {_TRUST}")
    if name in _CODE:
        raise ModelNotLoadable(f"The layer {_spell(name, inner)} {_CODE[name]}. {_TRUST}")
    if isinstance(inner, dict):
        _check_inner(name, inner)
    if name in _ARRAYS:
        dtype = inner.get("dtype") if isinstance(inner, dict) else None
        if not (isinstance(dtype, str) and _DTYPE.fullmatch(dtype)):
            raise ModelNotLoadable(f"Expected an array of numbers. Received: dtype={dtype!r}")
    elif name not in _VALUES and not _is_of_keras(name, node):
        spelled = str(stored or name)
        short = spelled.rpartition(">")[2]
        raise ModelNotLoadable(
            f"The model names {spelled!r} of the module {node.get('module')!r}, which is not "
            "Keras's own and not registered in this process. If you trust it, import what "
            f"registers it, or pass custom_objects={{{short!r}: {short}}}."
        )


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


def _is_of_keras(name: str, node: Mapping[str, Any]) -> bool:
    """Whether Keras will look for it among its own building blocks alone."""
    module = node.get("module")
    stored = node.get("config") if name == "function" else name
    # Keras puts the two together: a name with a dot would lead elsewhere.
    if not isinstance(stored, str) or not stored.isidentifier() or stored.startswith("_"):
        return False
    if module in (None, "builtins", "keras"):
        return True
    package, _, rest = str(module).partition(".")
    parts = rest.removeprefix("src.").split(".")
    if package != "keras":
        return False
    if parts[0] == "utils" or "feature_space" in parts:
        return stored in _OF_UTILS
    return parts[0] in _PARTS and not stored.startswith(_READERS)


def _spell(name: str, inner: Any) -> str:
    called = inner.get("name") if isinstance(inner, dict) else None
    return f"{called!r} ({name})" if isinstance(called, str) else name
