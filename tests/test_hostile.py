"""Spoilt checkpoints: each ends in one of our errors or in the right values, and does no harm.

A child reads them, so that a crash, a process that hangs and the memory it takes are seen
for each. Told with `-s`: how many cases of each kind ended how. What the child does with files,
code and paths, a watch sees (`hostile_watch.py`), which is itself proved here.
"""

from __future__ import annotations

import collections
import json
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mutations import NAMED

pytestmark = pytest.mark.pure

CHILD = Path(__file__).with_name("hostile_child.py")
LIMIT_S = 60.0


def environment(folder: Path) -> dict[str, str]:
    """What a child is told: where it may write, and where spoilt files shall lead it."""
    (folder / "work" / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        **os.environ,
        "TMPDIR": str(folder / "work" / "tmp"),
        "HOSTILE_CANARY": str(folder / "outside" / "sentinel"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


class Reader:
    """A child that reads case after case, and is replaced when one has ended it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._child: subprocess.Popen[str] | None = None

    def read(self, case: str) -> dict[str, Any]:
        child = self._child or self._start()
        assert child.stdin is not None
        child.stdin.write(f"{case}\n")
        child.stdin.flush()
        line = self._line(child, LIMIT_S)
        if line:
            return json.loads(line)
        ended = child.poll()
        self.close()
        outcome = "WRONG: it hung" if ended is None else f"WRONG: it ended with {ended}"
        return {"case": case, "outcome": outcome, "what": "", "path": "", "kind": "", "grown": 0,
                "seconds": LIMIT_S, "fits": None}  # fmt: skip

    def _start(self) -> subprocess.Popen[str]:
        with (self.folder / "errors.txt").open("a") as errors:
            self._child = subprocess.Popen(
                [sys.executable, str(CHILD), "read", str(self.folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment(self.folder), cwd=self.folder,
            )  # fmt: skip
        assert self._line(self._child, 300) == "ready\n", (self.folder / "errors.txt").read_text()
        return self._child

    @staticmethod
    def _line(child: subprocess.Popen[str], limit_s: float) -> str:
        assert child.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            return child.stdout.readline() if waiting.select(limit_s) else ""

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints to spoil, and something beside them that nobody may touch."""
    made = tmp_path_factory.mktemp("hostile")
    done = subprocess.run(
        [sys.executable, str(CHILD), "make", str(made)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-3000:]
    (made / "outside").mkdir()
    (made / "outside" / "sentinel").write_text("untouched")
    return made


@pytest.fixture(scope="module")
def reader(folder: Path) -> Iterator[Reader]:
    made = Reader(folder)
    yield made
    made.close()


def survivors(reader: Reader, cases: Iterable[str]) -> Iterator[dict[str, Any]]:
    before = outside(reader.folder)
    for case in cases:
        result = reader.read(case)
        now = outside(reader.folder)
        if now != before:
            result["outcome"] = f"WRONG: outside of its folder: {result['outcome']}"
            before = now
        yield result


def outside(folder: Path) -> list[tuple[str, bytes]]:
    """Everything in the folder but what a case may write."""
    kept = [p for p in folder.iterdir() if p.name not in ("work", "errors.txt", "spool")]
    files = [f for p in kept for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()]
    return sorted((str(f), f.read_bytes() if f.stat().st_size < 4096 else b"") for f in files)


def table(results: Iterable[dict[str, Any]]) -> str:
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for result in results:
        kind = result["what"].partition(":")[0]
        fits = "fitting" if result["fits"] else "not fitting"
        counts[(f"{Path(result['path']).name} {kind}", fits, result["outcome"][:60])] += 1
    return "\n".join(f"{n:5}  {a:38} {b:12} {c}" for (a, b, c), n in sorted(counts.items()))


def judge(reader: Reader, cases: Iterable[str]) -> None:
    results = list(survivors(reader, cases))
    print(f"\n{table(results)}\n{len(results)} cases, "
          f"at most {max(r['grown'] for r in results) >> 20} MiB and "
          f"{max(r['seconds'] for r in results):.1f} s for one")  # fmt: skip
    wrong = [r for r in results if r["outcome"].startswith("WRONG")]
    assert not wrong, json.dumps(wrong[:20], indent=1)


# 2,000 of them take two minutes of a processor, so the default run takes the first of each.
SLICE, OF_A_KIND = 200, 6


def test_a_slice_of_the_spoilt_checkpoints(reader: Reader) -> None:
    judge(reader, map(str, range(SLICE)))


@pytest.mark.parametrize("kind", NAMED)
def test_a_slice_of_those_that_ask_for_more_than_they_hold(kind: str, reader: Reader) -> None:
    judge(reader, (f"{kind} {number}" for number in range(OF_A_KIND)))


@pytest.mark.slow
def test_every_spoilt_checkpoint(reader: Reader) -> None:
    judge(reader, map(str, range(SLICE, 4000)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMED)
def test_every_one_that_asks_for_more_than_it_holds(kind: str, reader: Reader) -> None:
    judge(reader, (f"{kind} {number}" for number in range(OF_A_KIND, 200)))


# --- whether all this could be seen -----------------------------------------------------


@pytest.fixture(scope="module")
def proof(folder: Path) -> dict[str, Any]:
    """What the watch noted while a child did each thing that it is there for."""
    done = subprocess.run(
        [sys.executable, str(CHILD), "prove", str(folder)], env=environment(folder), cwd=folder,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.returncode, done.stderr[-3000:]
    shutil.rmtree(folder / "work-beside")
    (folder / "outside" / "new").unlink()
    return json.loads(done.stdout)


DEEDS = {
    "lambda": "marshal.loads", "code": "function.__new__", "eval": "exec",
    "module": "import planted", "pickle": "pickle.find_class", "library": "ctypes.dlopen",
    "process": "subprocess.Popen", "shell": "os.system", "spawn": "os.posix_spawn",
    "connect": "socket.connect", "read": "open '/etc/passwd'", "write": "made' to write",
    "write-through-a-link": "made2' to write", "write-to-a-link": "link' to write",
    "remove": "os.remove", "remove-below": "os.remove 'other'", "rename": "os.rename",
    "rename-into": "os.rename", "mkdir": "os.mkdir", "rmdir": "os.rmdir",
    "symlink": "os.symlink", "hard-link": "os.link", "truncate": "os.truncate",
    "chmod": "os.chmod", "touch": "os.utime", "rmtree": "shutil.rmtree",
}  # fmt: skip
DEEDS_IN_C = (
    "canary", "hdf5-link", "hdf5-bytes", "hdf5-virtual", "tensorflow", "vocabulary", "numpy",
)  # fmt: skip


@pytest.mark.parametrize("deed", DEEDS)
def test_the_watch_sees_what_python_does(deed: str, proof: dict[str, Any]) -> None:
    assert any(DEEDS[deed] in each for each in proof[deed]), proof[deed]


@pytest.mark.parametrize("deed", DEEDS_IN_C)
def test_the_watch_sees_what_a_library_in_c_does(deed: str, proof: dict[str, Any]) -> None:
    if not proof["sees_c"]:
        pytest.skip("There is no inotify here: what HDF5 and TensorFlow open is not seen.")
    assert "canary: sentinel opened" in proof[deed]


def test_the_watch_sees_what_a_library_in_c_writes(proof: dict[str, Any]) -> None:
    if not proof["sees_c"]:
        pytest.skip("There is no inotify here: what TensorFlow writes is not seen.")
    assert "canary: new made" in proof["tensorflow-writes"]


@pytest.mark.parametrize("deed", ["nothing", "remove-inside"])
def test_the_watch_notes_nothing_of_what_is_allowed(deed: str, proof: dict[str, Any]) -> None:
    assert proof[deed] == []


def test_every_deed_is_looked_at(proof: dict[str, Any]) -> None:
    looked_at = {*DEEDS, *DEEDS_IN_C, "tensorflow-writes", "nothing", "remove-inside", "sees_c"}
    assert proof.keys() == looked_at


def test_a_checkpoint_that_nobody_spoilt_is_read_and_nothing_is_noted(reader: Reader) -> None:
    results = list(survivors(reader, (f"clean {number}" for number in range(12))))
    assert {result["outcome"] for result in results} == {"right"}
