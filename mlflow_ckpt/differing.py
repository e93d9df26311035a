"""Say how one checkpoint differs from another, without loading either of them.

    a, b -> resolve -> fetch, verify -> config, tensors in blocks -> Comparison

Nothing is imported that could train: neither Keras nor TensorFlow. Both weights files are read
together, block by block (`stored_tensors.py`), so that the memory it takes does not grow with the
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from mlflow_ckpt import config_change, policy, progress, state_facts
from mlflow_ckpt.address import Address, is_address
from mlflow_ckpt.comparison import (
    Alone,
    Better,
    Comparison,
    MetricChange,
    OptimizerChange,
    Side,
    Unlike,
)
from mlflow_ckpt.contrast import Contrast, contrasts, uneven
from mlflow_ckpt.errors import SelectorError
from mlflow_ckpt.fetched import Fetched, fetched, twice
from mlflow_ckpt.members import STATE
from mlflow_ckpt.optimizer_change import OptimizersOf, optimizer_change
from mlflow_ckpt.record import Checkpoint, Run
from mlflow_ckpt.resolver import find_address, whole
from mlflow_ckpt.selector import Mode, Selector
from mlflow_ckpt.state_facts import StateFacts
from mlflow_ckpt.store import Store
from mlflow_ckpt.stored_tensors import FILES, StoredWeights, Tensor
from mlflow_ckpt.weight_change import WeightChange
from mlflow_ckpt.weight_pairs import measured, paired

_WANTED = (*FILES, STATE)

# What is asked for: text as `diff` takes it, or what `resolve` has found.
Reference = str | Address | Checkpoint


def diff(a: Reference, b: Reference) -> Comparison:
    """Compare two checkpoints: architecture, optimizer, metrics, and every layer's weights.

    Args:
        a: `<run_id>/<selector>`, or a run ID for its latest; a `ckpt:/` URI; or a `Checkpoint`
            that `resolve` returned.
        b: The same, or a selector alone: of the run of `a`.

    Returns:
        What differs. A checkpoint beside itself is `equal`.

    Raises:
        SelectorError, NotFound: As `resolve`.
        IntegrityError: If a file is not the committed one.
        ModelNotLoadable: If a file is not what Keras writes.
    """
    store = Store()
    with ExitStack() as undo:
        first = undo.enter_context(_opened(store, a, None))
        second = undo.enter_context(_opened(store, b, first.checkpoint))
        progress.turn_to("comparing")
        weights = [
            undo.enter_context(StoredWeights(each.files, each.manifest.model))
            for each in (first, second)
        ]
        return _Diff(store, (first, second), (weights[0], weights[1])).result()


def _opened(store: Store, reference: Reference, beside: Checkpoint | None) -> Fetched:
    if isinstance(reference, Checkpoint):
        return _taken(store, reference)
    address = _address(reference, beside)
    if address.run_id is None:
        return _taken(store, find_address(store, address))
    return fetched(address.run_id, address.selector, _WANTED, in_place=True)


def _taken(store: Store, checkpoint: Checkpoint) -> Fetched:
    found, damage = twice(partial(Fetched, store, checkpoint, _WANTED, in_place=True))
    if found is None:
        assert damage is not None, "there is one or the other"
        raise damage
    return found


def _address(text: str | Address, beside: Checkpoint | None) -> Address:
    """Read a reference; a selector alone is one of the run of `beside`."""
    if isinstance(text, Address) or is_address(text):
        return whole(str(text))
    run_id, slash, which = text.strip().partition("/")
    alone = _selector_alone(text)
    if alone is None:
        return Address(run_id=run_id, selector=Selector.parse(which if slash else "latest"))
    if beside is None:
        raise SelectorError(
            "Expected a checkpoint with its run: RUN_ID, RUN_ID/SELECTOR or ckpt:/<run_id>/"
            f"<selector>. Received: {text!r}. Type <run_id>/{alone} first; the second one may be "
            "a selector alone."
        )
    return Address(run_id=beside.run_id, selector=alone)


def _selector_alone(text: str) -> Selector | None:
    try:
        return Selector.parse(text)
    except SelectorError:
        return None


class _Diff:
    """Two open checkpoints."""

    def __init__(
        self,
        store: Store,
        files: tuple[Fetched, Fetched],
        weights: tuple[StoredWeights, StoredWeights],
    ) -> None:
        self._files = files
        self._weights = weights
        runs = [store.run(each.checkpoint.run_id) for each in files]
        self._runs = runs[0], runs[1]

    def result(self) -> Comparison:
        a, b = self._weights
        pairs = paired(a.tensors, b.tensors)
        found = measured(pairs, a.file, b.file)
        optimizers = self._optimizers()
        architecture, compiled = self._architecture(), self._compiled(optimizers)
        built_alike = not (architecture or compiled) and pairs.is_complete
        seeds, given = self._state()
        return Comparison(
            a=self._side(0),
            b=self._side(1),
            equal=built_alike and found.identical and all(each.same for each in optimizers),
            architecture=architecture,
            compiled=compiled,
            optimizers=optimizers,
            params=self._params(),
            versions=tuple(uneven(*(each.manifest.versions for each in self._files))),
            input=given,
            metrics=self._metrics(),
            layers=found.layers,
            total=found.total,
            seeds=seeds,
            only_a=tuple(_alone(tensor) for tensor in pairs.only_a),
            only_b=tuple(_alone(tensor) for tensor in pairs.only_b),
            unlike=tuple(
                Unlike(name=str(x.name), shape_a=x.shape, shape_b=y.shape) for x, y in pairs.unlike
            ),
        )

    def _side(self, index: int) -> Side:
        weights = self._weights[index]
        return Side(
            checkpoint=self._files[index].checkpoint,
            run_name=self._runs[index].name,
            model_class=str(self._files[index].manifest.model.get("class", "")),
            elements=sum(tensor.size for tensor in weights.tensors),
            has_config=weights.config is not None,
        )

    # --- how they are built ---------------------------------------------------

    def _architecture(self) -> tuple[Contrast, ...]:
        a, b = self._weights
        if a.config is None or b.config is None:
            one, other = (self._side(index).model_class for index in (0, 1))
            return tuple(contrasts(one, other, "model.class"))
        found = config_change.architecture(a.config, b.config)
        return (*found, *_assets(a, b))

    def _compiled(self, optimizers: Sequence[OptimizerChange]) -> tuple[Contrast, ...]:
        a, b = self._weights
        if a.config is None or b.config is None:
            return ()
        return tuple(
            config_change.compiled(a.config, b.config, but=[o.attribute for o in optimizers])
        )

    def _optimizers(self) -> tuple[OptimizerChange, ...]:
        a, b = (
            OptimizersOf(weights, each.manifest.model)
            for weights, each in zip(self._weights, self._files, strict=True)
        )
        return tuple(optimizer_change(a, b, name) for name in sorted({*a.names, *b.names}))

    # --- what lies beside the model -------------------------------------------

    def _state(self) -> tuple[WeightChange | None, tuple[Contrast, ...]]:
        """What changed of the seeds, and the input of the two fits."""
        files = [each.files.get(STATE) for each in self._files]
        if files[0] is None or files[1] is None:
            return None, ()
        a, b = state_facts.read(files[0]), state_facts.read(files[1])
        pairs = paired(a.tensors, b.tensors)
        seeds = measured(pairs, files[0], files[1]).total if pairs.both else None
        return seeds, tuple(_inputs(a, b))

    def _params(self) -> tuple[Contrast, ...]:
        a, b = self._runs
        return () if a.run_id == b.run_id else tuple(uneven(a.params, b.params))

    def _metrics(self) -> tuple[MetricChange, ...]:
        a, b = (_metrics(each) for each in self._files)
        names = dict.fromkeys([*a, *b])
        return tuple(_metric(name, a.get(name), b.get(name), self._mode(name)) for name in names)

    def _mode(self, name: str) -> Mode | None:
        """Which direction is better, where the two series do not contradict each other."""
        sides = zip(self._runs, self._files, strict=True)
        found = {_direction(run, each.checkpoint.series, name) for run, each in sides} - {None}
        return found.pop() if len(found) == 1 else None if found else policy.infer_mode(name)


def _assets(a: StoredWeights, b: StoredWeights) -> list[Contrast]:
    """Vocabularies and the like; a weights file alone has none to compare."""
    if not (a.is_whole and b.is_whole):
        return []
    found = []
    for name in sorted({*a.assets, *b.assets}):
        one, other = (side.asset(name) if name in side.assets else None for side in (a, b))
        if one != other:
            sizes = (None if x is None else f"{len(x)} bytes" for x in (one, other))
            found.append(Contrast(where=name, a=next(sizes), b=next(sizes)))
    return found


def _alone(tensor: Tensor) -> Alone:
    return Alone(name=str(tensor.name), shape=tensor.shape, dtype=tensor.dtype)


def _inputs(a: StateFacts, b: StateFacts) -> list[Contrast]:
    return contrasts(a.input, b.input, "input") if a.input and b.input else []


def _metrics(found: Fetched) -> dict[str, float | str]:
    """Of one checkpoint; the manifest also has those that are no finite numbers."""
    return {**found.manifest.checkpoint.get("metrics", {}), **found.checkpoint.metrics}


def _direction(run: Run, series: str, metric: str) -> Mode | None:
    known = run.series.get(series)
    return known.direction(metric) if known else None


def _metric(
    name: str, a: float | str | None, b: float | str | None, mode: Mode | None
) -> MetricChange:
    change, better = None, None
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        change = b - a
        better = _better(change, mode)
    return MetricChange(name=name, a=a, b=b, change=change, mode=mode, better=better)


def _better(change: float, mode: Mode | None) -> Better | None:
    if mode is None or not change:
        return None
    return "b" if (change < 0) == (mode == "min") else "a"
