"""Turn a training function into a command that calls it in a new process.

    function -> command() -> [python, -c, boot, job] -> call() -> the same function

The function goes by its names, never by its code: what a user restarts is a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mlflow_ckpt.errors import ConfigError

Train = Callable[[], object] | Sequence[str]

# The path comes first: this package may be found through it.
_BOOT = (
    "import json, sys; job = json.loads(sys.argv[1]); sys.path[:] = job.pop('path'); "
    "from mlflow_ckpt.target import call; call(**job)"
)
_ADVICE = "Give it a function that stands at the top of a file, or a command as a list of strings."


def command(train: Train) -> list[str]:
    """The command that trains: `train` itself, or one that calls it.

    Raises:
        ConfigError: If a new process could not find the function.
    """
    if not callable(train):
        words = [] if isinstance(train, str) else list(train)
        if not words or not all(isinstance(word, str) for word in words):
            raise ConfigError(f"{_ADVICE} Received: train={train!r}")
        return words
    module, file = _home(train)
    path = [str(entry) for entry in sys.path]
    job = {"module": module, "file": file, "name": train.__qualname__, "path": path}
    return [sys.executable, "-c", _BOOT, json.dumps(job)]


def project_command(project: str, entry_point: str, params: Mapping[str, str]) -> list[str]:
    """The command that trains an MLflow Project in the run `{run_id}`, with this Python."""
    words = [sys.executable, "-m", "mlflow", "run", project, "--env-manager", "local"]
    words += ["-e", entry_point, "--run-id", "{run_id}", "--experiment-id", "{experiment_id}"]
    for name, value in params.items():
        words += ["-P", f"{name}={value}"]
    return words


def _home(train: Callable[[], object]) -> tuple[str, str]:
    """Module and file in which another process finds `train`."""
    name, qualname = getattr(train, "__module__", None), getattr(train, "__qualname__", "")
    module = sys.modules.get(name or "")
    file = getattr(module, "__file__", None)
    if module is None or file is None or _lookup(module, qualname) is not train:
        raise ConfigError(
            f"A new process cannot find this function by its name. {_ADVICE} "
            f"Received: train={train!r}"
        )
    if name == "__main__":
        # `python -m package.module` runs a module that has a name to be imported by.
        spec = getattr(module, "__spec__", None)
        name = spec.name if spec is not None else "__main__"
    return str(name), str(Path(file).resolve())


def call(*, module: str, file: str, name: str) -> None:
    """Call a function without arguments in this process."""
    sys.argv[:] = [file]
    found = _lookup(_load(module, Path(file)), name)
    found()


def _load(name: str, file: Path) -> ModuleType:
    """Import a module by its name, else from its file, as pytest does with tests."""
    if name == "__main__":
        return _load_file("__mp_main__", file)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return _load_file(name, file)
    found = getattr(module, "__file__", None)
    return module if found and Path(found).resolve() == file else _load_file(name, file)


def _load_file(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"Expected a Python file. Received: {file}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _lookup(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
