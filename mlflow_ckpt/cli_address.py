"""Let `ckpt:/<run_id>/<selector>` stand where a command asks for RUN_ID and SELECTOR."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from mlflow_ckpt.address import Address, is_address


def named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command, with a URI taken apart.

    A command without SELECTOR reads the run from it, and no more.

    Raises:
        SelectorError: If it is no such URI.
        UsageError: If it names a file, or SELECTOR names a checkpoint too.
    """
    found = dict(arguments)
    if not is_address(found.get("run_id")):
        return found
    address = Address.parse(found["run_id"])
    if address.path:
        raise click.UsageError(
            f"Expected a whole checkpoint. Received: {found['run_id']!r}. Leave /{address.path} "
            "out."
        )
    if "which" in found and _is_typed("which"):
        raise click.UsageError(
            f"The URI names {str(address.selector)!r} already. Received: {found['which']!r} behind "
            "it. Leave one of them out."
        )
    run_id = address.run_id
    if run_id is None:
        raise click.UsageError(
            f"Expected a checkpoint of a run. Received: {found['run_id']!r}. "
            f"Type ckpt:/<run_id>/{address.selector}."
        )
    found["run_id"] = run_id
    if "which" in found:
        found["which"] = str(address.selector)
    return found


def _is_typed(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE
