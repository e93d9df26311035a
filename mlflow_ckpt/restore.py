"""Put a checkpoint's state into a running fit: fetch, verify, compare, and only then assign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import keras

from mlflow_ckpt import fingerprint, guard, keras_internals, rehydrate
from mlflow_ckpt.errors import ModelMismatch
from mlflow_ckpt.fetched import Fetched
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.ground import Ground
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.resume import Plan


@dataclass
class Restored:
    """What came of a restore.

    Attributes:
        inside: Batches of the first epoch that are trained already.
        whole: Whether the whole model file was loaded.
        left: What was in the checkpoint and found no place, in words.
        missing: Callbacks that had a state and are not there.
        differences: What is not as it was, and was allowed to be.
        other_versions: Packages that wrote the checkpoint in another version.
    """

    inside: int = 0
    whole: bool = True
    left: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    other_versions: list[str] = field(default_factory=list)


def restore(
    ground: Ground,
    model: keras.Model,
    fit_state: FitState,
    begun: Plan,
    allow: Sequence[str],
) -> Restored:
    """Put the planned checkpoint into the model, its input and the callbacks.

    A fit that begins anew at the end of the one before takes the model and no callback.

    Raises:
        DigestMismatch: If a file is not the committed one. Nothing was assigned.
        ModelMismatch: If the model does not fit. Nothing was assigned.
        ResumeMismatch: If something else of the fit is not as it was. Nothing was assigned.
    """
    assert begun.restore is not None
    state = begun.state
    fetched = ground.open(begun.restore)
    if not keras_internals.has_variables(model) and state.get("build_config"):
        rehydrate.build_from_recorded(
            model, state["build_config"], fetched.files, source=fetched.source
        )
    found = [] if begun.restart else fit_state.differences(state)
    result = Restored(
        differences=[str(difference) for difference in found],
        other_versions=_other_versions(fetched.manifest.versions, ground.store.versions()),
    )
    _load(model, fetched, allow, found, result)
    same_input = not begun.restart and fit_state.same_input(state, found)
    if same_input:
        result.inside = int(state["batch"])
    result.left += fit_state.restore(
        state,
        callbacks=not begun.restart,
        # A later fit, whose turn comes, finds the place in the input itself.
        place=same_input and not begun.behind,
        batch=result.inside,
    )
    result.missing = fit_state.missing_callbacks
    return result


def load_model_again(ground: Ground, model: keras.Model, begun: Plan) -> None:
    """Load the planned checkpoint's variables once more, after something has touched them."""
    assert begun.restore is not None
    fetched = ground.open(begun.restore)
    rehydrate.load_training_state(model, fetched.files, source=fetched.source)


def _load(
    model: keras.Model,
    fetched: Fetched,
    allow: Sequence[str],
    found: Sequence[guard.Difference],
    result: Restored,
) -> None:
    """Compare first, then load as much as fits and is allowed not to."""
    recorded, source = fetched.manifest.model, fetched.source
    try:
        fingerprint.check_architecture(model, recorded, source=source, strict_dtype=True)
    except ModelMismatch as error:
        if "architecture" not in allow:
            raise _with_advice(error, "architecture") from error
        guard.refuse(found, allow, source=source)
        result.whole = False
        result.differences.append("architecture")
        result.left += rehydrate.load_what_fits(model, fetched.files, source=source)
        return
    guard.refuse(found, allow, source=source)
    try:
        fingerprint.build_optimizers(model, recorded, source=source)
    except ModelMismatch as error:
        if "optimizer" not in allow:
            raise _with_advice(error, "optimizer") from error
        result.whole = False
        result.left.append("the state of the optimizer, which starts anew")
        rehydrate.load_weights(model, fetched.files, source=source)
        return
    rehydrate.load_training_state(model, fetched.files, source=source)


def _with_advice(error: ModelMismatch, part: str) -> ModelMismatch:
    return ModelMismatch(
        f"{error} To continue all the same, pass resume=Resume(which='latest', allow=({part!r},))."
    )


def _other_versions(written: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """Packages that compute, in another version than the checkpoint's."""
    return [
        f"{name} {written[name]} then, {present[name]} now"
        for name in ("keras", "tensorflow", "numpy")
        if name in written and name in present and written[name] != present[name]
    ]


def restore_end(ground: Ground, model: keras.Model, end: Checkpoint) -> None:
    """Put the state in which a completed fit left its model back into it.

    Raises:
        DigestMismatch, ModelMismatch: As `restore`.
    """
    fetched = ground.open(end)
    fingerprint.check_architecture(
        model, fetched.manifest.model, source=fetched.source, strict_dtype=True
    )
    rehydrate.load_training_state(model, fetched.files, source=fetched.source)
