"""What a person sees: `mlflow ui` in a browser, on a run that was interrupted and continued.

`MLFLOW_CKPT_SCREENSHOTS=docs/images python -m pytest tests/test_ui.py` takes the README's pictures.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow
import pandas as pd
import pytest
from browser import Browsed, browsing, chromium
from playwright.sync_api import expect
from server_process import ServerProcess
from sklearn.datasets import load_digits

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, resume

EPOCHS, STOPPED = 20, 12


@dataclass(frozen=True)
class Shown:
    """A server with a run whose checkpoints went through something."""

    uri: str
    run_id: str
    experiment_id: str

    def url(self, path: str) -> str:
        page = f"{self.uri}/#/experiments/{self.experiment_id}/{path}"
        return f"{page}?workflowType=machine_learning"


class Stops(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == STOPPED:
            raise KeyboardInterrupt


def digits() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(0.003), loss=loss, metrics=["accuracy"])
    return model


def train() -> tuple[str, str]:
    """Stop a run, continue it, fork it, damage one of its checkpoints, and verify it."""
    x, y = load_digits(return_X_y=True)
    arguments = {"x": x / 16, "y": y, "batch_size": 32, "validation_split": 0.2, "verbose": 0}
    keep = Keep(last=4, best=2, every=5)
    experiment = mlflow.create_experiment("digits")
    source = {"mlflow.source.name": "train.py"}
    with mlflow.start_run(experiment_id=experiment, run_name="digits-mlp", tags=source) as run:
        mlflow.log_params({"epochs": EPOCHS, "learning_rate": 0.003})
        for callbacks in ([Stops()], []):
            keras.utils.set_random_seed(1)
            try:
                digits().fit(
                    **arguments, epochs=EPOCHS, callbacks=[MlflowCheckpoint(keep=keep), *callbacks]
                )
            except KeyboardInterrupt:
                resume._PROGRESS.clear()
        run_id = run.info.run_id
        ckpt.fork(run_id, f"epoch={EPOCHS - 5}", name="longer")
    ckpt.verify(run_id)
    return run_id, experiment


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Shown]:
    chromium()
    folder = tmp_path_factory.mktemp("shown")
    with ServerProcess(folder, database=empty_database, program="ui") as server:
        mlflow.set_tracking_uri(server.uri)
        run_id, experiment = train()
        yield Shown(server.uri, run_id, experiment)


@pytest.fixture(scope="module")
def browser(shown: Shown) -> Iterator[Browsed]:
    with browsing() as found:
        yield found


def best(shown: Shown) -> ckpt.Checkpoint:
    mlflow.set_tracking_uri(shown.uri)
    return ckpt.resolve(shown.run_id, "best")


def table(shown: Shown) -> pd.DataFrame:
    mlflow.set_tracking_uri(shown.uri)
    return ckpt.list_checkpoints(shown.run_id)


def test_the_experiment_lists_every_checkpoint_with_its_metrics(
    shown: Shown, browser: Browsed
) -> None:
    found = best(shown)
    page = browser.open(shown.url("models"), width=3600, height=620)
    expect(page.get_by_text(found.name, exact=True).first).to_be_visible()
    for name in table(shown)["name"]:
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    for title in ("val_loss", "ckpt_step", "epoch", "step", "series"):
        expect(page.get_by_text(title, exact=True).first).to_be_visible()
    page.set_viewport_size({"width": 2300, "height": 600})
    browser.picture("models")


def test_the_runs_page_describes_it_and_lists_its_logged_models(
    shown: Shown, browser: Browsed
) -> None:
    found = best(shown)
    page = browser.open(shown.url(f"runs/{shown.run_id}"), width=1440, height=900)
    frame = table(shown)
    expect(page.get_by_text(f"{len(frame)} checkpoints")).to_be_visible()
    page.get_by_text("Show more").first.click()
    expect(page.get_by_text(f"mlflow-ckpt resume {shown.run_id}")).to_be_visible()
    expect(page.get_by_text(f"ckpt:/{shown.run_id}/best").first).to_be_visible()
    browser.picture("run")
    heading = page.get_by_text(f"Logged models ({len(frame)})")
    heading.scroll_into_view_if_needed()
    expect(heading).to_be_visible()
    row = page.get_by_role("row").filter(has_text=found.name)
    expect(row.last).to_be_visible()
    expect(row.last).to_contain_text(str(found.epoch))
    expect(row.last).to_contain_text("Ready")
    browser.picture("logged-models")


def test_the_report_opens_among_the_artifacts_and_asks_no_network(
    shown: Shown, browser: Browsed
) -> None:
    found = best(shown)
    page = browser.open(
        shown.url(f"runs/{shown.run_id}/artifacts/checkpoints/report.html"), width=1640, height=1150
    )
    report = page.frame_locator("iframe").first
    expect(report.get_by_role("heading", name="Checkpoints of digits-mlp")).to_be_visible()
    expect(report.locator("body[data-drawn=true]")).to_be_attached()
    expect(report.get_by_text(f"epoch {found.epoch}").first).to_be_visible()
    for figure in ("curves", "timeline", "costs"):
        expect(report.locator(f"#{figure} .main-svg").first).to_be_visible()
    legend = report.locator("#timeline .legendtext")
    assert {"resumed", "forked", "checkpoints"} <= set(legend.all_text_contents())
    curves = report.locator("#curves .legendtext")
    assert {"val_loss", "latest", "best", "deleted by now"} <= set(curves.all_text_contents())
    row = report.get_by_role("row").filter(has_text=found.uri)
    expect(row).to_contain_text("verified")
    browser.picture("report")
    assert (browser.strangers, browser.errors) == ([], [])


def test_the_table_opens_as_one(shown: Shown, browser: Browsed) -> None:
    page = browser.open(
        shown.url(f"runs/{shown.run_id}/artifacts/checkpoints/checkpoints.json"),
        width=1440,
        height=700,
    )
    expect(page.get_by_text("View as table")).to_be_visible()
    for epoch in table(shown)["epoch"]:
        expect(page.get_by_role("cell", name=str(epoch), exact=True).first).to_be_visible()


def test_the_report_needs_no_server(shown: Shown, browser: Browsed, tmp_path: Path) -> None:
    """A file of its own, as somebody would send it to a colleague."""
    mlflow.set_tracking_uri(shown.uri)
    path = ckpt.write_report(shown.run_id, tmp_path / "report.html")
    page = browser.open(Path(path).as_uri(), width=1240, height=2000)
    expect(page.locator("body[data-drawn=true]")).to_be_attached()
    expect(page.locator("#curves .scatterlayer path.point").first).to_be_visible()
    browser.picture("report-whole")
    assert (browser.strangers, browser.errors) == ([], [])


def test_the_readme_shows_the_pictures() -> None:
    root = Path(__file__).parents[1]
    shown = set(re.findall(r"\(docs/images/([\w-]+\.png)\)", (root / "README.md").read_text()))
    assert shown == {path.name for path in (root / "docs" / "images").glob("*.png")} != set()
