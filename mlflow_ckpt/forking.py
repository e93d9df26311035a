"""Fork a run: a new one that begins at a checkpoint of another, which stays as it is.

    parent -> new run: params, tags, curves up to there -> copy of the checkpoint -> committed

The run is marked as unfinished from its first moment on, and the mark is taken away last, so that
a fork which was broken off is refused wherever it is named. From then on nothing knows that the
run is a fork: `latest`, `load_model` and the next `fit` find a run with a checkpoint, whatever
becomes of the parent.

A run may hold several series, such as two phases of one training. The new run also gets the
newest resume point that each other series had by then: without it, the same script would
train a completed phase once more.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlflow_ckpt.errors import (
    CheckpointError,
    CheckpointNotFound,
    IntegrityError,
    ResumeError,
    StoreError,
)
from mlflow_ckpt.fetched import bring, first_whole
from mlflow_ckpt.next_steps import next_commands
from mlflow_ckpt.record import (
    FORK_STATE_TAG,
    FORKED,
    FORKED_FROM_TAG,
    FORKED_MODEL_TAG,
    FORKED_STEP_TAG,
    FORKING,
    Checkpoint,
    MetricRow,
    Run,
    Series,
)
from mlflow_ckpt.resolver import choose_series
from mlflow_ckpt.say import say
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Commit, Logged, Store

_KINDS = ("epoch", "batch")
_NOTE_TAG = "mlflow.note.content"
_OURS = ("mlflow.", "ckpt.")
_KEPT = ("mlflow.source.", "mlflow.project")
_COSTS = "ckpt/"


def fork(
    run_id: str,
    which: str | Selector = "latest",
    *,
    params: Mapping[str, object] | None = None,
    name: str | None = None,
) -> str:
    """Make a new run that starts at a checkpoint of another one, and leave that one as it is.

    The new run has the parent's params, tags and curves up to there and a copy of the
    checkpoint. A `fit` under its ID continues exactly, epoch and step counted on.

    Args:
        run_id: The parent. The new run is made in its experiment.
        which: A checkpoint that a fit wrote; see `resolve`.
        params: Override the parent's params, and tags of the same name. They tell a script
            what to ask for: what the checkpoint holds, such as the current learning rate,
            is restored all the same.
        name: Name of the new run; `None` means `<parent's name>-fork-<step>`.

    Returns:
        ID of the new run. Its status is SCHEDULED until it is started.

    Raises:
        ResumeError: If no fit wrote the checkpoint.
        DigestMismatch: If one of its files is not the committed one.
        SaveFailed, StoreError: If something could not be written.
        SelectorError, NotFound: As `resolve`.

    Whatever is raised after the new run was made leaves it FAILED, with no checkpoint.
    """
    store, selector = Store(), Selector.parse(which)
    parent = store.run(run_id)
    series = choose_series(parent, selector)
    with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:

        def take(checkpoint: Checkpoint) -> Path:
            _check_resumable(checkpoint, selector)
            directory = Path(tempfile.mkdtemp(dir=folder))
            bring(store, checkpoint, directory)
            return directory

        source, files = first_whole(store, parent, selector, take)
        overrides = {key: str(value) for key, value in (params or {}).items()}
        tags = _tags(parent, source, overrides)
        wanted = {**parent.params, **overrides}
        plan = _Plan(parent, series, source, files, store.logged(source), wanted)
        run = store.new_run(parent, name or f"{parent.name}-fork-{source.step}", tags)
        _make(store, run, plan)
    return run.run_id


def continue_command(run_id: str) -> str:
    """What to type to continue a run: as a project, or as a script, as it was started."""
    store = Store()
    _, command, *_ = next_commands(store.uri, store.run(run_id), ())
    return command


@dataclass(frozen=True)
class _Plan:
    """What the new run is to get of which parent."""

    parent: Run
    series: Series
    source: Checkpoint
    files: Path
    logged: Logged
    params: Mapping[str, str]


def _check_resumable(source: Checkpoint, selector: Selector) -> None:
    if source.kind not in _KINDS:
        raise ResumeError(
            "Expected a checkpoint that a fit wrote: only such a one can be continued. Received: "
            f"which={str(selector)!r}, which is {source.name} ({source.kind}). Name another one "
            f"(`mlflow-ckpt list {source.run_id}` shows them), or take its weights into a new "
            "training with warm_start(model, run_id, which)."
        )


def _make(store: Store, run: Run, plan: _Plan) -> None:
    """Fill the new run, or leave it FAILED."""
    made: list[Checkpoint] = []
    try:
        if _hold(store, plan.source, run):
            store.log_input(run, plan.source)
        store.log_params(run, plan.params)
        store.log_rows(run, _curves(store, plan))
        for series in plan.parent.series.values():
            if series.name != plan.series.name:
                made += _copy_companion(store, plan, series, run)
        store.set_series(run, plan.series)
        made.append(_copy(store, plan.source, plan.files, plan.logged, run))
        store.set_status(run, "SCHEDULED")
        store.set_tag(run, FORK_STATE_TAG, FORKED)
    except BaseException as error:
        try:
            store.delete(made)
            store.set_status(run, "FAILED")
            store.upkeep.release_fork(plan.source.model_id, run.run_id)
        except CheckpointError as failure:
            error.add_note(f"The new run {run.run_id} could not be marked FAILED: {failure}")
        raise


def _hold(store: Store, source: Checkpoint, run: Run) -> bool:
    """Let no keep policy delete the checkpoint at which the fork begins; whether it is there.

    Its files are here already, so that the fork does without it.
    """
    try:
        store.upkeep.hold_for_fork(source, run.run_id)
    except CheckpointNotFound as error:
        say(f"run {run.run_id} begins at a checkpoint that the parent has no more: {error}")
        return False
    except ConnectionError:
        raise
    except StoreError as error:
        say(f"{source.name} may be pruned although run {run.run_id} begins at it: {error}")
    return True


# --- what is copied -----------------------------------------------------------


def _tags(parent: Run, source: Checkpoint, overrides: Mapping[str, str]) -> dict[str, str]:
    """The user's tags and where the code came from, and what the run was forked from."""
    kept = {
        key: value
        for key, value in parent.tags.items()
        if key.startswith(_KEPT) or not key.startswith(_OURS)
    }
    # A tag that repeats a setting (params cannot change, tags can) must not contradict it.
    repeated = {key: value for key, value in overrides.items() if key in kept}
    changed = ", ".join(f"`{key}={value}`" for key, value in overrides.items())
    ending = f" Changed: {changed}." if changed else ""
    # Markdown; without the link's last part the UI may open its GenAI view.
    page = f"#/experiments/{parent.experiment_id}/runs/{parent.run_id}"
    note = (
        f"Forked from run [{parent.run_id}]({page}?workflowType=machine_learning) "
        f"({parent.name}) at {source.name}: epoch {source.epoch}, step {source.step}.{ending}"
    )
    return {
        **kept,
        **repeated,
        FORK_STATE_TAG: FORKING,
        FORKED_FROM_TAG: parent.run_id,
        FORKED_STEP_TAG: str(source.step),
        FORKED_MODEL_TAG: source.model_id,
        _NOTE_TAG: note,
    }


def _curves(store: Store, plan: _Plan) -> list[MetricRow]:
    """The parent's curves as they were when the checkpoint was taken."""
    known = plan.parent.series.values()
    keys = [key for key in sorted(plan.parent.metric_names) if not _is_cost(key, known)]
    rows = (row for key in keys for row in store.history(plan.parent, key))
    return [*_before(rows, plan)]


def _is_cost(key: str, known: Iterable[Series]) -> bool:
    """Whether it says what the parent's own checkpoints cost."""
    prefix = max((s.prefix for s in known if key.startswith(s.prefix)), key=len, default="")
    return key.removeprefix(prefix).startswith(_COSTS)


def _before(rows: Iterable[MetricRow], plan: _Plan) -> Iterator[MetricRow]:
    """Leave out what came after the checkpoint.

    A metric of the epoch tells by its step: an epoch may have been trained twice, and the
    clocks of a client and a server differ. Of anything else only the time is known.
    """
    ends = {row.key: row.step for row in plan.logged.rows}
    names = {"loss", *plan.series.directions, *filter(None, [plan.series.monitor])}
    for name in names | {f"val_{name}" for name in names}:
        ends.setdefault(plan.series.prefix + name, plan.source.epoch)
    for row in rows:
        end = ends.get(row.key)
        if row.timestamp <= plan.source.created_at if end is None else row.step <= end:
            yield row


def _copy_companion(store: Store, plan: _Plan, series: Series, run: Run) -> list[Checkpoint]:
    """Copy where another series of the parent stood when the checkpoint was taken, if anywhere."""
    while (companion := _companion(store, plan, series)) is not None:
        with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
            try:
                bring(store, companion, Path(folder))
            except IntegrityError:
                if store.reread(companion, series) is not None:
                    raise
                continue  # A keep policy was faster.
            store.set_series(run, series)
            return [_copy(store, companion, Path(folder), store.logged(companion), run)]
    return []


def _companion(store: Store, plan: _Plan, series: Series) -> Checkpoint | None:
    earlier = [
        checkpoint
        for checkpoint in store.checkpoints(plan.parent, series)
        if checkpoint.kind in _KINDS and checkpoint.created_at <= plan.source.created_at
    ]
    return max(earlier, key=lambda c: (c.step, c.created_at), default=None)


# --- the copy of a checkpoint -------------------------------------------------


@dataclass
class _Once:
    """Progress of a commit that no other process goes on with."""

    progress: dict[str, Any] = field(default_factory=dict)

    def note(self, progress: Mapping[str, Any]) -> None:
        self.progress = dict(progress)


def _copy(store: Store, source: Checkpoint, files: Path, logged: Logged, run: Run) -> Checkpoint:
    """Commit a checkpoint in another run, its files byte for byte.

    Args:
        files: Where a copy of them lies, which was held against the manifest.
    """
    request = Commit(
        entry=uuid.uuid4().hex,
        position=source.position,
        directory=files,
        digest=source.digest,
        metrics=logged.rows,
        values=dict(source.metrics),
        weights_only=source.weights_only,
        capture=logged.capture,
    )
    return store.commit(run, request, _Once(), give_up=True)
