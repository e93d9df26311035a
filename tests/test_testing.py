"""Prove exact resumes: with real processes, and the judgement itself on traces made by hand."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import prove_functions as functions
import pytest
from builders import mlp
from click.testing import CliRunner

from mlflow_ckpt import MlflowCheckpoint, cli, proof, tail, target, trial
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.proof import NotExact, Process, Proof
from mlflow_ckpt.testing import assert_exact_resume
from mlflow_ckpt.trace import PROBE, Fit, State, Task, Trace
from mlflow_ckpt.watched import Ended, Processes

ROOT = Path(__file__).parents[1]


# --- with real processes ------------------------------------------------------


@pytest.mark.slow
def test_a_sound_training_is_proved_with_a_kill_in_its_second_epoch(tracking: str) -> None:
    found = assert_exact_resume(functions.sound, kill_at=3, tracking_uri=tracking)
    assert found.batches == 6
    assert found.processes == (
        Process(killed_at=3, resumed_from=0, trained=3, expected=3),
        Process(killed_at=None, resumed_from=2, trained=4, expected=4),
    )
    assert found.states == 3 + 4 + 1, "every batch of both processes, and the end"
    # Two layers, Adam's ten, the dropout's seed, and two variables each of loss and accuracy.
    assert found.variables == 4 + 10 + 1 + 4
    assert found.metric_points == 4 * 3


def test_a_resume_that_moves_one_weight_is_caught_with_its_step_and_name(tracking: str) -> None:
    with pytest.raises(
        AssertionError,
        match=r"Process 2, resumed after batch 2, is not exact: first difference after step 5: "
        r"variable 0 'sequential/dense/kernel', and \d+ more",
    ) as caught:
        assert_exact_resume(functions.nudged, kill_at=3, tracking_uri=tracking)
    assert caught.value.proof.processes == (
        Process(killed_at=3, resumed_from=0, trained=3, expected=3),
        Process(killed_at=None, resumed_from=2, trained=4, expected=4),
    )


@pytest.mark.slow
def test_a_training_that_fails_shows_what_it_said(tracking: str) -> None:
    with pytest.raises(
        NotExact, match=r"(?s)without any interruption, with exit code 1\..*no data today"
    ):
        assert_exact_resume(functions.failing, kill_at=3, tracking_uri=tracking)


@pytest.mark.slow
def test_twice_at_one_batch_and_by_its_own_choice_in_a_store_of_its_own(tmp_path: Path) -> None:
    found = assert_exact_resume(functions.sound, kill_at=[3, 3])
    assert [p.resumed_from for p in found.processes] == [0, 2, 2]
    found = assert_exact_resume(functions.sound)
    assert [p.killed_at for p in found.processes] == [3, 4, None]
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "kill_at", "text"),
    [
        pytest.param(
            "from_scratch",
            3,
            "Process 2 trained 6 batches, more than the 4 that were left: the newest checkpoint "
            "holds batch 2, and it began after batch 0.",
            id="from-scratch",
        ),
        pytest.param("another_series", 3, "writes the series 'ckpt1', which", id="another-series"),
        pytest.param("sound", 1, "Nothing was committed before the kill after batch 1", id="early"),
        pytest.param("sound", 7, "cannot happen: the training ends after batch 6", id="late"),
        pytest.param("without_checkpoints", 3, "No batch was trained under", id="no-callback"),
        pytest.param("unseeded", 3, "Process 1 resumed nothing and yet is not", id="no-seed"),
    ],
)
def test_what_proves_nothing_is_no_proof(
    function: str, kill_at: int, text: str, tracking: str
) -> None:
    with pytest.raises(NotExact) as caught:
        assert_exact_resume(getattr(functions, function), kill_at=kill_at, tracking_uri=tracking)
    assert text in str(caught.value)


@pytest.mark.slow
def test_two_series_are_counted_through(tracking: str) -> None:
    """Four batches of the head, six of the rest. The last kill does not wait for a commit."""
    found = assert_exact_resume(functions.two_series, kill_at=[3, 8], tracking_uri=tracking)
    first, second, last = found.processes
    assert (first.resumed_from, first.trained) == (0, 3)
    assert (second.resumed_from, second.trained, second.killed_at) == (2, 6, 8)
    assert last.resumed_from in (4, 6)
    assert last.resumed_from + last.trained == 10


@pytest.mark.slow
def test_with_two_batches_in_one_call_the_kill_comes_at_the_next_end(tracking: str) -> None:
    found = assert_exact_resume(functions.in_pairs, kill_at=5, tracking_uri=tracking)
    assert [(p.killed_at, p.trained) for p in found.processes] == [(6, 6), (None, 4)]


@pytest.mark.slow
def test_a_script_proves_its_own_function(tracking: str, tmp_path: Path) -> None:
    """The module is `__main__` here, and in the other processes it must not be."""
    script = tmp_path / "own.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT)!r}]
from prove_functions import train as go

def train():
    go()

if __name__ == "__main__":
    from mlflow_ckpt.testing import assert_exact_resume
    print(assert_exact_resume(train, kill_at=5, tracking_uri={tracking!r}).batches)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "6", done.stderr


# --- prove, the command -------------------------------------------------------


@pytest.mark.slow
def test_the_digits_are_proved_through_mlflow_run() -> None:
    words = ["prove", str(ROOT / "projects/digits"), "-P", "epochs=2", "--kill-at", "50", "--json"]
    done = CliRunner().invoke(cli.main, words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["exact"], found["reason"], found["batches"]) == (True, None, 82)
    resumed = {"killed_at": None, "resumed_from": 41, "trained": 41, "expected": 41}
    assert found["processes"][1] == resumed


OUTCOME = Proof(
    batches=6,
    processes=(
        Process(killed_at=3, resumed_from=0, trained=3, expected=3),
        Process(killed_at=None, resumed_from=2, trained=4, expected=4),
    ),
    states=8,
    variables=19,
    metric_points=12,
    seconds=21.0,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let `prove` find `OUTCOME` (or raise `asked["error"]`), and note what it is asked for."""
    noted: dict[str, Any] = {}

    def prove(command: Any, kills: Any, uri: Any, **more: Any) -> Proof:
        noted.update(command=command, kills=kills, uri=uri, **more)
        if "error" in noted:
            raise noted["error"]
        return OUTCOME

    monkeypatch.setattr(trial, "prove", prove)
    return noted


def test_prove_prints_a_row_per_process_and_the_verdict(asked: dict[str, Any]) -> None:
    done = CliRunner().invoke(cli.main, ["prove", "project", "-P", "epochs=2", "--kill-at", "3"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "               killed after  resumed from  trained  expected",
        "uninterrupted             -             0        6         6",
        "process 1                 3             0        3         3",
        "process 2                 -             2        4         4",
        "exact: 19 variables are bitwise the same in 8 states, and so are 12 metric points (21 s).",
    ]
    assert asked["command"][1:6] == ["-m", "mlflow", "run", "project", "--env-manager"]
    assert asked["command"][-2:] == ["-P", "epochs=2"]
    assert (asked["kills"], asked["uri"]) == ((3,), None)
    assert asked["environment"]["PATH"].startswith(str(Path(sys.executable).parent))


def test_prove_exits_with_1_and_says_why(asked: dict[str, Any]) -> None:
    asked["error"] = NotExact("variable 3", proof=replace(OUTCOME, metric_points=0))
    done = CliRunner().invoke(cli.main, ["prove", "project"])
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "not proved: variable 3"
    assert asked["kills"] is None
    done = CliRunner().invoke(cli.main, ["prove", "project", "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["reason"] == "variable 3"


def test_prove_takes_kills_in_one_option_or_in_several(asked: dict[str, Any]) -> None:
    words = ["prove", "p", "--kill-at", "3,5", "--kill-at", "8", "--tracking-uri", "http://host"]
    assert CliRunner().invoke(cli.main, words).exit_code == 0
    assert (asked["kills"], asked["uri"]) == ((3, 5, 8), "http://host")
    wrong = CliRunner().invoke(cli.main, ["prove", "p", "--kill-at", "3,x"])
    assert wrong.exit_code == 2
    assert "Expected N[,N...]. Received: ('3,x',)" in wrong.stderr


# --- the judgement ------------------------------------------------------------


def state(step: int, *digests: str, series: str = "ckpt", ran: int = 1, weights: int = 2) -> State:
    return State(
        series=series, step=step, count=step, ran=ran, weights=weights,
        digests=digests or (f"w{step}", f"b{step}", f"m{step}"),
    )  # fmt: skip


def trace(
    *steps: int, run_id: str = "whole", end: bool = True, killed: bool = False, **changed: State
) -> Trace:
    """A process that trained these steps in one fit; `at_5=...` replaces the state of step 5."""
    batches = [changed.get(f"at_{step}", state(step)) for step in steps]
    ends = [changed.get("end_state", replace(state(steps[-1]), ran=len(steps)))] if end else []
    return Trace(
        processes=1,
        fits=[Fit(series="ckpt", members=("ckpt",), run_id=run_id, step=steps[0] - 1)],
        batches=batches,
        ends=ends,
        paths={"ckpt": ["kernel", "bias", "loss/total"]},
        killed=killed,
    )


WHOLE = trace(1, 2, 3, 4)


@pytest.mark.pure
@pytest.mark.parametrize(
    ("part", "text"),
    [
        pytest.param(trace(3, 4), None, id="the-same"),
        pytest.param(
            trace(3, 4, at_4=state(4, "w4", "other", "m4")),
            "first difference after step 4: variable 1 'bias'.",
            id="one-variable",
        ),
        pytest.param(
            trace(3, 4, at_3=state(3, "other", "b3", "other")),
            "first difference after step 3: variable 0 'kernel', and 1 more.",
            id="the-first-of-two",
        ),
        pytest.param(
            trace(3, 4, at_4=state(4, "w4", "b4")),
            "first difference after step 4: 2 variables instead of 3.",
            id="one-is-missing",
        ),
        pytest.param(
            trace(4, 5),
            "after step 5 exists only in the interrupted run: the other one never trained it.",
            id="trained-too-far",
        ),
        pytest.param(
            trace(3, 4, end_state=state(4, "w4", "b4", "other", ran=2)),
            "first difference at the end of training, after step 4: variable 2 'loss/total'.",
            id="the-end",
        ),
        pytest.param(
            trace(3, 4, end_state=state(4, "w4", "b4", ran=0)), None, id="complete-before"
        ),
        pytest.param(
            trace(3, 4, end_state=state(4, "w4", "other", ran=0)),
            "first difference at the end of training, after step 4: variable 1 'bias'.",
            id="complete-before-but-not-restored",
        ),
    ],
)
def test_the_first_difference_is_named(part: Trace, text: str | None) -> None:
    assert proof.difference(WHOLE, part) == text


@pytest.mark.pure
@pytest.mark.parametrize(
    ("other", "text"),
    [
        pytest.param({"loss": [(1, 0.5), (2, float("nan"))]}, None, id="the-same"),
        pytest.param({"loss": [(2, float("nan")), (1, 0.5)]}, None, id="in-another-order"),
        pytest.param(
            {"loss": [(1, 0.5), (2, 0.25)]},
            "the metric 'loss' differs at step 2: nan uninterrupted, 0.25 interrupted.",
            id="a-value",
        ),
        pytest.param(
            {"loss": [(1, 0.5)]},
            "the metric 'loss' of the interrupted run lacks step 2.",
            id="less",
        ),
        pytest.param(
            {"loss": [(1, 0.5), (2, float("nan")), (3, 0.1)]},
            "the metric 'loss' of the uninterrupted run lacks step 3.",
            id="more",
        ),
        pytest.param(
            {"loss": [(1, 0.5), (2, float("nan")), (2, float("nan"))]},
            "the metric 'loss' has step 2 more than once.",
            id="twice",
        ),
        pytest.param({}, "only the uninterrupted run has the metric 'loss'.", id="none"),
        pytest.param(
            {"loss": [(1, 0.5), (2, float("nan"))], "head/ckpt_step": [(3, 3.0)]},
            None,
            id="another-checkpoint",
        ),
        pytest.param(
            {"loss": [(1, 0.5), (2, float("nan"))], "ckpt_step": [(3, 3.0), (3, 3.0)]},
            "the metric 'ckpt_step' has step 3 more than once.",
            id="a-checkpoint-twice",
        ),
    ],
)
def test_the_first_metric_that_differs_is_named(other: proof.History, text: str | None) -> None:
    whole = {"loss": [(1, 0.5), (2, float("nan"))]}
    assert proof.history_difference(whole, other) == text


class Play:
    """Processes that have happened before: each `run` returns the next trace.

    Args:
        traces: One per process, with the checkpoint that the run holds after it.
    """

    def __init__(self, *traces: tuple[Trace, int], code: int = 0) -> None:
        self._traces = list(traces)
        self._code = code
        self.standing: dict[str, int] = {}
        self.tasks: list[Task] = []

    def run(self, run_id: str, task: Task) -> Ended:
        self.tasks.append(task)
        found, checkpoint = self._traces.pop(0)
        self.standing = {"ckpt": checkpoint} if checkpoint else {}
        fits = [replace(fit, run_id=run_id) for fit in found.fits if fit.run_id != "another"]
        code = self._code if not self._traces else 0
        return Ended(trace=replace(found, fits=fits or found.fits), code=code, output="  said so")


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Proof]:
    """Judge processes that have happened before."""

    def judge(
        *traces: tuple[Trace, int], kills: Sequence[int] | None = (3,), code: int = 0
    ) -> Proof:
        played = Play(*traces, code=code)
        monkeypatch.setattr(Processes, "run", lambda self, *words: played.run(*words))
        monkeypatch.setattr(trial.TrialStore, "standing", lambda self, run_id: played.standing)
        monkeypatch.setattr(
            trial.TrialStore, "history", lambda self, run_id: {"ckpt_step": [(2, 2.0)]}
        )
        found = trial.prove(["train"], kills, "sqlite:///mlflow.db")
        judge.tasks = played.tasks  # type: ignore[attr-defined]
        return found

    return judge


KILLED = (trace(1, 2, 3, end=False, killed=True), 2)


def test_a_run_that_went_as_it_should_is_a_proof(play: Callable[..., Proof]) -> None:
    found = play((WHOLE, 0), KILLED, (trace(3, 4), 4))
    assert [(p.killed_at, p.trained, p.expected) for p in found.processes] == [
        (3, 3, 3),
        (None, 2, 2),
    ]
    assert [(t.kill_at, t.standing) for t in play.tasks] == [
        (None, {}),
        (3, {}),
        (None, {"ckpt": 2}),
    ]


def test_the_kills_of_its_own_choice_come_after_the_first_checkpoint(
    play: Callable[..., Proof],
) -> None:
    """A third of the way is batch 1, and the first checkpoint is of batch 2."""
    found = play((WHOLE, 0), KILLED, (trace(3, 4), 4), kills=None)
    assert [p.killed_at for p in found.processes] == [3, None]


@pytest.mark.parametrize(
    ("traces", "text"),
    [
        pytest.param(
            [KILLED, (trace(1, 2, 3, 4), 4)],
            "Process 2 trained 4 batches, more than the 2 that were left: the newest checkpoint "
            "holds batch 2, and it began after batch 0.",
            id="from-scratch",
        ),
        pytest.param(
            [KILLED, (trace(4), 4)], "trained 1 batches, fewer than the 2", id="a-batch-is-missing"
        ),
        pytest.param(
            [(trace(1, 2), 2)],
            "The kill after batch 3 did not happen: this process ended by itself after batch 2.",
            id="no-kill",
        ),
        pytest.param(
            [(KILLED[0], 0)], "Nothing was committed before the kill after batch 3", id="too-early"
        ),
        pytest.param(
            [KILLED, (trace(3, 4, end=False), 4)],
            "ends after step 4 of the series 'ckpt', and the resumed one does not end there",
            id="no-end",
        ),
        pytest.param(
            [KILLED, (trace(3, 4, at_3=state(3, "other")), 4)],
            "Process 2, resumed after batch 2, is not exact: first difference after step 3: "
            "variable 0 'kernel'",
            id="other-bits",
        ),
        pytest.param(
            [(trace(1, 2, 3, end=False, killed=True, at_1=state(1, "other")), 2)],
            "(is everything seeded?): first difference after step 1: variable 0 'kernel'",
            id="other-bits-without-a-resume",
        ),
        pytest.param(
            [KILLED, (trace(3, 4, run_id="another"), 4)],
            "wrote to the run another instead of the given one",
            id="another-run",
        ),
        pytest.param(
            [KILLED, (replace(trace(3, 4), processes=2), 4)],
            "Expected one training process. Received: 2",
            id="two-at-once",
        ),
    ],
)
def test_a_run_that_went_wrong_is_none(
    traces: list[tuple[Trace, int]], text: str, play: Callable[..., Proof]
) -> None:
    with pytest.raises(NotExact) as caught:
        play((WHOLE, 0), *traces)
    assert text in str(caught.value)
    assert caught.value.proof.batches == 4


def test_a_resume_that_dies_is_shown_with_what_it_said(play: Callable[..., Proof]) -> None:
    with pytest.raises(NotExact, match=r"(?s)after a resume, with SIGSEGV\..*said so"):
        play((WHOLE, 0), KILLED, (trace(3, end=False), 2), code=-11)
    with pytest.raises(
        NotExact, match=r"(?s)without any interruption, with exit code 1\..*said so"
    ):
        play((WHOLE, 0), code=1)


@pytest.mark.parametrize("kills", [(), (0,), (5, 3), (True,), (2.5,)], ids=str)
def test_kills_that_cannot_be_are_refused_before_anything_is_trained(kills: Any) -> None:
    with pytest.raises(ConfigError, match=r"Expected one or more numbers of training batches"):
        assert_exact_resume(functions.sound, kill_at=kills)


# --- what is run --------------------------------------------------------------


@pytest.mark.pure
@pytest.mark.parametrize(
    "train",
    [
        pytest.param(lambda: None, id="lambda"),
        pytest.param(functools.partial(print, "x"), id="partial"),
        pytest.param(len, id="builtin"),
        pytest.param("python train.py", id="one-string"),
        pytest.param([], id="no-words"),
        pytest.param(["python", 3], id="a-number"),
    ],
)
def test_what_another_process_cannot_find_is_refused(train: Any) -> None:
    with pytest.raises(ConfigError, match=r"a command as a list of strings\. Received: train="):
        target.command(train)


@pytest.mark.pure
def test_a_function_is_called_by_name_in_a_process_that_finds_it_as_this_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import sys\nclass Cell:\n    def go():\n        print(__name__, sys.argv)\n"
    (tmp_path / "a_training.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("a_training")
    monkeypatch.delitem(sys.modules, "a_training")
    with pytest.raises(ConfigError, match="cannot find this function by its name"):
        target.command(module.Cell.go)
    monkeypatch.setitem(sys.modules, "a_training", module)
    done = subprocess.run(
        target.command(module.Cell.go), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"a_training ['{tmp_path / 'a_training.py'}']\n"


@pytest.mark.pure
def test_a_function_is_found_by_its_file_where_its_name_means_another_module(
    tmp_path: Path,
) -> None:
    (tmp_path / "json.py").write_text("def go():\n    print('the right one')\n")
    job = {"module": "json", "file": str((tmp_path / "json.py").resolve()), "name": "go"}
    code = f"from mlflow_ckpt.target import call; call(**{job!r})"
    path = f"import sys; sys.path[:] = {sys.path!r}; "
    done = subprocess.run(
        [sys.executable, "-c", path + code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "the right one\n"


@pytest.mark.pure
def test_a_command_gets_its_run_and_a_folder_to_record_in(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['MLFLOW_RUN_ID'], file=sys.stderr)"
    code += f"; print(os.path.exists(os.environ['{PROBE}'] + '/task.json'), file=sys.stderr)"
    processes = Processes(
        [sys.executable, "-c", code, "--run={run_id}"],
        tmp_path,
        {"MLFLOW_EXPERIMENT_NAME": "mine"},
        tracking_uri="http://host",
        experiment_id="7",
    )
    ended = processes.run("abc", Task())
    assert (ended.code, ended.output) == (0, "  ['--run=abc'] abc\n  True")


@pytest.mark.pure
def test_a_command_that_is_none_is_named(tmp_path: Path) -> None:
    processes = Processes(["no-such"], tmp_path, {}, tracking_uri="", experiment_id="")
    with pytest.raises(ConfigError, match=r"cannot be started: .*Received: \['no-such'\]"):
        processes.run("abc", Task())


@pytest.mark.pure
def test_nothing_is_recorded_in_a_process_that_is_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = MlflowCheckpoint()
    keras.callbacks.CallbackList([checkpoint], model=mlp())
    assert type(checkpoint._tail) is tail.Tail
    monkeypatch.setenv(PROBE, "/nowhere")
    keras.callbacks.CallbackList([checkpoint], model=mlp())
    assert type(checkpoint._tail).__name__ == "ProbingTail"
