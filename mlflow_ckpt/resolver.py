"""Find the checkpoint of a run that a selector names.

    selector -> resolve -> Checkpoint
    ckpt:/ URI ----^

Apart from `loader.py`, because finding a checkpoint needs no Keras, whose import costs
seconds: the command line lists and shows without it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from mlflow_ckpt import policy
from mlflow_ckpt.across import best_across
from mlflow_ckpt.address import Address, is_address
from mlflow_ckpt.errors import (
    CheckpointNotFound,
    MetricNotFound,
    NoCheckpoints,
    SelectorError,
    SeriesNotFound,
)
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.selector import Mode, Selector
from mlflow_ckpt.store import Store


def resolve(run_id: str, which: str | Selector | None = None) -> Checkpoint:
    """Find one committed checkpoint, with one search on the server.

    Args:
        run_id: The MLflow run. Or a whole URI, `ckpt:/<run_id>/<selector>` or
            `ckpt:/experiment/<name>/best(<metric>)`; then leave `which` out.
        which: `latest` (the default), `final`, `best`, `best(<metric>[,min|max])`, `step=<n>`
            or `epoch=<n>`, each optionally with `@<series>`.

    Raises:
        SelectorError: If `which` or the URI cannot be read, or `best` has no monitor or direction.
        RunNotFound, RunDeleted: If there is no such run.
        NotFound: If there is no such experiment.
        SeriesNotFound: If the series does not exist, or has to be named.
        NoCheckpoints, CheckpointNotFound, MetricNotFound: If nothing fits; what exists is named.
    """
    if is_address(run_id):
        return find_address(Store(), whole(run_id, which))
    store, selector = Store(), Selector.parse("latest" if which is None else which)
    run = store.run(run_id)
    return find(store, run, selector, choose_series(run, selector))


def whole(uri: str, which: object = None) -> Address:
    """Read a URI that names a whole checkpoint, and is all there is to say.

    Raises:
        SelectorError: If it cannot be read, names a file, or `which` says something too.
    """
    address = Address.parse(uri)
    if which is not None:
        raise SelectorError(
            f"Expected no selector beside a URI. Received: {uri!r} and {str(which)!r}. "
            f"Type {address} alone."
        )
    if address.path:
        raise SelectorError(
            f"Expected a whole checkpoint. Received: {uri!r}, which names {address.path!r} in one. "
            f"Type {address.whole}"
        )
    return address


def find_address(store: Store, address: Address) -> Checkpoint:
    """Answer a URI; its path is not looked at. See `resolve` for what is raised."""
    if address.run_id is None:
        return best_across(store, address.experiment or "", address.selector).checkpoint
    run = store.run(address.run_id)
    return find(store, run, address.selector, choose_series(run, address.selector))


def choose_series(run: Run, selector: Selector) -> Series:
    """The series a selector names, or the run's only one.

    Raises:
        NoCheckpoints: If the run has no series at all.
        SeriesNotFound: If the named one does not exist, or none is named and there are several.
    """
    known = run.series
    if not known:
        raise NoCheckpoints(
            f"Run {run.run_id} holds no checkpoints. Add MlflowCheckpoint() to the callbacks of "
            "fit, or save one by hand with mlflow_ckpt.save(model)."
        )
    names = ", ".join(sorted(known))
    if selector.series:
        if selector.series in known:
            return known[selector.series]
        raise _no_series(run, selector.series)
    if len(known) > 1:
        raise SeriesNotFound(
            f"Run {run.run_id} has several series: {names}. "
            f"Name one, such as '{selector}@{sorted(known)[0]}'."
        )
    return next(iter(known.values()))


def some_series(run: Run, name: str | None) -> list[Series]:
    """The series of this name, else all of the run, sorted by name.

    Raises:
        SeriesNotFound: If it has none of that name.
    """
    known = run.series
    if name is None:
        return [known[each] for each in sorted(known)]
    if name not in known:
        raise _no_series(run, name)
    return [known[name]]


def _no_series(run: Run, name: str) -> SeriesNotFound:
    known = sorted(run.series)
    near = difflib.get_close_matches(name, known, n=1)
    return SeriesNotFound(
        f"Run {run.run_id} has no series {name!r}. It has: {', '.join(known) or 'none'}."
        + (f" Did you mean {near[0]!r}?" if near else "")
    )


def find(store: Store, run: Run, selector: Selector, series: Series) -> Checkpoint:
    """Answer a selector within one series; see `resolve` for what is raised."""
    if selector.kind == "best":
        metric, mode = ranking(selector, series)
        found = store.best(run, series, metric, mode) if mode else None
        return found or _no_best(store, run, series, metric, mode)
    if selector.number is not None:
        at = store.at_step if selector.kind == "step" else store.at_epoch
        found = at(run, series, selector.number)
    else:
        found = store.final(run, series) if selector.kind == "final" else store.latest(run, series)
    return found or _nothing(store, run, series, selector)


def ranking(selector: Selector, series: Series) -> tuple[str, Mode | None]:
    metric = selector.metric or series.monitor
    if metric is None:
        raise SelectorError(
            f"The series {series.name!r} recorded no monitor, so 'best' has no metric. "
            "Name one, such as 'best(val_loss,min)'."
        )
    return metric, selector.mode or series.direction(metric) or policy.infer_mode(metric)


def _no_best(store: Store, run: Run, series: Series, metric: str, mode: Mode | None) -> Checkpoint:
    """Say which is missing, the metric or its direction."""
    history = _some(store, run, series)
    names = sorted({name for c in history for name in c.metrics})
    if mode is None and metric in names:
        raise SelectorError(
            f"It is not known whether {metric!r} should be small or large. "
            f"Say 'best({metric},min)' or 'best({metric},max)'."
        )
    near = difflib.get_close_matches(metric, names, n=1)
    raise MetricNotFound(
        f"No checkpoint of the series {series.name!r} of run {run.run_id} has a finite {metric!r}. "
        f"There are: {', '.join(names) or 'no metrics'}."
        + (f" Did you mean 'best({near[0]})'?" if near else "")
    )


def _nothing(store: Store, run: Run, series: Series, selector: Selector) -> Checkpoint:
    history = _some(store, run, series)
    attribute: Callable[[Checkpoint], int] = (
        (lambda c: c.epoch) if selector.kind == "epoch" else (lambda c: c.step)
    )
    if selector.number is None:
        raise CheckpointNotFound(
            f"The series {series.name!r} of run {run.run_id} has no {selector.kind!r} checkpoint. "
            f"It has: {', '.join(c.name for c in history[-5:])}."
        )
    numbers = sorted({attribute(c) for c in history if c.kind != "final"})
    near = sorted(sorted(numbers, key=lambda n: abs(n - (selector.number or 0)))[:3])
    raise CheckpointNotFound(
        f"The series {series.name!r} of run {run.run_id} has no checkpoint at {selector}. "
        f"The nearest: {', '.join(f'{selector.kind}={n}' for n in near)}."
    )


def _some(store: Store, run: Run, series: Series) -> list[Checkpoint]:
    history = store.checkpoints(run, series)
    if not history:
        raise NoCheckpoints(
            f"The series {series.name!r} of run {run.run_id} holds no committed checkpoint."
        )
    return history
