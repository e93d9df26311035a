"""Bring the tensors of two checkpoints together, and measure pair by pair what changed.

    tensors of a and of b -> paired() -> Pairs -> measured() -> Layers

Of two models that are built alike every tensor has its partner, whatever the layers are called.
Else what has the same key and the same shape is compared, and the rest is listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from mlflow_ckpt import progress, weight_change
from mlflow_ckpt.stored_tensors import BLOCK, Tensor, blocks
from mlflow_ckpt.weight_change import Sums, WeightChange


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which tensor of a is which of b.

    Attributes:
        both: Those of one shape.
        unlike: Those that are the same by their key, and have different shapes.
        only_a, only_b: The rest.
    """

    both: Sequence[tuple[Tensor, Tensor]]
    unlike: Sequence[tuple[Tensor, Tensor]]
    only_a: Sequence[Tensor]
    only_b: Sequence[Tensor]

    @property
    def is_complete(self) -> bool:
        """Whether every tensor has a partner of its shape and dtype."""
        alone = self.unlike or self.only_a or self.only_b
        return not alone and all(a.dtype == b.dtype for a, b in self.both)


@dataclass(frozen=True, kw_only=True)
class VariableChange:
    """One variable in both checkpoints.

    Attributes:
        name_a, name_b: What it is called in each; Keras numbers layers by process.
        shape: Of both.
        dtype_a, dtype_b: In each.
        change: What changed.
    """

    name_a: str
    name_b: str
    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    change: WeightChange

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name_a,
            "name_b": self.name_b,
            "shape": list(self.shape),
            "dtype_a": self.dtype_a,
            "dtype_b": self.dtype_b,
            **self.change.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """Variables that belong together, such as those of one layer.

    Attributes:
        name_a, name_b: What it is called in each.
        variables: In their order.
        change: Of all of them together.
    """

    name_a: str
    name_b: str
    variables: tuple[VariableChange, ...]
    change: WeightChange

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "name": self.name_a,
            "name_b": self.name_b,
            **self.change.to_dict(),
            "variables": [variable.to_dict() for variable in self.variables],
        }


def paired(a: Sequence[Tensor], b: Sequence[Tensor]) -> Pairs:
    """Find the partner of each tensor."""
    left, right = _by_key(a), _by_key(b)
    if left.keys() != right.keys() and _places(a) == _places(b):
        left, right = _by_path(a), _by_path(b)
    found = [(left[key], right[key]) for key in left if key in right]
    return Pairs(
        both=[(x, y) for x, y in found if x.shape == y.shape],
        unlike=[(x, y) for x, y in found if x.shape != y.shape],
        only_a=[tensor for key, tensor in left.items() if key not in right],
        only_b=[tensor for key, tensor in right.items() if key not in left],
    )


def _by_key(tensors: Sequence[Tensor]) -> dict[Any, Tensor]:
    """Two of one key are told apart by their order."""
    turns: dict[Any, int] = defaultdict(int)
    found: dict[Any, Tensor] = {}
    for tensor in tensors:
        key = tensor.name.key
        found[key, turns[key]] = tensor
        turns[key] += 1
    return found


def _by_path(tensors: Sequence[Tensor]) -> dict[Any, Tensor]:
    return {tensor.path: tensor for tensor in tensors}


def _places(tensors: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
    return {tensor.path: tensor.shape for tensor in tensors}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What changed between the tensors of `Pairs.both`.

    Attributes:
        layers: In the order of a.
        total: Of all of them.
        identical: Whether every one has the same bits, in the same dtype.
    """

    layers: tuple[LayerChange, ...]
    total: WeightChange
    identical: bool


def measured(pairs: Pairs, file_a: BinaryIO, file_b: BinaryIO, *, count: int = BLOCK) -> Measured:
    """Read both tensors of every pair, `count` elements at a time.

    Args:
        file_a, file_b: Where they lie.

    Raises:
        ModelNotLoadable: If somebody writes into a file meanwhile.
    """
    progress.expect(sum(x.size * x.raw.itemsize for pair in pairs.both for x in pair))
    layers: dict[Any, list[tuple[Tensor, Tensor, Sums]]] = defaultdict(list)
    for a, b in pairs.both:
        sums = Sums()
        for x, y in zip(blocks(file_a, a, count), blocks(file_b, b, count), strict=True):
            sums.add(x, y)
            progress.moved(x.nbytes + y.nbytes)
        layers[a.name.layer, a.name.key[0]].append((a, b, sums))
    everything = weight_change.total([sums for rows in layers.values() for _, _, sums in rows])
    total = everything.result()
    return Measured(
        layers=tuple(_layer(rows) for rows in layers.values()),
        total=total,
        identical=not total.changed and all(a.dtype == b.dtype for a, b in pairs.both),
    )


def _layer(rows: Sequence[tuple[Tensor, Tensor, Sums]]) -> LayerChange:
    first_a, first_b, _ = rows[0]
    return LayerChange(
        name_a=first_a.name.layer or first_a.name.variable,
        name_b=first_b.name.layer or first_b.name.variable,
        variables=tuple(
            VariableChange(
                name_a=str(a.name),
                name_b=str(b.name),
                shape=a.shape,
                dtype_a=a.dtype,
                dtype_b=b.dtype,
                change=sums.result(),
            )
            for a, b, sums in rows
        ),
        change=weight_change.total([sums for _, _, sums in rows]).result(),
    )
