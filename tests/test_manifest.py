"""The manifest: what it vouches for, and that nothing else gets past it."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.digests import digest_bytes, digest_file
from mlflow_ckpt.errors import DigestMismatch, FormatTooNew, IntegrityError, ManifestError
from mlflow_ckpt.manifest import FILENAME, FileEntry, Manifest

pytestmark = pytest.mark.pure

DIGEST = digest_bytes(b"x")
VALID: dict[str, Any] = {
    "format": "1.0",
    "files": [{"path": "data/x", "size": 1, "digest": DIGEST}],
    "checkpoint": {"epoch": 5},
    "model": {},
    "versions": {},
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def build(root: Path) -> Manifest:
    """The manifest of a checkpoint of two files below `root`."""
    (root / "data").mkdir(parents=True)
    (root / "MLmodel").write_bytes(b"")
    (root / "data" / "model.keras").write_bytes(b"weights")
    return Manifest.build(
        root, checkpoint={"epoch": 5, "metrics": {"loss": 0.5}}, model={"class": "M"}, versions={}
    )


def parse(raw: object) -> Manifest:
    """Parse any JSON under its own right digest: the digest vouches for bytes, not for sense."""
    data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
    return Manifest.parse(data, digest=digest_bytes(data))


def entry(**changes: Any) -> dict[str, Any]:
    return {**VALID, "files": [{**VALID["files"][0], **changes}]}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../x", id="parent"),
        pytest.param("a/../../b", id="parent-inside"),
        pytest.param("..", id="parent-alone"),
        pytest.param("/abs", id="absolute"),
        pytest.param("//host/share", id="network-share"),
        pytest.param("C:\\x", id="windows-drive"),
        pytest.param("C:/x", id="windows-drive-with-slashes"),
        pytest.param("..\\x", id="windows-parent"),
        pytest.param("", id="empty"),
        pytest.param(".", id="the-folder-itself"),
        pytest.param("a\0b", id="nul"),
        pytest.param("a\ud800", id="no-utf-8"),
        pytest.param("./data/x", id="another-spelling"),
        pytest.param("data//x", id="another-spelling-inside"),
        pytest.param("data/./x", id="a-dot-inside"),
        pytest.param("data/x/", id="a-slash-behind"),
        pytest.param("./manifest.json", id="itself-in-another-spelling"),
        pytest.param("a\nb", id="line-break"),
        pytest.param("a\x1b[2Jb", id="escape"),
        pytest.param("a\x85b", id="control-character-beyond-ascii"),
        pytest.param("a" * 256, id="long-name"),
        pytest.param("é" * 128, id="long-name-in-bytes"),
        pytest.param("a/" * 512 + "a", id="long"),
        pytest.param(7, id="number"),
    ],
)
def test_a_path_that_is_not_a_file_inside_is_refused(path: object) -> None:
    text = "Expected a relative path inside the checkpoint. Received: .* Take another checkpoint"
    with pytest.raises(ManifestError, match=text):
        parse(entry(path=path))


@pytest.mark.parametrize(
    "path", ["a", "data/model.keras", "a" * 255, "a b", "ä/ß", "a:b/c:d"[2:], "x/c:d", ".hidden"]
)
def test_a_path_in_its_one_spelling_is_taken(path: str) -> None:
    assert parse(entry(path=path)).files[0].path == path


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        pytest.param(["a", "a"], "Expected each file once", id="twice"),
        pytest.param(["a/B", "A/b"], "Expected each file once", id="without-case"),
        pytest.param(["é", "e\u0301"], "Expected each file once", id="composed-and-decomposed"),
        pytest.param(["straße", "STRASSE"], "Expected each file once", id="sharp-s"),
        pytest.param([FILENAME], "and not manifest.json itself", id="itself"),
        pytest.param(["Manifest.JSON"], "and not manifest.json itself", id="itself-in-capitals"),
        pytest.param(["a", "a/b"], "a folder of another one", id="file-and-folder"),
        pytest.param(["a/b/c", "a"], "a folder of another one", id="folder-and-file"),
        pytest.param(["manifest.json/x"], "a folder of another one", id="itself-as-a-folder"),
    ],
)
def test_two_paths_that_one_file_system_takes_for_one_are_refused(
    paths: list[str], text: str
) -> None:
    files = [{"path": path, "size": 1, "digest": DIGEST} for path in paths]
    with pytest.raises(ManifestError, match=text):
        parse({**VALID, "files": files})


def test_no_second_file_takes_the_place_of_one_that_was_verified() -> None:
    for path in ("./data/x", "data//x", "DATA/X"):
        files = [*VALID["files"], {"path": path, "size": 1, "digest": DIGEST}]
        with pytest.raises(ManifestError):
            parse({**VALID, "files": files})


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(None, id="null"),
        pytest.param({**VALID, "format": "x"}, id="format-no-number"),
        pytest.param({**VALID, "files": {"path": "a"}}, id="files-mapping"),
        pytest.param(entry(size=-1), id="size-negative"),
        pytest.param(entry(size="many"), id="size-word"),
        pytest.param(entry(size=float("inf")), id="size-infinite"),
        pytest.param(entry(size="12"), id="size-text"),
        pytest.param(entry(size=12.0), id="size-float"),
        pytest.param(entry(size=True), id="size-boolean"),
        pytest.param(entry(size=2**53), id="size-beyond-json"),
        pytest.param(entry(digest="blake3:"), id="digest-empty"),
        pytest.param(entry(digest=DIGEST[:-1]), id="digest-short"),
        pytest.param(entry(digest=f"{DIGEST}0"), id="digest-long"),
        pytest.param(
            entry(digest=DIGEST.upper().replace("BLAKE3", "blake3")), id="digest-capitals"
        ),
        pytest.param(entry(digest=f"{DIGEST[:-1]}g"), id="digest-no-hex"),
        pytest.param(entry(digest="00"), id="digest-without-algorithm"),
        pytest.param(entry(digest=["blake3"]), id="digest-list"),
        pytest.param(entry(path="MLmodel", content="blake3:0"), id="content-short"),
        pytest.param({**VALID, "format": 1.0}, id="format-float"),
        pytest.param({**VALID, "format": 1}, id="format-integer"),
        pytest.param({**VALID, "format": "1"}, id="format-without-minor"),
        pytest.param({**VALID, "format": "01.0"}, id="format-padded"),
        pytest.param({**VALID, "format": True}, id="format-boolean"),
        pytest.param({**VALID, "checkpoint": [["epoch", 5]]}, id="checkpoint-list"),
        pytest.param({**VALID, "checkpoint": {"epoch": "5"}}, id="epoch-text"),
        pytest.param({**VALID, "checkpoint": {"step": -1}}, id="step-negative"),
        pytest.param({**VALID, "checkpoint": {"series": None}}, id="series-null"),
        pytest.param({**VALID, "checkpoint": {"metrics": {"a": [1]}}}, id="metric-list"),
        pytest.param({**VALID, "checkpoint": {"monitor": 1}}, id="monitor-number"),
        pytest.param({**VALID, "model": [["class", "M"]]}, id="model-list"),
        pytest.param({**VALID, "versions": {"keras": 3}}, id="version-number"),
        pytest.param(b"", id="no-bytes"),
        pytest.param(b"\xff\xfe\xfa", id="no-text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"format": ' + b"1" * 5000 + b"}", id="long-number"),
        pytest.param(json.dumps(VALID).encode()[:-9], id="cut-short"),
    ],
)
def test_a_hostile_manifest_ends_in_a_manifest_error(raw: object) -> None:
    with pytest.raises(ManifestError, match=r"Received: |is not of format 1\.x"):
        parse(raw)


def test_what_was_built_is_what_is_read(tmp_path: Path) -> None:
    root = tmp_path / "checkpoint"
    built = build(root)
    assert [e.path for e in built.files] == ["MLmodel", "data/model.keras"]
    assert built.total_bytes == 7
    assert parse(built.to_bytes()) == built
    assert all(e.verify(root).is_file() for e in built.files)
    assert built.entry("MLmodel") == built.files[0]
    assert built.entry("mlmodel") is None


def test_every_file_is_listed_but_the_manifest_itself(tmp_path: Path) -> None:
    root = tmp_path / "checkpoint"
    build(root)
    for folder in (root, root / "data"):
        (folder / FILENAME).write_bytes(b"{}")
    built = Manifest.build(root, checkpoint={}, model={}, versions={})
    assert [e.path for e in built.files] == ["MLmodel", f"data/{FILENAME}", "data/model.keras"]


def test_unknown_fields_are_ignored_and_optional_ones_may_be_missing() -> None:
    needed = {key: entry(owner="somebody")[key] for key in ("files", "checkpoint")}
    read = parse({**needed, "format": "1.7", "color": "red"})
    assert (read.format, read.model, read.versions) == ("1.7", {}, {})
    assert read.files == [FileEntry(path="data/x", size=1, digest=DIGEST)]


@pytest.mark.parametrize("version", ["2.0", "2", "10.3", 2])
def test_a_newer_major_is_refused_whatever_else_it_holds(version: object) -> None:
    text = rf"has format {version} and this version of mlflow-ckpt reads up to 1\.x: upgrade with"
    with pytest.raises(FormatTooNew, match=text):
        parse({"format": version, "files": "elsewhere"})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"weightz", r"Expected: blake3:\w{64}\. Found: blake3:\w{64}", id="one-byte"),
        pytest.param(b"weights+", r"Expected: 7 bytes\. Found: 8 bytes", id="size"),
    ],
)
def test_a_changed_file_is_named(tmp_path: Path, content: bytes, text: str) -> None:
    changed = build(tmp_path / "checkpoint").files[1]
    (tmp_path / "checkpoint" / changed.path).write_bytes(content)
    with pytest.raises(DigestMismatch, match=rf"'data/model.keras' is not .*{text}") as caught:
        changed.verify(tmp_path / "checkpoint")
    assert caught.value.path == changed.path


def test_an_open_file_stays_the_verified_one_whatever_takes_its_path(tmp_path: Path) -> None:
    entry = build(tmp_path).files[1]
    with entry.open(tmp_path) as file:
        (tmp_path / "other").write_bytes(b"forgery")
        (tmp_path / "other").replace(tmp_path / entry.path)
        assert file.read() == b"weights"
    with pytest.raises(DigestMismatch):
        entry.open(tmp_path)


def test_a_file_that_cannot_be_mapped_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 4097
    (tmp_path / "x").write_bytes(data)

    def unmappable(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no such device")

    monkeypatch.setattr(mmap, "mmap", unmappable)
    with (tmp_path / "x").open("rb") as file:
        assert digest_file(file) == digest_bytes(data)


@pytest.mark.parametrize("in_its_place", ["nothing", "folder", "broken-link", "parent-is-a-file"])
def test_what_is_no_file_is_a_mismatch(tmp_path: Path, in_its_place: str) -> None:
    path = tmp_path / "data" / "x"
    if in_its_place == "folder":
        path.mkdir(parents=True)
    elif in_its_place == "broken-link":
        path.parent.mkdir()
        path.symlink_to("elsewhere")
    elif in_its_place == "parent-is-a-file":
        path.parent.write_bytes(b"x")
    with pytest.raises(DigestMismatch, match="'data/x' is not the one"):
        FileEntry(path="data/x", size=1, digest=DIGEST).verify(tmp_path)


def test_a_manifest_of_another_digest_is_not_even_parsed() -> None:
    with pytest.raises(DigestMismatch, match=FILENAME) as caught:
        Manifest.parse(b"[" * 100_000, digest=DIGEST)
    assert (caught.value.path, caught.value.expected) == (FILENAME, DIGEST)


@pytest.mark.parametrize("digest", ["", "blake3", "blake3:", "blake3:00", ":00", "md5:", "\n:0"])
def test_a_tag_that_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ManifestError, match="has no digest. Expected: one of .* Received: '"):
        Manifest.parse(json.dumps(VALID).encode(), digest=digest)


UPGRADE = r"the algorithm 'blake4'.* reads up to 1\.x.*: upgrade with `pip install -U mlflow-ckpt`"


@pytest.mark.parametrize("digest", ["blake4:00ff", f"blake4:{'0' * 64}", "blake4:AbC+/="])
def test_a_digest_of_a_later_algorithm_is_no_damage(digest: str) -> None:
    with pytest.raises(FormatTooNew, match=f"The checkpoint's manifest has .*{UPGRADE}"):
        Manifest.parse(b'{"format": "2.0"}', digest=digest)
    with pytest.raises(FormatTooNew, match=f"The file 'data/x' has .*{UPGRADE}"):
        parse(entry(digest=digest))
    with pytest.raises(FormatTooNew, match=f"The file 'MLmodel' has .*{UPGRADE}"):
        parse(entry(path="MLmodel", content=digest))


def test_each_algorithm_reads_files_and_bytes_alike(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4097  # beyond one chunk of 1 MiB
    (tmp_path / "x").write_bytes(data)
    for algorithm in ("blake3", "sha256"):
        with (tmp_path / "x").open("rb") as file:
            file.read(5)
            assert digest_file(file, algorithm) == digest_bytes(data, algorithm)
    assert digest_bytes(b"", "sha256").startswith("sha256:e3b0c44298fc1c14")


def test_nan_never_stands_in_the_json() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            Manifest(files=[], checkpoint={"metrics": {"loss": value}}).to_bytes()


@given(
    JSON
    | st.builds(lambda key, value: {**VALID, key: value}, st.sampled_from(list(VALID)), JSON)
    | st.builds(lambda key, v: entry(**{key: v}), st.sampled_from(["path", "size", "digest"]), JSON)
)
def test_any_json_ends_in_a_manifest_or_in_an_integrity_error(raw: object) -> None:
    try:
        read = parse(raw)
    except IntegrityError:
        return
    for found in read.files:
        with pytest.raises(DigestMismatch):
            found.verify(Path("/nowhere"))
