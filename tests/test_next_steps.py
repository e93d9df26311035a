"""What to type next reaches the server that was used and the project that was run."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest

from mlflow_ckpt import next_steps
from mlflow_ckpt.record import Run

RESUME = "mlflow-ckpt resume abc"


def project_run(source: str, kind: str = "PROJECT") -> Run:
    tags = {"mlflow.source.type": kind, "mlflow.source.name": source}
    return Run(run_id="abc", experiment_id="7", tags=tags)


@pytest.mark.parametrize(
    ("uri", "browse", "environment"),
    [
        pytest.param("sqlite:///mlflow.db", "mlflow ui", "", id="default"),
        pytest.param("sqlite:///{here}/mlflow.db", "mlflow ui", "", id="default-absolute"),
        pytest.param(
            "sqlite:///runs.db",
            "mlflow ui --backend-store-uri sqlite:///{here}/runs.db",
            "MLFLOW_TRACKING_URI=sqlite:///{here}/runs.db ",
            id="relative-becomes-absolute",
        ),
        pytest.param(
            "sqlite:////data/my runs.db",
            "mlflow ui --backend-store-uri 'sqlite:////data/my runs.db'",
            "MLFLOW_TRACKING_URI='sqlite:////data/my runs.db' ",
            id="quoted",
        ),
        pytest.param(
            "http://host:5000/",
            "http://host:5000/#/experiments/7/runs/abc?workflowType=machine_learning",
            "MLFLOW_TRACKING_URI=http://host:5000/ ",
            id="server",
        ),
        pytest.param(
            "https://me:secret@host/mlflow",
            "https://host/mlflow/#/experiments/7/runs/abc?workflowType=machine_learning",
            "",
            id="server-password",
        ),
        pytest.param(
            "postgresql://me:secret@host/db",
            'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"',
            "",
            id="database-password",
        ),
    ],
)
def test_the_commands_reach_the_same_server(
    uri: str, browse: str, environment: str, tmp_path: Path
) -> None:
    here = {"here": tmp_path}
    run = project_run("https://host/repository")
    records = [{"series": "ckpt", "is_best": True, "created_at": "1"}]
    assert next_steps.next_commands(uri.format_map(here), run, records) == [
        browse.format_map(here),
        environment.format_map(here) + RESUME,
        environment.format_map(here)
        + "python -c \"import mlflow_ckpt as ckpt; ckpt.load_model('abc', 'best').summary()\"",
    ]


def test_the_default_database_is_known_in_a_folder_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    mlflow.set_tracking_uri(None)
    assert next_steps._server(mlflow.get_tracking_uri(), project_run("")) == ("mlflow ui", "")


@pytest.mark.parametrize(
    ("records", "selector"),
    [
        pytest.param([("a", True, 1), ("a", False, 2)], "best", id="one-series"),
        pytest.param([("a", False, 1)], "latest", id="nothing-ranked"),
        pytest.param([("a", True, 1), ("b", True, 2)], "best@b", id="newest-best"),
        pytest.param([("a", True, 1), ("b", False, 2)], "best@a", id="best-before-newest"),
        pytest.param([("a", False, 1), ("b", False, 2)], "latest@b", id="newest"),
    ],
)
def test_the_checkpoint_worth_loading(records: list[tuple[str, bool, int]], selector: str) -> None:
    keys = ("series", "is_best", "created_at")
    assert next_steps._worth_loading([dict(zip(keys, r, strict=True)) for r in records]) == selector


@pytest.mark.parametrize(
    ("source", "kind", "command"),
    [
        pytest.param("file:///far/repository#projects/a", "PROJECT", RESUME, id="folder"),
        pytest.param("https://host/repository", "PROJECT", RESUME, id="git"),
        pytest.param(
            "/far/my train.py", "LOCAL", "MLFLOW_RUN_ID=abc python 'my train.py'", id="script"
        ),
        pytest.param("", "", "MLFLOW_RUN_ID=abc python train.py", id="nothing-known"),
    ],
)
def test_a_run_is_continued_the_way_it_was_started(source: str, kind: str, command: str) -> None:
    assert next_steps._resume(project_run(source, kind)) == command
