"""Runs that are killed by SIGKILL, and end like those that nobody killed, bit by bit.

The whole matrix runs with `-m slow`, in a quarter of an hour; `python tests/exact_runner.py`
prints it as a table.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import exact_cells
import pytest
from exact_callbacks import RESULT
from exact_cells import CELLS, COVER, DIMENSIONS, EXCLUDED, Cell
from exact_compare import compare, lines
from exact_runner import SCRIPT, Processes, Run, processes, prove

pytestmark = pytest.mark.pure  # Each run has a store of its own.

# Mid-epoch, at a boundary, in a write, several kills; and different inputs and models.
SLICE = (
    "arrays-first-mlp-own-none-first",
    "dataset-writing-shared-plateau-class-last",
    "epoch_data-twice-subclassed-plateau-sample-first",
    "pydataset-boundary-gan-stopping-none-first",
)
ALONE = "arrays-first-mlp-own-none-first"
LIMITS: dict[str, str] = {}
"""Cells that are known to differ, and why: the README names them."""


@pytest.fixture(scope="module")
def forked() -> Iterator[Processes]:
    with processes() as made:
        yield made


def cells() -> list[object]:
    return [
        pytest.param(
            cell,
            id=name,
            marks=[
                *([] if name in SLICE else [pytest.mark.slow]),
                *([pytest.mark.xfail(reason=LIMITS[name], strict=True)] if name in LIMITS else []),
            ],
        )
        for name, cell in CELLS.items()
    ]


@pytest.mark.parametrize("cell", cells())
def test_a_killed_run_ends_like_one_that_nobody_killed(
    cell: Cell, forked: Processes, tmp_path: Path, empty_database: Path
) -> None:
    if "grain" in cell.input:
        pytest.importorskip("grain")
    assert prove(cell, forked, tmp_path, empty_database) == []


def test_every_pair_that_can_meet_is_in_a_cell() -> None:
    held = {p for c in COVER for p in exact_cells.pairs({d: getattr(c, d) for d in DIMENSIONS})}
    assert held == exact_cells.wanted()
    assert len(COVER) <= 45
    assert len({c.name for c in COVER}) == len(COVER)


def test_no_cell_holds_what_cannot_meet() -> None:
    assert all(
        not exact_cells.excluded(left, right)
        for c in CELLS.values()
        for left in vars(c).values()
        for right in vars(c).values()
        if isinstance(left, str) and isinstance(right, str)
    )
    known = {value for values in DIMENSIONS.values() for value in values}
    assert {value for pair in EXCLUDED for value in pair} <= known


def test_the_matrix_does_not_depend_on_the_process() -> None:
    code = "import exact_cells; print('\\n'.join(exact_cells.CELLS))"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=SCRIPT.parent, capture_output=True, text=True, check=True)
    assert said.stdout.split() == list(CELLS)


@pytest.mark.slow
def test_a_process_of_its_own_gets_the_same_bits_as_a_forked_one(
    forked: Processes, tmp_path: Path, empty_database: Path
) -> None:
    """Else the matrix would be about forked processes."""
    cell = CELLS[ALONE]
    fork, alone = (Run(cell, tmp_path / name, empty_database) for name in ("fork", "alone"))
    assert fork.whole(forked) == []
    arguments = [alone.uri, alone.run_id, cell.name, "reference", str(alone.folder)]
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert compare(never_killed(cell), fork.folder, alone.folder) == []


def never_killed(cell: Cell) -> Cell:
    return dataclasses.replace(cell, interruption="never")


@pytest.fixture(scope="module")
def ended(forked: Processes, tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Run:
    """A run that nobody killed."""
    run = Run(CELLS[ALONE], tmp_path_factory.mktemp("ended") / "run", empty_database)
    assert run.whole(forked) == []
    return run


@pytest.fixture
def copy(ended: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ended.folder, tmp_path / "copy"))


def edited(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_two_runs_without_a_difference_differ_in_nothing(ended: Run, copy: Path) -> None:
    assert compare(never_killed(ended.cell), ended.folder, copy) == []


def test_a_variable_that_differs_is_named_with_its_step(ended: Run, copy: Path) -> None:
    path, digest = lines(copy, 0)[9]["variables"][2]
    rows = (copy / "batches-0.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    rows[9] = rows[9].replace(digest, "0" * 12, 1)
    (copy / "batches-0.jsonl").write_text("".join(rows), encoding="utf-8")
    found = compare(never_killed(ended.cell), ended.folder, copy)
    assert found == [f"process 0 (from step 0) after step 9: variable 2 {path!r}"]


def test_a_batch_that_was_trained_too_often_is_noticed(ended: Run, copy: Path) -> None:
    """From scratch the same bits come out: only the numbers of the batches tell."""
    edited(copy / "batches-0.jsonl", '"began": []', '"began": [6]')
    rows = (copy / "batches-0.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (copy / "batches-0.jsonl").write_text("".join([*rows[:5], *rows[4:]]), encoding="utf-8")
    found = compare(never_killed(ended.cell), ended.folder, copy)
    assert found == ["process 0 trained 25 batches from step 6, expected 18"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        pytest.param("metrics", "metrics: /loss/1/1 is 0.5", id="a-metric"),
        pytest.param("fits", "fits: /0/history/loss/1 is 0.5", id="the-history"),
    ],
)
def test_a_number_that_differs_is_named(ended: Run, copy: Path, key: str, expected: str) -> None:
    result = json.loads((copy / RESULT).read_bytes())
    if key == "metrics":
        result[key]["loss"][1][1] = 0.5
    else:
        result[key][0]["history"]["loss"][1] = 0.5
    (copy / RESULT).write_text(json.dumps(result), encoding="utf-8")
    (found,) = compare(never_killed(ended.cell), ended.folder, copy)
    assert found.startswith(expected)


def test_a_step_that_was_logged_twice_is_named(ended: Run, copy: Path) -> None:
    result = json.loads((copy / RESULT).read_bytes())
    result["metrics"]["loss"].append(result["metrics"]["loss"][-1])
    (copy / RESULT).write_text(json.dumps(result), encoding="utf-8")
    found = compare(never_killed(ended.cell), ended.folder, copy)
    assert "metric loss has a step twice: [1, 2, 3, 4, 4]" in found


def test_a_missing_checkpoint_is_named(ended: Run, copy: Path) -> None:
    result = json.loads((copy / RESULT).read_bytes())
    gone = result["checkpoints"].pop(0)
    (copy / RESULT).write_text(json.dumps(result), encoding="utf-8")
    (found,) = compare(never_killed(ended.cell), ended.folder, copy)
    assert gone["name"] in found


def test_a_row_too_many_in_a_log_is_named(ended: Run, copy: Path) -> None:
    with (copy / "log.csv").open("a", encoding="utf-8") as file:
        file.write("4,0.5\r\n")
    (found,) = compare(never_killed(ended.cell), ended.folder, copy)
    assert found.startswith("log.csv is")


def test_a_process_that_was_not_killed_is_an_error(ended: Run) -> None:
    (found,) = ended.ended("reference", 0, -signal.SIGKILL)
    assert found.startswith("process reference ended with 0, expected -9: ")
