"""Choose the checkpoint that a `fit` continues from: whole, and open for reading.

`resume="auto"` takes the newest one that a `fit` wrote, here or on the server, and goes back
past those whose files are damaged. So does `latest`. Any other selector names one.
"""

from __future__ import annotations

from functools import partial

from mlflow_ckpt.errors import IntegrityError, ResumeError
from mlflow_ckpt.fetched import first_whole, twice
from mlflow_ckpt.ground import Ground
from mlflow_ckpt.record import Checkpoint, Series
from mlflow_ckpt.resume_option import Resume
from mlflow_ckpt.selector import Selector


def is_explicit(resume: Resume | None) -> bool:
    """Whether the user named a checkpoint."""
    return resume is not None and resume.which != "auto"


def choose(ground: Ground, series: Series, resume: Resume | None) -> Checkpoint | None:
    """The checkpoint to continue from, its files opened by `ground`; `None` if there is none.

    Raises:
        IntegrityError: If what an explicit selector names is damaged, or every checkpoint.
        ServerAway: If all that this machine holds is damaged, and the server is away.
        ResumeError: If no `fit` wrote what is named.
        SelectorError, NotFound: As `resolve`.
    """
    if resume is not None and is_explicit(resume):
        return _named(ground, series, resume.which)
    while (newest := ground.resume_point(series)) is not None:
        damage = damage_of(ground, newest)
        if damage is None:
            return newest
        ground.pass_over(newest, series, damage)
    if ground.skipped:
        ground.require_server("A checkpoint in place of the damaged ones on this machine")
        raise IntegrityError(
            f"Every checkpoint of the series {series.name!r} of run {ground.run.run_id} that a fit "
            f"can continue is damaged: {'; '.join(str(each) for each in ground.skipped)}. "
            "Start a new run."
        )
    _refuse_to_begin_anew(ground, series)
    return None


def _refuse_to_begin_anew(ground: Ground, series: Series) -> None:
    """Nothing to continue from is no reason to train epoch 1 again where there was something."""
    if ground.away is not None or series.name not in ground.run.series:
        return
    suspects = ground.store.upkeep.corrupt(ground.run, series)
    if any(checkpoint.kind in ("epoch", "batch") for checkpoint in suspects):
        names = ", ".join(checkpoint.name for checkpoint in suspects)
        run_id = ground.run.run_id
        raise IntegrityError(
            f"Expected a checkpoint of the series {series.name!r} of run {run_id} to continue "
            f"from. Received: only ones that are marked as corrupt: {names}. Put their files back "
            f"and type `mlflow-ckpt verify {run_id}`, which lifts the mark; or type "
            f"`mlflow-ckpt prune {run_id} --corrupt` to begin the series anew, or start a new run."
        )


def damage_of(ground: Ground, checkpoint: Checkpoint) -> IntegrityError | None:
    """What is wrong with its files, which `ground` opens."""
    return twice(partial(ground.open, checkpoint))[1]


def _named(ground: Ground, series: Series, which: str) -> Checkpoint:
    ground.deliver(f"resume={which!r}")
    selector = Selector.parse(which)
    if selector.series not in (None, series.name):
        raise ResumeError(
            f"Expected a checkpoint of the series {series.name!r}. Received: resume={which!r}"
        )

    def take(checkpoint: Checkpoint) -> None:
        if checkpoint.kind not in ("epoch", "batch"):
            raise ResumeError(
                "A fit can only continue from a checkpoint that a fit wrote. "
                f"Received: {which!r}, which is {checkpoint.name} (saved by hand, or an end "
                "state). Take its weights with load_weights(model, run_id, which) and start a "
                "new run."
            )
        ground.open(checkpoint)

    found, _ = first_whole(ground.store, ground.run, selector, take, series=series)
    ground.skipped += found.skipped
    return found
