"""The format as a contract: `docs/format.md`, the committed fixtures, and who comes later.

The document's tables are read here and compared with what is written, so that neither moves
alone. `AsDocumented` was written from the document and uses nothing of the package.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import random
import re
import shutil
import tempfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import blake3
import h5py
import keras
import make_format_fixture as fixture
import ml_dtypes
import mlflow
import numpy as np
import pytest
import stored
import tensorflow as tf
from builders import Gan, data, fit, mlp
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import mlflow_ckpt as ckpt
from mlflow_ckpt import (
    EpochData,
    Every,
    MlflowCheckpoint,
    digests,
    keras_callbacks,
    training_state,
)
from mlflow_ckpt import fingerprint as fingerprints
from mlflow_ckpt import manifest as manifests
from mlflow_ckpt.cli import main
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import FormatTooNew, ManifestError, ModelMismatch
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.plain import Decoder, Encoder
from mlflow_ckpt.record import MetricRow, Position, Series
from mlflow_ckpt.store import Commit, Store
from mlflow_ckpt.tenure import Record

PACKAGE = Path(ckpt.__file__).parent
DOCUMENT = (PACKAGE.parent / "docs" / "format.md").read_text(encoding="utf-8")
FIXTURES = fixture.ROOT / "format-1.0"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text(encoding="utf-8"))

Row = dict[str, str]


def table(name: str) -> list[Row]:
    """The table behind `<!-- table: name -->`, one mapping a row; code marks are taken off."""
    lines = DOCUMENT.split(f"<!-- table: {name} -->\n")[1].splitlines()
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    titles = [title.replace("`", "") for title in rows[0]]
    return [dict(zip(titles, row, strict=True)) for row in rows[2:]]


def names(text: str) -> list[str]:
    """What stands in code marks."""
    return re.findall(r"`([^`]+)`", text)


def fields(name: str, prefix: str = "") -> dict[str, Row]:
    found = {names(row["field"])[0]: row for row in table(name)}
    return {k.removeprefix(prefix): row for k, row in found.items() if k.startswith(prefix)}


# --- what is written is what is documented -----------------------------------------

TYPES: dict[str, Callable[[Any], bool]] = {
    "any": lambda value: True,
    "array": lambda value: isinstance(value, np.ndarray),
    "boolean": lambda value: type(value) is bool,
    "flag": lambda value: type(value) is bool,
    "integer": lambda value: type(value) is int,
    "list": lambda value: isinstance(value, list),
    "mapping": lambda value: isinstance(value, dict),
    "null": lambda value: value is None,
    "number": lambda value: type(value) in (int, float),
    "row": lambda value: isinstance(value, list),
    "text": lambda value: isinstance(value, str),
}


def compare(value: Any, documented: Mapping[str, Row], seen: set[str], at: str = "") -> list[str]:
    """What differs between a value and its documentation; `seen` gets the fields that it has."""
    faults = []
    row = documented.get(at)
    if row is not None:
        seen.add(at)
        if not any(TYPES[kind](value) for kind in row["type"].split(" or ")):
            faults.append(f"{at} is {row['type']}: {value!r}")
        if row["type"] == "any":
            return faults
    if isinstance(value, dict):
        for key, held in value.items():
            known = [f"{at}.{name}".lstrip(".") for name in (key, "*")]
            path = next((p for p in known if p in documented), None)
            if path is None:
                faults.append(f"{known[0]} is not documented")
            else:
                faults += compare(held, documented, seen, path)
        for path, other in documented.items():
            parent, _, name = path.rpartition(".")
            if parent == at and other["required"] == "yes" and name not in {*value, "*"}:
                faults.append(f"{path} is missing")
    if isinstance(value, list) and any(path.startswith(f"{at}[]") for path in documented):
        for held in value:
            faults += compare(held, documented, seen, f"{at}[]")
    elif isinstance(value, list) and value and row is not None and "list" in row["type"]:
        faults.append(f"{at}[] is not documented")
    return faults


def files_of(run_id: str, which: str, path: str) -> bytes:
    return stored.read(ckpt.resolve(run_id, which), path)


def state_of(run_id: str, which: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(files_of(run_id, which, training_state.PATH))
        file.flush()
        return training_state.read(Path(file.name))


@pytest.mark.pure
def test_the_walk_over_a_value_finds_what_differs() -> None:
    rows = {
        "a": {"type": "integer", "required": "yes"},
        "b": {"type": "list", "required": "no"},
        "b[].c": {"type": "text", "required": "yes"},
        "d": {"type": "mapping", "required": "no"},
        "d.*": {"type": "any", "required": "no"},
    }
    seen: set[str] = set()
    assert compare({"a": 1, "b": [{"c": ""}], "d": {"x": {"y": 1}}}, rows, seen) == []
    assert seen == set(rows)
    wrong = {"a": True, "b": [{"e": 1}], "f": 0}
    assert compare(wrong, rows, set()) == [
        "a is integer: True",
        "b[].e is not documented",
        "b[].c is missing",
        "f is not documented",
    ]
    assert compare({}, rows, set()) == ["a is missing"]


def test_every_field_of_a_manifest_is_documented_and_every_documented_one_is_written() -> None:
    x, _ = data()
    gan = Gan()
    gan.compile(keras.optimizers.Adam(), keras.optimizers.SGD())
    gan.fit(x, verbose=0)
    with mlflow.start_run() as run:
        ckpt.save(gan, metrics={"score": 1.0}, step=1)
        ckpt.save(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), step=2)
    written = [files_of(run.info.run_id, which, FILENAME) for which in ("step=1", "step=2")]
    written += [(FIXTURES / name / FILENAME).read_bytes() for name in fixture.KINDS]
    documented, seen = fields("manifest"), set[str]()
    for each in written:
        assert compare(json.loads(each), documented, seen) == []
        assert json.dumps(json.loads(each), sort_keys=True, indent=1).encode() == each
    assert seen == set(documented)


class Busy(keras.callbacks.Callback):
    """Use every random generator, and remember what cannot be stored."""

    held: Any = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        keras.random.normal((1,))
        tf.random.get_global_generator().normal((1,))
        self.held = object()


class Slices(keras.utils.PyDataset):
    def __init__(self) -> None:
        super().__init__()
        self.epoch = 0

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Any:
        x, y = data()
        return x[index * 32 :][:32], y[index * 32 :][:32]

    def on_epoch_end(self) -> None:
        self.epoch += 1


def batches() -> Iterator[Any]:
    while True:
        yield tuple(array[:32] for array in data())


def pipeline() -> Any:
    """One whose iterators can be checkpointed: its shuffle holds indices."""
    x, y = map(tf.constant, data())
    indices = tf.data.Dataset.range(len(x)).shuffle(8, seed=3)
    return indices.map(lambda i: (tf.gather(x, i), tf.gather(y, i))).batch(32)


def grain_dataset() -> Any:
    grain = pytest.importorskip("grain")
    samples = list(zip(*data(), strict=True))
    return grain.MapDataset.source(samples).seed(3).shuffle().repeat().batch(32)


INPUTS: dict[str, Callable[[], Any]] = {
    "arrays": data,
    "EpochData": lambda: EpochData(*data(), batch_size=32, seed=3),
    "tf.data": pipeline,
    "PyDataset": Slices,
    "grain": grain_dataset,
    "other": batches,
}


def states(kind: str) -> list[dict[str, Any]]:
    """The states that a fit on this kind of input writes, inside of an epoch and at its end."""
    checkpoint = MlflowCheckpoint(save_freq=Every(epochs=2, steps=3), monitor="loss")
    x, y = data() if kind == "arrays" else (INPUTS[kind](), None)
    with mlflow.start_run() as run:
        mlp().fit(
            x,
            y,
            epochs=2,
            steps_per_epoch=2 if kind in ("grain", "other") else None,
            shuffle=kind in ("arrays", "PyDataset"),
            verbose=0,
            callbacks=[checkpoint, Busy()],
        )
    return [state_of(run.info.run_id, which) for which in ("step=3", "epoch=2")]


def test_every_field_of_a_state_is_documented_and_every_documented_one_is_written() -> None:
    documented, seen = fields("state"), set[str]()
    kinds = {
        names(row["data.kind"])[0]: names(row["fields of data.own"]) for row in table("inputs")
    }
    assert set(kinds) == set(INPUTS)
    for kind in INPUTS:
        found = states(kind)
        assert [state["data"]["kind"] for state in found] == [kind] * 2
        own, told = fields("own", f"{kind}."), set[str]()
        assert [path for path in own if "." not in path] == kinds[kind]
        for state in found:
            assert compare(state, documented, seen) == []
            assert compare(state["data"]["own"], own, told) == []
            check_callbacks(state["callbacks"])
        assert told == set(own)
    assert seen == set(documented)


def listed_attributes() -> dict[str, tuple[str, ...]]:
    return {
        names(row["Keras class"])[0]: tuple(names(row["attributes, each a plain tree"]))
        for row in table("callbacks")
    }


def check_callbacks(found: Mapping[str, Mapping[str, Any]]) -> None:
    beside = set(fields("callback fields"))
    for key, state in found.items():
        name, _, place = key.partition("/")
        assert place.isdecimal()
        assert set(state) <= {*beside, *listed_attributes().get(name, ())}, key


@pytest.mark.pure
def test_the_listed_attributes_are_those_that_are_stored() -> None:
    assert listed_attributes() == dict(keras_callbacks.KERAS_STATE)


def test_a_csv_logger_has_the_documented_fields(tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), keras.callbacks.CSVLogger(tmp_path / "log.csv"), MlflowCheckpoint(), epochs=1)
    found = state_of(run.info.run_id, "latest")["callbacks"]
    documented = set(fields("callback fields")) - {"own", "attributes", "monitor_op"}
    assert set(found["CSVLogger/0"]) == documented | {"keys"}
    check_callbacks(found)


@pytest.mark.pure
def test_every_type_of_a_plain_tree_is_documented_with_its_fields() -> None:
    documented = {names(row["$type"])[0]: set(names(row["fields"])) for row in table("plain")}
    values = {**fixture.memory(), "variable": keras.Variable(1.0)}
    found: dict[str, set[str]] = {}

    def walk(tree: Any) -> None:
        if isinstance(tree, dict) and "$type" in tree:
            found[tree["$type"]] = set(tree) - {"$type"}
        for held in tree.values() if isinstance(tree, dict) else tree:
            if isinstance(held, (dict, list)):
                walk(held)

    for value in (values, Counter("a"), OrderedDict(a=1), defaultdict(list)):
        walk(Encoder().encode(value))
    assert {**found, "in-place": {"value"}, "absent": set()} == documented


@pytest.mark.pure
def test_the_algorithms_and_versions_are_those_of_the_code() -> None:
    assert {names(r["algorithm"])[0] for r in table("algorithms")} == set(digests.ALGORITHMS)
    assert manifests.FORMAT == training_state.FORMAT == "1.0"
    assert FIXTURES.name == f"format-{manifests.FORMAT}"
    for name in ("manifest", "state", "own", "series", "lease", "files", "callback fields"):
        assert {row["since"] for row in table(name)} == {"1.0"}


def tags_in_code() -> set[str]:
    """Every text in the package that is a tag, or the beginning of one."""
    return {
        node.value
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"ckpt\.[a-z_]+\.?", node.value)
    }


@pytest.mark.pure
def test_every_tag_of_the_code_is_documented() -> None:
    tables = ("model tags", "run tags", "slim tags", "version tags")
    rows = [row for name in tables for row in table(name)]
    documented = {re.sub("<.*>", "", names(row["tag"])[0]) for row in rows}
    assert documented == tags_in_code()


def test_the_tags_of_a_checkpoint_and_of_its_run_are_the_documented_ones() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    models = {names(row["tag"])[0]: row for row in table("model tags")}
    always = {name for name, row in models.items() if row["written"] in ("create", "commit")}
    committed = mlflow.MlflowClient().get_logged_model(ckpt.resolve(run.info.run_id).model_id)
    found = {key for key in committed.tags if key.startswith("ckpt.")}
    assert found - {"ckpt.final"} == always | {"ckpt.complete"}
    assert committed.tags["ckpt.complete"] == "true"
    assert (committed.model_type, committed.status.value) == ("keras-checkpoint", "READY")
    assert committed.params == {"series": "ckpt", "epoch": "2", "step": "4"}
    on_run = {key for key in mlflow.get_run(run.info.run_id).data.tags if key.startswith("ckpt.")}
    assert on_run == {"ckpt.series.ckpt"}
    text = mlflow.get_run(run.info.run_id).data.tags["ckpt.series.ckpt"]
    documented, seen = fields("series"), set[str]()
    assert compare(json.loads(text), documented, seen) == []
    assert seen == set(documented)


@pytest.mark.pure
def test_the_values_of_the_completion_tag_are_those_of_the_code() -> None:
    documented = {names(row["ckpt.complete"])[0] for row in table("complete")}
    text = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "store").glob("*.py"))
    written = set(re.findall(r'COMPLETE_TAG: "([a-z]+)"', text))
    assert written == documented


@pytest.mark.pure
def test_a_lease_has_the_documented_fields() -> None:
    documented, seen = fields("lease"), set[str]()
    for flags in ({}, {"over": True, "done": True}):
        text = Record(Owner.me(), "nonce", **flags).text()
        assert compare(json.loads(text), documented, seen) == []
    assert seen == set(documented)


# --- a reader that was written from the document ---------------------------------


class AsDocumented:
    """Verifies and reads a checkpoint in a folder, as `docs/format.md` says, and with no more."""

    HASHES: Mapping[str, Callable[[bytes], Any]] = {
        "blake3": blake3.blake3,
        "sha256": hashlib.sha256,
    }

    def __init__(self, root: Path, digest: str) -> None:
        self.root = root
        self.manifest = json.loads(self._verified(FILENAME, digest))
        assert self.manifest["format"].partition(".")[0] == "1"

    def _verified(self, path: str, digest: str) -> bytes:
        content = (self.root / path).read_bytes()
        algorithm, _, text = digest.partition(":")
        assert self.HASHES[algorithm](content).hexdigest() == text, path
        return content

    def file(self, path: str) -> bytes:
        (entry,) = (e for e in self.manifest["files"] if e["path"] == path)
        content = self._verified(path, entry["digest"])
        assert len(content) == entry["size"]
        return content

    def state(self) -> Any:
        self.file("state/training_state.h5")
        with h5py.File(self.root / "state/training_state.h5") as file:
            assert file.attrs["format"].partition(".")[0] == "1"
            text = bytes(file["state"][()]).decode()
            return self._tree(json.loads(text), file["arrays"])

    def _tree(self, value: Any, arrays: h5py.Group) -> Any:
        if isinstance(value, list):
            return [self._tree(v, arrays) for v in value]
        if not isinstance(value, dict):
            return value
        if list(value) == ["$array"]:
            dataset = arrays[value["$array"]]
            name = dataset.attrs["dtype"]
            if name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"):
                return dataset[()].view(getattr(ml_dtypes, name))
            return np.asarray(dataset[()])
        if list(value) == ["$tuple"]:
            return tuple(self._tree(v, arrays) for v in value["$tuple"])
        return {re.sub(r"^\$\$", "$", k): self._tree(v, arrays) for k, v in value.items()}


@pytest.mark.pure
@pytest.mark.parametrize("name", fixture.KINDS)
def test_a_reader_that_was_written_from_the_document_reads_the_fixture(name: str) -> None:
    reader = AsDocumented(FIXTURES / name, EXPECTED[name]["digest"])
    listed = [entry["path"] for entry in reader.manifest["files"]]
    assert all(reader.file(path) for path in listed)
    assert fixture.shown(reader.state()) == EXPECTED[name]["state"]
    documented = {names(row["path"])[0]: row["present"] for row in table("files")}
    word = "whole model" if name == "whole" else "weights only"
    fits = {path for path, when in documented.items() if when.startswith((word, "kinds"))}
    assert set(listed) == fits


@pytest.mark.pure
@pytest.mark.parametrize("name", fixture.KINDS)
def test_the_state_file_has_the_documented_objects_and_nothing_clever(name: str) -> None:
    path = FIXTURES / name / training_state.PATH
    assert path.read_bytes()[8] == 0  # version of the superblock
    with h5py.File(path) as file:
        assert set(file) == {"state", "arrays"}
        assert set(file.attrs) == {"format"}
        assert (file["state"].dtype, file["state"].ndim) == (np.uint8, 1)
        assert sorted(map(int, file["arrays"])) == list(range(len(file["arrays"])))
        for dataset in (file["state"], *file["arrays"].values()):
            plist = dataset.id.get_create_plist()
            assert plist.get_layout() == h5py.h5d.CONTIGUOUS
            assert (plist.get_nfilters(), plist.get_external_count()) == (0, 0)
            assert set(dataset.attrs) == ({"dtype"} if dataset.name != "/state" else set())
            if dataset.attrs.get("dtype") == "bfloat16":
                assert dataset.dtype == np.uint16
        dtypes = {dataset.attrs["dtype"] for dataset in file["arrays"].values()}
        assert {"bfloat16", "float32", "uint32", "uint8"} <= dtypes


# --- the committed fixtures --------------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize("name", fixture.KINDS)
def test_the_fixture_verifies_and_its_state_is_what_was_written(name: str) -> None:
    root = FIXTURES / name
    digest = EXPECTED[name]["digest"]
    found = Manifest.parse((root / FILENAME).read_bytes(), digest=digest)
    assert found.format == "1.0"
    assert all(entry.verify(root).is_file() for entry in found.files)
    on_disk = {p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()}
    assert on_disk == {FILENAME, *(entry.path for entry in found.files)}
    state = training_state.read(root / training_state.PATH)
    assert fixture.shown(state) == EXPECTED[name]["state"]
    tree = state["callbacks"]["Remembering/0"]["own"]
    values, expected = Decoder().decode(tree), fixture.memory()
    assert {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in expected.items()}
    again = Encoder().encode(values)
    assert fixture.shown(again) == fixture.shown(Encoder().encode(expected))


@pytest.mark.pure
def test_the_fixtures_say_nothing_of_the_machine_that_made_them() -> None:
    total = 0
    for path in FIXTURES.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            total += len(content)
            assert not re.search(
                rb"(/(home|root|tmp|usr|opt|mnt)/|://|file:|@[\w.]+\.\w)", content
            ), path
    assert total < 200_000


class Once:
    """Progress of a commit that no other process goes on with."""

    def __init__(self) -> None:
        self.progress: dict[str, Any] = {}

    def note(self, progress: Mapping[str, Any]) -> None:
        self.progress = dict(progress)


def put(name: str, folder: Path) -> str:
    """Commit a fixture to a new run, as who copies runs would; return the run's ID."""
    directory = folder / f"copy-of-{name}"
    shutil.copytree(FIXTURES / name, directory)
    facts = json.loads((directory / FILENAME).read_bytes())["checkpoint"]
    with mlflow.start_run() as run:
        pass
    store, series = Store(), Series(name="ckpt", monitor=facts["monitor"], mode=facts["mode"])
    store.set_series(store.run(run.info.run_id), series)
    values = EXPECTED[name]["metrics"]
    rows = [MetricRow(key=k, value=v, timestamp=1, step=facts["epoch"]) for k, v in values.items()]
    step = MetricRow(key="ckpt_step", value=facts["step"], timestamp=1, step=facts["step"])
    position = Position(**{k: facts[k] for k in ("series", "kind", "epoch", "step", "fit")})
    request = Commit(
        entry="0" * 32,
        position=position,
        directory=directory,
        digest=EXPECTED[name]["digest"],
        metrics=[*rows, step],
        values=values,
        weights_only=EXPECTED[name]["weights_only"],
        capture="copy-on-write",
    )
    store.commit(store.run(run.info.run_id), request, Once(), give_up=True)
    return str(run.info.run_id)


@pytest.mark.parametrize("name", fixture.KINDS)
def test_the_fixture_loads_with_its_weights_and_its_optimizer(name: str, tmp_path: Path) -> None:
    run_id = put(name, tmp_path)
    found = ckpt.resolve(run_id)
    assert (found.name, found.metrics) == (EXPECTED[name]["name"], EXPECTED[name]["metrics"])
    model = ckpt.load_model(run_id)
    assert fixture.held(model.weights) == EXPECTED[name]["weights"]
    assert fixture.held(model.optimizer.variables) == EXPECTED[name]["optimizer"]
    mine = fixture.build()
    ckpt.load_weights(mine, run_id)
    assert fixture.held(mine.weights) == EXPECTED[name]["weights"]
    assert model.predict(fixture.data()[0], verbose=0).shape == (16, 2)


class Looking(keras.callbacks.Callback):
    """Remember what a continued fit begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Any] | None = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.found is None:
            version, words, gauss = random.getstate()
            kind, keys, *rest = np.random.get_state(legacy=True)
            self.found = {
                "batch": batch,
                "weights": fixture.held(self.model.weights),
                "optimizer": fixture.held(self.model.optimizer.variables),
                "python": fixture.shown([version, np.array(words, np.uint32), gauss]),
                "numpy": fixture.shown([kind, keys, *rest]),
                "variables": fixture.shown(training_state.capture_variables(self.model)),
                "history": fixture.shown(copy.deepcopy(self.model.history.history)),
                "metrics": fixture.shown(training_state.capture_metrics(self.model)),
            }


@pytest.mark.parametrize("name", fixture.KINDS)
def test_a_fit_continues_from_the_fixture(name: str, tmp_path: Path) -> None:
    run_id = put(name, tmp_path)
    looking, state = Looking(), EXPECTED[name]["state"]
    _, checkpoint = fixture.KINDS[name]
    with mlflow.start_run(run_id=run_id):
        model = fixture.fit(looking, checkpoint=checkpoint)
    found = looking.found
    assert found is not None
    assert found["batch"] == state["batch"]
    for key in ("weights", "optimizer"):
        assert found[key] == EXPECTED[name][key]
    for key in ("python", "numpy"):
        assert found[key] == state["generators"][key]
    assert [v["value"] for v in found["variables"]] == [v["value"] for v in state["variables"]]
    assert found["history"] == state["callbacks"]["History/0"]["history"]
    if state["batch"]:
        values = [[v["value"] for v in each["metrics"]] for each in (found, state)]
        assert values[0] == values[1]
    assert model.history.epoch == [0, 1, 2]
    assert ckpt.resolve(run_id, "final").step == 6
    assert mlflow.get_run(run_id).data.tags["ckpt.resumed_from"].startswith(f"step={state['step']}")


# --- later versions ----------------------------------------------------------------


def reseal(run_id: str, change: Callable[[dict[str, Any]], None], **files: bytes) -> None:
    """Commit the newest checkpoint of a run with other files and another manifest."""
    checkpoint = ckpt.resolve(run_id)
    raw = json.loads(stored.read(checkpoint, FILENAME))
    for path, content in files.items():
        stored.write(checkpoint, path, content)
        raw["files"] = [e for e in raw["files"] if e["path"] != path]
        entry = {"path": path, "size": len(content), "digest": digest_bytes(content, "sha256")}
        raw["files"].append(entry)
    change(raw)
    written = json.dumps(raw).encode()
    stored.write(checkpoint, FILENAME, written)
    tags = {"ckpt.manifest_digest": digest_bytes(written, "sha256")}
    mlflow.MlflowClient().set_logged_model_tags(checkpoint.model_id, tags)


def written_as(version: str, state: Any, folder: Path, patch: pytest.MonkeyPatch) -> bytes:
    """The training state file that a version of the package would write."""
    with patch.context() as inner:
        inner.setattr(training_state, "FORMAT", version)
        training_state.write(folder / "state.h5", state)
    return (folder / "state.h5").read_bytes()


def resume(run_id: str) -> None:
    with mlflow.start_run(run_id=run_id):
        fixture.fit(checkpoint=fixture.KINDS["whole"][1])


def sentence(version: str) -> str:
    """What every refusal of a newer format says, in one line."""
    return (
        rf"^[^\n]*format {re.escape(version)}\b[^\n]* 1\.x\b[^\n]*pip install -U mlflow-ckpt[^\n]*$"
    )


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(ckpt.load_model, id="load_model"),
        pytest.param(lambda run_id: ckpt.load_model(run_id, "step=5"), id="by-step"),
        pytest.param(lambda run_id: ckpt.load_weights(fixture.build(), run_id), id="load_weights"),
        pytest.param(lambda run_id: ckpt.download(run_id, "latest", "out"), id="download"),
        pytest.param(ckpt.fork, id="fork"),
        pytest.param(resume, id="resume"),
    ],
)
def test_a_newer_manifest_is_refused_in_one_line_and_not_taken_for_damage(
    use: Callable[[str], Any], tmp_path: Path
) -> None:
    run_id = put("whole", tmp_path)
    reseal(run_id, lambda raw: raw.update(format="2.3", files="elsewhere"))
    with pytest.raises(FormatTooNew, match=sentence("2.3")):
        use(run_id)
    tags = mlflow.MlflowClient().get_logged_model(ckpt.resolve(run_id).model_id).tags
    assert tags["ckpt.complete"] == "true"
    assert "ckpt.corrupt_reason" not in tags


def test_the_command_line_refuses_a_newer_manifest_with_that_line_alone(tmp_path: Path) -> None:
    run_id = put("whole", tmp_path)
    reseal(run_id, lambda raw: raw.update(format="2.3"))
    for command in (["show", run_id], ["pull", run_id]):
        done = CliRunner().invoke(main, command)
        assert (done.exit_code, done.stdout) == (1, "")
        assert re.search(sentence("2.3"), done.stderr.strip())


def test_a_newer_training_state_is_refused_at_a_resume_and_the_model_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put("whole", tmp_path)
    state = state_of(run_id, "latest")
    newer = written_as("2.0", {**state, "kind": "else"}, tmp_path, monkeypatch)
    reseal(run_id, lambda raw: None, **{training_state.PATH: newer})
    with pytest.raises(FormatTooNew, match=sentence("2.0")):
        resume(run_id)
    assert fixture.held(ckpt.load_model(run_id).weights) == EXPECTED["whole"]["weights"]
    assert ckpt.resolve(run_id).step == 5


def test_a_training_state_of_another_layout_is_not_taken_for_damage(tmp_path: Path) -> None:
    run_id = put("whole", tmp_path)
    with h5py.File(tmp_path / "newer.h5", "w", libver="latest") as file:
        file.attrs["format"] = "2.0"
    newer = (tmp_path / "newer.h5").read_bytes()
    reseal(run_id, lambda raw: None, **{training_state.PATH: newer})
    with pytest.raises(FormatTooNew, match="pip install -U mlflow-ckpt"):
        resume(run_id)
    assert ckpt.resolve(run_id).step == 5
    tags = mlflow.MlflowClient().get_logged_model(ckpt.resolve(run_id).model_id).tags
    assert (tags["ckpt.complete"], "ckpt.corrupt_reason" in tags) == ("true", False)


@pytest.mark.pure
@pytest.mark.parametrize(
    "version",
    [
        "",
        "one",
        "v1.0",
        ".1",
        "x.1",
        "0.9",
        "-1.0",
        "+1.0",
        "1.",
        "1.x",
        " 1.0",
        "1.0\n",
        "1.0.0",
        "\uff11.0",
        "1_0.0",
    ],
)
def test_text_that_is_no_version_is_refused(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = json.loads((FIXTURES / "whole" / FILENAME).read_bytes())
    data = json.dumps({**raw, "format": version}).encode()
    with pytest.raises(ManifestError):
        Manifest.parse(data, digest=digest_bytes(data))
    state = training_state.read(FIXTURES / "whole" / training_state.PATH)
    written_as(version, state, tmp_path, monkeypatch)
    with pytest.raises(ManifestError):
        training_state.read(tmp_path / "state.h5")


def with_more(value: Any, more: Iterator[tuple[str, Any]], sealed: tuple[str, ...], at: str) -> Any:
    """A copy in which every mapping that may grow has another key."""
    if isinstance(value, list):
        return [with_more(v, more, sealed, f"{at}[]") for v in value]
    if not isinstance(value, dict) or at.startswith(sealed):
        return value
    grown = {k: with_more(v, more, sealed, f"{at}.{k}".lstrip(".")) for k, v in value.items()}
    key, held = next(more)
    return {key: held, **grown} if key not in grown else grown


# Compared whole with the fit at hand, keyed by names of the user's, or Keras's business.
SEALED = (
    "guard.optimizer", "guard.loss", "guard.data.order", "logs", "callbacks", "build_config",
)  # fmt: skip
SEALED_IN_MANIFEST = ("checkpoint.metrics", "versions")
EXTRA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
NEW_KEYS = st.sampled_from(["later", "é", "$later", "files2", "note"])


@st.composite
def additions(draw: st.DrawFn) -> Iterator[tuple[str, Any]]:
    some = draw(st.lists(st.tuples(NEW_KEYS, EXTRA), min_size=1, max_size=5))

    def forever() -> Iterator[tuple[str, Any]]:
        while True:
            yield from some

    return forever()


@pytest.mark.pure
@settings(deadline=None, max_examples=30)
@given(additions(), additions())
def test_unknown_fields_are_ignored_at_every_level(more: Any, other: Any) -> None:
    raw = json.loads((FIXTURES / "whole" / FILENAME).read_bytes())
    before = Manifest.parse(json.dumps(raw).encode(), digest=digest_bytes(json.dumps(raw).encode()))
    grown = json.dumps(with_more(raw, more, SEALED_IN_MANIFEST, "")).encode()
    read = Manifest.parse(grown, digest=digest_bytes(grown))
    assert (read.files, read.format) == (before.files, before.format)
    assert before.checkpoint.items() <= read.checkpoint.items()
    fingerprints.check_architecture(fixture.build(), read.model, source="a later version")
    state = training_state.read(FIXTURES / "whole" / training_state.PATH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.h5"
        training_state.write(path, with_more(state, other, SEALED, ""))
        found = training_state.read(path)
    assert fixture.shown(only_known(found, state)) == fixture.shown(state)


def only_known(value: Any, known: Any) -> Any:
    if isinstance(value, dict) and isinstance(known, dict):
        return {k: only_known(v, known[k]) for k, v in value.items() if k in known}
    if isinstance(value, list) and isinstance(known, list):
        return [only_known(v, k) for v, k in zip(value, known, strict=True)]
    return value


def test_a_checkpoint_of_a_later_minor_loads_and_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put("whole", tmp_path)
    state = state_of(run_id, "latest")

    def more() -> Iterator[tuple[str, Any]]:
        while True:
            yield "later", {"a": [1, None]}

    grown = with_more(state, more(), SEALED, "")
    grown["callbacks"]["Later/0"] = {"attributes": {"x": 1}}
    grown["callbacks"]["EarlyStopping/0"] = {**state["callbacks"]["EarlyStopping/0"], "later": 1}
    later = written_as("1.12", grown, tmp_path, monkeypatch)

    def change(raw: dict[str, Any]) -> None:
        raw.update(with_more(raw, more(), SEALED_IN_MANIFEST, ""), format="1.12")

    reseal(run_id, change, **{training_state.PATH: later, "later/notes.bin": b"?"})
    checkpoint = ckpt.resolve(run_id)
    stored.write(checkpoint, "unlisted", b"?")
    client = mlflow.MlflowClient()
    client.set_logged_model_tags(checkpoint.model_id, {"ckpt.later": "x", "ckpt.complete.by": "y"})
    client.set_tag(run_id, "ckpt.later", "{")
    series = json.loads(client.get_run(run_id).data.tags["ckpt.series.ckpt"])
    client.set_tag(run_id, "ckpt.series.ckpt", json.dumps({**series, "later": [1]}))
    assert fixture.held(ckpt.load_model(run_id).weights) == EXPECTED["whole"]["weights"]
    downloaded = ckpt.download(run_id, "latest", tmp_path / "out")
    assert (downloaded / "later" / "notes.bin").read_bytes() == b"?"
    assert not (downloaded / "unlisted").exists()
    assert CliRunner().invoke(main, ["show", run_id]).exit_code == 0
    looking = Looking()
    with mlflow.start_run(run_id=run_id):
        fixture.fit(looking, checkpoint=fixture.KINDS["whole"][1])
    assert looking.found is not None
    assert looking.found["optimizer"] == EXPECTED["whole"]["optimizer"]
    assert looking.found["batch"] == 1


def without_optional(value: Any, documented: Mapping[str, Row], at: str = "") -> Any:
    """What is left when every documented optional field is left out."""
    if isinstance(value, list):
        return [without_optional(v, documented, f"{at}[]") for v in value]
    if not isinstance(value, dict):
        return value
    left = {}
    for key, held in value.items():
        known = [f"{at}.{name}".lstrip(".") for name in (key, "*")]
        path = next(p for p in known if p in documented)
        if documented[path]["required"] == "yes" or path.endswith("*"):
            whole = documented[path]["type"] == "any" or path in ("callbacks", "data.own")
            left[key] = held if whole else without_optional(held, documented, path)
    return left


def test_missing_optional_fields_are_their_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put("whole", tmp_path)
    state = state_of(run_id, "latest")
    left = without_optional(state, fields("state"))
    assert {"guard", "build_config", "not_stored"} & set(left) == set()
    assert set(left["generators"]) == {"python", "numpy"}
    shorter = written_as("1.0", left, tmp_path, monkeypatch)

    def change(raw: dict[str, Any]) -> None:
        fewer = without_optional(raw, fields("manifest"))
        raw.clear()
        raw.update(fewer)

    reseal(run_id, change, **{training_state.PATH: shorter})
    raw = json.loads(stored.read(ckpt.resolve(run_id), FILENAME))
    assert set(raw) == {"format", "files", "checkpoint"}
    assert set(raw["checkpoint"]) == {"series", "kind", "epoch", "step"}
    assert fixture.held(ckpt.load_model(run_id).weights) == EXPECTED["whole"]["weights"]
    with pytest.raises(ModelMismatch, match="Expected: 0 variables. Received: 4"):
        ckpt.load_weights(fixture.build(), run_id)


def test_a_training_state_without_optional_fields_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put("whole", tmp_path)
    left = without_optional(state_of(run_id, "latest"), fields("state"))
    shorter = written_as("1.0", left, tmp_path, monkeypatch)
    reseal(run_id, lambda raw: None, **{training_state.PATH: shorter})
    looking = Looking()
    with mlflow.start_run(run_id=run_id):
        fixture.fit(looking, checkpoint=fixture.KINDS["whole"][1])
    assert looking.found is not None
    assert looking.found["weights"] == EXPECTED["whole"]["weights"]
    assert looking.found["batch"] == 1


@pytest.mark.pure
@pytest.mark.parametrize("table_name", ["manifest", "state"])
def test_a_missing_required_field_is_refused(table_name: str, tmp_path: Path) -> None:
    tops = {p: r for p, r in fields(table_name).items() if not set(p) & set(".[*")}
    for name in [path for path, row in tops.items() if row["required"] == "yes"]:
        if table_name == "manifest":
            raw = json.loads((FIXTURES / "whole" / FILENAME).read_bytes())
            del raw[name]
            content = json.dumps(raw).encode()
            with pytest.raises(ManifestError):
                Manifest.parse(content, digest=digest_bytes(content))
            continue
        state = training_state.read(FIXTURES / "whole" / training_state.PATH)
        del state[name]
        training_state.write(tmp_path / "state.h5", state)
        with pytest.raises(ManifestError):
            training_state.read(tmp_path / "state.h5")
