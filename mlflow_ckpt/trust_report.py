"""Show a person what `verify` found, and why a selector was answered as it was."""

from __future__ import annotations

import math

import click

from mlflow_ckpt import table
from mlflow_ckpt.explaining import Candidate, Explanation
from mlflow_ckpt.table import Column, fit, human_bytes, print_columns
from mlflow_ckpt.verifying import Verdict, Verification


def print_verdict(verdict: Verdict) -> None:
    """One line a checkpoint as it is judged, and one below it for each fault."""
    size = human_bytes(verdict.bytes)
    click.echo(f"{verdict.state:<10}  {verdict.run_id}  {verdict.name}  {size}")
    for fault in verdict.faults:
        click.echo(f"{'':<10}  {fault}")
    if verdict.state == "corrupt" and not verdict.marked:
        click.echo(f"{'':<10}  it is not marked: selectors still return it")
    if verdict.state == "marked":
        click.echo(f"{'':<10}  it is whole, and still marked as corrupt: no selector returns it")


def print_verification(found: Verification) -> None:
    """The last line."""
    count = len(found.verdicts)
    bad = sum(bool(verdict.faults) for verdict in found.verdicts)
    click.echo(
        f"{count} checkpoint{'' if count == 1 else 's'}, {human_bytes(found.bytes)} read: "
        + (f"{bad} with faults." if bad else "all whole." if count else "nothing to read.")
    )


def print_explanation(found: Explanation) -> None:
    """What was chosen, the rule, and every candidate."""
    console = table.console()
    answer = found.chosen
    console.print(f"{found.selector} of run {found.run_id}, series {found.series!r}: {found.rule}.")
    if answer is not None:
        console.print(f"{answer.name}  {answer.uri}", style="bold")
    if found.candidates:
        console.print()
        columns = _columns(found)
        shown = fit(columns, console.width) if console.is_terminal else columns
        styles = ["green" if candidate.chosen else "" for candidate in found.candidates]
        print_columns(console, shown, styles)


def _columns(found: Explanation) -> list[Column]:
    each = found.candidates
    return [
        Column(title="", cells=["*" if candidate.chosen else "" for candidate in each]),
        Column(title="name", cells=[candidate.name for candidate in each]),
        Column(title="epoch", cells=[_count(c.epoch) for c in each], spare=2, right=True),
        Column(title="step", cells=[_count(c.step) for c in each], right=True),
        Column(title="ranked by", cells=[_value(candidate) for candidate in each], right=True),
        Column(title="verdict", cells=[candidate.verdict for candidate in each]),
        Column(title="model ID", cells=[candidate.model_id for candidate in each], spare=9),
    ]


def _count(number: int) -> str:
    return "-" if number < 0 else str(number)


def _value(candidate: Candidate) -> str:
    value = candidate.value
    if value is None:
        return "-"
    return f"{value:.0f}" if math.isfinite(value) and value == int(value) else repr(value)
