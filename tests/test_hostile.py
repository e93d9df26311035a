"""Spoilt checkpoints: each ends in one of our errors or in the right values, and does no harm.

A child reads them, so that a crash, a process that hangs and the memory it takes are seen
for each. Told with `-s`: how many cases of each kind ended how.
"""

from __future__ import annotations

import collections
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pure

CHILD = Path(__file__).with_name("hostile_child.py")
LIMIT_S = 60.0


class Reader:
    """A child that reads case after case, and is replaced when one has ended it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: subprocess.Popen[str] | None = None

    def read(self, number: int) -> dict[str, Any]:
        child = self._child or self._start()
        assert child.stdin is not None
        child.stdin.write(f"{number}\n")
        child.stdin.flush()
        line = self._line(child, LIMIT_S)
        if line:
            return json.loads(line)
        ended = child.poll()
        self.close()
        outcome = "WRONG: it hung" if ended is None else f"WRONG: it ended with {ended}"
        return {"case": number, "outcome": outcome, "what": "", "path": "", "kind": "", "grown": 0,
                "seconds": LIMIT_S, "fits": None}  # fmt: skip

    def _start(self) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "TMPDIR": str(self._folder / "work" / "tmp"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        (self._folder / "work" / "tmp").mkdir(parents=True, exist_ok=True)
        with (self._folder / "errors.txt").open("a") as errors:
            self._child = subprocess.Popen(
                [sys.executable, str(CHILD), "read", str(self._folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment, cwd=self._folder,
            )  # fmt: skip
        assert self._line(self._child, 300) == "ready\n", (self._folder / "errors.txt").read_text()
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


def survivors(folder: Path, numbers: Iterable[int]) -> Iterator[dict[str, Any]]:
    reader = Reader(folder)
    before = outside(folder)
    try:
        for number in numbers:
            result = reader.read(number)
            if outside(folder) != before:
                result["outcome"] = "WRONG: it wrote outside of its folder"
            yield result
    finally:
        reader.close()


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


def judge(folder: Path, numbers: Iterable[int]) -> None:
    results = list(survivors(folder, numbers))
    print(f"\n{table(results)}\n{len(results)} cases, "
          f"at most {max(r['grown'] for r in results) >> 20} MiB and "
          f"{max(r['seconds'] for r in results):.1f} s for one")  # fmt: skip
    wrong = [r for r in results if r["outcome"].startswith("WRONG")]
    assert not wrong, json.dumps(wrong[:20], indent=1)


def test_a_slice_of_the_spoilt_checkpoints(folder: Path) -> None:
    judge(folder, range(400))


@pytest.mark.slow
def test_every_spoilt_checkpoint(folder: Path) -> None:
    judge(folder, range(400, 4000))
