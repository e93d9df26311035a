"""A cell that trains is interrupted in a real kernel; the kernel lives, and the cell run again."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import numpy as np
import pytest
from builders import weights
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from signal_checks import curves, newest_step, reference, status
from signal_script import BATCHES

import mlflow_ckpt as ckpt

TESTS = Path(__file__).parent
EPOCHS = 3

PREPARE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
import signal, threading
import mlflow
from signal_script import seeded, train

mlflow.set_tracking_uri({{uri!r}})
"""
TRAIN = f"""
model = train({{run_id!r}}, epochs={EPOCHS}, seconds={{seconds}}, tell=print)
print("done")
"""
LEFT = """
import time
for _ in range(600):
    left = [t.name for t in threading.enumerate() if t.name.startswith("mlflow-ckpt")]
    if not left:
        break
    time.sleep(0.05)
print(left, mlflow.active_run(), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


def text(cell: Any, stream: str = "stdout") -> str:
    """What a person sees of a cell's stream."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == stream)


async def until(cell: Any, word: str, count: int) -> None:
    deadline = time.monotonic() + 120
    while text(cell).split("\n").count(word) < count:
        assert time.monotonic() < deadline, cell.outputs
        await asyncio.sleep(0.01)


async def in_a_kernel(sources: list[str], interrupt: int) -> list[Any]:
    """Execute cells, one after another, and interrupt one of them in its sixth batch."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    async with client.async_setup_kernel():
        for index, cell in enumerate(cells):
            running = asyncio.ensure_future(client.async_execute_cell(cell, index))
            if index != interrupt:
                await running
                continue
            await until(cell, "batch", 5)
            await client.km.interrupt_kernel()
            with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
                await running
            assert await client.km.is_alive()
    return cells


def test_an_interrupted_cell_is_run_again_in_the_same_kernel(
    tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where it is set, a kernel shows nothing of what is written past Python's own streams.
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with mlflow.start_run() as run:
        run_id = run.info.run_id
    fast, slow = (TRAIN.format(run_id=run_id, seconds=pace) for pace in (0.0, 0.3))
    sources = [PREPARE.format(uri=tracking), slow, LEFT, fast, LEFT]
    cells = asyncio.run(in_a_kernel(sources, interrupt=1))

    told = text(cells[1]) + text(cells[1], "stderr")
    assert told.count("Ctrl-C: saves a checkpoint") == 1
    assert "done" not in told
    (error,) = [output for output in cells[1].outputs if output.output_type == "error"]
    assert error.ename == "KeyboardInterrupt"
    assert [text(cells[n]) for n in (2, 4)] == ["[] None True\n"] * 2

    reached = text(cells[1]).split("\n").count("batch")
    assert BATCHES < reached < EPOCHS * BATCHES
    again = text(cells[3])
    assert again.count(f"continues in epoch 2 after its batch {reached - BATCHES}") == 1
    assert again.split("\n").count("batch") == EPOCHS * BATCHES - reached
    assert again.count("done") == 1

    expected, _ = reference(EPOCHS)
    assert (status(run_id), newest_step(run_id)) == ("FINISHED", EPOCHS * BATCHES)
    assert curves(run_id) == expected[1]
    found = weights(ckpt.load_model(run_id, "final"))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected[0], strict=True))
