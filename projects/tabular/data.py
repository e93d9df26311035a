"""Scikit-learn's bundled breast-cancer data as a pandas DataFrame, split for training.

One column per measurement of the cell nuclei, in the units of the data set, plus
`size_class` (1 small, 2 medium, 3 large) and `target` (0 malignant, 1 benign).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

SIZE_CLASSES = [1, 2, 3]
_RADIUS_EDGES = [0, 12, 15, np.inf]  # near the terciles of the mean radius


def load() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training and the test rows."""
    frame = load_breast_cancer(as_frame=True).frame
    frame["size_class"] = pd.cut(frame["mean radius"], _RADIUS_EDGES, labels=SIZE_CLASSES)
    return train_test_split(frame, test_size=0.2, random_state=0, stratify=frame["target"])


def inputs(frame: pd.DataFrame) -> dict[str, np.ndarray[Any, Any]]:
    """Raw model inputs: `measurements`, shape (rows, 30), and `size_class`, shape (rows, 1)."""
    return {
        "measurements": frame.drop(columns=["size_class", "target"]).to_numpy("float32"),
        "size_class": frame[["size_class"]].to_numpy("int64"),
    }
