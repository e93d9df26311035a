"""Name the tensors of a weights file as people know them, and as two files can be matched.

Keras stores variables under places: `layers/dense_1/vars/0`. The manifest has the paths of
`model.weights`, in order: `sequential/dense_7/kernel`. The file notes each layer's name beside
its place, so the two can be brought together where their shapes agree; what finds no counterpart,
such as what a layer stores in its own way, keeps its number.

    place  layers/dense_1 vars 0          where it lies, the same in every process
    name   dense_7/kernel                 what a person calls it
    key    layers/dense#1 kernel          to match by: a name of the user's counts, one that Keras
                                          numbered (`dense_7`) counts by its turn in the model
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

# What Keras calls a variable that was given no name, by its turn in the process.
_NAMELESS = re.compile(r"variable(_\d+)?")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies: the object that owns it, and its key there."""

    owner: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Name:
    """What a tensor is called.

    Attributes:
        layer: The layer, such as `encoder/dense_7`.
        variable: The variable in it, such as `kernel`; a number where its name is not known.
        key: To match it with one of another file.
        order: Where it stands in the model.
    """

    layer: str
    variable: str
    key: tuple[str, str]
    order: int

    def __str__(self) -> str:
        return "/".join(part for part in (self.layer, self.variable) if part)


def place_of(path: str, names: Mapping[str, str]) -> Place:
    """Take the path of a dataset apart.

    Args:
        names: Of the objects of the file, by their place; the model itself is at "".
    """
    parts = path.strip("/").split("/")
    cuts = [index for index, part in enumerate(parts) if part == "vars"]
    named = [index for index in cuts if "/".join(parts[:index]) in names]
    if not cuts:
        return Place(owner="/".join(parts[:-1]), key=parts[-1])
    cut = (named or cuts)[-1]
    return Place(owner="/".join(parts[:cut]), key="/".join(parts[cut + 1 :]))


def name_all(
    tensors: Mapping[str, tuple[Shape, str]],
    names: Mapping[str, str],
    variables: Sequence[Sequence[Any]],
) -> tuple[dict[str, Name], dict[int, Name]]:
    """Name the tensors of a model.

    Args:
        tensors: Shape and dtype by path in the file.
        names: Of its objects, by their place.
        variables: Path, shape and dtype of each of `model.weights`, as the manifest has them.

    Returns:
        The names by path; and by their position in `variables` those of variables, also of
        what a layer does not store as it is, such as LoRA's factors.
    """
    owners: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in tensors:
        place = place_of(path, names)
        owners[place.owner].append((place.key, path))
    keys = _Keys(names, owners)
    groups, root = _Groups(variables), names.get("", "")
    found: dict[str, Name] = {}
    positions: dict[int, Name] = {}
    for owner in sorted(owners, key=keys.sort_key):
        rows = sorted(owners[owner], key=lambda row: (_natural(row[0]), row[1]))
        chain = keys.chain(owner)
        prefix, matched = groups.take(chain, [tensors[path] for _, path in rows])
        layer = (prefix if prefix is not None else "/".join(chain)).removeprefix(f"{root}/")
        if layer == root:
            layer = ""
        for (stored, path), position in zip(rows, matched, strict=True):
            variable = stored if position is None else variables[position][0].rpartition("/")[2]
            key = (keys.of(owner), stored if _NAMELESS.fullmatch(variable) else variable)
            order = len(variables) + len(found) if position is None else position
            found[path] = Name(layer=layer, variable=variable, key=key, order=order)
            if position is not None:
                positions[position] = found[path]
        for position in groups.of(prefix):
            variable = variables[position][0].rpartition("/")[2]
            key = (keys.of(owner), variable)
            name = Name(layer=layer, variable=variable, key=key, order=position)
            positions.setdefault(position, name)
    return found, positions


class _Keys:
    """Places of one file, as keys that another file can have too."""

    def __init__(self, names: Mapping[str, str], owners: Iterable[str]) -> None:
        self._names = names
        self._turns: dict[str, str] = {}
        inside: dict[str, set[str]] = defaultdict(set)
        for owner in {*owners, *names}:
            parts = owner.split("/") if owner else []
            for depth in range(len(parts)):
                inside["/".join(parts[:depth])].add(parts[depth])
        for parent, children in inside.items():
            self._count(parent, children)

    def _count(self, parent: str, children: Iterable[str]) -> None:
        """Turns for what Keras numbered; an attribute, and a name of the user's, stands."""
        turns: dict[str, int] = defaultdict(int)
        for child in sorted(children, key=_natural):
            path = f"{parent}/{child}" if parent else child
            kind = _kind(child)
            name = self._names.get(path)
            if not parent or parent in self._names:
                self._turns[path] = child
            elif name is None or _kind(name) == kind:
                self._turns[path] = f"{kind}#{turns[kind]}"
                turns[kind] += 1
            else:
                self._turns[path] = name

    def of(self, owner: str) -> str:
        parts = owner.split("/") if owner else []
        return "/".join(self._turns["/".join(parts[: n + 1])] for n in range(len(parts)))

    def chain(self, owner: str) -> list[str]:
        """The names of the objects around a place, and its own; a place where one has none."""
        parts = owner.split("/") if owner else []
        places = ["/".join(parts[:n]) for n in range(len(parts) + 1)]
        found = [self._names[place] for place in places if place in self._names]
        return found if owner in self._names else [*found, *parts[-1:]]

    @staticmethod
    def sort_key(owner: str) -> list[tuple[str, int, str]]:
        return [_natural(part) for part in owner.split("/")]


class _Groups:
    """The variables of a manifest by what they belong to; each is given out once."""

    def __init__(self, variables: Sequence[Sequence[Any]]) -> None:
        self._by_prefix: dict[str, list[int]] = defaultdict(list)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._variables = variables
        for position, (path, _, _) in enumerate(variables):
            prefix = path.rpartition("/")[0]
            if prefix not in self._by_prefix:
                self._by_name[prefix.rpartition("/")[2]].append(prefix)
            self._by_prefix[prefix].append(position)

    def of(self, prefix: str | None) -> Sequence[int]:
        return [] if prefix is None else self._by_prefix[prefix]

    def take(
        self, chain: Sequence[str], tensors: Sequence[tuple[Shape, str]]
    ) -> tuple[str | None, list[int | None]]:
        """The prefix that fits best, and the position of each tensor's variable, if it is clear."""
        candidates = self._by_name.get(chain[-1], []) if chain else []
        if not candidates:
            return None, [None] * len(tensors)
        best = max(candidates[:64], key=lambda prefix: self._likeness(prefix, chain, tensors))
        positions = self._by_prefix[best]
        shapes = [tuple(self._variables[position][1]) for position in positions]
        if shapes == [shape for shape, _ in tensors]:
            candidates.remove(best)
            return best, list(positions)
        return best, [self._only(positions, tensor, tensors) for tensor in tensors]

    def _likeness(
        self, prefix: str, chain: Sequence[str], tensors: Sequence[tuple[Shape, str]]
    ) -> tuple[int, bool]:
        shared = 0
        for part, name in zip(reversed(prefix.split("/")), reversed(chain), strict=False):
            if part != name:
                break
            shared += 1
        return shared, len(self._by_prefix[prefix]) == len(tensors)

    def _only(
        self,
        positions: Sequence[int],
        tensor: tuple[Shape, str],
        tensors: Sequence[tuple[Shape, str]],
    ) -> int | None:
        """The one variable of this shape and dtype, where there is one tensor of them too."""
        fitting = [
            n for n in positions if (tuple(self._variables[n][1]), self._variables[n][2]) == tensor
        ]
        return fitting[0] if len(fitting) == 1 and list(tensors).count(tensor) == 1 else None


def slots(variables: Sequence[Sequence[Any]], trained: Sequence[tuple[str, Name]]) -> list[Name]:
    """Name the variables of an optimizer.

    Args:
        variables: As the manifest has them: `adam/sequential_dense_kernel_momentum`.
        trained: Path and name of each variable that it was built on.

    Returns:
        For each a name whose layer is what it is (`momentum`, `iteration`), and whose variable is
        the one that it belongs to, if there is one.
    """
    known = {path.replace("/", "_"): name for path, name in trained}
    found = []
    for order, (path, _, _) in enumerate(variables):
        kind, of = _slot(path.rpartition("/")[2], known)
        key = (kind, "/".join(of.key) if of else "")
        found.append(Name(layer=kind, variable=str(of) if of else "", key=key, order=order))
    return found


def _slot(name: str, known: Mapping[str, Name]) -> tuple[str, Name | None]:
    cut = name.rfind("_")
    while cut > 0:
        if name[:cut] in known:
            return name[cut + 1 :], known[name[:cut]]
        cut = name.rfind("_", 0, cut)
    return name, None


def _kind(name: str) -> str:
    """A name without the number that Keras gave it."""
    return re.sub(r"_\d+$", "", name)


def _natural(text: str) -> tuple[str, int, str]:
    """Sorts `dense_10` behind `dense_9`, and `10` behind `9`."""
    if text.isdecimal():
        return "", int(text), text
    kind, _, number = text.rpartition("_")
    if kind and number.isdecimal():
        return kind, int(number), text
    return text, 0, text
