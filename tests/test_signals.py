"""Real signals in real processes: noted, obeyed at a boundary, and handed on in order."""

from __future__ import annotations

import dataclasses
import math
import re
import signal
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.interrupt import Interrupt
from mlflow_ckpt.signals import Signals

pytestmark = pytest.mark.pure

HEAD = """
import multiprocessing, os, signal, sys, threading, time
from mlflow_ckpt.signals import Signals

TERM, INT = signal.SIGTERM, signal.SIGINT

def say(*what):
    print(*what, flush=True)

def send(signum):
    os.kill(os.getpid(), signum)

def chained(name):
    return lambda signum, frame: say(name, signal.Signals(signum).name, frame is not None)

def sleeping():
    try:
        say("sleeping")
        time.sleep(30)
    finally:
        say("woken")

signals = Signals(lambda frame: True)
"""
SAVES = "saves a checkpoint"


def process(body: str, *, before: str = "", code: int = 0) -> tuple[list[str], str]:
    """Run `before`, then `body` in a process with `signals`; what it printed, and its stderr."""
    script = HEAD + textwrap.dedent(before) + textwrap.dedent(body)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


# --- the first one is noted, and obeyed by finish -------------------------------------


@pytest.mark.parametrize(
    ("name", "code", "ending"),
    [
        pytest.param("TERM", 143, "", id="SIGTERM"),
        # Python lets the signal itself end a process that it interrupted.
        pytest.param("INT", -signal.SIGINT, "KeyboardInterrupt", id="SIGINT"),
    ],
)
def test_a_signal_is_noted_and_obeyed_when_the_state_is_safe(
    name: str, code: int, ending: str
) -> None:
    out, err = process(
        f"""
        say(signals.install(), signals.received, signals.received_at)
        began = time.monotonic()
        send({name})
        say(signals.received.name, began <= signals.received_at <= time.monotonic())
        try:
            signals.finish()
        finally:
            say("cleaned up")
            say(signal.getsignal(TERM) == signal.SIG_DFL)
            say(signal.getsignal(INT) is signal.default_int_handler)
        """,
        code=code,
    )
    assert out == ["True None None", f"SIG{name} True", "cleaned up", "True", "True"]
    assert err.count(SAVES) == 1
    assert err.rstrip().endswith(ending)


def test_a_process_is_told_from_outside_while_it_waits() -> None:
    script = HEAD + "signals.install()\nsleeping()\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == "sleeping\n"
        one.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            one.wait(0.5)
        one.terminate()
        assert one.wait(30) == 143
        assert one.stdout.read() == "woken\n"


def test_earlier_handlers_are_called_and_may_return() -> None:
    out, _ = process(
        """
        signals.install()
        send(TERM)
        say("goes on")
        signals.finish()
        """,
        before="signal.signal(TERM, chained('earlier'))",
        code=143,
    )
    assert out == ["goes on", "earlier SIGTERM True"]


def test_an_earlier_handler_may_end_it_its_own_way() -> None:
    out, _ = process(
        """
        signals.install()
        send(INT)
        signals.finish()
        """,
        before="""
        def leave(signum, frame):
            say("leaving")
            raise SystemExit(7)
        signal.signal(INT, leave)
        """,
        code=7,
    )
    assert out == ["leaving"]


def test_without_a_signal_everything_is_as_before() -> None:
    out, err = process(
        """
        earlier = [signal.getsignal(one) for one in (TERM, INT)]
        signals.install()
        say([signal.getsignal(one) for one in (TERM, INT)] == earlier)
        signals.uninstall()
        signals.uninstall()
        say([signal.getsignal(one) for one in (TERM, INT)] == earlier, signals.received)
        """
    )
    assert (out, err) == (["False", "True None"], "")


# --- the second one does not wait -----------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        pytest.param("INT", "INT", "KeyboardInterrupt()", id="ctrl-c-twice"),
        pytest.param("TERM", "TERM", "SystemExit(143)", id="SIGTERM-twice"),
        pytest.param("TERM", "INT", "KeyboardInterrupt()", id="ctrl-c-after-SIGTERM"),
    ],
)
def test_a_second_signal_acts_at_once(first: str, second: str, ends: str) -> None:
    out, err = process(
        f"""
        signals.install()
        send({first})
        try:
            send({second})
        except BaseException as error:
            say(repr(error), signals.received.name)
        say(signal.getsignal(TERM) == signal.SIG_DFL)
        say(signal.getsignal(INT) is signal.default_int_handler)
        """
    )
    assert out == [f"{ends} SIG{first}", "True", "True"]
    assert err.count(SAVES) == 1


def test_sigterm_after_ctrl_c_ends_the_process_with_its_own_grace() -> None:
    out, err = process(
        """
        signals.install()
        send(INT)
        first = signals.received_at
        time.sleep(0.01)
        send(TERM)
        say(signals.received.name, signals.received_at > first)
        signals.finish()
        """,
        code=143,
    )
    assert out == ["SIGTERM True"]
    assert err.count(SAVES) == 2


def test_each_signal_reaches_an_earlier_handler_that_returns_once() -> None:
    out, _ = process(
        """
        signals.install()
        send(INT)
        say("noted")
        send(INT)
        say("goes on")
        signals.finish()
        """,
        before="signal.signal(INT, chained('earlier'))",
        code=-signal.SIGINT,
    )
    assert out == ["noted", "earlier SIGINT True", "goes on", "earlier SIGINT True"]


# --- signals that are not ours --------------------------------------------------------


def test_an_ignored_signal_stays_ignored() -> None:
    out, err = process(
        """
        say(signals.install())
        send(INT)
        say(signals.received, signal.getsignal(INT) == signal.SIG_IGN)
        signals.uninstall()
        say(signal.getsignal(INT) == signal.SIG_IGN)
        """,
        before="signal.signal(INT, signal.SIG_IGN)",
    )
    assert (out, err) == (["True", "None True", "True"], "")


def test_a_handler_that_is_not_pythons_is_left_alone() -> None:
    out, _ = process(
        """
        say(signals.install(), signal.signal.calls)
        """,
        before="""
        def note(*arguments):
            note.calls.append(arguments)
        note.calls = []
        signal.getsignal, signal.signal = lambda signum: None, note
        """,
    )
    assert out == ["False []"], "nothing was set"


def test_another_thread_installs_nothing() -> None:
    out, _ = process(
        """
        def run():
            say(signals.install())
            signals.uninstall()
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        say(signal.getsignal(TERM) == signal.SIG_DFL)
        send(TERM)
        """,
        code=-signal.SIGTERM,
    )
    assert out == ["False", "True"]


def test_another_thread_that_uninstalls_makes_ours_hand_over() -> None:
    out, err = process(
        """
        signals.install()
        thread = threading.Thread(target=signals.uninstall)
        thread.start()
        thread.join()
        say(signal.getsignal(TERM) == handler)
        send(TERM)
        say(signal.getsignal(TERM) == handler, signals.received)
        """,
        before="""
        handler = chained('earlier')
        signal.signal(TERM, handler)
        """,
    )
    assert out == ["False", "earlier SIGTERM True", "True None"]
    assert err == ""


@pytest.mark.parametrize(
    ("before", "code", "ending"),
    [
        pytest.param("", -signal.SIGTERM, [], id="default"),
        pytest.param("signal.signal(TERM, chained('earlier'))", 0, ["earlier SIGTERM True", "on"],
                     id="a-handler"),
    ],
)  # fmt: skip
def test_a_fit_that_ended_without_a_word_swallows_nothing(
    before: str, code: int, ending: list[str]
) -> None:
    out, err = process(
        """
        signals = Signals(lambda frame: say("asked", frame is not None))
        signals.install()
        send(TERM)
        say("on")
        """,
        before=before,
        code=code,
    )
    assert out == ["asked True", *ending]
    assert err == ""


def test_ctrl_c_after_a_fit_that_ended_without_a_word_is_pythons_own() -> None:
    out, _ = process(
        """
        signals = Signals(lambda frame: False)
        signals.install()
        try:
            send(INT)
        except KeyboardInterrupt:
            say(signals.received, signal.getsignal(INT) is signal.default_int_handler)
        """
    )
    assert out == ["None True"]


def test_a_handler_on_top_of_ours_stays_and_ours_only_hands_over_after_the_fit() -> None:
    out, err = process(
        """
        signals.install()
        ours = signal.getsignal(TERM)
        def on_top(signum, frame):
            say("on top")
            ours(signum, frame)
        signal.signal(TERM, on_top)
        send(TERM)
        say(signals.received.name)
        signals.uninstall()
        say(signal.getsignal(TERM) is on_top)
        send(TERM)
        """,
        before="signal.signal(TERM, chained('earlier'))",
    )
    assert out == ["on top", "SIGTERM", "True", "on top", "earlier SIGTERM True"]
    assert err.count(SAVES) == 1


def test_two_fits_one_within_the_other_hand_over_inside_out() -> None:
    out, _ = process(
        """
        outer, inner = Signals(lambda frame: True), Signals(lambda frame: True)
        outer.install()
        inner.install()
        send(TERM)
        say(inner.received.name, outer.received)
        try:
            inner.finish()
        except SystemExit:
            say(outer.received.name)
            outer.finish()
        """,
        before="signal.signal(TERM, chained('earlier'))",
        code=143,
    )
    assert out == ["SIGTERM None", "SIGTERM", "earlier SIGTERM True"]


def test_a_forked_child_is_not_held_up() -> None:
    """A pool of workers that is terminated waits for each of them."""
    out, err = process(
        """
        signals.install()
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        begun.recv()  # Python itself forgets a signal that comes while it forks.
        child.terminate()
        child.join(20)
        say(child.exitcode, signals.received)
        """,
        before="""
        begun, begins = multiprocessing.Pipe(duplex=False)
        def work():
            begins.send(True)
            time.sleep(30)
        """,
    )
    assert out == [f"{-signal.SIGTERM} None"]
    assert err == ""


def test_it_may_come_while_something_is_printed() -> None:
    """A print in a handler that interrupts a print is an error of Python's."""
    out, err = process(
        """
        signals.install()
        sender = threading.Thread(target=lambda: (time.sleep(0.1), send(TERM)))
        sender.start()
        while signals.received is None:
            print("x" * 5000, file=sys.stderr, flush=True)
        sender.join()
        say(signals.received.name)
        signals.uninstall()
        """
    )
    assert out == ["SIGTERM"]
    assert err.count(SAVES) == 1


def test_a_closed_terminal_is_no_error() -> None:
    out, _ = process(
        """
        signals.install()
        os.close(2)
        send(INT)
        say(signals.received.name)
        """
    )
    assert out == ["SIGINT"]


def test_what_was_not_received_cannot_be_obeyed() -> None:
    with pytest.raises(AssertionError, match="no signal was received"):
        Signals(lambda frame: True).finish()


# --- what a user asks for -------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        pytest.param(None, Interrupt(), id="default"),
        pytest.param(False, Interrupt(signals=False, exceptions=False), id="off"),
        pytest.param(Interrupt(grace_seconds=0), Interrupt(grace_seconds=0.0), id="as-given"),
    ],
)
def test_an_interrupt_is_read(given: Any, parsed: Interrupt) -> None:
    assert Interrupt.parse(given) == parsed


def test_by_default_everything_saves_within_thirty_seconds() -> None:
    expected = {"signals": True, "exceptions": True, "grace_seconds": 30.0}
    assert dataclasses.asdict(Interrupt()) == expected


@pytest.mark.parametrize("value", [True, 1, 0, "auto", {"signals": True}])
def test_anything_else_is_refused(value: Any) -> None:
    text = re.escape(f"to save at no interruption. Received: interrupt={value!r}")
    with pytest.raises(ConfigError, match=f"^Expected Interrupt.*{text}$"):
        Interrupt.parse(value)


@pytest.mark.parametrize("value", [-1, -0.1, math.inf, math.nan, None, "30", True])
def test_a_grace_is_a_finite_number_of_seconds(value: Any) -> None:
    text = re.escape(f"at least 0. Received: Interrupt(grace_seconds={value!r})")
    with pytest.raises(ConfigError, match=f"^Expected a finite number of seconds, {text}$"):
        Interrupt(grace_seconds=value)


@pytest.mark.parametrize("field", ["signals", "exceptions"])
def test_a_switch_is_true_or_false(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^Expected True or False.*Interrupt\({field}=1\)$"):
        Interrupt(**{field: 1})  # type: ignore[arg-type]


def test_it_is_keyword_only_and_frozen() -> None:
    with pytest.raises(TypeError):
        Interrupt(True)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Interrupt().signals = False  # type: ignore[misc]
