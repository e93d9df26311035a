"""Checkpoints in MLflow's own hands: load_model, pyfunc, the registry, a real server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
from builders import data, fit, mlp, same

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint


def trained() -> tuple[str, keras.Model]:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(), epochs=2)
    return run.info.run_id, model


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(command: list[str], health: str, log: Path) -> Iterator[None]:
    """Run a server until the block ends; wait for it to answer for at most two minutes."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=output, stderr=output, start_new_session=True
        )
        try:
            for _ in range(480):
                if server.poll() is not None:
                    raise AssertionError(log.read_text())
                try:
                    urllib.request.urlopen(health, timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.25)
            else:
                raise AssertionError(log.read_text())
            yield
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(timeout=30)


def test_mlflow_loads_a_checkpoint_by_its_model_id() -> None:
    run_id, model = trained()
    uri = ckpt.resolve(run_id, "best").uri
    best = ckpt.load_model(run_id, "best")
    assert same(mlflow.keras.load_model(uri), best)
    x, _ = data()
    served = mlflow.pyfunc.load_model(uri)
    np.testing.assert_array_equal(served.predict(x), best.predict(x, verbose=0))
    signature = served.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, 8)
    assert signature.outputs.inputs[0].shape == (-1, 3)


def test_a_checkpoint_can_be_registered() -> None:
    run_id, _ = trained()
    version = mlflow.register_model(ckpt.resolve(run_id, "best").uri, "digits")
    assert mlflow.keras.load_model(f"models:/digits/{version.version}").built
    assert ckpt.resolve(run_id, "best").pinned


def test_the_card_holds_no_id_and_pinned_requirements(tmp_path: Path) -> None:
    run_id, _ = trained()
    folder = ckpt.download(run_id, "latest", tmp_path / "out")
    card = (folder / "MLmodel").read_text()
    assert run_id not in card
    assert "model_id: m-" not in card
    assert "model_size_bytes: 5" not in card
    requirements = (folder / "requirements.txt").read_text().splitlines()
    assert f"keras=={keras.__version__}" in requirements
    assert all("==" in line for line in requirements)


def test_a_served_checkpoint_answers_a_request(tracking: str, tmp_path: Path) -> None:
    run_id, model = trained()
    port = free_port()
    command = [
        "mlflow",
        "models",
        "serve",
        "-m",
        ckpt.resolve(run_id).uri,
        "--env-manager",
        "local",
    ]
    x, _ = data()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking)
        # MLflow starts `uvicorn` by name, also where the environment was not activated.
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        base = f"http://127.0.0.1:{port}"
        with process([*command, "--port", str(port)], f"{base}/ping", tmp_path / "serve.log"):
            request = urllib.request.Request(
                f"{base}/invocations",
                data=json.dumps({"inputs": x[:2].tolist()}).encode(),
                headers={"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)["predictions"]
    np.testing.assert_allclose(answer, model.predict(x[:2], verbose=0), rtol=1e-6)


@pytest.mark.slow
def test_everything_works_through_a_tracking_server(tmp_path: Path) -> None:
    """sqlite behind `mlflow server`, artifacts proxied: train, prune, resume, load, damage."""
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    command = [
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}",
        "--artifacts-destination", str(tmp_path / "served"),
    ]  # fmt: skip
    with process(command, f"{base}/health", tmp_path / "server.log"):
        mlflow.set_tracking_uri(base)
        mlflow.set_experiment("remote")
        with mlflow.start_run() as run:
            model = mlp()
            fit(model, MlflowCheckpoint(keep=Keep(last=2, best=None)), epochs=3)
            fit(model, MlflowCheckpoint(keep=Keep(last=2, best=None)), epochs=1)
        run_id = run.info.run_id
        assert list(ckpt.list_checkpoints(run_id)["epoch"]) == [3, 4]
        assert same(ckpt.load_model(run_id, "final"), model)
        assert ckpt.download(run_id, "latest", tmp_path / "out").is_dir()
        files = sorted((tmp_path / "served").rglob("model.keras"))
        assert len(files) == 2
        for path in files:
            path.unlink()
        with pytest.raises(ckpt.CheckpointError, match=r"data/model\.keras"):
            ckpt.load_model(run_id)
