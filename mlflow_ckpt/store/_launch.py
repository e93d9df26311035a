"""What MLflow Projects know: a project's entry points, and the command that launches one in a run.

`mlflow.projects.run(run_id=...)` makes no run, and neither logs parameters nor touches the tags
that say where the code came from. Its steps are taken here one by one, because it also stays as
a second process, which dies of a SIGTERM without a word to the training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import ViewType
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects import env_type
from mlflow.projects.utils import (
    fetch_and_validate_project,
    get_entry_point_command,
    get_run_env_vars,
    load_project,
)
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_GIT_REPO_URL,
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_PROJECT_BACKEND,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_PROJECT_ENV,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from mlflow_ckpt.errors import ResumeError
from mlflow_ckpt.record import Run
from mlflow_ckpt.store._connection import connect, portable, translated

_ATTEMPTS = 20


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a run was launched, by its tags; "" where they do not say.

    Attributes:
        kind: `PROJECT`, `LOCAL` (a script), `NOTEBOOK`, ...
        source: URI or folder of the project, or the script.
        entry_point: Of the project.
        commit: What was checked out there.
        repository: The first remote of its git repository.
        environment: `conda`, `virtualenv`, `uv` or `docker`; "" is the environment of who
            launched it.
        backend: `local`, `databricks`, `kubernetes` or a plugin's.
        parent: ID of the run above this one.
    """

    kind: str
    source: str
    entry_point: str
    commit: str
    repository: str
    environment: str
    backend: str
    parent: str


def origin_of(run: Run) -> Origin:
    """Read a run's tags."""

    def tag(name: str) -> str:
        return run.tags.get(name, "")

    return Origin(
        kind=tag(MLFLOW_SOURCE_TYPE),
        source=tag(MLFLOW_SOURCE_NAME),
        entry_point=tag(MLFLOW_PROJECT_ENTRY_POINT) or "main",
        commit=tag(MLFLOW_GIT_COMMIT),
        repository=tag(MLFLOW_GIT_REPO_URL),
        environment=tag(MLFLOW_PROJECT_ENV),
        backend=tag(MLFLOW_PROJECT_BACKEND) or "local",
        parent=tag(MLFLOW_PARENT_RUN_ID),
    )


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """A run that `mlflow run -e resume -P run_id=...` has made around its training.

    Attributes:
        run_id: Its own ID.
        at: When it began, in milliseconds since the Unix epoch.
        params: What it was asked for, as MLflow logged it.
    """

    run_id: str
    at: int
    params: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project that lies here.

    Attributes:
        folder: The one with its MLproject file.
        parameters: Type of each parameter of the entry point, by name.
        in_docker: Whether MLflow runs it in a container.
    """

    folder: Path
    parameters: Mapping[str, str]
    in_docker: bool


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is to take the place of this process.

    Attributes:
        words: The program and its arguments.
        folder: Where it runs.
        variables: What it is told besides its environment.
    """

    words: tuple[str, ...]
    folder: Path
    variables: Mapping[str, str]


class Launcher:
    """Projects, and runs that they made, on one tracking server.

    Args:
        uri: Its tracking URI.
    """

    longest = MAX_PARAM_VAL_LENGTH  # MLflow cuts off what a longer parameter holds

    def __init__(self, uri: str) -> None:
        self._connection = connect(uri)

    def attempts(self, run: Run) -> list[Attempt]:
        """The newest runs below `run` that were asked for it by its ID, the last one first."""
        own = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run.run_id}' and params.run_id = '{run.run_id}'"
        with translated("search attempts at a run"):
            found = self._connection.client.search_runs(
                [run.experiment_id],
                own,
                run_view_type=ViewType.ACTIVE_ONLY,
                max_results=_ATTEMPTS,
                order_by=["attributes.start_time DESC"],
            )
        return [
            Attempt(run_id=r.info.run_id, at=r.info.start_time, params=dict(r.data.params))
            for r in found
        ]

    def fetch(
        self, uri: str, version: str | None, entry_point: str, given: Iterable[str]
    ) -> Project:
        """Bring a project here, if it is not: a git URI into a temporary folder that stays.

        Args:
            version: A commit or branch, of a git URI only: MLflow would check it out in a
                folder that somebody works in.
            given: Names of parameters that have a value.

        Raises:
            ResumeError: If it cannot be had, or does not say how to launch it.
        """
        try:
            folder = fetch_and_validate_project(uri, version, entry_point, dict.fromkeys(given, ""))
            project = load_project(folder)
            entry = project.get_entry_point(entry_point)
        except (MlflowException, OSError) as error:
            raise ResumeError(_refusal(uri, entry_point, error)) from error
        except Exception as error:
            # GitPython's own, whose import fails where there is no git.
            if not type(error).__module__.startswith("git"):
                raise
            raise ResumeError(_refusal(uri, entry_point, error)) from error
        return Project(
            folder=Path(folder),
            parameters={name: each.type for name, each in entry.parameters.items()},
            in_docker=project.env_type == env_type.DOCKER,
        )

    def program(
        self,
        run: Run,
        project: Project,
        entry_point: str,
        params: Mapping[str, str],
        env_manager: str,
    ) -> Program:
        """What launches the entry point into the run.

        Where MLflow has to make an environment, or a container, it is MLflow's own command.

        Raises:
            ResumeError: If a parameter is none, such as a path that does not exist.
        """
        where = {"MLFLOW_TRACKING_URI": _absolute(self._connection.uri)}
        if env_manager == "local" and not project.in_docker:
            try:
                (command,) = get_entry_point_command(
                    load_project(str(project.folder)), entry_point, dict(params), None
                )
            except (MlflowException, OSError) as error:
                raise ResumeError(_refusal(str(project.folder), entry_point, error)) from error
            return Program(
                words=("bash", "-c", command),
                folder=project.folder,
                variables=get_run_env_vars(run.run_id, run.experiment_id) | where,
            )
        command = self.command(run, str(project.folder), None, entry_point, params, env_manager)
        return Program(words=(sys.executable, "-m", *command), folder=Path.cwd(), variables=where)

    @staticmethod
    def command(
        run: Run,
        uri: str,
        version: str | None,
        entry_point: str,
        params: Mapping[str, str],
        env_manager: str,
    ) -> tuple[str, ...]:
        """MLflow's own command for the same launch."""
        words = ["mlflow", "run", uri, "-e", entry_point]
        words += ["-v", version] if version else []
        words += [] if env_manager == "docker" else ["--env-manager", env_manager]
        words += ["--experiment-id", run.experiment_id, "--run-id", run.run_id]
        for name, value in params.items():
            words += ["-P", f"{name}={value}"]
        return tuple(words)


def _absolute(uri: str) -> str:
    """`uri` as a process in another folder has to be told it, a password included."""
    _, _, name = uri.partition("sqlite:///")
    return portable(uri) if name and not name.startswith((":", "/")) else uri


def _refusal(uri: str, entry_point: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    missing = isinstance(error, ExecutionException) and "missing parameters" in text
    return f"The entry point {entry_point!r} of {uri} cannot be launched: {text}" + (
        " Give it with -P NAME=VALUE." if missing else ""
    )
