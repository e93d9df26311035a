"""Say layer by layer how two Keras configs differ, without Keras.

    config.json of a and b -> architecture(), compiled(), optimizer()

A layer is found again by the name that the user gave it; one that Keras numbered (`dense_7`, by its
turn in the process) by its turn among those of its class in the model. What says nothing about the
model is left out: those numbers, IDs of shared objects, the shapes it was built on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_ckpt.contrast import Contrast, contrasts

# Of a serialized object: where its class comes from, and what it was built on.
_ASIDE = frozenset({"name", "registered_name", "module", "build_config", "shared_object_id"})
# Of a model: what is looked at by itself, and what repeats it.
_APART = frozenset({"layers", "input_layers", "output_layers", "build_input_shape"})
_COMPILE = "compile_config"
_HISTORY = "keras_history"


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """One layer, or the model itself.

    Attributes:
        label: What a person calls it: its name, behind those of the models around it.
        facts: Its class and arguments.
        inputs: Keys of the layers it was called on, or of those that are a model's ends; `None`
            where nothing says so, as in a Sequential model.
        sources: The same with their names, in short.
        inside: Keys of its own layers in order, if order is what connects them.
        called: The name of each key.
    """

    label: str
    facts: Mapping[str, Any]
    inputs: Any
    sources: Any
    inside: Sequence[str]
    called: Mapping[str, str]


def architecture(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Contrast]:
    """Where two models are built otherwise: layers, their arguments, and how they are connected.

    A layer that only one has is told by its class.
    """
    left, right = _layers(a), _layers(b)
    found: list[Contrast] = []
    for key in dict.fromkeys([*left, *right]):
        one, other = left.get(key), right.get(key)
        if one and other:
            found += _of_layer(one, other)
        elif (only := one or other) is not None:
            name = only.facts["class"]
            found.append(
                Contrast(where=only.label, a=name if one else None, b=name if other else None)
            )
    return found


def compiled(a: Mapping[str, Any], b: Mapping[str, Any], *, but: Sequence[str]) -> list[Contrast]:
    """Where two models are compiled otherwise: loss, metrics, how steps are run.

    Args:
        but: Keys to leave out, such as those of the optimizers.
    """
    one, other = (
        {k: v for k, v in _mapping(_plain(each.get(_COMPILE))).items() if k not in but}
        for each in (a, b)
    )
    return contrasts(one, other, "compile")


def optimizer(config: Mapping[str, Any], attribute: str) -> Any:
    """The class and arguments of an optimizer; `None` if the config does not say.

    A learning rate that is a number is left out: its variable has the present one.
    """
    found = _plain(_mapping(config.get(_COMPILE)).get(attribute))
    if isinstance(found, str):  # `compile("adam")`, as some models serialize it.
        return {"class": found}
    return _without_rate(found) if isinstance(found, dict) else None


def _without_rate(found: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in found.items() if k != "learning_rate" or isinstance(v, (dict, list))}
    inner = kept.get("inner_optimizer")
    if isinstance(inner, dict):
        kept["inner_optimizer"] = _without_rate(inner)
    return kept


# --- the layers of a model ----------------------------------------------------


def _layers(config: Mapping[str, Any]) -> dict[str, _Layer]:
    """Every layer by its key, the model itself first, under the key ""."""
    return dict(_walk(config, "", "", {}))


def _walk(
    node: Mapping[str, Any], key: str, label: str, around: Mapping[str, str]
) -> Iterator[tuple[str, _Layer]]:
    """A node of the config and those in it; `around`: the keys beside it, by name."""
    config = _mapping(node.get("config"))
    rows = [row for row in _list(config.get("layers")) if isinstance(row, dict)]
    keys = _keys(rows)
    names = {_name(row): inner for row, inner in zip(rows, keys, strict=True)}
    facts = {k: v for k, v in config.items() if k not in _APART}
    calls = _list(node.get("inbound_nodes"))
    ends = [config.get("input_layers"), config.get("output_layers")]
    connected = "inbound_nodes" in node or any(ends)
    in_order = not any("inbound_nodes" in row for row in rows)
    yield (
        key,
        _Layer(
            label=label or "model",
            facts={"class": node.get("class_name"), **_mapping(_plain(facts, top=True))},
            inputs=[_called_on(calls, around), _of_keys(ends, names)] if connected else None,
            sources=_in_short([*_called_on(calls, {}), *(end for end in ends if end)]),
            inside=keys if in_order else (),
            called=dict(zip(keys, map(_name, rows), strict=True)),
        ),
    )
    for row, inner in zip(rows, keys, strict=True):
        below = f"{label}/{_name(row)}" if label else _name(row)
        yield from _walk(row, f"{key}/{inner}", below, names)


def _keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    turns: dict[str, int] = defaultdict(int)
    found: list[str] = []
    for row in rows:
        kind, name = _snake_case(str(row.get("class_name"))), _name(row)
        if re.sub(r"_\d+$", "", name) == kind:
            name = f"{kind}#{turns[kind]}"
            turns[kind] += 1
        found.append(name)
    return found


def _name(row: Mapping[str, Any]) -> str:
    return str(_mapping(row.get("config")).get("name") or row.get("name") or "")


def _snake_case(name: str) -> str:
    """As Keras makes the name of a layer from that of its class."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _called_on(value: Any, names: Mapping[str, str]) -> list[Any]:
    """The outputs of other layers, in order, that a call of a layer takes."""
    if isinstance(value, list):
        return [found for each in value for found in _called_on(each, names)]
    if not isinstance(value, dict):
        return []
    if _HISTORY in value:
        return [_of_keys(value[_HISTORY], names)]
    return [found for each in value.values() for found in _called_on(each, names)]


def _of_keys(value: Any, names: Mapping[str, str]) -> Any:
    """`[name, node, tensor]` with the layer's key in the place of its name, wherever it stands."""
    if isinstance(value, dict):
        return {k: _of_keys(v, names) for k, v in value.items()}
    if isinstance(value, list):
        if len(value) == 3 and isinstance(value[0], str):
            return [names.get(value[0], value[0]), *value[1:]]
        return [_of_keys(each, names) for each in value]
    return value


def _in_short(value: Any) -> Any:
    """`dense` for the first output of its first call, which is `["dense", 0, 0]`."""
    if isinstance(value, dict):
        return {k: _in_short(v) for k, v in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) == 3 and isinstance(value[0], str) and value[1:] == [0, 0]:
        return value[0]
    return [_in_short(each) for each in value]


# --- two layers ---------------------------------------------------------------


def _of_layer(a: _Layer, b: _Layer) -> Iterator[Contrast]:
    if a.facts.get("class") != b.facts.get("class"):
        yield Contrast(where=f"{a.label}.class", a=a.facts.get("class"), b=b.facts.get("class"))
        return
    yield from contrasts(a.facts, b.facts, a.label)
    if a.inputs != b.inputs and None not in (a.inputs, b.inputs):
        yield Contrast(where=f"{a.label}.inputs", a=a.sources, b=b.sources)
    one, other = ([key for key in x.inside if key in set(y.inside)] for x, y in ((a, b), (b, a)))
    if one != other:
        names = ([x.called[key] for key in order] for x, order in ((a, one), (b, other)))
        yield Contrast(where=f"{a.label}.layers", a=next(names), b=next(names))


def _plain(value: Any, *, top: bool = False) -> Any:
    """A serialized object as its class and arguments, a function as its name.

    Args:
        top: Whether `value` is the arguments of a layer, whose name says which one it is.
    """
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    inner = value.get("config")
    if "class_name" in value and "config" in value:
        name = value["class_name"]
        if not isinstance(inner, dict):
            return inner
        if str(name).endswith("DTypePolicy"):
            return inner.get("name")
        return {"class": name, **_mapping(_plain(inner, top=True))}
    return {k: _plain(v) for k, v in value.items() if not (k in _ASIDE and (top or k != "name"))}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
