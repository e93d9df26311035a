"""Look at what is installed here, without importing any of it but for the capture mode."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from mlflow_ckpt.finding import Finding

_DISTRIBUTION = "mlflow-ckpt"
_PACKAGES = (_DISTRIBUTION, "mlflow", "keras", "tensorflow", "numpy", "h5py")
_PLUGINS = "mlflow.artifact_repository"
_SCHEME = "ckpt"


def versions() -> Iterator[Finding]:
    """Python and the machine, and each package, held against what this one asks for."""
    cores = _cores()
    yield Finding(
        name="Python",
        text=f"{platform.python_version()} on {platform.platform()}, {cores} CPUs",
        facts={
            "version": platform.python_version(),
            "system": platform.platform(),
            "cpus": cores,
        },
    )
    asked = {found.name: found for found in _requirements()}
    for name in _PACKAGES:
        yield _package(name, asked.get(name))


def _cores() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _requirements() -> Iterator[Requirement]:
    for text in metadata.requires(_DISTRIBUTION) or ():
        found = Requirement(text)
        if found.marker is None:
            yield found


def _package(name: str, asked: Requirement | None) -> Finding:
    wanted = f"{name}{asked.specifier}" if asked else name
    version = _version(name)
    if version is None:
        return Finding(
            name=name,
            text=f"Expected {wanted}. Received: it is not installed.",
            verdict="problem",
            advice=f"pip install '{wanted}'",
            facts={"version": None},
        )
    facts = {"version": version}
    backend = keras_backend() if name == "keras" else ""
    if backend:
        facts["backend"] = backend
    if asked and not asked.specifier.contains(version, prereleases=True):
        return Finding(
            name=name,
            text=f"Expected {wanted}. Received: {version}.",
            verdict="problem",
            advice=f"pip install '{wanted}'",
            facts=facts,
        )
    return Finding(
        name=name, text=version + (f", backend {backend}" if backend else ""), facts=facts
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # Such as tensorflow-cpu, whose package has this name all the same.
        others = metadata.packages_distributions().get(name, [])
        return metadata.version(others[0]) if others else None


def keras_backend() -> str:
    """Keras's backend, found as Keras does when it is imported."""
    if named := os.environ.get("KERAS_BACKEND"):
        return named
    home = os.environ.get("KERAS_HOME")
    path = (Path(home) if home else Path.home() / ".keras") / "keras.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["backend"])
    except (OSError, ValueError, LookupError, TypeError):
        return "tensorflow"


def plugin() -> Finding:
    """Whether MLflow finds this package when it meets a `ckpt:/` URI."""
    found = [each for each in metadata.entry_points(group=_PLUGINS) if each.name == _SCHEME]
    if found:
        return Finding(
            name="ckpt:/ URIs",
            text=f"registered with MLflow: {found[0].value}",
            facts={"entry_point": found[0].value},
        )
    return Finding(
        name="ckpt:/ URIs",
        text="MLflow does not know them: this package was installed without its entry points.",
        verdict="problem",
        advice=f"pip install --force-reinstall --no-deps {_DISTRIBUTION}",
        facts={"entry_point": None},
    )


def capture() -> Finding:
    """How a training would take its snapshots; imports Keras and its backend."""
    with _hushed():
        import keras

        from mlflow_ckpt.captured import why_not_copy_on_write

        # Where a variable lies by default is where the ones of a model will.
        obstacle = why_not_copy_on_write([keras.Variable([0.0, 0.0], name="a variable")])
    if obstacle is None:
        return Finding(
            name="capture",
            text="copy-on-write: a snapshot takes references, and training goes on",
            facts={"strategy": "copy-on-write", "reason": None},
        )
    return Finding(
        name="capture",
        text=f"host-copy: the state is copied while training waits, because {obstacle}",
        facts={"strategy": "host-copy", "reason": obstacle},
    )


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep away what TensorFlow's libraries write past Python, about CPUs and GPUs."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
