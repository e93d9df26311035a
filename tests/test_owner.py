"""Owners: which process it was, and that only one that is certainly dead counts as dead."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mlflow_ckpt import owner
from mlflow_ckpt.owner import Owner

pytestmark = pytest.mark.pure

SLEEP = "import time; print(flush=True); time.sleep(60)"
# The exit of one thread alone, which Python has no name for.
EXIT_CALL = {"x86_64": 60, "aarch64": 93}.get(platform.machine())

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a Python process that has got as far as its first line of output."""
    started = []

    def run(code: str = SLEEP) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def owner_of(child: subprocess.Popen[bytes]) -> Owner:
    """What `Owner.me()` gives in that process."""
    seen = owner._look_up(child.pid)
    return replace(Owner.me(), pid=child.pid, started=seen.started if seen else 0)


def ended_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_process_knows_itself_and_is_not_dead() -> None:
    me = Owner.me()
    assert me.is_me()
    assert not me.is_dead()
    assert me.pid == os.getpid()
    assert str(me) == f"host {me.host}, pid {os.getpid()}"


@on_linux
def test_nothing_is_unknown_on_linux() -> None:
    assert all(Owner.me().to_dict().values())


def test_an_owner_survives_json_and_fields_of_a_later_version() -> None:
    me = Owner.me()
    text = json.dumps(me.to_dict() | {"gpu": 3})
    assert Owner.from_dict(json.loads(text)) == me
    assert len(text) < 300


def test_what_is_not_known_may_be_left_out() -> None:
    assert Owner.from_dict({"host": "a", "pid": 5}) == Owner("", "", "a", 5, 0)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"pid": 0}, id="pid-of-a-group"),
        pytest.param({"pid": -1}, id="pid-of-everybody"),
        pytest.param({"pid": 2**31}, id="pid-too-large"),
        pytest.param({"pid": "7"}, id="pid-as-text"),
        pytest.param({"pid": True}, id="pid-as-truth"),
        pytest.param({"pid": 7.0}, id="pid-with-a-fraction"),
        pytest.param({"started": -1}, id="negative-start"),
        pytest.param({"started": None}, id="no-start"),
        pytest.param({"boot": 7}, id="boot-as-number"),
        pytest.param({"host": "\x1b[2Jgone"}, id="host-that-a-terminal-obeys"),
        pytest.param({"host": "a\nmlflow_ckpt: all is well"}, id="host-of-two-lines"),
        pytest.param({"namespace": "x" * 256}, id="endless-namespace"),
    ],
)
def test_what_cannot_be_an_owner_is_refused(change: dict[str, object]) -> None:
    (key,) = change
    with pytest.raises(ValueError, match=rf"^Expected .* Received: {key}="):
        Owner.from_dict(Owner.me().to_dict() | change)


@pytest.mark.parametrize("found", [None, [], "owner", 7])
def test_what_is_no_mapping_is_refused(found: object) -> None:
    with pytest.raises(ValueError, match="Expected an owner as a mapping. Received: "):
        Owner.from_dict(found)


def test_a_process_without_an_id_is_refused() -> None:
    with pytest.raises(ValueError, match="Received: pid=0"):
        Owner.from_dict({"host": "a"})


def test_another_process_is_neither_me_nor_dead(start: Callable[..., subprocess.Popen]) -> None:
    other = owner_of(start())
    assert not other.is_me()
    assert not other.is_dead()


def test_both_processes_agree_on_who_one_of_them_is(start: Callable[..., subprocess.Popen]) -> None:
    code = (
        "import json, sys, time; from mlflow_ckpt.owner import Owner\n"
        "print(flush=True); print(json.dumps(Owner.me().to_dict()), flush=True); time.sleep(60)"
    )
    child = start(code)
    assert Owner.from_dict(json.loads(child.stdout.readline())) == owner_of(child)


def test_a_stopped_process_is_not_dead(start: Callable[..., subprocess.Popen]) -> None:
    child = start()
    child.send_signal(signal.SIGSTOP)
    assert not owner_of(child).is_dead()


def test_a_killed_process_is_dead(start: Callable[..., subprocess.Popen]) -> None:
    child = start()
    other = owner_of(child)
    child.kill()
    child.wait()
    assert other.is_dead()


@on_linux
def test_a_killed_process_that_nobody_has_buried_is_dead(
    start: Callable[..., subprocess.Popen],
) -> None:
    child = start()
    other = owner_of(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    os.kill(child.pid, 0)  # Its ID is still taken.
    assert other.is_dead()


@on_linux
@pytest.mark.skipif(EXIT_CALL is None, reason="knows the call of two processors only")
def test_a_process_whose_first_thread_has_ended_is_not_dead(
    start: Callable[..., subprocess.Popen],
) -> None:
    child = start(
        "import ctypes, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start(); print(flush=True)\n"
        f"ctypes.CDLL(None).syscall({EXIT_CALL}, 0)"
    )
    stat = Path(f"/proc/{child.pid}/stat")
    for _ in range(200):
        if ") Z " in stat.read_text():
            break
        time.sleep(0.01)
    assert ") Z " in stat.read_text()
    assert not owner_of(child).is_dead()


@on_linux
def test_an_id_that_was_given_again_is_another_process(
    start: Callable[..., subprocess.Popen],
) -> None:
    now = owner_of(start())
    earlier = replace(now, started=now.started - 1)
    assert earlier.is_dead()
    me = Owner.me()
    assert not replace(me, started=me.started - 1).is_me()


def test_an_id_alone_does_not_tell_two_processes_apart(
    start: Callable[..., subprocess.Popen],
) -> None:
    assert not replace(owner_of(start()), started=0).is_dead()


@on_linux
@pytest.mark.parametrize("name", [") Z 1 (", "a b c", "\xff"])
def test_the_name_of_a_process_cannot_mislead(
    name: str, start: Callable[..., subprocess.Popen]
) -> None:
    child = start(
        f"import time; open('/proc/self/comm', 'wb').write({name.encode('latin-1')!r})\n" + SLEEP
    )
    other = owner_of(child)
    assert abs(other.started - Owner.me().started) < 1_000_000
    assert other.started > 0
    assert not other.is_dead()


@on_linux
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"boot": "0b9b9b1c"}, id="another-boot"),
        pytest.param({"boot": ""}, id="unknown-boot"),
        pytest.param({"namespace": "pid:[1]"}, id="another-container"),
        pytest.param({"namespace": ""}, id="unknown-container"),
    ],
)
def test_a_process_elsewhere_is_never_known_to_be_dead(change: dict[str, str]) -> None:
    assert not replace(Owner.me(), pid=ended_pid(), **change).is_dead()
    assert not replace(Owner.me(), **change).is_me()


@on_linux
def test_where_linux_tells_no_boot_nothing_is_concluded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "_read", lambda path: "")
    me = Owner.me()
    assert (me.boot, me.started) == ("", 0)
    assert not me.is_me()
    assert not replace(me, pid=ended_pid()).is_dead()


def test_a_process_that_may_not_be_signalled_is_there(
    start: Callable[..., subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = owner_of(start())

    def refused(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refused)
    assert not other.is_dead()


def test_a_process_that_proc_hides_is_not_dead(
    start: Callable[..., subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = owner_of(start())
    me = Owner.me()
    monkeypatch.setattr(owner, "_look_up", lambda pid: None)
    assert not other.is_dead()
    assert not replace(me, started=0).is_dead()


@on_linux
def test_the_proc_of_another_namespace_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert owner._look_up(os.getpid()) is not None
    monkeypatch.setattr(os, "getpid", lambda: 2**30)
    assert owner._look_up(1) is None


def test_without_proc_a_process_is_dead_only_if_its_id_is_free(
    start: Callable[..., subprocess.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    living, gone = start().pid, ended_pid()
    monkeypatch.setattr(owner, "_read", lambda path: "")
    monkeypatch.setattr(owner, "_namespace", lambda: "")
    monkeypatch.setattr(sys, "platform", "darwin")
    me = Owner.me()
    assert me == Owner("", "", me.host, os.getpid(), 0)
    assert me.is_me()
    assert not replace(me, pid=living).is_dead()
    assert replace(me, pid=gone).is_dead()
    assert not replace(me, pid=gone, host="another").is_dead()
    assert not replace(me, pid=gone, boot="0b9b9b1c").is_dead()


def test_on_windows_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = replace(Owner.me(), pid=ended_pid())
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        patch.setattr(os, "kill", lambda *_: pytest.fail("a signal was sent"))
        dead = gone.is_dead()
    assert not dead


def test_a_forked_child_is_another_owner() -> None:
    parent = Owner.me()
    code = (
        "import os\nfrom mlflow_ckpt.owner import Owner\nparent = Owner.me()\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(0 if not parent.is_me() and not parent.is_dead() else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert parent.is_me()
