"""One small model of every kind that a checkpoint has to hold, with data to train it on.

Every kind stresses one way in which Keras lays out a file: shared and nested layers,
containers, layers that save themselves, narrow dtypes, tables, several optimizers. A builder
makes the same model at every call. Training is eager, which needs no tracing, and sizes are
4 to 16 units: what is compared is bytes, not learning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from builders import Gan
from keras import layers

BATCH = 4
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Specimen:
    """A model and one batch for it.

    Attributes:
        y: Targets, or `None` where the model cannot or need not be trained.
    """

    model: keras.Model
    x: Any
    y: Any = None

    def train(self, steps: int = 1) -> None:
        """Take `steps` optimizer updates, if the model can be trained."""
        if self.y is not None:
            for _ in range(steps):
                self.model.train_on_batch(self.x, self.y)

    def predict(self) -> list[Array]:
        """Outputs for the batch in inference mode."""
        return predictions(self.model, self.x)


def predictions(model: keras.Model, x: Any) -> list[Array]:
    """Outputs of a model for one batch, in inference mode."""
    return [np.asarray(out) for out in keras.tree.flatten(model(x, training=False))]


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Optimizers a model holds as attributes, by name."""
    held = sorted(vars(model).items())
    return [value for _, value in held if isinstance(value, keras.optimizers.Optimizer)]


def variables_of(model: keras.Model) -> list[keras.Variable]:
    """Every variable a model file may hold: weights, then the optimizers', then the metrics'."""
    found = list(model.weights)
    for optimizer in optimizers_of(model):
        found += optimizer.variables
    return found + list(model.metrics_variables)


def values_of(model: keras.Model) -> list[tuple[tuple[int, ...], str, bytes]]:
    """Shape, dtype and bytes of `variables_of`, copied: two of them compare bit by bit."""
    arrays = [(v, np.asarray(keras.ops.convert_to_numpy(v))) for v in variables_of(model)]
    return [(tuple(v.shape), str(v.dtype), a.tobytes()) for v, a in arrays]


def scramble(model: keras.Model, seed: int = 0) -> None:
    """Give every variable values of its own, so that no two can be taken for each other.

    Floats lie between 0.1 and 1: optimizer states and variances stay legal.
    """
    generator = np.random.default_rng(seed)
    for variable in variables_of(model):
        dtype = str(variable.dtype)
        if dtype == "bool":
            value: Array = generator.random(variable.shape) < 0.5
        elif "int" in dtype:
            value = generator.integers(0, 7, variable.shape)
        else:
            value = np.asarray(generator.uniform(0.1, 1.0, variable.shape))
        variable.assign(keras.ops.cast(value, dtype))


ZOO: dict[str, Callable[[], Specimen]] = {}
Builder = Callable[[], Specimen]


def kind(build: Builder) -> Builder:
    """Enter a builder in the zoo under its own name."""

    def seeded() -> Specimen:
        keras.utils.set_random_seed(7)
        return build()

    ZOO[build.__name__.replace("_", "-")] = seeded
    return seeded


def inputs(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).random((BATCH, *shape), dtype=np.float32)


def ready(model: keras.Model, x: Any, optimizer: Any = "adam", **options: Any) -> Specimen:
    """Compile a model for regression on random targets of its own output's shape."""
    y = inputs(*model(x).shape[1:], seed=1)
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"], run_eagerly=True, **options)
    return Specimen(model, x, y)


def dense(
    optimizer: Any = "adam", *, units: int = 8, dtype: Any = None, **options: Any
) -> Specimen:
    """Two dense layers with a Dropout in between."""
    stack = [
        keras.Input((6,)),
        layers.Dense(units, activation="relu", dtype=dtype),
        layers.Dropout(0.2, dtype=dtype),
        layers.Dense(3, dtype=dtype),
    ]
    return ready(keras.Sequential(stack), inputs(6), optimizer, **options)


def registered(cls: Any) -> Any:
    return keras.saving.register_keras_serializable("zoo")(cls)


# Architectures.


@kind
def sequential() -> Specimen:
    return dense()


@kind
def functional_with_shared_layers() -> Specimen:
    left, right = keras.Input((6,), name="left"), keras.Input((6,), name="right")
    shared = layers.Dense(5, activation="tanh")
    joined = layers.Concatenate()(
        [shared(left), shared(right), shared(layers.Add()([left, right]))]
    )
    out = layers.Dense(2)(joined)
    return ready(
        keras.Model({"left": left, "right": right}, out),
        {"left": inputs(6), "right": inputs(6, seed=2)},
    )


@registered
class Containers(keras.Model):
    """Layers in lists, dicts, tuples and lists of lists, and one layer in two places."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stack = [layers.Dense(5), layers.Dense(5)]
        self.named = {"b": layers.Dense(5), "a": layers.LayerNormalization()}
        self.deep = [[layers.Dense(5)], [layers.Dense(5), {"x": layers.Dense(5)}]]
        self.pair = (layers.Dense(5), self.stack[0])
        self.head = layers.Dense(2)

    def call(self, x: Any) -> Any:
        first, second = self.deep
        path = [*self.stack, *self.named.values(), *first, second[0], second[1]["x"], self.pair[0]]
        for layer in path:
            x = layer(x)
        return self.head(x)


@kind
def subclassed_with_containers() -> Specimen:
    return ready(Containers(), inputs(6))


@kind
def nested() -> Specimen:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4), layers.BatchNormalization()])
    middle_in = keras.Input((6,))
    middle = keras.Model(middle_in, layers.Dense(4)(inner(middle_in)), name="middle")
    outer_in = keras.Input((6,))
    return ready(keras.Model(outer_in, layers.Dense(2)(middle(outer_in))), inputs(6))


@kind
def recurrent() -> Specimen:
    stack = [
        keras.Input((2, 3)),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True, recurrent_dropout=0.1)),
        layers.GRU(4, return_sequences=True),
        layers.TimeDistributed(layers.Dense(2)),
        layers.SimpleRNN(3),
    ]
    return ready(keras.Sequential(stack), inputs(2, 3))


@kind
def stateful_recurrent() -> Specimen:
    stack = [keras.Input(batch_shape=(BATCH, 5, 3)), layers.LSTM(4, stateful=True)]
    return ready(keras.Sequential(stack), inputs(5, 3))


@kind
def attention_and_embedding() -> Specimen:
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(11, 8, mask_zero=True)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    model = keras.Model(tokens, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    return ready(model, np.random.default_rng(0).integers(0, 11, (BATCH, 6)).astype("int32"))


@kind
def batch_normalization() -> Specimen:
    stack = [
        keras.Input((6, 6, 2)),
        layers.Conv2D(4, 3),
        layers.BatchNormalization(),
        layers.DepthwiseConv2D(3),
        layers.GlobalAveragePooling2D(),
    ]
    return ready(keras.Sequential(stack), inputs(6, 6, 2))


@kind
def spectral_normalization() -> Specimen:
    stack = [keras.Input((6,)), layers.SpectralNormalization(layers.Dense(4))]
    return ready(keras.Sequential(stack), inputs(6))


@registered
class Tied(keras.Model):
    """A decoder that keeps the encoder's kernel as its own: one variable in two places."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.encoder = layers.Dense(4, use_bias=False)
        self.decoder = layers.Dense(6)

    def build(self, shape: Any) -> None:
        self.encoder.build(shape)
        self.decoder.build((None, 4))
        self.again = [self.encoder.kernel]

    def call(self, x: Any) -> Any:
        code = self.encoder(x)
        return self.decoder(code) + code @ keras.ops.transpose(self.again[0])


@kind
def tied_weights() -> Specimen:
    return ready(Tied(), inputs(6))


@kind
def frozen_layers() -> Specimen:
    specimen = dense()
    specimen.model.layers[0].trainable = False
    return ready(specimen.model, specimen.x)


@kind
def zero_weights() -> Specimen:
    model = keras.Sequential([keras.Input((6,)), layers.Rescaling(0.5), layers.Flatten()])
    return Specimen(ready(model, inputs(6)).model, inputs(6))


@registered
class Scale(layers.Layer):
    """One scalar."""

    def build(self, shape: Any) -> None:
        self.factor = self.add_weight(shape=(), name="factor", initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.factor


@kind
def scalar_only() -> Specimen:
    return ready(keras.Sequential([keras.Input((6,)), Scale()]), inputs(6))


@kind
def uncompiled() -> Specimen:
    return Specimen(keras.Sequential([keras.Input((6,)), layers.Dense(3)]), inputs(6))


@kind
def never_trained() -> Specimen:
    specimen = dense()
    return Specimen(specimen.model, specimen.x)


@kind
def names_beyond_ascii() -> Specimen:
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, name="größe 漢字")], name="é")
    return ready(model, inputs(6))


@kind
def larger_than_a_chunk() -> Specimen:
    """Tensors of 2.2 MiB: a writer that works in chunks needs several for one."""
    stack = [keras.Input((6,)), layers.Dense(768), layers.Dense(769), layers.Dense(3)]
    return ready(keras.Sequential(stack), inputs(6))


# Layers with state of their own kind.


@registered
class EveryDtype(layers.Layer):
    """A variable of each dtype that Keras stores, an empty one and a scalar among them."""

    DTYPES = "bool int8 int16 int32 int64 uint8 uint16 uint32 float16 bfloat16 float32 float64"

    def build(self, shape: Any) -> None:
        for dtype in self.DTYPES.split():
            for size in [(), (3,), (0, 3)]:
                self.add_weight(
                    shape=size, dtype=dtype, initializer="zeros", trainable=False, autocast=False
                )

    def call(self, x: Any) -> Any:
        return x


@kind
def every_dtype() -> Specimen:
    model = keras.Sequential([keras.Input((6,)), EveryDtype(), layers.Dense(2)])
    return ready(model, inputs(6))


@kind
def normalization() -> Specimen:
    layer = layers.Normalization()
    layer.adapt(inputs(6, seed=5))
    return ready(keras.Sequential([keras.Input((6,)), layer, layers.Dense(2)]), inputs(6))


@kind
def string_lookup() -> Specimen:
    import tensorflow as tf

    words = layers.StringLookup()
    words.adapt(np.array(["cat", "dog", "ünïcode"]))
    numbers = layers.IntegerLookup(vocabulary=[3, 5, 9])
    text, number = keras.Input((1,), dtype="string"), keras.Input((1,), dtype="int64")
    joined = layers.Add()(
        [layers.Embedding(9, 4)(words(text)), layers.Embedding(9, 4)(numbers(number))]
    )
    model = keras.Model([text, number], layers.Dense(2)(layers.Flatten()(joined)))
    batch = tf.constant([["cat"], ["dog"], ["emu"], ["ünïcode"]])
    return ready(model, [batch, tf.constant([[3], [5], [7], [9]], "int64")])


@kind
def text_vectorization() -> Specimen:
    import tensorflow as tf

    vectorize = layers.TextVectorization(max_tokens=9, output_mode="tf_idf")
    vectorize.adapt(["a cat and a dog", "a dog\nand an emu"])
    text = keras.Input((1,), dtype="string")
    batch = tf.constant([["a cat"], ["a dog"], ["an emu"], ["nobody"]])
    return ready(keras.Model(text, layers.Dense(2)(vectorize(text))), batch)


@kind
def discretization() -> Specimen:
    layer = layers.Discretization(num_bins=4, output_mode="one_hot")
    layer.adapt(inputs(1))
    return ready(keras.Sequential([keras.Input((1,)), layer, layers.Dense(2)]), inputs(1))


@registered
class SavesItself(layers.Layer):
    """Stores its kernel transposed, values of every type that are no variables, and two assets."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.saved, self.note = 0, "fresh"
        self.history: list[float] = []
        self.extra: dict[str, Array] = {}

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 4), name="kernel")

    def call(self, x: Any) -> Any:
        return x @ self.kernel

    def save_own_variables(self, store: Any) -> None:
        values = {"transposed": np.asarray(self.kernel).T, "kernel": self.kernel.value}
        plain = {"deep/number": 3, "list": [1.5, 2], "flag": True}
        mine = {"saved": self.saved, "history": np.array(self.history), **self.extra}
        for key, value in {**values, **plain, **mine}.items():
            store[key] = value

    def load_own_variables(self, store: Any) -> None:
        self.kernel.assign(store["transposed"].T)
        self.saved = int(store["saved"])

    def save_assets(self, dir_path: str) -> None:
        (Path(dir_path) / "deep").mkdir()
        (Path(dir_path) / "deep" / "note.txt").write_text(self.note, encoding="utf-8")
        (Path(dir_path) / "state.bin").write_bytes(bytes(range(256)) * (1 + self.saved))

    def load_assets(self, dir_path: str) -> None:
        self.note = (Path(dir_path) / "deep" / "note.txt").read_text(encoding="utf-8")


@kind
def layer_that_saves_itself() -> Specimen:
    stack = [keras.Input((6,)), layers.Dense(5), SavesItself(), layers.Dense(2)]
    return ready(keras.Sequential(stack), inputs(6))


@kind
def lora() -> Specimen:
    specimen = dense()
    specimen.model.layers[0].enable_lora(2)
    return ready(specimen.model, specimen.x)


@kind
def lora_on_embedding_and_attention() -> Specimen:
    specimen = attention_and_embedding()
    for layer in specimen.model._flatten_layers():
        if isinstance(layer, (layers.Embedding, layers.EinsumDense)):
            layer.enable_lora(2)
    return ready(specimen.model, specimen.x)


def quantized(mode: str) -> Specimen:
    specimen = dense(units=16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Layer .* does not have a `quantize`")
        specimen.model.quantize(mode)
    return ready(specimen.model, specimen.x)


@kind
def int8_quantized() -> Specimen:
    return quantized("int8")


@kind
def int4_quantized() -> Specimen:
    return quantized("int4")


@kind
def float8_quantized() -> Specimen:
    """Keras cannot train it eagerly."""
    specimen = quantized("float8")
    return Specimen(specimen.model, specimen.x)


@kind
def int8_quantized_with_lora() -> Specimen:
    specimen = quantized("int8")
    specimen.model.layers[0].enable_lora(2)
    return ready(specimen.model, specimen.x)


@kind
def mixed_precision() -> Specimen:
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam())
    return dense(optimizer, dtype="mixed_float16")


@kind
def bfloat16() -> Specimen:
    return dense(dtype="bfloat16")


# Optimizers.


@kind
def ema() -> Specimen:
    return dense(keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=3))


@kind
def accumulated_gradients_on_a_schedule() -> Specimen:
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 100)
    return dense(keras.optimizers.SGD(schedule, momentum=0.9, gradient_accumulation_steps=2))


@kind
def lion() -> Specimen:
    return dense(keras.optimizers.Lion())


@kind
def muon() -> Specimen:
    return dense(keras.optimizers.Muon())


@kind
def two_optimizers() -> Specimen:
    model = Gan()
    model.build((None, 8))
    model(inputs(8))
    model.compile(keras.optimizers.Adam(), keras.optimizers.RMSprop())
    model.d_optimizer.build(model.discriminator.trainable_variables)
    model.g_optimizer.build(model.generator.trainable_variables)
    return Specimen(model, inputs(8))


@kind
def several_optimizers() -> Specimen:
    kinds = {".*/kernel": keras.optimizers.Adam()}
    several = keras.optimizers.OptimizerMap(keras.optimizers.SGD(momentum=0.9), kinds)
    return dense(keras.optimizers.MultiOptimizer(several))


@registered
class Pull(keras.optimizers.SGD):
    """An optimizer with a variable and a setting of its own."""

    def __init__(self, settings: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = dict(settings or {"pull": 0.25})

    def build(self, variables: Any) -> None:
        super().build(variables)
        self.pulled = self.add_variable((), name="pulled")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign_add(self.pulled, self.settings["pull"])
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "settings": dict(self.settings)}


@registered
class Power(keras.losses.Loss):
    def __init__(self, power: float = 2.0, name: str = "power", reduction: Any = "sum") -> None:
        super().__init__(name, reduction)
        self.power = power

    def call(self, y: Any, predicted: Any) -> Any:
        return keras.ops.abs(y - predicted) ** self.power

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@registered
class Count(keras.metrics.Metric):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seen = self.add_weight(shape=(2,), name="seen", initializer="zeros")

    def update_state(self, y: Any, predicted: Any, sample_weight: Any = None) -> None:
        self.seen.assign_add(keras.ops.ones((2,)))

    def result(self) -> Any:
        return self.seen[0]


@kind
def custom_training_objects() -> Specimen:
    specimen = dense()
    specimen.model.compile(Pull(), Power(), metrics=[Count()], run_eagerly=True)
    return specimen


# Applications.


def application(build: Any, **options: Any) -> Specimen:
    model = build(weights=None, classes=4, input_shape=(32, 32, 3), **options)
    model.compile("adam", "categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    return Specimen(model, inputs(32, 32, 3))


@kind
def mobilenet() -> Specimen:
    return application(keras.applications.MobileNetV2, alpha=0.35)


@kind
def efficientnet() -> Specimen:
    return application(keras.applications.EfficientNetB0)
