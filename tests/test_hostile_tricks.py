"""Tricks with a name: what a checkpoint may try, and the sentence that it ends with."""

from __future__ import annotations

import io
import json
import os
import socketserver
import threading
import time
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
from mlflow_ckpt import MlflowCheckpoint, hdf5, own_mark, plain_json, rehydrate, zipped
from mlflow_ckpt import manifest as manifests
from mlflow_ckpt import training_state as ts
from mlflow_ckpt.archive import Archive
from mlflow_ckpt.below import open_below
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
