"""Where the files of a checkpoint lie: POSIX paths, relative to it. See `docs/format.md`."""

from __future__ import annotations

MODEL = "data/model.keras"
WEIGHTS = "data/model.weights.h5"
CONFIG = "data/config.json"
STATE = "state/training_state.h5"
# The weights inside a `.keras` file.
MEMBER = "model.weights.h5"
