"""The tree of errors: what is drawn is what there is, and callers can rely on it."""

from __future__ import annotations

import builtins
import pickle
import re
from pathlib import Path

import pytest

from mlflow_ckpt import errors

pytestmark = pytest.mark.pure

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.CheckpointError)
}
ATTRIBUTES = {
    "MonitorMissing": {"monitor": "val_loss", "available": ("loss",)},
    "DigestMismatch": {"path": "data/x", "expected": "blake3:00", "found": "blake3:01"},
    "ResumeMismatch": {"differences": ("loss: mse in the checkpoint, mae now",)},
    "SaveFailed": {"reason": OSError(28, "No space left on device")},
    "SnapshotTorn": {"reason": RuntimeError("written to")},
}


def make(name: str) -> errors.CheckpointError:
    return CLASSES[name]("what happened", **ATTRIBUTES.get(name, {}))


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """Read the docstring's tree as class -> (parent, own builtin)."""
    tree: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:[│ ]   |[├└]── )*)([A-Z]\w+)(?: \((\w+)\))?(?: {2,}.*)?$", line)
        if match:
            del path[len(match[1]) // 4 :]
            tree[match[2]] = (path[-1] if path else None, match[3])
            path.append(match[2])
    return tree


def actual() -> dict[str, tuple[str | None, str | None]]:
    """Read the same from the classes."""
    tree = {}
    for name, cls in CLASSES.items():
        parents = [base.__name__ for base in cls.__bases__ if base.__name__ in CLASSES]
        others = [base.__name__ for base in cls.__bases__ if hasattr(builtins, base.__name__)]
        own = [base for base in others if base != "Exception"]
        tree[name] = (parents[0] if parents else None, own[0] if own else None)
    return tree


def test_the_drawn_tree_is_the_real_one() -> None:
    assert drawn() == actual()


def test_all_is_sorted_and_complete() -> None:
    assert errors.__all__ == sorted(errors.__all__)
    assert set(errors.__all__) == set(CLASSES)


def test_each_class_is_also_a_builtin_that_a_caller_would_catch() -> None:
    expected = (ValueError, LookupError, RuntimeError, OSError)
    assert [n for n in CLASSES if not isinstance(make(n), expected)] == ["CheckpointError"]


def test_the_message_is_shown_as_it_is() -> None:
    assert {str(make(name)) for name in CLASSES} == {"what happened"}


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_documented_attributes_are_set(name: str) -> None:
    _, _, listed = (CLASSES[name].__doc__ or "").partition("Attributes:")
    documented = re.findall(r"^ {8}(\w+):", listed, flags=re.MULTILINE)
    assert {key: getattr(make(name), key) for key in documented} == ATTRIBUTES[name]


def test_only_these_classes_document_attributes() -> None:
    assert {n for n in CLASSES if "Attributes:" in (CLASSES[n].__doc__ or "")} == set(ATTRIBUTES)


@pytest.mark.parametrize("name", [*sorted(ATTRIBUTES), "StoreError"])
def test_an_error_crosses_a_process_boundary_whole(name: str) -> None:
    error = pickle.loads(pickle.dumps(make(name)))
    assert type(error) is CLASSES[name]
    assert str(error) == "what happened"
    assert repr(vars(error)) == repr(ATTRIBUTES.get(name, {}))


def test_every_class_is_raised_or_derived_from_somewhere() -> None:
    package = Path(errors.__file__).parent
    sources = [p.read_text() for p in package.rglob("*.py") if p.name != "errors.py"]
    parents = {base.__name__ for cls in CLASSES.values() for base in cls.__bases__}
    unused = [n for n in CLASSES if n not in parents and not any(f"{n}(" in s for s in sources)]
    assert unused == []
