"""Run cells of the exact-resume matrix: `python exact_runner.py [cell...]` prints a table."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from exact_callbacks import RESULT
from exact_cells import CELLS, DIMENSIONS, Cell
from exact_compare import bars, compare, idle, misplaced, output

SCRIPT = Path(__file__).with_name("exact_script.py")


class Processes:
    """Processes that each run one attempt, forked by a server that has imported everything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._waiting: dict[int, Future[int | None]] = {}
        self._server = subprocess.Popen(
            [sys.executable, str(SCRIPT), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "ready\n", "the server of processes did not start"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, arguments: Sequence[str], output: Path) -> int | None:
        """Exit status, as `subprocess` gives it; `None` where it had to be ended."""
        assert self._server.stdin is not None
        with self._lock:
            number = next(self._numbers)
            future = self._waiting[number] = Future()
            job = {"job": number, "arguments": [*arguments], "output": str(output)}
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
        return future.result()

    def close(self) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._reader.join()
        self._server.stdout.close()

    def _read(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            answer = json.loads(line)
            self._waiting.pop(answer["job"]).set_result(answer["code"])
        for future in self._waiting.values():
            future.set_exception(RuntimeError("the server of processes has ended"))


@contextmanager
def processes() -> Iterator[Processes]:
    made = Processes()
    try:
        yield made
    finally:
        made.close()


class Run:
    """One run of a cell, in a tracking store of its own.

    Attributes:
        folder: Its results, the output of its processes, its store.
    """

    def __init__(self, cell: Cell, folder: Path, database: Path) -> None:
        self.cell, self.folder = cell, folder
        folder.mkdir(parents=True)
        shutil.copy(database, folder / "mlflow.db")
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        client = mlflow.MlflowClient(self.uri)
        place = (folder / "artifacts").as_uri()
        experiment = client.create_experiment("exact", artifact_location=place)
        self.run_id = client.create_run(experiment).info.run_id

    def attempt(self, forked: Processes, attempt: int | str) -> int | None:
        arguments = [self.uri, self.run_id, self.cell.name, str(attempt), str(self.folder)]
        return forked.run(arguments, output(self.folder, attempt))

    def whole(self, forked: Processes) -> list[str]:
        """Run it without a kill."""
        return self.ended("reference", self.attempt(forked, "reference"), 0)

    def killed(self, forked: Processes) -> list[str]:
        """Kill and continue it, until it ends."""
        ends = [-signal.SIGKILL] * len(self.cell.kills) + [0]
        for number, expected in enumerate(ends):
            if wrong := self.ended(number, self.attempt(forked, number), expected):
                return wrong
        return []

    def ended(self, attempt: int | str, code: int | None, expected: int) -> list[str]:
        """What is wrong with how a process ended."""
        if code == expected:
            return []
        said = output(self.folder, attempt).read_text(encoding="utf-8").strip().splitlines()[-3:]
        return [f"process {attempt} ended with {code}, expected {expected}: {' '.join(said)}"]


def prove(cell: Cell, forked: Processes, folder: Path, database: Path) -> list[str]:
    """Run a cell with and without its kills; return what differs."""
    reference, killed = (Run(cell, folder / kind, database) for kind in ("whole", "killed"))
    with ThreadPoolExecutor(2) as pool:
        parts = [pool.submit(reference.whole, forked), pool.submit(killed.killed, forked)]
        wrong = [text for part in parts for text in part.result()]
    if wrong:
        return wrong
    return [
        *idle(cell, reference.folder),
        *misplaced(cell, killed.folder),
        *bars(cell, killed.folder),
        *compare(cell, reference.folder, killed.folder),
    ]


def empty_database(folder: Path) -> Path:
    """A migrated sqlite file to copy: MLflow takes seconds to make one."""
    path = folder / "empty.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def main(names: Sequence[str]) -> int:
    """Print the matrix as a table in Markdown; 1 where a cell differs."""
    print("| " + " | ".join([*DIMENSIONS, "saves", "result", "ckpt.resume_exact"]) + " |")
    print("|" + "---|" * (len(DIMENSIONS) + 3))
    failed = 0
    with processes() as forked, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        database = empty_database(folder)
        for name in names or CELLS:
            wrong = prove(CELLS[name], forked, folder / name, database)
            failed += bool(wrong)
            print(_row(CELLS[name], wrong, folder / name), flush=True)
            shutil.rmtree(folder / name)
    print(f"\n{len(names or CELLS) - failed} of {len(names or CELLS)} cells are exact.")
    return int(failed > 0)


def _row(cell: Cell, wrong: Sequence[str], folder: Path) -> str:
    values: list[Any] = [getattr(cell, dimension) for dimension in DIMENSIONS]
    ended = folder / "killed" / RESULT
    tags = json.loads(ended.read_bytes())["tags"] if ended.exists() else {}
    said = [f"**{wrong[0]}**" if wrong else "exact", tags.get("ckpt.resume_exact", "")]
    said = [text.replace("|", "/").replace("\n", " ") for text in said]
    return "| " + " | ".join(map(str, [*values, cell.save_freq, *said])) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
