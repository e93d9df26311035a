"""A few lines for the run's description, which the MLflow UI shows above everything else.

They are written where the user has written nothing. Their last line, which no page shows,
holds a digest of the others: lines that somebody has changed are not ours any more.
"""

from __future__ import annotations

import re

from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.page._facts import Facts, Part
from mlflow_ckpt.table import human_bytes

_MARK = re.compile(r"(?P<text>.*)\n\n<!-- mlflow_ckpt (?P<digest>\w+:\w+) -->", re.DOTALL)


def note(facts: Facts) -> str:
    """What there is, where the report lies, and how to load and continue; Markdown."""
    held = facts.held
    size = human_bytes(sum(each.checkpoint.bytes for each in held))
    plural = "" if len(held) == 1 else "s"
    run_id = facts.run.run_id
    several = len(facts.parts) > 1
    lines = [f"**{len(held)} checkpoint{plural}**, {size}. Report: *Artifacts*, "
             "`checkpoints/report.html`.", ""]  # fmt: skip
    lines += [_line(part, several=several) for part in facts.parts if part.held]
    lines += [
        "",
        f"- Load: `{_load(facts)}`",
        f"- Continue: `mlflow-ckpt resume {run_id}`",
    ]
    text = "\n".join(lines)
    return f"{text}\n\n<!-- mlflow_ckpt {_digest(text)} -->"


def _load(facts: Facts) -> str:
    run_id, which = facts.run.run_id, facts.example
    if any(each.checkpoint.weights_only for each in facts.held):
        return f'mlflow_ckpt.load_weights(model, "{run_id}", "{which}")'
    return f'mlflow.keras.load_model("ckpt:/{run_id}/{which}")'


def is_ours(found: str) -> bool:
    """Whether a description is one that `note` made and nobody has changed, or none at all."""
    if not found.strip():
        return True
    marked = _MARK.fullmatch(found)
    return marked is not None and _digest(marked["text"]) == marked["digest"]


def _digest(text: str) -> str:
    algorithm, _, digest = digest_bytes(text.encode()).partition(":")
    return f"{algorithm}:{digest[:32]}"


def _line(part: Part, *, several: bool) -> str:
    told = []
    for name, found in (("latest", part.latest), ("best", part.best)):
        if found is None:
            continue
        checkpoint, monitor = found.checkpoint, part.series.monitor
        value = checkpoint.metrics.get(monitor) if monitor else None
        by = f", {_code(f'{monitor} {value:.6g}')}" if value is not None else ""
        told.append(f"{name}: epoch {checkpoint.epoch}, step {checkpoint.step}{by}")
    bad = sum(bool(each.reason) for each in part.held)
    told += [f"**{bad} corrupt**"] if bad else []
    return f"- {_code(part.series.name) + ': ' if several else ''}{'; '.join(told)}"


def _code(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return "`" + text.replace("`", "'") + "`"
