"""The file writer: what it wrote is what it says it wrote."""

from __future__ import annotations

import errno
import os
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from mlflow_ckpt import stream as module
from mlflow_ckpt.stream import CHUNK, Stream

pytestmark = pytest.mark.pure


def write(path: Path, data: bytes) -> None:
    with Stream(path) as stream:
        stream.write(data)
        stream.close(path.parent)


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(np.array(3.5, np.float32), id="scalar"),
        pytest.param(np.zeros((0, 3), np.float32), id="empty"),
        pytest.param(np.arange(7, dtype=ml_dtypes.bfloat16), id="bfloat16"),
        pytest.param(np.array([True, False]), id="bool"),
        pytest.param(np.arange(12).reshape(3, 4).T, id="transposed"),
        pytest.param(np.arange(CHUNK // 2, dtype=np.int32), id="two-chunks"),
    ],
)
def test_an_array_is_written_by_its_memory(array: np.ndarray, tmp_path: Path) -> None:
    with Stream(tmp_path / "data" / "file") as stream:
        stream.write(array)
        entry = stream.close(tmp_path)
    assert (tmp_path / "data" / "file").read_bytes() == array.tobytes()
    assert (entry.path, entry.size) == ("data/file", array.nbytes)
    assert entry.verify(tmp_path) == tmp_path / "data" / "file"


def test_the_sum_is_that_of_the_member_and_the_digest_that_of_the_file(tmp_path: Path) -> None:
    data = os.urandom(3 * CHUNK + 17)
    with Stream(tmp_path / "file") as stream:
        stream.write(b"before")
        stream.begin_member()
        stream.write(data)
        assert stream.crc == zlib.crc32(data)
        entry = stream.close(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"before" + data
    entry.verify(tmp_path)


def test_progress_adds_up_to_the_size(tmp_path: Path) -> None:
    steps: list[int] = []
    with Stream(tmp_path / "file", steps.append) as stream:
        stream.write(b"a" * (2 * CHUNK + 5))
        stream.close(tmp_path)
    assert steps == [CHUNK, CHUNK, 5]


def test_a_write_that_stops_halfway_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.pwrite
    monkeypatch.setattr(module.os, "pwrite", lambda fd, data, at: whole(fd, data[:1000], at))
    data = os.urandom(5_500)
    with Stream(tmp_path / "file") as stream:
        stream.write(data)
        stream.close(tmp_path)
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_names_the_file_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "f", b"x")
    assert caught.value.filename == str(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        Stream(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
