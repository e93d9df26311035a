"""Hold a run that was killed and continued against the one that nobody killed.

Each function returns what differs, in words; nothing is the proof. What is compared comes from
the files that `exact_script.py` wrote, so that one process can hold many runs against another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from comparing import differences, members, tree
from exact_callbacks import CSV, RESULT, STATE
from exact_cells import EPOCHS, Cell, Kill

from mlflow_ckpt.formats import MEMBER, MODEL

Lines = Sequence[Mapping[str, Any]]


def compare(cell: Cell, reference: Path, killed: Path) -> list[str]:
    """Everything in which the two ended runs differ."""
    ours, theirs = (json.loads((f / RESULT).read_bytes()) for f in (killed, reference))
    return [
        *_batches(cell, reference, killed),
        *_variables(ours, theirs, reference, killed),
        *(f"{key}: {found}" for key in ("fits", "metrics") for found in _told(ours, theirs, key)),
        *_checkpoints(ours, theirs),
        *_repeated(ours["metrics"]),
        *_csv(reference, killed),
        *(f"the tag {key} says {value!r}" for key, value in ours["tags"].items()
          if key == "ckpt.resume_divergence"),
    ]  # fmt: skip


def _told(ours: Any, theirs: Any, key: str) -> Iterator[str]:
    for path in differences(ours[key], theirs[key]):
        values = [_at(tree_, path) for tree_ in (ours[key], theirs[key])]
        yield f"{path} is {values[0]!s:.80}, expected {values[1]!s:.80}"


def _at(value: Any, path: str) -> Any:
    for name in path.removesuffix(" (in one only)").split("/")[1:]:
        value = value[int(name)] if isinstance(value, list) else value.get(name, "nothing")
    return value


def _batches(cell: Cell, reference: Path, killed: Path) -> Iterator[str]:
    """The numbers of the batches that each process trained, and every variable after each."""
    expected = {line["step"]: line["variables"] for line in lines(reference, 0)[1:]}
    for number in range(len(cell.kills) + 1):
        began, *trained = lines(killed, number)
        step = sum(began["began"])
        if number == len(cell.kills):
            count = len(trained) - 1  # The last line is that of the end.
            due = len([s for s in expected if s != "end" and s > step])
            if count != due or trained[-1]["step"] != "end":
                yield f"process {number} trained {count} batches from step {step}, expected {due}"
                return
        for line in trained:
            if (found := _first(line["variables"], expected.get(line["step"]))) is not None:
                yield f"process {number} (from step {step}) after step {line['step']}: {found}"
                return


def _first(ours: Sequence[Any], theirs: Sequence[Any] | None) -> str | None:
    """The first variable that differs."""
    if theirs is None:
        return "the other run has no such step"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one[1] != other[1]:
            return f"variable {index} {one[0]!r}"
    return None if len(ours) == len(theirs) else f"{len(ours)} variables, expected {len(theirs)}"


def lines(folder: Path, number: int) -> Lines:
    """What one process wrote: where it began, then its batches; a kill may tear the last line."""
    text = (folder / f"batches-{number}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _variables(ours: Any, theirs: Any, reference: Path, killed: Path) -> Iterator[str]:
    if len(ours["paths"]) != len(theirs["paths"]):
        yield f"{len(ours['paths'])} variables at the end, expected {len(theirs['paths'])}"
        return
    with np.load(killed / STATE) as mine, np.load(reference / STATE) as others:
        for index, path in enumerate(theirs["paths"]):
            a, b = mine[str(index)], others[str(index)]
            if a.tobytes() != b.tobytes():
                far = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64)))
                yield f"variable {index} {path!r} at the end: {far:.3g} apart"
                return


def _checkpoints(ours: Any, theirs: Any) -> Iterator[str]:
    """Which there are, which is the best, and the bits of each model."""
    mine, others = ours["checkpoints"], theirs["checkpoints"]
    if mine != others:
        alone = [c for c in mine if c not in others], [c for c in others if c not in mine]
        yield f"checkpoints: only the killed run has {alone[0]}, only the other one {alone[1]}"
        return
    for facts, one, other in zip(mine, ours["files"], theirs["files"], strict=True):
        files = [members(_local(uri) / MODEL)[MEMBER] for uri in (one, other)]
        if found := differences(*map(tree, files)):
            yield f"checkpoint {facts['name']}: {found[:3]}"
            return


def _local(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path))


def _repeated(metrics: Mapping[str, Any]) -> Iterator[str]:
    for key, rows in metrics.items():
        steps = [step for step, _ in rows]
        if len(set(steps)) < len(steps):
            yield f"metric {key} has a step twice: {steps}"


def _csv(reference: Path, killed: Path) -> Iterator[str]:
    texts = [(f / CSV).read_bytes() if (f / CSV).exists() else b"" for f in (killed, reference)]
    if texts[0] != texts[1]:
        yield f"{CSV} is {texts[0]!r}, expected {texts[1]!r}"


def misplaced(cell: Cell, killed: Path) -> Iterator[str]:
    """Whether each process began from the checkpoint that the kill before it left as the newest."""
    for number, kill in enumerate(cell.kills, start=1):
        least, most = _newest(cell, kill)
        step = sum(lines(killed, number)[0]["began"])
        if not least <= step <= most:
            yield f"process {number} found step {step}, expected {least} to {most}"


def _newest(cell: Cell, kill: Kill) -> tuple[int, int]:
    """Bounds of the step of the newest checkpoint when a kill comes."""
    every = cell.every
    if kill.place == "write":
        return every * kill.batch, every * kill.batch  # It waits on this disk.
    done = {
        "boundary": kill.epoch * cell.steps,
        "batch": kill.epoch * cell.steps + kill.batch,
        "end": (kill.epoch + 1) * cell.steps - 1,
        "validation": (kill.epoch + 1) * cell.steps,
    }[kill.place]
    slack = cell.steps_per_execution - 1
    return done - every * (1 if kill.settled else 2), done + slack


def bars(cell: Cell, killed: Path) -> Iterator[str]:
    """Whether the progress bar of a continued process begins at the batch that it trains first."""
    for number in range(1, len(cell.kills) + 1 if cell.verbose else 0):
        inside = sum(lines(killed, number)[0]["began"]) % cell.steps
        shown = output(killed, number).read_text(encoding="utf-8").partition("Epoch ")[2]
        found = re.search(rf"(\d+)/{cell.steps}\b", shown)
        if found is None or int(found[1]) != inside + 1:
            yield f"the bar of process {number} begins with {shown[:80]!r}, expected {inside + 1}"


def output(folder: Path, attempt: int | str) -> Path:
    """What a process printed."""
    return folder / f"output-{attempt}.txt"


def idle(cell: Cell, reference: Path) -> Iterator[str]:
    """What a cell claims to exercise and does not: its callbacks must act, and after the kill."""
    result = json.loads((reference / RESULT).read_bytes())
    found, logs = result["fits"][0]["facts"], result["fits"][0]["history"]
    if cell.callbacks == "stopping" and found["EarlyStopping.stopped_epoch"] != 2:
        yield f"EarlyStopping did not stop in epoch 2: {found}"
    rates = logs.get("learning_rate", [])
    if cell.callbacks == "plateau" and not rates[1] > rates[2] > rates[3]:
        yield f"ReduceLROnPlateau did not reduce before and after the kill: {rates}"
    if cell.callbacks == "schedule" and len(set(rates)) != EPOCHS:
        yield f"LearningRateScheduler did nothing: {rates}"
