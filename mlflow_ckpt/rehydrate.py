"""Bring a model back from the open, verified files of a checkpoint.

Tensors come out of a memory map (`mapped.py`), through Keras's own loading of each layer.
Where Keras has moved what that leans on, its public loader reads a copy of the file instead;
`mlflow_ckpt`'s log says why, at DEBUG. Either way a file is looked through first: its
structure, what its config would run (`safe_config.py`), and how much it asks for (`allowance.py`).
"""

from __future__ import annotations

import io
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import keras

from mlflow_ckpt import allowance, fingerprint, keras_internals
from mlflow_ckpt.allowance import bounded
from mlflow_ckpt.errors import ArchitectureMissing, ModelMismatch, ModelNotLoadable
from mlflow_ckpt.formats import CONFIG, MODEL, WEIGHTS
from mlflow_ckpt.mapped import MappedWeights
from mlflow_ckpt.safe_config import refuse_code
from mlflow_ckpt.say import first_line

_logger = logging.getLogger("mlflow_ckpt")

Files = Mapping[str, BinaryIO]

_CONFIG_MEMBER, _METADATA_MEMBER, _ASSETS = "config.json", "metadata.json", "assets/"


def read_model(
    files: Files,
    *,
    custom_objects: Mapping[str, Any] | None,
    compile: bool,
    safe_mode: bool,
    source: str,
    recorded: Mapping[str, Any],
) -> keras.Model:
    """Rebuild the model that verified files hold.

    Args:
        files: Open files by their path in the checkpoint.
        recorded: Its fingerprint, which says whether an optimizer had any state to restore.

    Raises:
        ArchitectureMissing: If only weights were stored, and no config.
        ModelNotLoadable: If Keras cannot or, in safe mode, will not rebuild it, or if a file
            is not what Keras writes.
    """
    if MODEL not in files and CONFIG not in files:
        raise ArchitectureMissing(
            f"{source} holds weights only, and its model has no config to rebuild it from. "
            "Build the model yourself and call: load_weights(model, run_id, which)"
        )
    never_trained = not any(o["trains"] for o in recorded.get("optimizers", []))
    options = {"custom_objects": custom_objects, "compile": compile, "safe_mode": safe_mode}
    try:
        with warnings.catch_warnings(), MappedWeights(_weights_file(files)) as weights:
            if never_trained and MODEL in files:
                # Keras builds the optimizer, finds no state for it and warns; there was none.
                warnings.filterwarnings("ignore", message="Skipping variable loading")
            return _rebuild(files, weights, options)
    except Exception as error:
        if isinstance(error, ModelNotLoadable):
            raise
        raise ModelNotLoadable(
            f"Keras could not rebuild the model of {source}: {_reason(error)} "
            f"A custom class goes into custom_objects={{'Name': Name}}.{_safe_mode(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what went wrong innermost: Keras puts its advice before it."""
    inner = str(error).rpartition("Exception encountered: ")[2]
    return first_line(ValueError(inner))


def _safe_mode(error: Exception) -> str:
    """What Keras's own safe mode has refused, that can be allowed."""
    if "safe_mode=False" not in str(error):
        return ""
    return " safe_mode=False runs code stored in the file, and is for files you trust."


def _rebuild(files: Files, weights: MappedWeights, options: dict[str, Any]) -> keras.Model:
    raw = _read_config(files, weights)
    config = allowance.parsed(raw, _CONFIG_MEMBER)
    if isinstance(config, dict) and not options["compile"]:
        config = {**config, "compile_config": None}
    steps = None
    if options["safe_mode"]:
        refuse_code(config, keras_internals.known_objects(options["custom_objects"]))
        vocabularies = (n for n in weights.members if n.startswith(_ASSETS))
        allowance.check_vocabularies(weights, vocabularies)
        steps = allowance.steps(config)
    advice = allowance.advice(config)
    if _by_keras():
        return bounded(_reader(files, config, options), weights, steps, advice)
    del config  # Keras parses it once more.
    with _assets(weights) as assets:
        text = raw.decode("utf-8")
        return bounded(
            lambda: keras_internals.rebuild(text, weights, assets=assets, **options),
            weights,
            steps,
            advice,
        )


def _read_config(files: Files, weights: MappedWeights) -> bytes:
    if MODEL in files:
        return weights.member(_CONFIG_MEMBER)
    files[CONFIG].seek(0)
    return files[CONFIG].read()


def _reader(files: Files, config: Any, options: dict[str, Any]) -> Callable[[], keras.Model]:
    """How Keras's public functions make the model."""

    def whole() -> keras.Model:
        with _copy(files[MODEL], "model.keras") as path:
            return keras.saving.load_model(path, **options)

    def parts() -> keras.Model:
        others = {k: v for k, v in options.items() if k != "compile"}
        model = keras.saving.deserialize_keras_object(config, **others)
        with _weights_copy(files) as path:
            model.load_weights(path)
        return model

    return whole if MODEL in files else parts


@contextmanager
def _assets(weights: MappedWeights) -> Iterator[Path | None]:
    """What a `.keras` file holds besides the model, in a folder of its own."""
    names = [n for n in weights.members if n not in (_CONFIG_MEMBER, _METADATA_MEMBER)]
    if not names:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        for name in names:
            if not name.startswith(_ASSETS):
                raise ModelNotLoadable(
                    f"Expected a model file as Keras writes it. Received: a member {name!r}. "
                    "Take another checkpoint."
                )
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(weights.member(name))
        yield Path(folder, _ASSETS)


def build_from_recorded(model: keras.Model, config: Any, files: Files, *, source: str) -> None:
    """Build a model on its recorded build config, within what its weights file explains.

    Raises:
        ModelNotLoadable: If it cannot be built on that, or would take more memory.
    """

    def make() -> keras.Model:
        model.build_from_config(config)
        return model

    try:
        with MappedWeights(_weights_file(files)) as weights:
            bounded(make, weights, allowance.STEPS, "Call it once on a batch before fit.")
    except Exception as error:
        if isinstance(error, ModelNotLoadable):
            raise
        raise ModelNotLoadable(
            f"The model could not be built as {source} says: {first_line(error)} Call it once on "
            "a batch before fit."
        ) from error


def load_weights(model: keras.Model, files: Files, *, source: str) -> None:
    """Load the stored weights, and nothing else, into `model`: no optimizer state.

    Raises:
        ModelMismatch: If a layer refuses its variables.
        ModelNotLoadable: If the file is not what Keras writes. Nothing was assigned.
    """
    optimizers = [optimizer for _, optimizer in fingerprint.optimizers_of(model)]
    try:
        with keras_internals.regarded_as_built(model):
            if not _by_keras():
                with MappedWeights(_weights_file(files)) as weights:
                    keras_internals.load_state(model, weights, skip=optimizers)
                return
            with _weights_copy(files) as path:
                keras.saving.load_weights(model, path, objects_to_skip=optimizers)
    except Exception as error:
        raise _mismatch(error, source) from error


def load_what_fits(model: keras.Model, files: Files, *, source: str) -> list[str]:
    """Load the weights of the layers that still fit, and return what was left out, in words.

    No optimizer state. Keras matches layers by their place in the model.

    Raises:
        ModelNotLoadable: If the file is not what Keras writes.
    """
    optimizers = [optimizer for _, optimizer in fingerprint.optimizers_of(model)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with keras_internals.regarded_as_built(model), _weights_copy(files) as path:
                keras.saving.load_weights(
                    model, path, skip_mismatch=True, objects_to_skip=optimizers
                )
        except Exception as error:
            raise _mismatch(error, source) from error
    left = ["the state of the optimizer, which starts anew"]
    for warning in caught:
        if "could not be loaded" in str(warning.message):
            left.insert(0, str(warning.message).partition("Example error")[0].strip(" ."))
    return left


def load_training_state(model: keras.Model, files: Files, *, source: str) -> None:
    """Load weights and the state of every optimizer into `model`, whose optimizers are built.

    Raises:
        ModelMismatch: If Keras leaves an optimizer out instead of filling it.
        ModelNotLoadable: If the file is not what Keras writes. Nothing was assigned.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with keras_internals.regarded_as_built(model):
                _load_everything(model, files)
        except Exception as error:
            raise _mismatch(error, source) from error
    for warning in caught:
        if "Skipping variable loading" in str(warning.message):
            raise ModelMismatch(f"The model does not fit {source}: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _load_everything(model: keras.Model, files: Files) -> None:
    if not _by_keras():
        with MappedWeights(_weights_file(files)) as weights:
            keras_internals.load_state(model, weights)
        return
    with _weights_copy(files) as path:
        keras_internals.load_whole_state(model, str(path))


def _mismatch(error: Exception, source: str) -> Exception:
    if isinstance(error, ModelNotLoadable):
        return error
    return ModelMismatch(f"The model does not fit {source}: {first_line(error)}")


# --- Keras's own loader -------------------------------------------------------


def _by_keras() -> bool:
    """Whether Keras's public loader must read the files, because a seam moved."""
    reason = keras_internals.missing_seams()
    if reason is not None:
        _logger.debug("Keras's own loader reads the checkpoint, not the map: %s.", reason)
    return reason is not None


def _weights_file(files: Files) -> BinaryIO:
    return files[WEIGHTS] if WEIGHTS in files else files[MODEL]


@contextmanager
def _weights_copy(files: Files) -> Iterator[Path]:
    """A `.weights.h5` on disk, looked through: Keras skips objects in no other file."""
    with (
        MappedWeights(_weights_file(files)) as weights,
        _copy(io.BytesIO(), "model.weights.h5") as path,
    ):
        path.write_bytes(weights.content)
        yield path


@contextmanager
def _copy(file: BinaryIO, name: str) -> Iterator[Path]:
    """The content of an open file under a path of its own, which nobody else can change."""
    with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        path = Path(folder) / name
        file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        yield path
