"""Save and restore, step by step: Keras's tutorial, with MLflow as the place of the files.

Every restored model's test accuracy is printed beside that of the trained one; if one is not
equal to the last digit, the script ends with an error. All steps write to one run, each to a
series of its own.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import data
import keras
import mlflow
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.table import Table
from train import build_model

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, Keep, MlflowCheckpoint

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import Command, Whole

console = Console(highlight=False, soft_wrap=True)


class Tutorial:
    """The data, the run, and what the comparisons said.

    Attributes:
        run_id: The run that all steps write to.
        epochs: Length of the long training.
    """

    def __init__(self, run_id: str, epochs: int) -> None:
        self.run_id = run_id
        self.epochs = epochs
        self._train, self._test = data.load("digits")
        self._results = Table("restored from", "trained accuracy", "restored", "")
        self._unequal: list[str] = []

    # --- the steps ------------------------------------------------------------

    def weights_every_epoch(self) -> None:
        """Train and store the weights alone after every epoch, then load the newest."""
        step(
            1,
            "A weights-only checkpoint after every epoch",
            "MlflowCheckpoint(save_weights_only=True), load_weights(fresh, run_id, 'latest')",
        )
        model = self.new_model()
        callback = MlflowCheckpoint(name="weights", save_weights_only=True)
        self.fit(model, min(10, self.epochs), callback)

        fresh = self.new_model()
        console.print(f"an untrained model: accuracy {self.measure(fresh)[0]!r}")
        ckpt.load_weights(fresh, self.run_id, "latest@weights")
        self.compare("weights-only checkpoint", model, fresh)

    def every_few_epochs(self) -> keras.Model:
        """Train once with two callbacks: one keeps all checkpoints, one keeps the last five."""
        every = Every(epochs=max(1, self.epochs // 10))
        step(
            2,
            f"A uniquely named checkpoint every {every.epochs} of {self.epochs} epochs",
            f"MlflowCheckpoint(save_freq=Every(epochs={every.epochs}), keep=None)",
        )
        model = self.new_model()
        self.fit(
            model,
            self.epochs,
            MlflowCheckpoint(name="all", save_freq=every, keep=None),
            MlflowCheckpoint(name="last-five", save_freq=every, keep=Keep(last=5, best=None)),
        )

        step(3, "The list of them", "list_checkpoints(run_id)")
        self.show_list("all")

        step(
            4,
            "The latest of them, loaded into a fresh model",
            "resolve(run_id, 'latest'), load_weights(fresh, run_id, 'latest')",
        )
        latest = ckpt.resolve(self.run_id, "latest@all")
        console.print(f"latest is {latest.name}, after epoch {latest.epoch}: {latest.uri}")
        fresh = self.new_model()
        ckpt.load_weights(fresh, self.run_id, "latest@all")
        self.compare(f"latest ({latest.name})", model, fresh)

        step(
            5,
            "The same training, where only the last 5 were kept",
            "MlflowCheckpoint(keep=Keep(last=5, best=None))",
        )
        kept, made = self.show_list("last-five"), ckpt.list_checkpoints(self.run_id, "all")
        if list(kept["epoch"]) != list(made["epoch"])[-5:]:
            raise click.ClickException(f"Expected the last 5 epochs of {list(made['epoch'])}.")
        return model

    def weights_by_hand(self, model: keras.Model) -> None:
        """Save weights outside of `fit`, and restore them into a fresh model."""
        step(
            6,
            "Weights saved by hand, restored into a fresh model",
            "save(model, weights_only=True), load_weights(fresh, run_id, 'latest')",
        )
        saved = ckpt.save(model, series="by-hand", epoch=self.epochs, weights_only=True)
        fresh = self.new_model()
        ckpt.load_weights(fresh, self.run_id, "latest@by-hand")
        self.compare(f"weights saved by hand ({saved.name})", model, fresh)

    def whole_model(self, model: keras.Model) -> None:
        """Save a whole model, and restore it with its optimizer, without any code of ours."""
        step(
            7,
            "A whole model, restored with the state of its optimizer",
            "save(model), load_model(run_id, 'latest')",
        )
        saved = ckpt.save(model, series="whole", epoch=self.epochs)
        restored = ckpt.load_model(self.run_id, "latest@whole")
        self.compare(f"whole model ({saved.name})", model, restored)

        pairs = list(zip(model.optimizer.variables, restored.optimizer.variables, strict=True))
        same = sum(np.array_equal(before, after) for before, after in pairs)
        console.print(
            f"optimizer {restored.optimizer.name}: {int(restored.optimizer.iterations)} iterations "
            f"({int(model.optimizer.iterations)} before), {same} of {len(pairs)} variables equal"
        )
        if same != len(pairs):
            raise click.ClickException("The optimizer came back with another state.")

    def other_formats(self, model: keras.Model, folder: Path) -> None:
        """Export the whole model to each format, and read it back with that format's own loader."""

        def export(name: str, format: Any) -> Path:
            path = ckpt.export(self.run_id, "latest@whole", folder / name, format=format)
            written = ", ".join(sorted(p.name for p in folder.glob(f"{name}*")))
            console.print(f"wrote {written}")
            return path

        step(8, "The whole model as one HDF5 file", "export(..., format='h5')")
        path = export("digits.h5", "h5")
        self.compare("HDF5 (.h5)", model, keras.saving.load_model(path))

        step(9, "The whole model as a SavedModel", "export(..., format='saved_model')")
        path = export("saved_model", "saved_model")
        served = tf.saved_model.load(path)  # its function does not keep it alive
        self.compare("SavedModel", model, served.serve)

        step(10, "The weights as a TensorFlow checkpoint", "export(..., format='tf')")
        path = export("tf_checkpoint", "tf")
        fresh = self.new_model()
        tf.train.Checkpoint(model=fresh).restore(str(path)).expect_partial()
        self.compare("TensorFlow checkpoint", model, fresh)

        step(
            11,
            "Keras's own two files, for everybody else",
            "export(..., format='keras'), export(..., format='weights')",
        )
        path = export("digits.keras", "keras")
        self.compare(".keras", model, keras.saving.load_model(path))
        path = export("digits.weights.h5", "weights")
        fresh = self.new_model()
        fresh.optimizer.build(fresh.trainable_variables)  # else Keras leaves its state out
        fresh.load_weights(path)
        self.compare(".weights.h5", model, fresh)

    # --- what the steps use ---------------------------------------------------

    def new_model(self) -> keras.Model:
        return build_model(self._train[0].shape[1])

    def fit(self, model: keras.Model, epochs: int, *callbacks: MlflowCheckpoint) -> None:
        x, y = self._train
        model.fit(x, y, epochs=epochs, validation_split=0.1, verbose=0, callbacks=list(callbacks))
        console.print(f"trained for {epochs} epochs: accuracy {self.measure(model)[0]!r}")

    def measure(self, predict: Callable[[Any], Any]) -> tuple[float, float]:
        """Accuracy and loss on the test set, of a model or of a served function."""
        x, y = self._test
        logits = np.asarray(predict(x), dtype=np.float64)
        likelihood = logits[np.arange(len(y)), y] - np.log(np.exp(logits).sum(axis=1))
        return float(np.mean(logits.argmax(axis=1) == y)), float(-likelihood.mean())

    def compare(self, what: str, trained: keras.Model, restored: Callable[[Any], Any]) -> None:
        """Measure both; the accuracy has to agree to the last digit.

        The loss may round differently where another runtime computes it (SavedModel).
        """
        (accuracy, loss), (again, loss_again) = self.measure(trained), self.measure(restored)
        equal = accuracy == again and math.isclose(loss, loss_again, rel_tol=1e-6)
        verdict = "equal" if equal else "NOT EQUAL"
        console.print(f"trained:  accuracy {accuracy!r}, loss {loss:.6f}")
        console.print(f"restored: accuracy {again!r}, loss {loss_again:.6f}: {verdict}")
        self._results.add_row(what, repr(accuracy), repr(again), verdict)
        if not equal:
            self._unequal.append(what)

    def show_list(self, series: str) -> Any:
        """Print the checkpoints of a series, and return their DataFrame."""
        found = ckpt.list_checkpoints(self.run_id, series)
        table = Table("checkpoint", "epoch", "step", "val_accuracy", "")
        for row in found.to_dict("records"):
            marks = [mark for mark in ("latest", "best") if row[f"is_{mark}"]]
            numbers = str(row["epoch"]), str(row["step"]), f"{row['metrics.val_accuracy']:.4f}"
            table.add_row(row["name"], *numbers, " ".join(marks))
        console.print(table)
        return found

    def finish(self) -> None:
        """Print all comparisons once more.

        Raises:
            click.ClickException: If a restored model was not equal to the trained one.
        """
        console.rule("Trained and restored")
        console.print(self._results)
        console.print(f"run {self.run_id}: see it with `mlflow ui`")
        if self._unequal:
            raise click.ClickException(f"Not equal when restored from {', '.join(self._unequal)}.")


def step(number: int, title: str, code: str) -> None:
    """Begin a section: what is done, and the line that does it."""
    console.print()
    console.rule(f"[bold]{number}. {title}", align="left")
    console.print(code, style="cyan", markup=False)


@click.command(cls=Command)
@click.option("--epochs", type=Whole(min=1), default=50, show_default=True)
@click.option("--seed", type=Whole(min=0, max=2**32 - 1), default=0)
def main(epochs: int, seed: int) -> None:
    """Walk through saving and restoring on the handwritten digits."""
    keras.utils.set_random_seed(seed)
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as folder:
        tutorial = Tutorial(run.info.run_id, epochs)
        tutorial.weights_every_epoch()
        model = tutorial.every_few_epochs()
        tutorial.weights_by_hand(model)
        tutorial.whole_model(model)
        tutorial.other_formats(model, Path(folder))
        mlflow.log_artifacts(folder, "exports")
        tutorial.finish()


if __name__ == "__main__":
    main()
