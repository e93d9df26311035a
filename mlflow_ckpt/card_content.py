"""What an `MLmodel` file says, whatever run it lies in and however its YAML is laid out.

MLflow writes the IDs of run and model into that file where it copies one, and other tools lay
its YAML out anew: its bytes change, and it says the same. Nothing here is needed to load or to
continue a checkpoint; `verify` and a download ask.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from mlflow_ckpt.digests import ALGORITHM, digest_bytes

PATH = "MLmodel"
# Files that MLflow makes and rewrites, such as in `set_signature`; no state lies in them.
CARD = frozenset({PATH, "conda.yaml", "python_env.yaml", "requirements.txt"})
# Where it lies, and not what it is.
_PLACE = frozenset({"run_id", "model_id", "model_uuid", "artifact_path"})
MAX_BYTES = 1 << 18


class _Plain(yaml.SafeLoader):
    """YAML without references, of which a few lines can stand for gigabytes, and without tags.

    A tag such as `!!int ""` has a constructor take what it was not made for, and a `!!set` is in
    another order in each process. No writer of the file puts any there.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.events.AliasEvent) or getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("a reference or a tag")
        return super().compose_node(parent, index)


def digest(data: bytes, algorithm: str = ALGORITHM) -> str | None:
    """Digest of what an `MLmodel` says, as `<algorithm>:<hex>`; `None` if it is none.

    It is that of canonical JSON (sorted keys, UTF-8) of its mapping, without `run_id`,
    `model_id`, `model_uuid` and `artifact_path`.
    """
    if len(data) > MAX_BYTES:
        return None
    try:
        # A safe loader: it makes plain values and nothing else.
        found = yaml.load(data, Loader=_Plain)
        if not isinstance(found, dict):
            return None
        told = {key: value for key, value in found.items() if key not in _PLACE}
        text = json.dumps(told, sort_keys=True, default=str)
    except Exception:  # noqa: BLE001 (of a stranger's text, whatever the parser stumbles over:
        # PyYAML lets out what its constructors meet, an IndexError or an OverflowError as well.
        # Then it says nothing, and its bytes have to be the committed ones.)
        return None
    return digest_bytes(text.encode(), algorithm)
