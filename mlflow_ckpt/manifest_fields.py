"""The types of what a manifest says: a digest proves bytes, and no sense in them.

Whatever is read further on has the type that `docs/format.md` gives it. A field that nobody knows
is left alone.
"""

from __future__ import annotations

from typing import Any

from mlflow_ckpt.errors import ManifestError
from mlflow_ckpt.manifest_paths import ELSE

_INTEGERS = 1 << 53


def read_checkpoint(raw: Any) -> dict[str, Any]:
    """Where it stands. What a reader needs to find it lies in tags, so any of it may be missing."""
    found = mapping(raw)
    for name in ("series", "kind"):
        text(found.get(name, ""), name)
    for name in ("epoch", "step", "fit"):
        count(found.get(name, 0), name)
    for name in ("monitor", "mode"):
        if found.get(name) is not None:
            text(found[name], name)
    for name, value in mapping(found.get("metrics", {})).items():
        if type(value) not in (int, float, str):
            raise _unexpected("a number or a text", f"{name[:80]!r} of {type(value).__name__}")
    return found


def read_versions(raw: Any) -> dict[str, str]:
    return {name: text(version, name) for name, version in mapping(raw).items()}


def read_model(raw: Any) -> dict[str, Any]:
    """The fingerprint, of which `fingerprint.py` reads variables and optimizers."""
    model = mapping(raw)
    _read_variables(model.get("variables", []))
    for optimizer in listed(model.get("optimizers", [])):
        _read_variables(optimizer["variables"])
        names = optimizer["attribute"], optimizer["class"]
        positions = listed(optimizer["trains"])
        rows = len(model.get("variables", []))
        if not all(isinstance(name, str) for name in names) or not all(
            type(n) is int and 0 <= n < rows for n in positions
        ):
            raise _unexpected("an optimizer of the model's", f"{names!r:.80}")
    return model


def _read_variables(raw: Any) -> None:
    for path, shape, dtype in listed(raw):
        whole = all(type(size) is int and size >= 0 for size in listed(shape))
        if not (whole and isinstance(path, str) and isinstance(dtype, str)):
            raise _unexpected("a path, a shape and a dtype", f"{path!r:.80}")


def listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _unexpected("a list", type(value).__name__)
    return value


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unexpected("a mapping", type(value).__name__)
    return value


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _unexpected("a text", f"{name[:80]}={value!r:.80}")
    return value


def count(value: Any, name: str) -> int:
    # A boolean is an int in Python and none in JSON.
    if type(value) is not int or not 0 <= value < _INTEGERS:
        raise _unexpected("an integer from 0 and below 2^53", f"{name}={value!r:.80}")
    return value


def _unexpected(expected: str, received: str) -> ManifestError:
    return ManifestError(f"manifest.json: expected {expected}. Received: {received}. {ELSE}")
