"""One JSON document on stdout whatever happens, one line of a failure, and URIs everywhere."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import mlflow
import pytest
from calling import Cli, Result
from cli_runs import Trained, train

import mlflow_ckpt as ckpt
from mlflow_ckpt import cli, forking, orphans, report
from mlflow_ckpt.cli_options import hushed
from mlflow_ckpt.errors import ServerAway

PAGE = (Path(__file__).parents[1] / "docs/cli.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Trained:
    return train(tmp_path_factory.mktemp("trained"), empty_database)


@pytest.fixture(autouse=True)
def there(trained: Trained, tracking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every command of these tests look at the trained run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trained.uri)
    mlflow.set_tracking_uri(trained.uri)


def page_of(name: str) -> str:
    return re.split(r"\n##", PAGE.partition(f"\n### {name}\n")[2])[0]


def keys_of(value: object) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(keys_of, value)) if value else set()
    return set(value) if isinstance(value, dict) else set()


# --- what is printed ----------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["list", "{run}"],
        ["show", "{run}", "best@ckpt"],
        ["resolve", "{run}", "best@ckpt"],
        ["pull", "{run}", "best@ckpt", "--dst", "out"],
        ["export", "{run}", "best@ckpt", "--format", "weights", "--dst", "best.weights.h5"],
        ["verify", "{run}"],
        ["pin", "{run}", "epoch=2@ckpt"],
        ["pin", "{run}", "epoch=2@ckpt", "--remove"],
        ["prune", "{run}", "--last", "9", "--dry-run"],
        ["gc", "--experiment", "cli", "--dry-run"],
        ["sync", "--dry-run"],
        ["fork", "{run}", "latest@ckpt"],
    ],
    ids=lambda words: " ".join(words[:1] + [w for w in words if w.startswith("--r")]),
)
def test_each_command_prints_the_document_that_its_page_describes(
    words: list[str], trained: Trained, call: Cli
) -> None:
    done = call(*(word.format(run=trained.run_id) for word in words), "--json")
    assert (done.code, done.err) == (0, "")
    shared = PAGE.partition("\n## JSON\n")[2].partition("\n## ")[0]
    text = page_of(words[0]) + (shared if "which checkpoint" in page_of(words[0]) else "")
    if words[0] == "show":
        text += page_of("list")
    for key in keys_of(done.json()):
        documented = "metrics.<name>" if key.startswith("metrics.") else key
        assert f"`{documented}`" in text, key


def test_pull_and_export_say_what_they_took_and_where_it_is(trained: Trained, call: Cli) -> None:
    found = call("pull", trained.run_id, "best@ckpt", "--dst", "out", "--json").json()
    best = ckpt.resolve(trained.run_id, "best@ckpt")
    assert (found["name"], found["uri"]) == (best.name, best.uri)
    assert (Path(found["path"]) / "data/model.keras").is_file()
    words = ("--format", "keras", "--dst", "x.keras", "--json")
    written = call("export", trained.run_id, "best@ckpt", *words).json()
    assert (written["model_id"], written["path"]) == (best.model_id, "x.keras")
    assert written["format"] == "keras"


def test_fork_and_pin_say_what_they_made(trained: Trained, call: Cli) -> None:
    found = call("fork", trained.run_id, "latest@ckpt", "--json").json()
    assert mlflow.get_run(found["run_id"]).data.tags["ckpt.forked_from"].startswith(trained.run_id)
    assert found["parent"] == trained.run_id
    assert found["run_id"] in found["continue"]
    assert call("pin", trained.run_id, "best@ckpt", "--json").json()["pinned"] is True
    assert call("pin", trained.run_id, "best@ckpt", "--remove", "--json").json()["pinned"] is False


# --- of a failure too ---------------------------------------------------------


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_a_failure_is_a_document_and_the_same_line(name: str, call: Cli) -> None:
    """Whatever a command needs: nothing answers at this address."""
    needed = {
        "completion": None,
        "diff": ["abc", "best"],
        "doctor": None,  # A server that is away is what it is there to find.
        "export": ["abc", "best", "--format", "h5", "--dst", "x.h5"],
        "gc": ["--all"],
        "pin": ["abc", "best"],
        "prove": None,  # That it does not resume is what it is there to find.
        "prune": ["abc", "--last", "1"],
        "register": ["abc", "best", "--name", "digits"],
        "sync": None,  # What waits for a server that is away is left, and named.
    }.get(name, ["abc"])
    if needed is None:
        return
    done = call(name, *needed, "--tracking-uri", "http://127.0.0.1:9", "--json")
    line = (
        "The tracking server http://127.0.0.1:9 does not answer: connection refused. "
        "Start it, or name another one: MLFLOW_TRACKING_URI or --tracking-uri."
    )
    assert (done.code, done.err) == (1, f"Error: {line}\n")
    assert done.json() == {"error": line, "type": "ServerAway"}


def test_a_failure_nobody_foresaw_is_a_document_too(
    trained: Trained, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(report, "records", fail)
    done = call("list", trained.run_id, "--json")
    text = "ZeroDivisionError: by zero (--debug shows the traceback)"
    assert (done.code, done.err) == (1, f"Error: {text}\n")
    assert done.json() == {"error": text, "type": "ZeroDivisionError"}


def test_what_was_done_by_then_is_the_one_document(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = orphans.Orphan(
        kind="checkpoint", run_id="r", name="n", where="w", bytes=1, gone=True, why=""
    )

    def collect(*_: object) -> object:
        yield gone
        raise ServerAway("It is away.")

    monkeypatch.setattr(orphans.Collector, "collect", collect)
    done = call("gc", "--all", "--json")
    assert (done.code, done.err) == (1, "Error: It is away.\n")
    assert done.json() == [gone.to_dict()]


def test_what_a_library_prints_goes_to_stderr(
    trained: Trained, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = forking.fork

    def chatty(*args: object, **more: object) -> str:
        print("a library talks")
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(forking, "fork", chatty)
    done = call("fork", trained.run_id, "latest@ckpt", "--json")
    assert done.err == "a library talks\n"
    assert "run_id" in json.loads(done.out)
    assert call("fork", trained.run_id, "latest@ckpt").out.startswith("a library talks\n")


def test_a_wrong_command_line_prints_no_document(trained: Trained, call: Cli) -> None:
    for words in (["prune", trained.run_id, "--json"], ["list", "--json"]):
        done = call(*words)
        assert (done.code, done.out) == (2, "")


def test_debug_shows_the_traceback_behind_the_document(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ckpt.CheckpointError):
        cli.main(["show", trained.run_id, "nope", "--json", "--debug"], prog_name="mlflow-ckpt")
    assert json.loads(capsys.readouterr().out)["type"] == "SelectorError"


def test_a_missing_backend_of_keras_is_named(
    trained: Trained, call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.setattr(report, "print_checkpoints", fail)
    assert call("list", trained.run_id) == Result(
        1,
        "",
        "Error: No module named 'torch'. It is the backend that Keras was to use. "
        "Type: pip install torch, or: export KERAS_BACKEND=tensorflow\n",
    )


# --- URIs ---------------------------------------------------------------------


def test_a_uri_stands_for_run_and_selector(trained: Trained, call: Cli) -> None:
    best = ckpt.resolve(trained.run_id, "best@ckpt")
    uri = f"ckpt:/{trained.run_id}/best@ckpt"
    assert call("resolve", uri).out == f"{best.uri}\n"
    assert call("show", uri, "--json").json()["model_id"] == best.model_id
    assert call("pull", uri, "--dst", "out").out == f"out/{best.name}\n"
    assert call("pin", trained.run_id, "best@ckpt").out == f"{best.name}\n"


def test_the_best_of_an_experiment_is_found_in_its_run(trained: Trained, call: Cli) -> None:
    uri = "ckpt:/experiment/cli/best(val_loss)"
    best = ckpt.resolve(uri)
    assert call("resolve", uri).out == f"{best.uri}\n"
    assert call("show", uri, "--json").json()["model_id"] == best.model_id


def test_a_command_without_a_selector_takes_the_run(trained: Trained, call: Cli) -> None:
    uri = f"ckpt:/{trained.run_id}/best@ckpt"
    assert call("list", uri, "--json").json() == call("list", trained.run_id, "--json").json()
    assert call("verify", uri, "--json").json()["checkpoints"] == 3
    assert call("sync", uri, "--dry-run").out.startswith(f"Nothing of run {trained.run_id} waits")


def test_a_uri_that_says_too_much_is_a_wrong_command_line(trained: Trained, call: Cli) -> None:
    twice = call("show", f"ckpt:/{trained.run_id}/best@ckpt", "latest")
    assert twice.code == 2
    assert twice.err.endswith(
        "Error: The URI names 'best@ckpt' already. Received: 'latest' behind it. "
        "Leave one of them out.\n"
    )
    file = call("pull", f"ckpt:/{trained.run_id}/best@ckpt/data/model.keras")
    assert file.code == 2
    assert file.err.endswith("Leave /data/model.keras out.\n")


def test_a_uri_that_cannot_be_read_says_what_to_type(trained: Trained, call: Cli) -> None:
    done = call("show", f"ckpt:/{trained.run_id}")
    assert done.code == 1
    assert done.err.endswith(
        f"Type ckpt:/{trained.run_id}/latest or ckpt:/{trained.run_id}/best.\n"
    )


def test_native_code_is_heard_only_of_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    with hushed():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError), hushed():
        _fail_loudly()
    assert capfd.readouterr().err == "a reason\n"


def _fail_loudly() -> None:
    os.write(2, b"a reason\n")
    raise ImportError
