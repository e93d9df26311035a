"""Which names the model registry takes, asked before anything is done. Pure.

As MLflow's `utils/validation.py` has them: a server asks for the alias once the version is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from mlflow_ckpt.errors import ConfigError

LONGEST_KEY = 250
_ALIAS = re.compile(r"[\w\-]{1,255}")
_RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)
_OURS = "ckpt."


def check_names(name: str, alias: str | None) -> None:
    """Check the name of a registered model, and an alias of a version.

    Raises:
        ConfigError: If MLflow would refuse one.
    """
    if (
        not isinstance(name, str)
        or not name.strip()
        or set(name) & set("/:")
        or name in (".", "..")
    ):
        raise ConfigError(
            "Expected a name for the registered model, without '/' and ':', such as 'digits'. "
            f"Received: name={name!r}"
        )
    if alias is None:
        return
    if not isinstance(alias, str) or not _ALIAS.fullmatch(alias):
        raise ConfigError(
            "Expected an alias of letters, digits, '_' and '-', such as 'champion'. Received: "
            f"alias={alias!r}"
        )
    if _RESERVED.fullmatch(alias):
        raise ConfigError(
            "Expected an alias such as 'champion': 'latest' and 'v1', 'v2', ... are MLflow's own "
            f"names. Received: alias={alias!r}"
        )


def check_tags(tags: Mapping[str, object]) -> dict[str, str]:
    """The tags that a user gives a version, as texts.

    Raises:
        ConfigError: If one is called like those that say where it came from.
    """
    for key in tags:
        if not isinstance(key, str) or not key or key.startswith(_OURS):
            raise ConfigError(
                f"Expected tags whose names do not begin with {_OURS!r}, which says where a "
                f"version came from. Received: tags={{{key!r}: ...}}"
            )
    return {key: str(value) for key, value in tags.items()}
