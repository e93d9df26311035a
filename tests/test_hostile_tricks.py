"""Tricks with a name: what a checkpoint may try, and the sentence that it ends with."""

from __future__ import annotations

import io
import json
import os
import socketserver
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
import keras
import mlflow
import numpy as np
import pytest
from builders import data, fit, mlp
from keras import layers
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mutations import archived, members, mutate
from zoo import values_of

import mlflow_ckpt as ckpt
from mlflow_ckpt import (
    MlflowCheckpoint,
    hdf5,
    keras_internals,
    own_mark,
    plain_json,
    rehydrate,
    state_schema,
    zipped,
)
from mlflow_ckpt import manifest as manifests
from mlflow_ckpt import training_state as ts
from mlflow_ckpt.archive import Archive
from mlflow_ckpt.below import open_below
from mlflow_ckpt.callback_state import CallbackStates
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import CheckpointError, DigestMismatch, ManifestError, ModelNotLoadable
from mlflow_ckpt.formats import MEMBER, MODEL
from mlflow_ckpt.hdf5_types import Unlike
from mlflow_ckpt.keras_internals import _loading
from mlflow_ckpt.manifest import FILENAME, FileEntry
from mlflow_ckpt.mapped import mapped
from mlflow_ckpt.store import _bounded
from mlflow_ckpt.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading")


# --- what a config may name ---------------------------------------------------


def sequential(*stack: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), *stack, layers.Dense(2)])


def saved(model: keras.Model, tmp_path: Path) -> dict[str, bytes]:
    model.save(tmp_path / "m.keras")
    return members((tmp_path / "m.keras").read_bytes())


def load(parts: dict[str, bytes], tmp_path: Path, **options: Any) -> keras.Model:
    given = {"custom_objects": None, "compile": True, "safe_mode": True, **options}
    path = tmp_path / "hostile.keras"
    path.write_bytes(archived([*parts.items()]))
    with path.open("rb") as file:
        return rehydrate.read_model({MODEL: file}, source="x", recorded={}, **given)


def with_layer(tmp_path: Path, **config: Any) -> dict[str, bytes]:
    """A model whose first layer is what `config` says."""
    parts = saved(sequential(layers.Dense(4)), tmp_path)
    tree = json.loads(parts["config.json"])
    tree["config"]["layers"][1] = config
    return {**parts, "config.json": json.dumps(tree).encode()}


LOOKUP = {
    "module": "keras.layers",
    "class_name": "StringLookup",
    "config": {"name": "words", "vocabulary": "/etc/passwd"},
}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary-of-this-machine": (
        LOOKUP,
        r"'words' \(StringLookup\) reads its vocabulary from the file '/etc/passwd'.*safe",
    ),
    "saved-model": (
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/tmp/x"}},
        "TFSMLayer loads a SavedModel, which is code.*safe_mode=False",
    ),
    "torch-module": (
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": ""}},
        "PyTorch, which is code.*safe_mode=False",
    ),
    "jax-function": (
        {"module": "keras.layers", "class_name": "JaxLayer", "config": {}},
        "calls a function.*safe_mode=False",
    ),
    "foreign-class": (
        {"module": "subprocess", "class_name": "Popen", "config": {"args": "id"},
         "registered_name": "Popen"},
        r"'Popen' of the module 'subprocess'.*custom_objects=\{'Popen': Popen\}",
    ),
    "class-of-a-package": (
        {"module": "keras_hub.models", "class_name": "Backbone", "config": {}},
        "'Backbone' of the module 'keras_hub.models'.*import what registers it",
    ),
    "download": (
        {"module": "keras.layers", "class_name": "Dense",
         "config": {"units": 2, "activation": {"module": "keras.utils", "class_name": "function",
                    "config": "get_file", "registered_name": "get_file"}}},
        "'get_file' of the module 'keras.utils'",
    ),
    "a-dot-in-a-name": (
        {"module": "keras", "class_name": "datasets.mnist.load_data", "config": {}},
        "'datasets.mnist.load_data' of the module 'keras'",
    ),
    "lambda-by-another-name": (
        {"module": "keras.layers", "class_name": "Dense", "config": {"units": 2, "activation": {
            "class_name": "__lambda__", "config": {"value": ["4wEAAAA=", None, None]}}}},
        "holds Python code, a lambda. safe_mode=False",
    ),
    "old-lambda": (
        {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEAAAA=", None, None],
                                            "function_type": "lambda"}},
        r"'l' \(Lambda\) holds Python code.*safe_mode=False",
    ),
    "endless-text": (
        {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U1000000000"}},
        "Expected an array of numbers",
    ),
}  # fmt: skip


@pytest.mark.pure
@pytest.mark.parametrize("by_keras", [False, True], ids=["mapped", "by-keras"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_would_run_or_read_is_refused_with_what_allows_it(
    name: str, by_keras: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, text = CONFIGS[name]
    if by_keras:
        monkeypatch.delattr(_loading.saving_lib, "_raise_loading_failure")
    with pytest.raises(ModelNotLoadable, match=text):
        load(with_layer(tmp_path, **config), tmp_path)


@pytest.mark.pure
def test_a_lambda_is_refused_and_can_be_allowed(tmp_path: Path) -> None:
    parts = saved(sequential(layers.Lambda(lambda x: x * 2, output_shape=(4,))), tmp_path)
    with pytest.raises(ModelNotLoadable, match="a lambda.*safe_mode=False allows it, for files"):
        load(parts, tmp_path)
    assert load(parts, tmp_path, safe_mode=False).built


@pytest.mark.pure
def test_a_class_is_allowed_by_its_name_and_a_registered_one_as_it_is(tmp_path: Path) -> None:
    class Mine(layers.Dense):
        pass

    parts = saved(sequential(Mine(4)), tmp_path)
    with pytest.raises(ModelNotLoadable, match=r"custom_objects=\{'Mine': Mine\}"):
        load(parts, tmp_path)
    assert type(load(parts, tmp_path, custom_objects={"Mine": Mine}).layers[0]) is Mine
    with keras.saving.custom_object_scope({"Mine": Mine}):
        assert type(load(parts, tmp_path).layers[0]) is Mine


@pytest.mark.pure
def test_a_vocabulary_of_the_file_itself_is_no_path(tmp_path: Path) -> None:
    words = layers.StringLookup(vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), words, layers.Embedding(4, 2)])
    assert load(saved(model, tmp_path), tmp_path).layers[0].get_vocabulary() == ["[UNK]", "a", "b"]


# --- how much a file may ask for ------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize("custom", [False, True], ids=["keras", "custom"])
@pytest.mark.parametrize(
    ("name", "config"),
    [("Dense", {"units": 10**10}), ("Embedding", {"input_dim": 10**9, "output_dim": 512})],
)
def test_a_layer_larger_than_its_file_is_never_made(
    name: str, config: dict[str, Any], custom: bool, tmp_path: Path
) -> None:
    class Own(layers.Dense):
        pass

    objects = {"Own": Own} if custom else None
    parts = with_layer(tmp_path, module="keras.layers", class_name=name, config=config)
    with pytest.raises(ModelNotLoadable, match="more memory than its file explains: '.*allows it"):
        load(parts, tmp_path, custom_objects=objects)


@pytest.mark.pure
def test_a_build_config_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    parts = saved(sequential(), tmp_path)
    (tmp_path / "m").write_bytes(archived([*parts.items()]))
    with (tmp_path / "m").open("rb") as file, pytest.raises(ModelNotLoadable, match="more memory"):
        rehydrate.build_from_recorded(
            keras.Sequential([layers.Dense(1000)]), {"input_shape": [None, 10**9]},
            {MODEL: file}, source="x",
        )  # fmt: skip


@pytest.mark.pure
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep"),
        pytest.param(b"[" * 300 + b"]" * 300, id="deeper-than-needed"),
        pytest.param(b"[" + b"[]," * 2_000_000 + b"0]", id="many"),
        pytest.param(b"9" * 5000, id="long-number"),
    ],
)
def test_json_that_fills_the_memory_or_the_stack_is_not_parsed(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="levels|values|digits"):
        plain_json.loads(text)
    parts = saved(sequential(), tmp_path)
    with pytest.raises(ModelNotLoadable):
        load({**parts, "config.json": text}, tmp_path)


@pytest.mark.pure
def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    parts = saved(sequential(), tmp_path)
    parts["model.weights.npz"] = parts.pop(MEMBER)
    with pytest.raises(ModelNotLoadable, match="0 members called 'model.weights.h5'"):
        load(parts, tmp_path)


# --- HDF5 and zip ---------------------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_hdf5_of_another_layout_is_refused_and_of_this_one_is_read(libver: str) -> None:
    content = io.BytesIO()
    kinds = [np.dtype(k).newbyteorder(o) for k in "bhilBHILefd" for o in "<>"] + ["c8", "c16", "?"]
    with h5py.File(content, "w", libver=libver) as h5:
        for index, kind in enumerate(kinds):
            h5[f"deep/{index}"] = np.ones((2, 3), kind)
        for index in range(500):
            h5[f"many/{index}"] = np.float32(index)
    view = memoryview(content.getvalue())
    if libver == "latest":
        with pytest.raises(Unlike, match="superblock"):
            hdf5.look_through(view)
        return
    found = {each.path: each for each in hdf5.look_through(view)}
    assert len(found) == 500 + len(kinds)
    first = found["/many/499"]
    assert np.frombuffer(view[first.start :][: first.size], "f4") == 499


@pytest.mark.pure
def test_a_list_of_free_blocks_in_a_circle_is_refused() -> None:
    # HDF5 1.14 follows it for ever.
    content = io.BytesIO()
    with h5py.File(content, "w") as h5:
        h5["x"] = 1.0
    raw = bytearray(content.getvalue())
    heap = raw.index(b"HEAP")
    start = int.from_bytes(raw[heap + 24 : heap + 32], "little")
    raw[heap + 16 : heap + 24] = (16).to_bytes(8, "little")
    raw[start + 16 : start + 32] = (16).to_bytes(8, "little") + (16).to_bytes(8, "little")
    with pytest.raises(Unlike, match="damaged heap"):
        hdf5.look_through(memoryview(raw))


def large_by_ours(path: Path, size: int) -> None:
    with Stream(path) as stream:
        archive = Archive(stream, time.localtime(0))
        archive.add("config.json", b"{}")
        archive.begin(MEMBER, size)
        stream.position += size  # a hole
        archive.end()
        archive.add("assets/é", b"behind")
        archive.close()


def large_by_zipfile(path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("config.json", b"{}")
        with packed.open(MEMBER, "w", force_zip64=True) as member:
            member.write(bytes(size))
        packed.writestr("assets/é", b"behind")


@pytest.mark.pure
@pytest.mark.parametrize(
    ("write", "size"),
    [
        pytest.param(large_by_ours, (1 << 32) + 100, id="ours"),
        pytest.param(large_by_ours, (1 << 32) - 60, id="ours-with-its-directory-beyond"),
        pytest.param(large_by_zipfile, 5000, id="zipfile"),
        pytest.param(large_by_zipfile, 50, id="zipfile-that-expected-more"),
    ],
)
def test_large_archives_are_read(
    write: Any, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # writing 4 GiB takes too long
    path = tmp_path / "large.zip"
    write(path, size)
    with path.open("rb") as file, memoryview(mapped(file)) as view:
        found = zipped.look_through(view)
        assert found[MEMBER].size == size
        last = found["assets/é"]
        assert bytes(view[last.start : last.start + last.size]) == b"behind"


# --- the state ------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state that a fit would store."""
    from mlflow_ckpt.fit_state import FitState

    model = mlp(run_eagerly=True)
    x, y = data()
    model.fit(x, y, verbose=0)
    captured = FitState(model, [], None).capture(0)
    more = {"kind": "epoch", "epoch": 1, "step": 2, "epoch_began_at": 2, "best": 0.5, "fit": 1,
            "offset": 0, "initial_epoch": 0, "epochs": 3}  # fmt: skip
    return {**more, **captured}


def place(tree: Any, *keys: Any, value: Any) -> None:
    for key in keys[:-1]:
        tree = tree[key]
    tree[keys[-1]] = value


@pytest.mark.pure
@pytest.mark.parametrize(
    ("keys", "value", "where"),
    [
        (("fit",), "1", "state.fit"),
        (("fit",), 10**30, "state.fit"),
        (("stop_training",), 1, "state.stop_training"),
        (("batch",), 7, "state.batch"),
        (("generators", "numpy", 2), 10**6, r"state.generators.numpy\[2\]"),
        (("generators", "numpy", 0), "PCG64", r"state.generators.numpy\[0\]"),
        (("generators", "python", 1), np.zeros(3, np.uint32), r"state.generators.python\[1\]"),
        (("generators", "keras"), np.zeros(2), "state.generators.keras"),
        (("variables",), [{"path": "x", "value": 3}], r"state.variables\[0\].value"),
        (("callbacks",), {"x/0": 3}, "state.callbacks.x/0"),
        (("guard", "loss"), np.zeros(3), "state.guard"),
        (("build_config",), {"input_shape": np.zeros(3)}, "state.build_config"),
        (("data",), {"kind": "tf.data"}, "state.data"),
        (
            ("data",),
            {"kind": "tf.data", "made": [10**9], "num_batches": 2, "born": None, "read": 0,
             "own": {}, "exactness": ["true", ""]},
            "state.data.made",
        ),
    ],
)  # fmt: skip
def test_a_state_that_makes_no_sense_is_refused_with_the_place(
    keys: tuple[Any, ...], value: Any, where: str, state: dict[str, Any], tmp_path: Path
) -> None:
    ts.write(tmp_path / "s.h5", state)
    tree = ts.read(tmp_path / "s.h5")
    place(tree, *keys, value=value)
    ts.write(tmp_path / "s.h5", tree)
    with pytest.raises(ManifestError, match=rf"Expected: {where} is .* Received: "):
        ts.read(tmp_path / "s.h5")


@pytest.mark.pure
@pytest.mark.parametrize("bits", ["MT19937", "Philox"])
def test_a_generator_is_never_sent_beside_its_words(bits: str) -> None:
    from mlflow_ckpt.plain import Decoder, Encoder

    tree = Encoder().encode(np.random.Generator(getattr(np.random, bits)(3)))
    Decoder().decode(tree)
    place(tree["state"], *(("state", "pos") if bits == "MT19937" else ("buffer_pos",)), value=10**6)
    with pytest.raises(ManifestError, match="Expected a place among"):
        Decoder().decode(tree)


@pytest.mark.pure
def test_one_array_cannot_stand_in_many_places(tmp_path: Path) -> None:
    ts.write(tmp_path / "s.h5", {"x": np.ones(1000)})
    with h5py.File(tmp_path / "s.h5", "a") as h5:
        text = json.dumps([{"$array": "0"}] * 50_000).encode()
        del h5["state"]
        h5["state"] = np.frombuffer(text, np.uint8)
    with pytest.raises(ManifestError, match="or twice"):
        ts.read_tree(tmp_path / "s.h5")


@pytest.mark.pure
def test_a_mark_is_this_users_and_of_these_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "one"))
    mark = own_mark.mark(b"x")
    assert own_mark.is_own(b"x", mark)
    assert not own_mark.is_own(b"y", mark)
    assert not own_mark.is_own(b"x", b"")
    key = tmp_path / "one.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.chmod(0o644)
    assert not own_mark.is_own(b"x", mark)
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "another"))
    assert not own_mark.is_own(b"x", mark)


# --- files and folders ------------------------------------------------------------


def entry(path: str, content: bytes) -> FileEntry:
    return FileEntry(path=path, size=len(content), digest=digest_bytes(content))


@pytest.mark.pure
@pytest.mark.parametrize("trick", ["file-link", "folder-link", "pipe", "folder", "long-name"])
def test_nothing_but_a_file_below_the_folder_is_opened(trick: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    path = "data/x" if trick != "long-name" else "data/" + "x" * 5000
    if trick == "file-link":
        (root / "data" / "x").symlink_to(tmp_path / "elsewhere" / "x")
    elif trick == "folder-link":
        (root / "data").rmdir()
        (root / "data").symlink_to(tmp_path / "elsewhere")
    elif trick == "pipe":
        os.mkfifo(root / "data" / "x")
    elif trick == "folder":
        (root / "data" / "x").mkdir()
    with pytest.raises(DigestMismatch, match="no file"):
        entry(path, b"secret").open(root)


@pytest.mark.pure
def test_the_folder_itself_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "data").mkdir(parents=True)
    (tmp_path / "real" / "data" / "x").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with entry("data/x", b"x").open(tmp_path / "link") as file:
        assert file.read() == b"x"


@pytest.mark.pure
@pytest.mark.parametrize("paths", [["data/x", "data/x"], [FILENAME]])
def test_a_manifest_lists_each_file_once_and_not_itself(paths: list[str]) -> None:
    files = [{"path": path, "size": 1, "digest": digest_bytes(b"x")} for path in paths]
    raw = json.dumps({"format": "1.0", "files": files, "checkpoint": {}}).encode()
    with pytest.raises(ManifestError, match="each file once"):
        manifests.Manifest.parse(raw, digest=digest_bytes(raw))


@pytest.mark.pure
def test_an_endless_manifest_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "LARGEST", 10)
    (tmp_path / FILENAME).write_bytes(b"x" * 11)
    with pytest.raises(DigestMismatch, match="at most 10 bytes"):
        manifests.read_bounded(tmp_path)


# --- what a server sends ------------------------------------------------------------


class Liar(BaseHTTPRequestHandler):
    """Sends more than it should: told beforehand, or without an end."""

    def do_GET(self) -> None:
        self.send_response(200)
        if "told" in self.path:
            self.send_header("Content-Length", str(1 << 40))
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        """Quietly."""


@pytest.fixture
def liar() -> Iterator[str]:
    socketserver.TCPServer.allow_reuse_address = True
    with ThreadingHTTPServer(("127.0.0.1", 0), Liar) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.pure
@pytest.mark.parametrize("path", ["data/told", "data/endless"])
def test_a_larger_file_than_the_manifest_says_never_fills_the_disk(
    path: str, liar: str, tmp_path: Path
) -> None:
    with pytest.raises(DigestMismatch, match="is larger in the artifact store"):
        _bounded.download(HttpArtifactRepository(liar), path, tmp_path, limit=1 << 20)
    assert not (tmp_path / path).exists()


@pytest.mark.pure
def test_a_link_in_a_local_store_is_not_copied(tmp_path: Path) -> None:
    (tmp_path / "store" / "data").mkdir(parents=True)
    (tmp_path / "store" / "data" / "x").symlink_to("/dev/zero")
    (tmp_path / "store" / "data" / "y").write_bytes(b"y" * 100)
    repository = LocalArtifactRepository((tmp_path / "store").as_uri())
    with pytest.raises(OSError):
        _bounded.download(repository, "data/x", tmp_path / "here", limit=100)
    with pytest.raises(DigestMismatch, match="larger"):
        _bounded.download(repository, "data/y", tmp_path / "here", limit=99)
    _bounded.download(repository, "data/y", tmp_path / "here", limit=100)
    with open_below(tmp_path / "here", "data/y") as file:
        assert len(file.read()) == 100


# --- through a real store -------------------------------------------------------------


@pytest.fixture
def spoilt(tracking: str) -> Callable[[int], tuple[str, bytes] | None]:
    """Spoil the newest checkpoint of a run, and make manifest and tag fit."""
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    client = mlflow.MlflowClient()
    found = ckpt.resolve(run.info.run_id)
    folder = Path(mlflow.artifacts.download_artifacts(found.artifact_uri))
    old = {path: (folder / path).read_bytes() for path in (MODEL, ts.PATH, FILENAME)}

    def spoil(number: int) -> tuple[str, bytes] | None:
        files = {path: old[path] for path in (MODEL, ts.PATH)}
        mutation = mutate(number, files)
        tree = json.loads(old[FILENAME])
        for each in tree["files"]:
            if each["path"] in files:
                content = mutation.files[each["path"]]
                each.update(size=len(content), digest=digest_bytes(content))
        new = json.dumps(tree).encode()
        for path, content in {**mutation.files, FILENAME: new}.items():
            (folder / path).write_bytes(content)
        client.set_logged_model_tags(
            found.model_id, {"ckpt.manifest_digest": digest_bytes(new), "ckpt.complete": "true"}
        )
        return run.info.run_id, mutation.files[MODEL]

    return spoil


@pytest.mark.filterwarnings("ignore")
def test_a_real_store_with_spoilt_files_gives_our_errors_or_what_keras_reads(
    spoilt: Callable[[int], Any], tmp_path: Path
) -> None:
    ended = []
    for number in range(10_000, 10_040):
        run_id, content = spoilt(number)
        try:
            model = ckpt.load_model(run_id, "epoch=1")
        except CheckpointError as error:
            ended.append(type(error).__name__)
            continue
        (tmp_path / "m.keras").write_bytes(archived([*members(content).items()]))
        assert values_of(model) == values_of(keras.saving.load_model(tmp_path / "m.keras"))
        ended.append("right")
    assert set(ended) == {"right", "ModelNotLoadable"}


@pytest.mark.filterwarnings("ignore")
def test_a_fit_that_resumes_from_a_spoilt_state_ends_in_our_error_or_trains_on(
    spoilt: Callable[[int], Any], another_process: Callable[[], None]
) -> None:
    ended = []
    for number in range(20_000, 20_012):
        run_id, _ = spoilt(number)
        another_process()
        try:
            fit(mlp(), MlflowCheckpoint(run_id=run_id, resume="epoch=1"), epochs=1)
        except CheckpointError as error:
            ended.append(type(error).__name__)
        else:
            ended.append("trained")
    assert len(ended) == 12


# --- what the state of a callback may set ---------------------------------------------


class GivesBack(keras.callbacks.Callback):
    """Gives a state back twice, as a resume inside an epoch does."""

    def __init__(self, state: dict[str, Any], *callbacks: keras.callbacks.Callback) -> None:
        super().__init__()
        self.state, self.callbacks, self.left = state, callbacks, list[list[str]]()

    def on_train_begin(self, logs: Any = None) -> None:
        self.states = CallbackStates(self.callbacks)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not epoch:
            self.left += [self.states.restore(self.state) for _ in range(2)]


@pytest.mark.pure
def test_a_state_deletes_no_folder_and_writes_no_file_of_its_choice(tmp_path: Path) -> None:
    class Backup(keras.callbacks.BackupAndRestore):
        """A user's subclass, which remembers its options as some do."""

        def __init__(self, folder: Path) -> None:
            super().__init__(folder)
            self.backup_dir = folder

    class Log(keras.callbacks.CSVLogger):
        pass

    class Save(keras.callbacks.ModelCheckpoint):
        def __init__(self, filepath: str) -> None:
            super().__init__(filepath)
            self.filepath = filepath

    class Board(keras.callbacks.TensorBoard):
        pass

    own, theirs = tmp_path / "own", tmp_path / "theirs"
    own.mkdir()
    theirs.mkdir()
    (theirs / "precious").write_text("untouched")
    callbacks = [
        Backup(own / "backup"), Log(own / "log.csv"), Save(str(own / "m.keras")),
        Board(own / "board", write_graph=False, update_freq=10**6),
    ]  # fmt: skip
    paths = {
        "Backup/0": ["backup_dir", "_weights_path", "_training_metadata_path", "_prev_weights_path",
                     "_prev_training_metadata_path"],
        "Log/0": ["filename"],
        "Save/0": ["filepath"],
        "Board/0": ["log_dir", "_log_write_dir", "_train_dir", "_val_dir"],
    }  # fmt: skip
    state = {
        key: {"attributes": {name: str(theirs / "x.keras") for name in names}}
        for key, names in paths.items()
    }
    state["Backup/0"]["attributes"]["backup_dir"] = str(theirs)
    text = np.frombuffer(b"echo owned\n", dtype=np.uint8)
    state["Log/0"] |= {"text": text, "append_header": False, "begun": False, "keys": None}
    gives = GivesBack(state, *callbacks)
    fit(mlp(run_eagerly=True), *callbacks[:3], gives, epochs=1)
    assert [f.name for f in theirs.iterdir()] == ["precious"]
    assert gives.left == [sorted(f"{k}.{n}" for k, names in paths.items() for n in names)] * 2
    assert (own / "log.csv").read_bytes().startswith(b"echo owned\n0,")
    assert (own / "m.keras").exists()
    assert not (own / "backup").exists(), "Keras deletes the one that the script names"


class Ordered(keras.utils.PyDataset):
    """One batch; refuses data and options, and remembers an order."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.offset = [0, 1], 0

    @property
    def num_batches(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return data()


@pytest.mark.pure
def test_a_state_sets_no_option_and_no_data_of_a_dataset() -> None:
    found: list[Any] = []

    class Looks(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            feed = keras_internals.find_feed(self.model)
            assert feed is not None
            state = feed.state(0)
            state["own"]["attributes"] = {"_workers": 10**6, "order": np.zeros(99), "offset": 3}
            feed.resume(state, 0)
            found.append(feed.exactness())
            feed.release()

    dataset = Ordered()
    mlp(run_eagerly=True).fit(dataset, verbose=0, callbacks=[Looks()])
    assert (dataset.workers, dataset.order, dataset.offset) == (1, [0, 1], 3)
    assert found[0].level == "unknown"
    assert found[0].reason == "Ordered._workers, order cannot be given back"


@pytest.mark.pure
@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("made", [10**12], "state.data.made"),
        ("born", [10**12], "state.data.made"),
        ("read", 10**12, "state.data.read"),
    ],
)
def test_no_state_makes_a_resume_endless_whatever_step_it_says(
    field: str, value: Any, where: str, state: dict[str, Any]
) -> None:
    place_in = {"kind": "tf.data", "made": [0], "num_batches": 2, "born": None, "read": 0,
                "own": {}, "exactness": ["true", ""]}  # fmt: skip
    far = {**state, "step": 10**12, "epoch_began_at": 10**12, "epoch": 10**9, "batch": 0}
    state_schema.check({**far, "data": {**place_in, "made": [10**6], "read": 10**9}})
    with pytest.raises(
        ManifestError, match=rf"Expected: {where} is a whole number from 0 to 10+\."
    ):
        state_schema.check({**far, "data": {**place_in, field: value}})


# --- large ones that are real, and small ones that grow ---------------------------------


def manifest_of(layers_of_two: int, slots: int) -> bytes:
    """A manifest as `Manifest.to_bytes` writes it, of Dense layers and an optimizer's slots."""
    rows = [
        row
        for n in range(layers_of_two)
        for row in (
            [f"dense_{n}/kernel", [64, 64], "float32"],
            [f"dense_{n}/bias", [64], "float32"],
        )
    ]
    kept = [[f"adam/{p.replace('/', '_')}_{n}", s, d] for p, s, d in rows for n in range(slots)]
    optimizer = {"attribute": "optimizer", "class": "Adam", "variables": kept,
                 "trains": [*range(len(rows))]}  # fmt: skip
    model = {"class": "Functional", "variables": rows, "optimizers": [optimizer]}
    return manifests.Manifest(files=[], checkpoint={}, model=model).to_bytes()


@pytest.mark.pure
def test_a_manifest_of_many_variables_is_read() -> None:
    written = manifest_of(75_000, 2)
    found = manifests.Manifest.parse(written, digest=digest_bytes(written))
    assert len(found.model["variables"]) == 150_000


@pytest.mark.pure
@pytest.mark.parametrize("kind", ["sequential", "functional", "attention"])
def test_a_config_of_twenty_thousand_layers_is_parsed(kind: str) -> None:
    inputs = keras.Input((8, 16))
    outputs = layers.Dense(16, activation="relu", kernel_regularizer="l2")(inputs)
    if kind == "attention":
        outputs = layers.Add()([inputs, layers.MultiHeadAttention(2, 8)(outputs, inputs)])
        outputs = layers.LayerNormalization()(outputs)
    model = keras.Model(inputs, outputs)
    if kind == "sequential":
        model = keras.Sequential(model.layers)
    model.compile("adam", "mse")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    first, *others = config["config"]["layers"]
    config["config"]["layers"] = [first, *others * (20_000 // len(others))]
    text = json.dumps(config).encode()
    assert len(plain_json.loads(text)["config"]["layers"]) > 19_990


@pytest.mark.pure
@pytest.mark.parametrize(
    ("unit", "around"),
    [
        pytest.param("[]", "[%s]", id="lists"),
        pytest.param("[[[[0]]]]", "[%s]", id="lists-in-lists"),
        pytest.param("{}", "[%s]", id="mappings"),
        pytest.param('{"a":0.5}', "[%s]", id="mappings-of-one"),
        pytest.param('{"a":{"b":{}}}', "[%s]", id="mappings-in-mappings"),
        pytest.param("0.5", "[%s]", id="numbers"),
        pytest.param('"ab"', "[%s]", id="texts"),
        pytest.param('"\\ud83d\\ude00"', "[%s]", id="wide-texts"),
        pytest.param('"%x":0.5', "{%s}", id="keys"),
        pytest.param('"%x\\"a":0.5', "{%s}", id="keys-with-an-escape"),
        pytest.param('{"%x":1000}', "[%s]", id="mappings-of-one-key"),
        pytest.param("null", "[%s]", id="nothing"),
    ],
)
def test_json_that_is_parsed_takes_no_more_than_it_may(
    unit: str, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_json, "_ANYWAY", 4 << 20)

    def written(count: int) -> bytes:
        units = (unit % n if "%" in unit else unit for n in range(count))
        return (around % ",".join(units)).encode()

    fits, refused = 0, 600_000
    while refused - fits > 1000:
        count = (fits + refused) // 2
        try:
            plain_json.check_size(written(count))
        except ValueError:
            refused = count
        else:
            fits = count
    text = written(fits)
    tracemalloc.start()
    try:
        made = plain_json.loads(text)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(made) >= 1
    assert most <= (4 << 20) + 3.5 * len(text) + 2 * len(text)
    if unit != "null":  # Of which each is one object, and no text has too many.
        with pytest.raises(ValueError, match="Expected JSON whose values take at most .* Received"):
            plain_json.loads(written(600_000))


@pytest.mark.pure
def test_one_wide_character_does_not_make_a_long_text_four_times_as_large() -> None:
    long = "a" * (70 << 20)
    assert plain_json.loads(f'"{long}"'.encode()) == long
    for wide in ("\\ud83d\\ude00", "\U0001f600"):
        with pytest.raises(ValueError, match="values take at most"):
            plain_json.loads(f'"{long}{wide}"'.encode())
