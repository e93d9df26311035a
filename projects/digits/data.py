"""The two sets of handwritten digits, as `keras.datasets` returns them.

Images are flat float32 rows between 0 and 1, labels the digits 0 to 9.
"""

from __future__ import annotations

import socket
from typing import Any

import click
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

Split = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


class DataUnavailable(click.ClickException):
    """A data set that cannot be downloaded."""

    exit_code = 2


def load(dataset: str) -> tuple[Split, Split]:
    """Return `(x_train, y_train), (x_test, y_test)` of `digits` or `mnist`.

    Raises:
        DataUnavailable: If MNIST is not on this computer and cannot be downloaded.
    """
    if dataset == "mnist":
        (x_train, y_train), (x_test, y_test) = _download_mnist()
        return (_flat(x_train, 255), y_train), (_flat(x_test, 255), y_test)
    bundled = load_digits()
    x_train, x_test, y_train, y_test = train_test_split(
        _flat(bundled.images, 16),
        bundled.target,
        test_size=0.2,
        random_state=0,
        stratify=bundled.target,
    )
    return (x_train, y_train), (x_test, y_test)


def hold_out(split: Split, share: float = 0.1) -> tuple[Split, Split]:
    """Return the first part of a set to train on, and its last tenth to validate with."""
    x, y = split
    kept = int(len(x) * (1 - share))
    return (x[:kept], y[:kept]), (x[kept:], y[kept:])


def _flat(images: np.ndarray[Any, Any], white: int) -> np.ndarray[Any, Any]:
    return images.reshape(len(images), -1).astype("float32") / white


def _download_mnist() -> tuple[Split, Split]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # Keras sets none: a blocked network would hang here
    try:
        return keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises nothing more special
        raise DataUnavailable(
            f"MNIST could not be downloaded ({error}): connect to the network, put mnist.npz "
            "into ~/.keras/datasets, or train with dataset=digits, which needs no download."
        ) from error
    finally:
        socket.setdefaulttimeout(before)
