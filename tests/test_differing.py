"""Two checkpoints beside each other: against NumPy, of one run and of two, whole and damaged."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import stored
from builders import Gan, NoConfig, Subclassed, fit, mlp
from calling import Cli
from mutations import mutate
from zoo import scramble

import mlflow_ckpt as ckpt
from mlflow_ckpt import Comparison, MlflowCheckpoint, differing, state_facts, stored_tensors
from mlflow_ckpt.errors import (
    DigestMismatch,
    IntegrityError,
    ManifestError,
    ModelNotLoadable,
    RunNotFound,
    SelectorError,
    SeriesNotFound,
)
from mlflow_ckpt.members import MODEL, STATE
from mlflow_ckpt.record import Checkpoint

Array = np.ndarray[Any, Any]


# --- what is compared ---------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> SimpleNamespace:
    """Runs: one of three epochs, one of another model, and one of two series."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(empty_database, folder / "runs.db")
    found = SimpleNamespace(uri=f"sqlite:///{folder / 'runs.db'}", folder=folder)
    mlflow.set_tracking_uri(found.uri)
    experiment = mlflow.create_experiment("diff", (folder / "artifacts").as_uri())
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment, run_name="plain") as run:
        mlflow.log_params({"units": 8, "seed": 7})
        fit(mlp(), MlflowCheckpoint(keep=None))
        found.plain = run.info.run_id
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_params({"units": 12, "seed": 7, "note": "wide"})
        fit(mlp(units=12, optimizer="sgd"), MlflowCheckpoint(keep=None), epochs=1, batch_size=16)
        found.wide = run.info.run_id
    with mlflow.start_run(experiment_id=experiment) as run:
        model = mlp()
        fit(model, MlflowCheckpoint(name="head"), epochs=1)
        fit(model, MlflowCheckpoint(name="tail", save_weights_only=True), epochs=2)
        found.several = run.info.run_id
    return found


@pytest.fixture
def runs(trained: SimpleNamespace, tracking: str) -> SimpleNamespace:
    mlflow.set_tracking_uri(trained.uri)
    return trained


def saved(model: keras.Model, **options: Any) -> Checkpoint:
    """A checkpoint of `model`, in a run of its own or the active one."""
    if mlflow.active_run():
        return ckpt.save(model, **options)
    with mlflow.start_run():
        return ckpt.save(model, **options)


def alike(a: Array, b: Array) -> tuple[float, float, float]:
    """Relative change, cosine and largest change, as NumPy has them."""
    x, y = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    norms = np.linalg.norm(x), np.linalg.norm(y)
    relative = float(np.linalg.norm(y - x) / norms[0])
    return relative, float(x @ y / (norms[0] * norms[1])), float(np.abs(y - x).max())


# --- against NumPy ------------------------------------------------------------


def test_every_number_is_that_of_numpy(runs: SimpleNamespace) -> None:
    a, b = (ckpt.load_model(runs.plain, which) for which in ("epoch=1", "epoch=3"))
    found = ckpt.diff(f"{runs.plain}/epoch=1", "epoch=3")
    variables = [variable for layer in found.layers for variable in layer.variables]
    for variable, one, other in zip(variables, a.get_weights(), b.get_weights(), strict=True):
        c = variable.change
        assert (c.relative, c.cosine, c.max_change) == pytest.approx(alike(one, other), rel=1e-12)
    assert [layer.name_a for layer in found.layers] == ["dense", "dense_1"]
    every = [np.concatenate([np.ravel(w) for w in model.get_weights()]) for model in (a, b)]
    total = found.total
    assert total.elements == every[0].size == found.a.elements
    assert (total.relative, total.cosine, total.max_change) == pytest.approx(
        alike(*every), rel=1e-12
    )
    [optimizer] = found.optimizers
    slots = {each.name_a: each for each in optimizer.slots}
    moments = [[np.ravel(v) for v in model.optimizer.variables if "momentum" in v.path]
               for model in (a, b)]  # fmt: skip
    momentum = slots["momentum"].change
    known = alike(*(np.concatenate(each) for each in moments))
    assert (momentum.relative, momentum.cosine, momentum.max_change) == pytest.approx(known)
    assert set(slots) == {"momentum", "velocity"}
    assert optimizer.total is not None
    assert optimizer.total.elements == 2 * total.elements


def test_facts_stand_side_by_side(runs: SimpleNamespace) -> None:
    found = ckpt.diff(f"{runs.plain}/epoch=1", "latest")
    first, last = ckpt.resolve(runs.plain, "epoch=1"), ckpt.resolve(runs.plain)
    assert (found.a.checkpoint, found.b.checkpoint) == (first, last)
    assert (found.a.run_name, found.a.model_class) == ("plain", "Sequential")
    assert found.same_architecture
    assert not found.equal
    [optimizer] = found.optimizers
    assert optimizer.a is not None
    assert optimizer.b is not None
    assert (optimizer.a.class_name, optimizer.a.learning_rate) == ("Adam", 0.001)
    assert (optimizer.a.iterations, optimizer.b.iterations) == (2, 6)
    assert (optimizer.arguments, optimizer.same) == ((), False)
    # Of one run, by one process.
    assert (found.params, found.versions, found.input, found.compiled) == ((), (), (), ())
    by_name = {metric.name: metric for metric in found.metrics}
    assert set(by_name) == {"accuracy", "loss", "val_accuracy", "val_loss"}
    loss = by_name["val_loss"]
    assert (loss.a, loss.b, loss.mode) == (
        first.metrics["val_loss"],
        last.metrics["val_loss"],
        "min",
    )
    assert loss.change == pytest.approx(last.metrics["val_loss"] - first.metrics["val_loss"])
    assert loss.better == ("b" if last.metrics["val_loss"] < first.metrics["val_loss"] else "a")
    assert by_name["val_accuracy"].mode == "max"
    assert found.seeds is not None
    assert (found.seeds.elements, found.seeds.changed) == (2, 1)


def test_a_checkpoint_beside_itself_is_equal_bit_by_bit(runs: SimpleNamespace) -> None:
    found = ckpt.diff(runs.plain, runs.plain)
    assert found.equal
    assert found.same_architecture
    assert (found.total.changed, found.total.relative) == (0, 0.0)
    assert found.total.cosine == pytest.approx(1.0)
    assert all(optimizer.same for optimizer in found.optimizers)
    assert all(metric.better is None for metric in found.metrics)
    assert found.seeds is not None
    assert found.seeds.changed == 0


def test_two_runs_of_two_models(runs: SimpleNamespace) -> None:
    found = ckpt.diff(runs.plain, runs.wide)
    assert not found.equal
    assert not found.same_architecture
    assert [(c.where, c.a, c.b) for c in found.architecture] == [("dense.units", 8, 12)]
    assert [(c.where, c.a, c.b) for c in found.params] == [
        ("note", None, "wide"),
        ("units", "8", "12"),
    ]
    assert [(u.name, u.shape_a, u.shape_b) for u in found.unlike] == [
        ("dense/kernel", (8, 8), (8, 12)),
        ("dense/bias", (8,), (12,)),
        ("dense_1/kernel", (8, 3), (12, 3)),
    ]
    assert [v.name_a for layer in found.layers for v in layer.variables] == ["dense_1/bias"]
    [optimizer] = found.optimizers
    assert optimizer.a is not None
    assert optimizer.b is not None
    assert (optimizer.a.class_name, optimizer.b.class_name) == ("Adam", "SGD")
    assert (optimizer.slots, optimizer.total) == ((), None)
    assert ("input.batch_size", 32, 16) in [(c.where, c.a, c.b) for c in found.input]


def test_two_series_of_one_run_one_of_which_has_weights_alone(runs: SimpleNamespace) -> None:
    found = ckpt.diff(f"{runs.several}/latest@head", "latest@tail")
    assert (found.a.checkpoint.series, found.b.checkpoint.series) == ("head", "tail")
    assert (found.a.checkpoint.weights_only, found.b.checkpoint.weights_only) == (False, True)
    assert found.same_architecture
    assert found.architecture == ()
    assert found.total.changed > 0
    assert {metric.name: metric.mode for metric in found.metrics}["loss"] == "min"


# --- how a checkpoint is named ------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(lambda r: r.plain, id="a-run"),
        pytest.param(lambda r: f"{r.plain}/latest", id="with-a-selector"),
        pytest.param(lambda r: f"ckpt:/{r.plain}/latest", id="uri"),
        pytest.param(lambda r: ckpt.resolve(r.plain), id="resolved"),
    ],
)
def test_a_checkpoint_has_several_names(
    name: Callable[[SimpleNamespace], Any], runs: SimpleNamespace
) -> None:
    assert ckpt.diff(name(runs), name(runs)).equal


def test_the_second_may_be_a_selector_of_the_run_of_the_first(runs: SimpleNamespace) -> None:
    for first in (f"{runs.plain}/epoch=1", ckpt.resolve(runs.plain, "epoch=1")):
        assert ckpt.diff(first, "step=4").b.checkpoint.epoch == 2
    best = ckpt.resolve(runs.plain, "best")
    found = ckpt.diff("ckpt:/experiment/diff/best(val_accuracy,min)", "best")
    assert found.b.checkpoint.run_id == found.a.checkpoint.run_id
    assert ckpt.diff("ckpt:/experiment/diff/best", best).b.checkpoint == best


@pytest.mark.parametrize(
    ("a", "b", "error", "text"),
    [
        pytest.param("best", "latest", SelectorError, "Type <run_id>/best first", id="no-run"),
        pytest.param("{plain}/bst", "{plain}", SelectorError, "Received: 'bst'", id="no-selector"),
        pytest.param("{plain}", "0" * 32, RunNotFound, "0{32}", id="no-such-run"),
        pytest.param("{several}", "best", SeriesNotFound, "head, tail", id="which-series"),
        pytest.param(
            "ckpt:/{plain}/best/MLmodel", "best", SelectorError, "a whole checkpoint", id="a-file"
        ),
    ],
)  # fmt: skip
def test_what_names_no_checkpoint_is_an_error(
    a: str, b: str, error: type[Exception], text: str, runs: SimpleNamespace
) -> None:
    with pytest.raises(error, match=text):
        ckpt.diff(a.format(**vars(runs)), b.format(**vars(runs)))


# --- models of all kinds ------------------------------------------------------


def test_layers_that_keras_numbers_by_process_are_found_again() -> None:
    a, b = saved(mlp()), saved(mlp())
    found = ckpt.diff(a, b)
    assert found.same_architecture
    assert found.unlike == found.only_a == found.only_b == ()
    names = [(layer.name_a, layer.name_b) for layer in found.layers]
    assert all(one != other for one, other in names)
    assert found.total.elements == 99


def test_a_renamed_layer_of_the_same_shape_is_the_same_layer() -> None:
    def named(name: str | None) -> keras.Model:
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name=name)])

    model, other = named(None), named("head")
    other.set_weights(model.get_weights())
    found = ckpt.diff(saved(model), saved(other))
    assert found.total.changed == 0
    assert (found.only_a, found.only_b) == ((), ())


def test_layers_that_changed_places_are_compared_by_their_names() -> None:
    def ordered(*names: str) -> keras.Model:
        return keras.Sequential(
            [keras.Input((4,)), *(keras.layers.Dense(4, name=name) for name in names)]
        )

    model, other = ordered("p", "q"), ordered("q", "p")
    for name in ("p", "q"):
        other.get_layer(name).set_weights(model.get_layer(name).get_weights())
    found = ckpt.diff(saved(model), saved(other))
    assert [c.where for c in found.architecture] == ["model.layers"]
    assert found.total.changed == 0
    assert not found.equal


def test_what_only_one_has_is_listed() -> None:
    def stack(*units: int) -> keras.Model:
        parts = [keras.layers.Dense(n, name=f"of_{n}") for n in units]
        return keras.Sequential([keras.Input((4,)), *parts])

    found = ckpt.diff(saved(stack(5, 6)), saved(stack(5, 7)))
    assert [each.name for each in found.only_a] == ["of_6/kernel", "of_6/bias"]
    assert [(e.name, e.shape, e.dtype) for e in found.only_b] == [
        ("of_7/kernel", (5, 7), "float32"),
        ("of_7/bias", (7,), "float32"),
    ]
    assert [layer.name_a for layer in found.layers] == ["of_5"]
    assert [(c.where, c.a, c.b) for c in found.architecture] == [
        ("of_6", "Dense", None),
        ("of_7", None, "Dense"),
    ]


def test_nan_and_infinity_are_counted_where_they_are() -> None:
    model = mlp()
    first = saved(model)
    kernel, bias = model.layers[0].get_weights()
    kernel[0, :2], kernel[1, 0], bias[3] = np.nan, np.inf, -np.inf
    model.layers[0].set_weights([kernel, bias])
    second = saved(model)
    found = ckpt.diff(first, second)
    layer, other = found.layers
    assert (layer.change.nan_a, layer.change.nan_b, layer.change.inf_b) == (0, 2, 2)
    assert (layer.change.elements, layer.change.compared, layer.change.changed) == (72, 68, 4)
    assert (layer.change.relative, other.change.not_finite) == (0.0, 0)
    assert found.total.nan_b == 2
    assert ckpt.diff(second, second).equal


def test_precisions_are_compared_by_value() -> None:
    def dense(dtype: str) -> keras.Model:
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype=dtype)])
        model.layers[0].set_weights([np.full((4, 3), 0.5), np.zeros(3)])
        return model

    found = ckpt.diff(saved(dense("float32")), saved(dense("bfloat16")))
    [layer] = found.layers
    assert {(v.dtype_a, v.dtype_b) for v in layer.variables} == {("float32", "bfloat16")}
    assert (layer.change.changed, layer.change.relative) == (0, 0.0)
    assert not found.equal
    assert any(c.where.endswith(".dtype") for c in found.architecture)


def test_the_rate_of_an_optimizer_in_another_is_that_of_the_inner_one() -> None:
    inner = keras.optimizers.SGD(0.25)
    model = mlp(optimizer=keras.optimizers.LossScaleOptimizer(inner))
    model.fit(np.ones((4, 8)), np.ones(4), verbose=0)
    [optimizer] = ckpt.diff(saved(model), saved(model)).optimizers
    assert optimizer.a is not None
    assert (optimizer.a.class_name, optimizer.a.learning_rate) == ("LossScaleOptimizer", 0.25)
    assert (optimizer.a.iterations, optimizer.same) == (1, True)


def test_a_schedule_is_named_where_no_variable_has_the_rate() -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    first = saved(mlp(optimizer=keras.optimizers.Adam(schedule)))
    second = saved(mlp(optimizer=keras.optimizers.Adam(0.1, beta_1=0.8)))
    [optimizer] = ckpt.diff(first, second).optimizers
    assert optimizer.a is not None
    assert optimizer.b is not None
    assert (optimizer.a.learning_rate, optimizer.a.schedule) == (None, "CosineDecay")
    assert (optimizer.b.learning_rate, optimizer.b.schedule) == (0.1, None)
    assert ("optimizer.beta_1", 0.9, 0.8) in [(c.where, c.a, c.b) for c in optimizer.arguments]


def test_each_optimizer_of_a_model_is_compared() -> None:
    def gan() -> Checkpoint:
        model = Gan()
        model.compile(keras.optimizers.Adam(0.1), keras.optimizers.RMSprop(0.2))
        model.fit(np.ones((4, 8), np.float32), epochs=1, verbose=0)
        return saved(model)

    found = ckpt.diff(gan(), gan())
    rates = {o.attribute: o.a and o.a.learning_rate for o in found.optimizers}
    assert (rates["d_optimizer"], rates["g_optimizer"]) == (0.1, 0.2)
    assert found.compiled == ()


def test_a_model_without_an_optimizer_beside_one_with() -> None:
    model = mlp()
    bare = keras.Sequential(model.layers)
    found = ckpt.diff(saved(bare), saved(model))
    [optimizer] = found.optimizers
    assert optimizer.a is None
    assert optimizer.b is not None
    assert (found.total.changed, found.equal) == (0, False)


def test_what_has_no_config_is_compared_by_its_variables() -> None:
    model = NoConfig(lambda: 4)
    model(np.ones((1, 3)))
    first = saved(model, weights_only=True)
    scramble(model)
    found = ckpt.diff(first, saved(model, weights_only=True))
    assert (found.a.has_config, found.b.has_config) == (False, False)
    assert found.same_architecture
    assert found.total.changed == 16
    assert ckpt.diff(first, saved(mlp())).architecture[0].where == "model.class"


def test_a_subclassed_model_is_compared() -> None:
    model = Subclassed()
    model(np.ones((1, 8)))
    first = saved(model)
    model.out.set_weights([w + 1 for w in model.out.get_weights()])
    found = ckpt.diff(first, saved(model))
    assert [layer.change.changed for layer in found.layers] == [0, 15]


def test_vocabularies_are_compared() -> None:
    def lookup(*words: str) -> Checkpoint:
        layer = keras.layers.StringLookup(name="words")
        layer.adapt(list(words))
        given = keras.Input((), dtype="string")
        return saved(keras.Model(given, layer(given)))

    found = ckpt.diff(lookup("a", "b"), lookup("a", "c"))
    assert ("assets/layers/string_lookup/vocabulary.txt", "9 bytes", "9 bytes") in [
        (c.where, c.a, c.b) for c in found.architecture
    ]
    assert found.total.elements == 0
    assert ckpt.diff(lookup("a"), lookup("a")).equal


def test_a_metric_that_is_no_number_is_never_better() -> None:
    model = mlp()
    with mlflow.start_run():
        first = saved(model, metrics={"score": 0.5, "loss": 1.0})
        second = saved(model, metrics={"score": 0.7, "other": 1.0}, step=9)
    by_name = {metric.name: metric for metric in ckpt.diff(first, second).metrics}
    assert by_name["score"].change == pytest.approx(0.2)
    assert (by_name["score"].mode, by_name["score"].better) == (None, None)
    assert (by_name["loss"].b, by_name["loss"].change, by_name["loss"].better) == (None,) * 3
    assert differing._metric("loss", 1.0, "nan", "min").better is None


# --- files --------------------------------------------------------------------


@pytest.mark.backends("local", "proxied", quick=("proxied",))
def test_a_damaged_file_is_named_and_passed_over_for_latest() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None))
    run_id = run.info.run_id
    whole = ckpt.diff(f"{run_id}/epoch=1", "latest")
    assert whole.b.checkpoint.epoch == 3
    assert ckpt.diff(f"{run_id}/epoch=2", "epoch=2").equal
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), MODEL)
    for reference in (ckpt.resolve(run_id), f"{run_id}/epoch=3"):
        with pytest.raises(DigestMismatch, match=MODEL):
            ckpt.diff(f"{run_id}/epoch=1", reference)
    found = ckpt.diff(f"{run_id}/epoch=1", "latest")
    assert found.b.checkpoint.epoch == 2
    assert [skipped.name for skipped in found.b.checkpoint.skipped] == ["ckpt-0003-00000006"]
    assert found.to_dict()["b"]["skipped"][0]["name"] == "ckpt-0003-00000006"


def test_what_a_stranger_wrote_ends_in_one_of_our_errors(
    runs: SimpleNamespace, tmp_path: Path
) -> None:
    """Whatever the digest says: files whose bytes were spoilt before they were committed."""
    good = ckpt.resolve(runs.plain)
    files = {path: stored.read(good, path) for path in (MODEL, STATE)}
    recorded = json.loads(stored.read(good, "manifest.json"))["model"]
    (tmp_path / "good").write_bytes(files[MODEL])
    ends = {"read": 0, "refused": 0}
    for number in range(150):
        mutation = mutate(number, files)
        (tmp_path / "bad").write_bytes(mutation.files[mutation.path])
        try:
            _compare(tmp_path, mutation.path, recorded)
        except (ModelNotLoadable, IntegrityError):
            ends["refused"] += 1
        else:
            ends["read"] += 1
    assert min(ends.values()) > 10


def _compare(folder: Path, path: str, recorded: Any) -> None:
    with (folder / "good").open("rb") as one, (folder / "bad").open("rb") as other:
        if path == STATE:
            facts = state_facts.read(other)
            for tensor in facts.tensors:
                list(stored_tensors.blocks(other, tensor))
            return
        with (
            stored_tensors.StoredWeights({MODEL: one}, recorded) as a,
            stored_tensors.StoredWeights({MODEL: other}, recorded) as b,
        ):
            pairs = differing.paired(a.tensors, b.tensors)
            json.dumps(differing.measured(pairs, one, other).total.to_dict(), allow_nan=False)


def test_a_training_state_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.h5"
    path.write_bytes(b"nothing of the kind")
    with (
        path.open("rb") as file,
        pytest.raises(ManifestError, match="not a training state of format 1.x"),
    ):
        state_facts.read(file)


@pytest.mark.parametrize(("count", "most"), [(1 << 18, 20 << 20), (1 << 12, 2 << 20)])
def test_blocks_bound_the_memory(count: int, most: int, tmp_path: Path) -> None:
    """Of two tensors of 24 MB; a number takes 8 bytes in each of a few arrays that are alive."""
    model = keras.Sequential([keras.Input((1500,)), keras.layers.Dense(4000)])
    model.save(tmp_path / "m.keras")
    with (
        (tmp_path / "m.keras").open("rb") as one,
        (tmp_path / "m.keras").open("rb") as other,
        stored_tensors.StoredWeights({MODEL: one}, {}) as a,
        stored_tensors.StoredWeights({MODEL: other}, {}) as b,
    ):
        pairs = differing.paired(a.tensors, b.tensors)
        tracemalloc.start()
        found = differing.measured(pairs, one, other, count=count)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found.total.elements == 6_004_000
    assert peak < most


@pytest.mark.slow
def test_the_memory_of_the_process_does_not_grow_with_the_models(tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        model = keras.Sequential([keras.Input((4096,)), keras.layers.Dense(8192)])
        ckpt.save(model, step=1)
        scramble(model)
        ckpt.save(model, step=2)
    code = (
        "import mlflow, mlflow_ckpt\n"
        f"mlflow.set_tracking_uri({mlflow.get_tracking_uri()!r})\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(l.split()[1]) for l in lines if l.startswith('VmHWM')) >> 10\n"
        f"mlflow_ckpt.diff, mlflow_ckpt.resolve({run.info.run_id!r})\n"
        "before = peak()\n"
        f"found = mlflow_ckpt.diff('{run.info.run_id}/step=1', 'step=2')\n"
        "print(peak() - before, found.b.checkpoint.bytes >> 20)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size > 120
    assert grown < 64


def test_another_process_needs_neither_keras_nor_tensorflow(runs: SimpleNamespace) -> None:
    code = (
        "import sys, mlflow, mlflow_ckpt\n"
        f"mlflow.set_tracking_uri({runs.uri!r})\n"
        f"assert mlflow_ckpt.diff({runs.plain!r}, 'latest').equal\n"
        "heavy = {'keras', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- the command --------------------------------------------------------------

KEYS = {
    "equal", "a", "b", "architecture", "compiled", "optimizers", "params", "versions", "input",
    "metrics", "total", "seeds", "layers",
}  # fmt: skip
CHANGE = {
    "elements", "compared", "changed", "norm_a", "norm_b", "change", "relative", "cosine",
    "max_change", "nan_a", "nan_b", "inf_a", "inf_b",
}  # fmt: skip


def test_json_has_everything(runs: SimpleNamespace, call: Cli) -> None:
    found = call("diff", f"{runs.plain}/epoch=1", "latest", "--json", "--layers", "1").json()
    assert set(found) == KEYS
    assert found == ckpt.diff(f"{runs.plain}/epoch=1", "latest").to_dict()
    assert set(found["total"]) == CHANGE
    assert len(found["layers"]) == 2
    layer = found["layers"][0]
    assert set(layer) == CHANGE | {"name", "name_b", "variables"}
    assert set(layer["variables"][0]) == CHANGE | {"name", "name_b", "shape", "dtype_a", "dtype_b"}
    assert set(found["architecture"]) == {"same", "differences", "only_a", "only_b", "unlike"}
    assert set(found["optimizers"][0]) == {
        "attribute", "a", "b", "arguments", "same", "total", "slots",
    }  # fmt: skip
    assert set(found["metrics"][0]) == {"name", "a", "b", "change", "mode", "better"}
    assert found["a"]["epoch"] == 1
    assert found["a"]["created_at"].endswith("Z")


def test_every_value_is_json(runs: SimpleNamespace) -> None:
    for pair in ((runs.plain, runs.wide), (f"{runs.several}/latest@head", "latest@tail")):
        json.dumps(ckpt.diff(*pair).to_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(["{plain}", "latest"], 0, id="equal"),
        pytest.param(["{plain}", "epoch=1"], 0, id="different"),
        pytest.param(["{plain}", "latest", "--exit-code"], 0, id="asked-and-equal"),
        pytest.param(["{plain}", "epoch=1", "--exit-code"], 1, id="asked-and-different"),
        pytest.param(["{plain}", "epoch=9"], 1, id="trouble"),
        pytest.param(["{plain}", "epoch=9", "--exit-code"], 2, id="asked-and-trouble"),
        pytest.param(["{plain}", "epoch=9", "--exit-code", "--debug"], 2, id="with-a-traceback"),
        pytest.param(["{plain}", "latest", "--all", "--layers", "3"], 2, id="wrong-line"),
        pytest.param(["{plain}"], 2, id="one-alone"),
    ],
)  # fmt: skip
def test_the_exit_code_tells_a_difference_only_where_it_is_asked_for(
    arguments: list[str], code: int, runs: SimpleNamespace, call: Cli
) -> None:
    done = call("diff", *(argument.format(**vars(runs)) for argument in arguments))
    assert done.code == code
    assert ("Traceback" in done.err) == ("--debug" in arguments)
    assert (done.err == "") == (code == 0 or "epoch=1" in arguments)


def test_a_failure_is_one_json_document_too(runs: SimpleNamespace, call: Cli) -> None:
    done = call("diff", runs.plain, "epoch=9", "--json", "--exit-code")
    assert (done.code, set(done.json())) == (2, {"error", "type"})
    assert len(done.err.splitlines()) == 1


@pytest.mark.backends("local", "proxied", quick=("proxied",))
def test_the_command_reads_from_a_server(call: Cli, tracking: str) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=2)
    mlflow.set_tracking_uri("sqlite:///elsewhere.db")
    done = call(
        "diff", f"{run.info.run_id}/epoch=1", "best", "--exit-code", "--tracking-uri", tracking
    )
    assert (done.code, done.err) == (1, "")
    assert re.search(r"\n\n\d+ of 99 compared elements differ.\n$", done.out)


def test_the_public_names(runs: SimpleNamespace) -> None:
    assert isinstance(ckpt.diff(runs.plain, "epoch=1"), Comparison)
