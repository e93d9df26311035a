"""Small models and data that the tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np

SAMPLES, FEATURES, CLASSES = 64, 8, 3


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """64 samples in two batches of 32, three classes, the same at every call."""
    generator = np.random.default_rng(0)
    x = generator.random((SAMPLES, FEATURES), dtype=np.float32)
    return x, (x.sum(axis=1) * 10).astype(np.int64) % CLASSES


def mlp(units: int = 8, optimizer: Any = "adam", **compile_arguments: Any) -> keras.Model:
    """Dense, Dropout, Dense; compiled."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(units, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(CLASSES),
        ]
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **compile_arguments,
    )
    return model


@keras.saving.register_keras_serializable("tests")
class Subclassed(keras.Model):
    """A model that only its first batch can build."""

    def __init__(self, units: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.hidden = keras.layers.Dense(units, activation="relu")
        self.drop = keras.layers.Dropout(0.5)
        self.out = keras.layers.Dense(CLASSES)

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.out(self.drop(self.hidden(inputs), training=training))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


class NoConfig(keras.Model):
    """A model that cannot be rebuilt from its file."""

    def __init__(self, units: Callable[[], int]) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(units())

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)


@keras.saving.register_keras_serializable("tests")
class Gan(keras.Model):
    """Two networks with an optimizer each, in a train step of their own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.generator = keras.Sequential([keras.Input((4,)), keras.layers.Dense(FEATURES)])
        self.discriminator = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])
        self.noise = keras.random.SeedGenerator(3)
        self.loss_tracker = keras.metrics.Mean(name="d_loss")

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker]

    def compile(self, d_optimizer: Any, g_optimizer: Any) -> None:
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def get_compile_config(self) -> dict[str, Any]:
        return {
            "d_optimizer": keras.saving.serialize_keras_object(self.d_optimizer),
            "g_optimizer": keras.saving.serialize_keras_object(self.g_optimizer),
        }

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**{k: keras.saving.deserialize_keras_object(v) for k, v in config.items()})
        self.d_optimizer.build(self.discriminator.trainable_variables)
        self.g_optimizer.build(self.generator.trainable_variables)

    def call(self, inputs: Any) -> Any:
        return self.discriminator(inputs)

    def train_step(self, real: Any) -> dict[str, Any]:
        import tensorflow as tf

        noise = keras.random.normal((tf.shape(real)[0], 4), seed=self.noise)
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise))
            d_loss = keras.ops.mean(keras.ops.softplus(fake)) + keras.ops.mean(
                keras.ops.softplus(-self.discriminator(real))
            )
        weights = self.discriminator.trainable_variables
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))
        with tf.GradientTape() as tape:
            g_loss = keras.ops.mean(keras.ops.softplus(-self.discriminator(self.generator(noise))))
        weights = self.generator.trainable_variables
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        self.loss_tracker.update_state(d_loss)
        return {"d_loss": self.loss_tracker.result()}


def fit(model: keras.Model, *callbacks: Any, epochs: int = 3, **kwargs: Any) -> Any:
    """Train on `data()` with validation, quietly."""
    x, y = data()
    kwargs.setdefault("validation_data", (x, y))
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks), **kwargs)


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of a run as (step, value) rows, but what its checkpoints cost, which varies."""
    client = mlflow.MlflowClient()
    return {
        key: [(m.step, m.value) for m in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
        if "ckpt/" not in key
    }


def weights(model: keras.Model) -> list[np.ndarray[Any, Any]]:
    """Weights and optimizer variables as arrays."""
    found = [np.asarray(v) for v in model.weights]
    for value in vars(model).values():
        if isinstance(value, keras.optimizers.Optimizer):
            found += [np.asarray(v) for v in value.variables]
    return found


def same(left: keras.Model, right: keras.Model) -> bool:
    """Whether two models agree bit by bit, optimizers included."""
    a, b = weights(left), weights(right)
    return len(a) == len(b) and all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
