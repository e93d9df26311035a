"""The manifest: what it vouches for, and that nothing else gets past it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.errors import DigestMismatch, FormatTooNew, IntegrityError, ManifestError
from mlflow_ckpt.manifest import FILENAME, FileEntry, Manifest, digest_bytes, digest_file

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
        pytest.param("a/..", id="parent-at-the-end"),
        pytest.param("..", id="parent-alone"),
        pytest.param("/abs", id="absolute"),
        pytest.param("//host/share", id="network-share"),
        pytest.param("C:\\x", id="windows-drive"),
        pytest.param("C:/x", id="windows-drive-with-slashes"),
        pytest.param("..\\x", id="windows-parent"),
        pytest.param("a\\..\\..\\b", id="windows-parent-inside"),
        pytest.param("", id="empty"),
        pytest.param(".", id="the-folder-itself"),
        pytest.param("a\0b", id="nul"),
        pytest.param("a\ud800", id="no-utf-8"),
    ],
)
def test_a_path_that_is_not_a_file_inside_is_refused(path: str) -> None:
    with pytest.raises(ManifestError, match="Expected a relative path inside the checkpoint"):
        parse(entry(path=path))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="list"),
        pytest.param("x", id="text"),
        pytest.param({}, id="empty"),
        pytest.param({**VALID, "format": "x"}, id="format-no-number"),
        pytest.param({**VALID, "format": None}, id="format-null"),
        pytest.param({**VALID, "files": None}, id="files-null"),
        pytest.param({**VALID, "files": {"path": "a"}}, id="files-mapping"),
        pytest.param({**VALID, "files": [7]}, id="entry-number"),
        pytest.param({**VALID, "checkpoint": 7}, id="checkpoint-number"),
        pytest.param(entry(size=-1), id="size-negative"),
        pytest.param(entry(size="many"), id="size-word"),
        pytest.param(entry(size=None), id="size-null"),
        pytest.param(entry(size=float("inf")), id="size-infinite"),
        pytest.param(entry(size=float("nan")), id="size-nan"),
        pytest.param(entry(digest="md5:00"), id="digest-unknown"),
        pytest.param(entry(digest=None), id="digest-null"),
        pytest.param(b"", id="no-bytes"),
        pytest.param(b"\xff\xfe\xfa", id="no-text"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000, id="deep-mapping"),
        pytest.param(b'{"format": ' + b"1" * 5000 + b"}", id="long-number"),
        pytest.param(json.dumps(VALID).encode()[:-9], id="cut-short"),
    ],
)
def test_a_hostile_manifest_ends_in_a_manifest_error(raw: object) -> None:
    with pytest.raises(ManifestError, match="Received|is not of format 1.x|relative path"):
        parse(raw)


def test_what_was_built_is_what_is_read(tmp_path: Path) -> None:
    built = build(tmp_path / "c")
    assert [e.path for e in built.files] == ["MLmodel", "data/model.keras"]
    assert built.total_bytes == 7
    assert parse(built.to_bytes()) == built
    assert parse(built.to_bytes()).to_bytes() == built.to_bytes()
    assert all(e.verify(tmp_path / "c").is_file() for e in built.files)


def test_every_file_is_listed_but_the_manifest_itself(tmp_path: Path) -> None:
    build(tmp_path / "c")
    for folder in ("c", "c/data"):
        (tmp_path / folder / FILENAME).write_bytes(b"{}")
    built = Manifest.build(tmp_path / "c", checkpoint={}, model={}, versions={})
    assert [e.path for e in built.files] == ["MLmodel", f"data/{FILENAME}", "data/model.keras"]


def test_an_entry_is_found_by_its_path(tmp_path: Path) -> None:
    built = build(tmp_path / "c")
    assert built.entry("MLmodel") == built.files[0]
    assert built.entry("mlmodel") is None


def test_unknown_fields_are_ignored() -> None:
    read = parse({**entry(owner="somebody"), "format": "1.7", "color": "red"})
    assert read.format == "1.7"
    assert read.files == [FileEntry(path="data/x", size=1, digest=DIGEST)]


def test_optional_fields_may_be_missing() -> None:
    read = parse({key: VALID[key] for key in ("format", "files", "checkpoint")})
    assert (read.model, read.versions) == ({}, {})


@pytest.mark.parametrize("version", ["2.0", "2", "10.3", 2, 2.5])
def test_a_newer_major_is_refused_whatever_else_it_holds(version: object) -> None:
    with pytest.raises(
        FormatTooNew, match=f"format {version}, this version reads up to 1.x. Upgrade with: pip"
    ):
        parse({"format": version, "files": "elsewhere"})


def test_one_changed_byte_names_the_file(tmp_path: Path) -> None:
    changed = build(tmp_path / "c").files[1]
    (tmp_path / "c" / changed.path).write_bytes(b"weightz")
    with pytest.raises(
        DigestMismatch, match=r"'data/model.keras' is not the one .* mlflow-ckpt list"
    ):
        changed.verify(tmp_path / "c")


def test_another_size_is_said_in_bytes(tmp_path: Path) -> None:
    changed = build(tmp_path / "c").files[1]
    (tmp_path / "c" / changed.path).write_bytes(b"weights and more")
    with pytest.raises(DigestMismatch, match=r"Expected: 7 bytes. Found: 16 bytes") as caught:
        changed.verify(tmp_path / "c")
    assert (caught.value.path, caught.value.expected) == (changed.path, "7 bytes")


def test_a_missing_file_is_a_mismatch(tmp_path: Path) -> None:
    with pytest.raises(DigestMismatch, match="Found: no file"):
        FileEntry(path="data/x", size=1, digest=DIGEST).verify(tmp_path / "c")


def test_a_folder_in_place_of_a_file_is_a_mismatch(tmp_path: Path) -> None:
    (tmp_path / "c" / "data" / "x").mkdir(parents=True)
    with pytest.raises(DigestMismatch, match="'data/x'"):
        FileEntry(path="data/x", size=1, digest=DIGEST).verify(tmp_path / "c")


def test_a_file_in_place_of_a_folder_is_a_mismatch(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x")
    with pytest.raises(DigestMismatch, match="'data/x'"):
        FileEntry(path="data/x", size=1, digest=DIGEST).verify(tmp_path / "c")


def test_a_manifest_of_another_digest_is_not_even_parsed() -> None:
    with pytest.raises(DigestMismatch, match=FILENAME) as caught:
        Manifest.parse(b"[" * 100_000, digest=DIGEST)
    assert (caught.value.path, caught.value.expected) == (FILENAME, DIGEST)


@pytest.mark.parametrize("digest", ["", "blake3", "md5:00", "BLAKE3:00", ":00"])
def test_a_tag_that_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(IntegrityError, match="Expected"):
        Manifest.parse(json.dumps(VALID).encode(), digest=digest)


def test_each_algorithm_reads_files_and_bytes_alike(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4097  # beyond one chunk of 1 MiB
    (tmp_path / "x").write_bytes(data)
    for algorithm in ("blake3", "sha256"):
        with (tmp_path / "x").open("rb") as file:
            file.read(5)
            assert digest_file(file, algorithm) == digest_bytes(data, algorithm)
    assert digest_bytes(b"", "sha256").startswith("sha256:e3b0c44298fc1c14")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_never_stands_in_the_json(value: float) -> None:
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
