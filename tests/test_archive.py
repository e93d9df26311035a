"""Archives as Python's `zipfile` reads them, with small and with very large members."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ckpt.archive import Archive
from mlflow_ckpt.stream import Stream

pytestmark = pytest.mark.pure

STAMP = time.strptime("2026-02-03 04:05:07", "%Y-%m-%d %H:%M:%S")


def write(path: Path, small: dict[str, bytes], large: dict[str, bytes]) -> None:
    with Stream(path) as stream:
        archive = Archive(stream, STAMP)
        for name, data in small.items():
            archive.add(name, data)
        for name, data in large.items():
            archive.begin(name, len(data))
            stream.write(data)
            archive.end()
        archive.close()
        stream.close(path.parent)


def read(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def test_zipfile_reads_both_kinds_of_members(tmp_path: Path) -> None:
    small = {"config.json": b"{}", "assets/größe.txt": "ä".encode()}
    write(tmp_path / "a.zip", small, {"model.weights.h5": b"x" * 3_000_000})
    assert read(tmp_path / "a.zip") == {**small, "model.weights.h5": b"x" * 3_000_000}


def test_members_are_plain_files_of_that_time(tmp_path: Path) -> None:
    write(tmp_path / "a.zip", {"config.json": b"{}"}, {})
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        (info,) = archive.infolist()
    assert info.date_time == (2026, 2, 3, 4, 5, 6)
    assert info.compress_type == zipfile.ZIP_STORED
    assert info.external_attr >> 16 == 0o100600


def test_a_time_before_1980_becomes_1980(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with Stream(path) as stream:
        archive = Archive(stream, time.gmtime(0))
        archive.add("a", b"")
        archive.close()
        stream.close(tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].date_time[0] == 1980


def test_an_empty_archive_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a.zip", {}, {})
    assert read(tmp_path / "a.zip") == {}


def test_the_announced_size_is_held_to(tmp_path: Path) -> None:
    with Stream(tmp_path / "a.zip") as stream:
        archive = Archive(stream, STAMP)
        archive.begin("model.weights.h5", 10)
        stream.write(b"too short")
        with pytest.raises(AssertionError, match="announced"):
            archive.end()


def test_more_members_than_sixteen_bits_count(tmp_path: Path) -> None:
    small = {f"assets/{n}": b"" for n in range(0x10001)}
    write(tmp_path / "a.zip", small, {})
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 0x10001


@pytest.mark.slow
def test_a_member_beyond_four_gigabytes_and_one_behind_it(tmp_path: Path) -> None:
    part = np.arange(1 << 26, dtype=np.uint32)  # 256 MiB
    path = tmp_path / "a.zip"
    with Stream(path) as stream:
        archive = Archive(stream, STAMP)
        archive.add("config.json", b"{}")
        archive.begin("model.weights.h5", 17 * part.nbytes)
        for _ in range(17):
            stream.write(part)
        archive.end()
        archive.add("assets/behind", b"still there")
        archive.close()
        entry = stream.close(tmp_path)
    assert entry.size > 17 * part.nbytes
    entry.verify(tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("model.weights.h5").file_size == 17 * part.nbytes
        assert archive.read("assets/behind") == b"still there"
        assert archive.testzip() is None
    path.unlink()


@settings(max_examples=60, deadline=None)
@given(
    small=st.dictionaries(st.text(min_size=1, max_size=20), st.binary(max_size=50), max_size=4),
    large=st.binary(max_size=2_000),
)
def test_whatever_goes_in_comes_out(
    small: dict[str, bytes], large: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    small = {
        name: data
        for name, data in small.items()
        if name.isprintable() and "/" not in name and "\\" not in name and name != "large"
    }
    path = tmp_path_factory.mktemp("zip") / "a.zip"
    write(path, small, {"large": large})
    assert read(path) == {**small, "large": large}
