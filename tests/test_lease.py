"""The lease: who may write to a series, who is refused, and who stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlflow_ckpt.errors import ConfigError, LeaseHeld, LeaseLost, StoreError
from mlflow_ckpt.lease import Lease, LeaseTag
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.tenure import Record

pytestmark = pytest.mark.pure

BEAT_S = 0.05
TTL_S = 0.6
AT_ONCE_S = 0.4  # Less than a TTL, more than a busy machine needs.
WHERE = "run 1f, series 'ckpt'"
ELSEWHERE = Owner("another-boot", "pid:[1]", "gpu-3", 4711, 5)


class MemoryTag:
    """A tag that can be away, and can hold a request up.

    Attributes:
        value: What stands there.
        beats: Every beat that was written.
        away: Whether each request fails.
        before: Called with `read`, `write` or `clear` before the request arrives.
        after: The same, before its answer arrives.
    """

    def __init__(self, value: str | None = None) -> None:
        self.value = value
        self.beats: list[int] = []
        self.away = False
        self.before: Callable[[str], None] = lambda request: None
        self.after: Callable[[str], None] = lambda request: None

    def _ask(self) -> None:
        if self.away:
            raise StoreError("Connection refused")

    def read(self) -> str | None:
        self.before("read")
        self._ask()
        value = self.value
        self.after("read")
        return value

    def write(self, value: str) -> None:
        self.before("write")
        self._ask()
        self.value = value
        self.beats.append(json.loads(value)["beat"])
        self.after("write")

    def clear(self) -> None:
        self.before("clear")
        self._ask()
        self.value = None
        self.after("clear")


class FileTag:
    """A tag that two processes share."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> str | None:
        return self.path.read_text() if self.path.exists() else None

    def write(self, value: str) -> None:
        draft = self.path.with_suffix(f".{os.getpid()}")
        draft.write_text(value)
        draft.replace(self.path)

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


class Hold:
    """Holds one request on one thread up, from the first that comes until `open`."""

    def __init__(self, request: str, thread: str = "mlflow-ckpt-lease") -> None:
        self.request = request
        self.thread = thread
        self.reached = threading.Event()
        self._open = threading.Event()

    def __call__(self, request: str) -> None:
        if request == self.request and threading.current_thread().name == self.thread:
            self.reached.set()
            assert self._open.wait(30), "nobody opened"

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def lease() -> Iterator[Callable[..., Lease]]:
    """Build leases that beat fast, and stop them all at the end."""
    built = []

    def build(tag: LeaseTag, **options: Any) -> Lease:
        options = {"where": WHERE, "ttl_s": TTL_S, "beat_s": BEAT_S} | options
        built.append(Lease(tag, **options))
        return built[-1]

    yield build
    for each in built:
        each.stop()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that runs `code` with its own `lease` on the file `tag`."""
    started = []

    def start(code: str, *, beat_s: float = BEAT_S) -> subprocess.Popen[str]:
        begin = (
            f"import sys, os, time, atexit; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path; from test_lease import FileTag, WHERE\n"
            "from mlflow_ckpt.lease import Lease\n"
            f"lease = Lease(FileTag(Path({str(tmp_path / 'tag')!r})), where=WHERE, "
            f"ttl_s={4 * beat_s}, beat_s={beat_s})\n"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", begin + code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


@pytest.fixture
def tag(tmp_path: Path) -> FileTag:
    return FileTag(tmp_path / "tag")


HOLD = "lease.acquire(); print('held', flush=True); time.sleep(60)"


def held_by(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n", child.communicate()


def foreign(beat: int = 0, **flags: bool) -> str:
    return replace(Record(ELSEWHERE, "f00d", beat), **flags).text()


def ours(tag: LeaseTag) -> Record:
    text = tag.read()
    assert text is not None
    record = Record.parse(text)
    assert record is not None
    assert record.owner.is_me()
    return record


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def lease_threads() -> int:
    return sum(t.name == "mlflow-ckpt-lease" for t in threading.enumerate())


def seconds(job: Callable[[], object]) -> float:
    began = time.monotonic()
    job()
    return time.monotonic() - began


# Acquiring


def test_a_free_series_is_taken_without_a_word(
    lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    assert not mine.held
    mine.acquire()
    assert mine.held
    assert mine.lost is None
    assert not ours(tag).over
    assert len(tag.value or "") < 500
    assert capsys.readouterr().out == ""


def test_the_longest_record_stays_below_500_characters() -> None:
    owner = Owner("b" * 36, "pid:[4294967295]", "h" * 64, 2**31 - 1, 2**63 - 1)
    record = Record(owner, "f" * 16, beat=2**31, over=True, done=True)
    assert len(record.text()) < 500
    assert Record.parse(record.text()) == record


def test_a_holder_beats_until_it_is_stopped(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    until(lambda: len(tag.beats) > 3)
    assert tag.beats == list(range(len(tag.beats)))
    assert lease_threads() == 1
    mine.stop()
    assert lease_threads() == 0
    last = tag.value
    time.sleep(3 * BEAT_S)
    assert tag.value == last
    assert mine.held


def test_a_stop_does_not_wait_for_the_next_beat(lease: Callable[..., Lease]) -> None:
    mine = lease(MemoryTag(), beat_s=20, ttl_s=60)
    mine.acquire()
    assert seconds(mine.stop) < AT_ONCE_S
    assert lease_threads() == 0


def test_acquiring_twice_changes_nothing(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    first = ours(tag).nonce
    mine.acquire()
    assert ours(tag).nonce == first
    assert lease_threads() == 1


def test_a_stopped_lease_beats_again_when_it_is_acquired_again(
    lease: Callable[..., Lease],
) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    mine.stop()
    mine.acquire()
    until(lambda: ours(tag).beat > 1)
    mine.check()


def test_one_process_takes_over_from_itself_without_a_word(
    lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    tag = MemoryTag()
    earlier, later = lease(tag), lease(tag)
    earlier.acquire()
    assert seconds(later.acquire) < AT_ONCE_S
    assert capsys.readouterr().out == ""
    later.check()
    with pytest.raises(LeaseLost):
        earlier.check()
    assert not earlier.held


def test_a_dead_process_is_taken_over_from_at_once(
    lease: Callable[..., Lease],
    process: Callable[..., subprocess.Popen[str]],
    tag: FileTag,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child = process(HOLD)
    held_by(child)
    child.kill()
    child.wait()
    mine = lease(tag)
    assert seconds(mine.acquire) < AT_ONCE_S
    said = f"{WHERE}: taken over from host {Owner.me().host}, pid {child.pid}, which has died."
    assert capsys.readouterr().out == f"\nmlflow_ckpt: {said}\n"
    assert not ours(tag).over
    assert mine.release()
    assert tag.read() is None


def test_a_live_process_is_left_alone_as_soon_as_its_beat_moves(
    lease: Callable[..., Lease],
    process: Callable[..., subprocess.Popen[str]],
    tag: FileTag,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child = process(HOLD)
    held_by(child)
    mine = lease(tag, ttl_s=20)
    who = f"host {Owner.me().host}, pid {child.pid}"
    expected = (
        f"{WHERE}: Expected that no other process writes to it. Received: {who}, which is alive. "
        "Stop that process, or take over with resume=Resume(force=True), or write to another "
        "name= or another run."
    )
    began = time.monotonic()
    with pytest.raises(LeaseHeld) as refused:
        mine.acquire()
    assert time.monotonic() - began < 5
    assert str(refused.value) == expected
    assert f"{WHERE}: waits up to 20 s for a sign of life of {who}, " in capsys.readouterr().out
    assert not mine.held
    assert json.loads(tag.path.read_text())["pid"] == child.pid
    assert child.poll() is None


def test_a_stopped_process_is_outwaited_and_stops_when_it_wakes(
    lease: Callable[..., Lease],
    process: Callable[..., subprocess.Popen[str]],
    tag: FileTag,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child = process("lease.acquire(); print('held', flush=True)\nwhile lease.held: time.sleep(.01)")
    held_by(child)
    child.send_signal(signal.SIGSTOP)
    time.sleep(0.1)  # Whatever it was writing is written.
    mine = lease(tag)
    assert seconds(mine.acquire) >= TTL_S
    who = f"host {Owner.me().host}, pid {child.pid}"
    assert f"{WHERE}: taken over from {who}: no sign of life in 0.6 s." in capsys.readouterr().out
    assert mine.release()
    child.send_signal(signal.SIGCONT)
    assert child.wait(10) == 0
    assert json.loads(tag.path.read_text())["done"]  # It did not take it for free.
    mine.acquire()
    assert ours(tag).over
    assert capsys.readouterr().out == ""


def test_a_process_that_dies_while_it_is_watched_is_taken_over_from_at_once(
    lease: Callable[..., Lease],
    process: Callable[..., subprocess.Popen[str]],
    tag: FileTag,
    capsys: pytest.CaptureFixture[str],
) -> None:
    child = process(HOLD, beat_s=30)
    held_by(child)
    threading.Timer(0.3, child.kill).start()
    assert 0.3 <= seconds(lease(tag, ttl_s=20).acquire) < 5
    assert f"pid {child.pid}, which has died." in capsys.readouterr().out


@pytest.mark.parametrize("left", [None, foreign(done=True)], ids=["nothing", "done"])
def test_a_lease_that_is_given_back_while_it_is_watched_is_taken_at_once(
    left: str | None, lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    tag = MemoryTag(foreign())
    threading.Timer(0.2, lambda: setattr(tag, "value", left)).start()
    assert seconds(lease(tag, ttl_s=20).acquire) < 5
    assert "taken over" not in capsys.readouterr().out
    assert ours(tag)


def test_a_quiet_holder_elsewhere_is_outwaited(
    lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    tag = MemoryTag(foreign())
    assert TTL_S <= seconds(lease(tag).acquire) < TTL_S + 2
    assert capsys.readouterr().out == (
        f"\nmlflow_ckpt: {WHERE}: waits up to 0.6 s for a sign of life of host gpu-3, pid 4711, "
        "which may still write to it.\n"
        f"\nmlflow_ckpt: {WHERE}: taken over from host gpu-3, pid 4711: no sign of life in 0.6 s.\n"
    )
    assert ours(tag).over


def test_somebody_who_takes_it_while_it_is_watched_is_alive(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag(foreign())
    third = Record(replace(ELSEWHERE, host="gpu-4"), "beef").text()
    threading.Timer(0.2, lambda: setattr(tag, "value", third)).start()
    with pytest.raises(LeaseHeld, match="Received: host gpu-4, pid 4711, which is alive"):
        lease(tag).acquire()
    assert tag.value == third


def test_time_in_which_the_server_did_not_answer_is_not_held_against_the_holder(
    lease: Callable[..., Lease],
) -> None:
    tag = MemoryTag(foreign())
    reads = 0

    def slow_once(request: str) -> None:
        nonlocal reads
        reads += 1
        if reads == 3:
            time.sleep(2 * TTL_S)
        if reads == 5:
            tag.value = foreign(beat=1)

    tag.before = slow_once
    with pytest.raises(LeaseHeld):
        lease(tag).acquire()


def test_who_is_overwritten_before_it_reads_back_waits_like_anybody(
    lease: Callable[..., Lease],
) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    reads = 0

    def overwrite(request: str) -> None:
        nonlocal reads
        reads += request == "read"
        if request == "write":
            tag.value = foreign()
        if reads == 5:
            tag.value = foreign(beat=1)

    tag.after = overwrite
    with pytest.raises(LeaseHeld, match="gpu-3"):
        mine.acquire()
    assert not mine.held
    assert lease_threads() == 0


def test_force_takes_over_at_once_and_says_from_whom(
    lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    tag = MemoryTag(foreign())
    mine = lease(tag, force=True)
    assert seconds(mine.acquire) < AT_ONCE_S
    said = "taken over by force from host gpu-3, pid 4711, which stops at its next commit."
    assert capsys.readouterr().out == f"\nmlflow_ckpt: {WHERE}: {said}\n"
    mine.check()


def test_force_on_a_free_series_has_nothing_to_say(
    lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    lease(MemoryTag(), force=True).acquire()
    lease(MemoryTag(foreign(done=True)), force=True).acquire()
    assert capsys.readouterr().out == ""


GARBAGE = {
    "empty": "",
    "text": "held by Anna",
    "list": "[1, 2]",
    "number": "7",
    "nothing": "null",
    "deep": "[" * 1_900,
    "long": json.dumps({**json.loads(foreign()), "note": "x" * 3_000}),
    "no-nonce": json.dumps({**ELSEWHERE.to_dict(), "beat": 1}),
    "no-beat": json.dumps({**ELSEWHERE.to_dict(), "nonce": "f00d"}),
    "beat-as-text": json.dumps({**ELSEWHERE.to_dict(), "nonce": "f00d", "beat": "1"}),
    "pid-of-everybody": json.dumps({**json.loads(foreign()), "pid": -1}),
    "huge-number": '{"pid": ' + "9" * 1_500 + "}",
    "infinite": json.dumps({**json.loads(foreign()), "started": float("inf")}),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_counts_as_somebody_who_does_not_move(name: str) -> None:
    assert Record.parse(GARBAGE[name]) is None
    tag = MemoryTag(GARBAGE[name])
    mine = Lease(tag, where=WHERE, ttl_s=0.1, beat_s=0.05)
    assert seconds(mine.acquire) >= 0.1
    assert ours(tag).over
    mine.stop()


def test_garbage_is_named_by_its_beginning(
    lease: Callable[..., Lease], capsys: pytest.CaptureFixture[str]
) -> None:
    lease(MemoryTag("\x1b[2J" + "held by Anna " * 5), force=True).acquire()
    named = r"an unreadable lease ('\x1b[2Jheld by Anna held by Anna held by An')"
    assert f"taken over by force from {named}" in capsys.readouterr().out


def test_garbage_that_moves_is_somebody_alive(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag("format 2.0, beat 1")
    threading.Timer(0.2, lambda: setattr(tag, "value", "format 2.0, beat 2")).start()
    with pytest.raises(LeaseHeld, match=r"an unreadable lease \('format 2.0, beat 2'\)"):
        lease(tag).acquire()


def test_fields_and_values_of_a_later_version_are_read_past() -> None:
    record = Record.parse(json.dumps({**json.loads(foreign(3)), "gpu": 1, "over": "yes"}))
    assert record == Record(ELSEWHERE, "f00d", 3)


def test_an_interrupt_ends_the_wait_and_leaves_the_tag(
    process: Callable[..., subprocess.Popen[str]], tag: FileTag
) -> None:
    tag.write(foreign())
    # What a shell starts in the background ignores the signal, and its children too.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    child = process(code + "lease.acquire()", beat_s=10)
    assert child.stdout is not None
    assert child.stdout.readline() == "\n"
    assert "waits up to 40 s" in child.stdout.readline()
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, raised = child.communicate(timeout=10)
    assert time.monotonic() - began < 3
    assert raised.rstrip().endswith("KeyboardInterrupt")
    assert tag.read() == foreign()


def test_a_server_that_is_away_is_an_error_of_the_store(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    tag.away = True
    with pytest.raises(StoreError, match="refused"):
        mine.acquire()
    assert not mine.held
    with pytest.raises(StoreError, match="refused"):
        mine.check()
    tag.away = False
    mine.check()
    assert mine.held


@pytest.mark.parametrize(("ttl_s", "beat_s"), [(30, 0), (30, -1), (10, 10), (19, 10), (30, "nan")])
def test_a_holder_that_could_not_beat_in_time_is_a_mistake(ttl_s: float, beat_s: float) -> None:
    with pytest.raises(ConfigError, match=f"^Expected .* Received: ttl_s={ttl_s}, beat_s="):
        Lease(MemoryTag(), where=WHERE, ttl_s=ttl_s, beat_s=float(beat_s))


# Holding


def test_who_was_taken_over_stops(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.value = foreign()
    text = (
        f"^{WHERE}: Expected to be its only writer. Received: host gpu-3, pid 4711, which has "
        "taken it over. This process writes no more to it. What it had committed stays; to go on "
        "here, stop that process and start this one again.$"
    )
    with pytest.raises(LeaseLost, match=text):
        mine.check()
    assert isinstance(mine.lost, LeaseLost)
    until(lambda: lease_threads() == 0)
    assert tag.value == foreign()
    tag.value = None
    with pytest.raises(LeaseLost, match=text):
        mine.check()
    assert not mine.release()
    assert tag.value is None


def test_a_beat_notices_too_and_is_the_last_one(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.value = foreign()
    until(lambda: mine.lost)
    until(lambda: lease_threads() == 0)
    assert not mine.held
    assert tag.value == foreign()
    with pytest.raises(LeaseLost, match="gpu-3"):
        mine.check()


def test_garbage_in_place_of_ours_is_a_loss(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag, beat_s=10, ttl_s=20)
    mine.acquire()
    tag.value = "held by Anna"
    with pytest.raises(LeaseLost, match=r"Received: an unreadable lease \('held by Anna'\)"):
        mine.check()


def test_who_lost_it_may_ask_for_it_anew(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.value = foreign()
    until(lambda: mine.lost)
    tag.value = None
    mine.acquire()
    assert mine.held
    mine.check()


def test_a_missing_tag_is_written_again_by_a_check(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag, beat_s=10, ttl_s=20)
    mine.acquire()
    nonce = ours(tag).nonce
    tag.value = None
    mine.check()
    assert ours(tag).nonce == nonce


def test_a_missing_tag_is_written_again_by_a_beat(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    nonce = ours(tag).nonce
    tag.value = None
    until(lambda: tag.value)
    assert ours(tag).nonce == nonce


def test_a_server_that_is_away_for_a_while_does_not_stop_the_beats(
    lease: Callable[..., Lease],
) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.away = True
    with pytest.raises(StoreError, match="refused"):
        mine.check()
    time.sleep(4 * BEAT_S)
    assert mine.held
    tag.away = False
    before = len(tag.beats)
    until(lambda: len(tag.beats) > before + 1)
    mine.check()


def test_an_answer_that_is_too_old_is_no_leave_to_write(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.after = hold = Hold("read")
    assert hold.reached.wait(5)
    tag.value = foreign()
    time.sleep(2 * BEAT_S)
    hold.open()
    until(lambda: mine.lost)
    assert tag.value == foreign()


def test_a_superseded_lease_does_not_come_back_after_the_later_one(
    lease: Callable[..., Lease],
) -> None:
    tag = MemoryTag()
    asleep = lease(tag, beat_s=0.5, ttl_s=1)
    asleep.acquire()
    later = lease(tag)
    later.acquire()
    assert later.release()
    until(lambda: asleep.lost)
    assert json.loads(tag.value or "")["done"]
    again = lease(tag)
    assert seconds(again.acquire) < AT_ONCE_S
    again.check()


def test_a_check_acquires_what_was_not_acquired(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.check()
    assert mine.held
    mine.release()
    mine.check()
    assert mine.held
    until(lambda: ours(tag).beat > 1)
    mine.release()
    tag.value = foreign()
    threading.Timer(0.2, lambda: setattr(tag, "value", foreign(beat=1))).start()
    with pytest.raises(LeaseHeld):
        mine.check()


def test_the_thread_sees_the_context_of_its_caller(lease: Callable[..., Lease]) -> None:
    workspace = ContextVar("workspace", default="nobody's")
    workspace.set("ours")
    seen = []
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.before = lambda request: seen.append(workspace.get())
    until(lambda: seen)
    assert seen[0] == "ours"


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every thread a machine of its own."""
    me = Owner.me()
    monkeypatch.setattr(
        Owner, "me", lambda: replace(me, boot=f"boot of {threading.current_thread().name}")
    )


def race(build: Callable[..., Lease], tag: MemoryTag) -> list[str]:
    """Let the threads a and b, two machines to each other, acquire and then check."""
    barrier = threading.Barrier(2)
    outcome: dict[str, str] = {}

    def run() -> None:
        name = threading.current_thread().name
        mine = build(tag)
        try:
            mine.acquire()
        except LeaseHeld:
            outcome[name] = "refused"
        barrier.wait(10)
        if name not in outcome:
            try:
                mine.check()
                outcome[name] = "holds"
            except LeaseLost:
                outcome[name] = "lost"
        barrier.wait(10)
        mine.release()

    threads = [threading.Thread(target=run, name=name) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return sorted(outcome.values())


class InStep:
    """Both get an answer before either goes on, as long as both ask."""

    def __init__(self) -> None:
        self._answers = threading.Barrier(2)

    def __call__(self, request: str) -> None:
        if threading.current_thread().name in ("a", "b") and not self._answers.broken:
            with suppress(threading.BrokenBarrierError):
                self._answers.wait(0.02)


class Overtaken:
    """Thread b finds the tag free, and writes only after a has read its own record back."""

    def __init__(self) -> None:
        self._reads = {"a": 0, "b": 0}
        self._taken = threading.Event()

    def __call__(self, request: str) -> None:
        name = threading.current_thread().name
        if request == "read" and name in self._reads:
            self._reads[name] += 1
            if name == "b" and self._reads["b"] == 1:
                assert self._taken.wait(5)
            if name == "a":
                # It may read what b has written only where b was first to read.
                until(lambda: self._reads["b"])
                if self._reads["a"] == 2:
                    self._taken.set()


@pytest.mark.parametrize("number", range(20))
@pytest.mark.parametrize("order", [InStep, Overtaken])
def test_of_two_that_begin_at_once_only_one_goes_on(
    order: Callable[[], Callable[[str], None]],
    number: int,
    lease: Callable[..., Lease],
    two_machines: None,
) -> None:
    tag = MemoryTag()
    tag.after = order()
    assert race(lease, tag) in (["holds", "lost"], ["holds", "refused"])
    # Who lost by a hair may leave its mark, but nobody's lease.
    assert tag.value is None or json.loads(tag.value)["done"]


def test_of_two_that_outwait_a_third_only_one_goes_on(
    lease: Callable[..., Lease], two_machines: None
) -> None:
    tag = MemoryTag(foreign())
    tag.after = InStep()
    assert race(lease, tag) in (["holds", "lost"], ["holds", "refused"])
    assert json.loads(tag.value or "")["done"]


def test_of_many_processes_one_holds_it(
    process: Callable[..., subprocess.Popen[str]], tag: FileTag
) -> None:
    code = (
        "from mlflow_ckpt.errors import LeaseHeld, LeaseLost\n"
        "try:\n"
        "    lease.acquire(); time.sleep(1); lease.check(); print('holds', flush=True)\n"
        "    time.sleep(60)\n"
        "except (LeaseHeld, LeaseLost) as error: print(type(error).__name__, flush=True)"
    )
    children = [process(code, beat_s=0.1) for _ in range(4)]

    def last_word(child: subprocess.Popen[str]) -> str:
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() in ("holds", "LeaseHeld", "LeaseLost"):
                return line.strip()
        return "nothing: " + child.communicate()[1]

    words = sorted(map(last_word, children))
    assert words.count("holds") == 1, words
    until(lambda: sum(child.poll() is None for child in children) == 1)
    assert set(words) <= {"holds", "LeaseHeld", "LeaseLost"}
    (holder,) = (child for child in children if child.poll() is None)
    assert json.loads(tag.path.read_text())["pid"] == holder.pid


# Giving back


def test_a_release_clears_the_tag_and_ends_the_thread(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    assert mine.release()
    assert tag.value is None
    assert not mine.held
    assert lease_threads() == 0
    tag.before = lambda request: pytest.fail("what is given back is asked for again")
    assert mine.release()
    time.sleep(2 * BEAT_S)
    assert tag.value is None


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "own"])
def test_who_may_wake_up_is_remembered_from_holder_to_holder(
    dead: bool, lease: Callable[..., Lease]
) -> None:
    me = Owner.me()
    before = replace(me, started=me.started - 1) if dead else me
    assert before.is_dead() == dead
    tag = MemoryTag(Record(before, "beef", over=True).text())
    mine = lease(tag)
    mine.acquire()
    assert mine.release()
    assert json.loads(tag.value or "")["done"]


def test_a_release_of_nothing_does_nothing(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag(foreign())
    assert not lease(tag).release()
    lease(tag).stop()
    assert tag.value == foreign()


def test_a_release_leaves_the_lease_of_somebody_else(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag, beat_s=10, ttl_s=20)
    mine.acquire()
    tag.value = foreign()
    assert not mine.release()
    assert tag.value == foreign()


def test_a_release_after_a_stop_clears_the_tag(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    mine.stop()
    assert tag.value is not None
    assert mine.release()
    assert tag.value is None


def test_a_release_from_a_server_that_is_away_does_not_raise(lease: Callable[..., Lease]) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.away = True
    assert not mine.release()
    assert not mine.held
    tag.away = False
    assert mine.release()
    assert tag.value is None


@pytest.mark.parametrize("request_", ["read", "write", "clear"])
def test_a_release_waits_briefly_for_a_server_that_hangs_and_leaves_no_ghost(
    request_: str, lease: Callable[..., Lease]
) -> None:
    tag = MemoryTag()
    mine = lease(tag)
    mine.acquire()
    tag.before = hold = Hold(request_)
    if request_ != "clear":
        assert hold.reached.wait(5)
    began = time.monotonic()
    assert not mine.release()
    assert time.monotonic() - began < 3
    assert not mine.held
    hold.open()
    until(lambda: lease_threads() == 0)
    assert tag.value is None
    assert mine.release()


def test_a_check_that_writes_while_it_is_released_leaves_no_ghost(
    lease: Callable[..., Lease],
) -> None:
    tag = MemoryTag()
    mine = lease(tag, beat_s=10, ttl_s=20)
    mine.acquire()
    tag.value = None
    tag.before = hold = Hold("write", thread="checking")
    checking = threading.Thread(target=mine.check, name="checking")
    checking.start()
    assert hold.reached.wait(5)
    releasing = threading.Thread(target=mine.release)
    releasing.start()
    until(lambda: not mine.held)
    hold.open()
    checking.join(5)
    releasing.join(5)
    until(lambda: not checking.is_alive())
    # The check either came before the release, or acquired the lease anew as a writer must.
    assert mine.held == (tag.value is not None)


def test_where_no_thread_can_be_started_the_caller_gives_it_back(
    lease: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = MemoryTag()
    mine = lease(tag)

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        mine.acquire()
        assert mine.held
        mine.check()
        assert mine.release()
    assert tag.value is None


def test_a_forked_child_has_no_lease(
    process: Callable[..., subprocess.Popen[str]], tag: FileTag
) -> None:
    child = process(
        "lease.acquire()\n"
        "if (pid := os.fork()) == 0:\n"
        "    lease.stop()\n"
        "    os._exit(1 if lease.held or lease.release() or lease.lost else 0)\n"
        "lease.check(); sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    _, raised = child.communicate(timeout=20)
    assert (child.returncode, raised) == (0, "")
    assert json.loads(tag.path.read_text())["pid"] == child.pid


def test_no_exit_waits_for_the_lease_and_the_next_process_takes_it_at_once(
    lease: Callable[..., Lease], process: Callable[..., subprocess.Popen[str]], tag: FileTag
) -> None:
    child = process("lease.acquire()", beat_s=10)
    assert child.wait(10) == 0
    assert tag.read() is not None
    assert seconds(lease(tag).acquire) < AT_ONCE_S


@pytest.mark.parametrize("before", ["", "lease.stop()"])
def test_a_lease_can_be_given_back_at_exit(
    before: str, process: Callable[..., subprocess.Popen[str]], tag: FileTag
) -> None:
    child = process(f"atexit.register(lease.release); lease.acquire(); {before}", beat_s=10)
    _, raised = child.communicate(timeout=10)
    assert (child.returncode, raised) == (0, "")
    assert tag.read() is None
