"""Say what to install where Keras, or its backend, is not there."""

from __future__ import annotations

import os

_BACKENDS = ("tensorflow", "jax", "torch")


def backend_hint(error: ModuleNotFoundError) -> str | None:
    """What to type, if what is missing is Keras or its backend."""
    name = (error.name or "").partition(".")[0]
    if name == "keras":
        return "Type: pip install keras tensorflow"
    if name not in _BACKENDS:
        return None
    chosen = os.environ.get("KERAS_BACKEND")
    hint = f"It is the backend that Keras was to use. Type: pip install {name}"
    other = "tensorflow"
    return f"{hint}, or: export KERAS_BACKEND={other}" if chosen and name != other else hint
