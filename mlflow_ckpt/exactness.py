"""Say in a run's tags where it was resumed from, how often, and whether exactly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlflow_ckpt import keras_internals
from mlflow_ckpt.exact_tag import Reason, exact_tag
from mlflow_ckpt.record import (
    RESUME_COUNT_TAG,
    RESUME_EXACT_TAG,
    RESUME_SKIPPED_TAG,
    RESUMED_FROM_TAG,
    Checkpoint,
    Skipped,
)
from mlflow_ckpt.restore import Restored


def reasons(
    restored: Restored, state: Mapping[str, Any], feed: keras_internals.Feed | None
) -> list[Reason]:
    """Why the resumed fit may not, or does not, go on exactly."""
    found: list[Reason] = [("false", f"changed: {line}") for line in restored.differences]
    found += [("false", f"not restored: {what}") for what in restored.left]
    if state.get("kind") == "batch" and not restored.inside:
        found.append(("false", "the epoch that was broken off was begun again"))
    found += [("unknown", line) for line in restored.other_versions]
    found += [("unknown", f"the callback {name} is missing") for name in restored.missing]
    found += [("unknown", f"not stored: {name}") for name in state.get("not_stored", ())]
    if feed is None or not state.get("data"):
        found.append(("unknown", "the position in the input was not stored"))
    else:
        now, then = feed.exactness(), state["data"]["exactness"]
        found += [(now.level, now.reason), (then[0], then[1])]
    if keras_internals.on_gpu():
        found.append(("unknown", "a GPU computes without enable_op_determinism"))
    return found


def resumed_tags(
    tags: Mapping[str, str],
    origin: Checkpoint,
    found: Iterable[Reason],
    skipped: Sequence[Skipped],
) -> dict[str, str]:
    """What a resumed fit writes into its run.

    Args:
        tags: Those that the run has.
        skipped: Newer checkpoints that were passed over.
    """
    passed = {RESUME_SKIPPED_TAG: "; ".join(str(each) for each in skipped)} if skipped else {}
    return {
        **passed,
        RESUMED_FROM_TAG: f"step={origin.step} model={origin.model_id or origin.name}",
        RESUME_COUNT_TAG: str(int(tags.get(RESUME_COUNT_TAG, "0")) + 1),
        RESUME_EXACT_TAG: exact_tag(found, tags.get(RESUME_EXACT_TAG)),
    }
