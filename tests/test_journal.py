"""The journal: whole entries or none, in order, whoever writes, reads, dies or delivers."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_ckpt import durable
from mlflow_ckpt.deliverer import Deliverer
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import FormatTooNew, SpoolError
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.syncing import Waiting

pytestmark = pytest.mark.pure

NOBODY = 65534
MANIFEST = "manifest.json"


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return new_journal(tmp_path)


def new_journal(folder: Path) -> Journal:
    spool = folder / "spool"
    spool.mkdir(mode=0o700, exist_ok=True)
    about = {"tracking_uri": "http://host", "run_id": "run", "series": "ckpt"}
    return Journal.create(spool, "run", "ckpt", about)


def append(journal: Journal, *numbers: int) -> list[Entry]:
    """Entries that say their number."""
    return [journal.append("rows", {"number": number}) for number in numbers]


def append_files(journal: Journal, number: int, content: bytes = b"weights") -> Entry:
    """An entry with files, as a checkpoint has them."""
    room = journal.room()
    files = journal.files_of(room)
    (files / "data").mkdir()
    (files / "data" / "model.keras").write_bytes(content)
    (files / MANIFEST).write_bytes(b"{}")
    return journal.append("checkpoint", {"number": number}, room)


def numbers(entries: Iterator[Entry] | list[Entry]) -> list[int]:
    return [entry.data["number"] for entry in entries]


def in_making(journal: Journal) -> list[str]:
    return sorted(path.name for path in (journal.path / "making").iterdir())


@contextlib.contextmanager
def python(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """Another process, which ends with the block."""
    command = [sys.executable, "-W", "error", "-c", code, *map(str, args)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


# --- appending ----------------------------------------------------------------


def test_entries_come_back_in_order_and_whole(journal: Journal) -> None:
    made = append(journal, 1, 2, 3)
    again = Journal(journal.path)
    assert [(e.uid, e.kind, dict(e.data)) for e in again.waiting()] == [
        (e.uid, "rows", {"number": n}) for n, e in enumerate(made, 1)
    ]
    assert numbers(again.after(made[0])) == [2, 3]
    assert len({entry.uid for entry in made}) == 3
    again.remove(again.waiting()[0])
    first = again.first()
    assert first is not None
    assert first.data["number"] == 2


def test_numbers_that_are_no_number_everywhere_survive(journal: Journal) -> None:
    journal.append("rows", {"rows": [["loss", float("nan"), 1, 1], ["loss", float("inf"), 1, 2]]})
    (_, nan, *_), (_, infinite, *_) = journal.waiting()[0].data["rows"]
    assert nan != nan
    assert infinite == float("inf")


def test_an_entry_appears_once_all_of_it_is_on_the_disk(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs: bytes, then folder, then the name, then the name's folder."""
    seen: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        inside = path.parent.parent == journal.path / "making"
        seen.append("room" if path.parent.name == "making" else path.name if inside else "journal")
        fsync(descriptor)

    def watched_rename(self: Path, target: Path) -> Path:
        seen.append("rename")
        assert not journal.waiting()
        return rename(self, target)

    room = journal.room()
    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    journal.append("checkpoint", {}, room)
    assert seen == ["entry.json", "room", "rename", "journal"]


@pytest.mark.parametrize("with_files", [True, False])
def test_an_entry_for_which_there_is_no_room_leaves_nothing(
    with_files: bool, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(journal, 1)
    room = journal.room() if with_files else None

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            journal.append("rows", {"number": 2}, room)
    assert in_making(journal) == []
    append(journal, 3)
    assert numbers(journal.waiting()) == [1, 3]


def test_a_real_limit_of_bytes_fails_an_entry_and_nothing_else(journal: Journal) -> None:
    code = """
import resource, sys
from pathlib import Path
from mlflow_ckpt.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.append("rows", {"number": 1})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    journal.append("rows", {"number": 2, "long": "x" * 10_000})
except OSError as error:
    print(error.strerror)
journal.append("rows", {"number": 3})
"""
    with python(code, journal.path) as process:
        assert process.communicate(timeout=60)[0] == "File too large\n"
    assert process.returncode == 0
    assert numbers(journal.waiting()) == [1, 3]
    assert in_making(journal) == []


def test_two_processes_that_append_at_once_lose_nothing(journal: Journal) -> None:
    """Numbers are taken by rename: who comes second takes the next one."""
    code = """
import sys
from pathlib import Path
from mlflow_ckpt.journal import Journal
journal = Journal(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(200):
    journal.append("rows", {"who": sys.argv[2], "number": number})
"""
    with python(code, journal.path, "a") as one, python(code, journal.path, "b") as other:
        for process in (one, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in (one, other):
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(60) for process in (one, other)] == [0, 0]
    entries = journal.waiting()
    for who in "ab":
        assert [e.data["number"] for e in entries if e.data["who"] == who] == list(range(200))
    assert len({entry.path.name for entry in entries}) == len({e.uid for e in entries}) == 400
    turns = [entry.data["who"] for entry in entries]
    assert sum(a != b for a, b in itertools.pairwise(turns)) > 1, "they took no turns"


def test_a_number_is_not_given_twice_while_others_deliver(journal: Journal) -> None:
    """An emptied journal goes on counting, so that a late reader mistakes nothing."""
    other = Journal(journal.path)
    first = append(journal, 1)[0]
    other.remove(first)
    second = append(journal, 2)[0]
    assert int(second.path.name) > int(first.path.name)


# --- delivering ---------------------------------------------------------------


def test_two_threads_that_deliver_at_once_deliver_each_entry_once(journal: Journal) -> None:
    append(journal, *range(60))
    delivered: list[int] = []
    faults: list[BaseException] = []
    at_once = threading.Semaphore(1)

    def deliverer(of: Journal) -> Deliverer:
        def deliver(entry: Entry) -> None:
            assert at_once.acquire(blocking=False), "two at once"
            delivered.append(entry.data["number"])
            of.remove(entry)
            at_once.release()

        def outcome(_: str, result: object) -> None:
            if isinstance(result, BaseException):
                faults.append(result)

        return Deliverer(
            of, deliver, key=("uri", "run"), outcome=outcome, emptied=lambda: None, exit_wait=0.0
        )

    both = [deliverer(Journal(journal.path)) for _ in range(2)]
    for each in both:
        each.wake()
    append(journal, *range(60, 80))
    both[1].wake()
    assert all(each.join(30) for each in both)
    assert faults == []
    assert delivered == list(range(80))
    assert journal.waiting() == []


def test_the_lock_of_a_killed_process_is_free(journal: Journal) -> None:
    code = """
import sys
from pathlib import Path
from mlflow_ckpt.journal import Journal
lock = Journal(Path(sys.argv[1])).lock()
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
"""
    with python(code, journal.path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(TimeoutError):
            journal.lock().acquire(timeout=0)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        with journal.lock().acquire(timeout=0):
            assert (journal.path / "lock").exists()


def test_a_reader_never_sees_a_part_of_an_entry(journal: Journal) -> None:
    """Entries come and go whole while somebody looks, again and again."""
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            journal.remove(append_files(journal, number))
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    looks, deadline = 0, time.monotonic() + 120
    try:
        while looks < 20:
            assert time.monotonic() < deadline, "it saw none"
            for entry in Journal(journal.path).waiting():
                assert entry.data["number"] >= 0
                try:
                    room = journal.pin(entry)
                except FileNotFoundError:
                    continue
                files = journal.files_of(room)
                assert (files / "data" / "model.keras").read_bytes() == b"weights"
                journal.give_up(room)
                looks += 1
    finally:
        stop.set()
        thread.join()
    assert in_making(journal) == []


# --- what is torn, newer or foreign -------------------------------------------


def test_a_torn_entry_is_named(journal: Journal) -> None:
    entry = append(journal, 1)[0]
    (entry.path / "entry.json").write_bytes(b'{"uid": "1", "ki')
    for read in (journal.first, journal.waiting):
        with pytest.raises(SpoolError, match=f"{entry.path}/entry.json.*Move that folder away"):
            read()


@pytest.mark.parametrize("content", [b"[]", b"{}", b"3", b'{"uid": 1}'])
def test_json_that_is_no_entry_is_named(content: bytes, journal: Journal) -> None:
    entry = append(journal, 1)[0]
    (entry.path / "entry.json").write_bytes(content)
    with pytest.raises(SpoolError, match=r"entry\.json"):
        journal.waiting()


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"format": "next"}', b'{"format": '])
def test_an_unreadable_journal_is_named(content: bytes, journal: Journal) -> None:
    (journal.path / "journal.json").write_bytes(content)
    with pytest.raises(SpoolError, match=r"journal\.json"):
        _ = journal.about


def test_a_folder_without_an_entry_is_passed_over(journal: Journal) -> None:
    """What a delivery that was killed half-way through its removal may leave."""
    append(journal, 1)
    (journal.path / "10000099").mkdir()
    assert numbers(journal.waiting()) == [1]
    assert numbers(append(journal, 2)) == [2]
    assert numbers(journal.waiting()) == [1, 2]


def test_a_newer_format_is_refused_and_left_alone(journal: Journal) -> None:
    append(journal, 1)
    raw = json.dumps({"format": "2.0", "run_id": "run"})
    (journal.path / "journal.json").write_text(raw)
    for open_it in (lambda: journal.about, lambda: new_journal(journal.spool.parent)):
        with pytest.raises(FormatTooNew, match=r"has format 2\.0.*pip install -U mlflow-ckpt"):
            open_it()
    assert (journal.path / "journal.json").read_text() == raw
    assert numbers(journal.waiting()) == [1]


def test_a_later_minor_format_is_read_and_what_it_adds_is_kept(journal: Journal) -> None:
    later = {"format": "1.7", "run_id": "run", "series": "ckpt", "colour": "blue"}
    (journal.path / "journal.json").write_text(json.dumps(later))
    assert new_journal(journal.spool.parent).about["colour"] == "blue"


# --- what a dead process left -------------------------------------------------


def test_what_a_dead_process_was_making_is_swept_and_a_living_one_s_is_not(
    journal: Journal,
) -> None:
    code = """
import sys
from pathlib import Path
from mlflow_ckpt.journal import Journal
room = Journal(Path(sys.argv[1])).room()
(room / "files" / "data").write_bytes(bytes(1000))
print(room.name, flush=True)
sys.stdin.readline()
"""
    mine = journal.room().name
    with python(code, journal.path) as dead, python(code, journal.path) as alive:
        assert dead.stdout is not None
        assert alive.stdout is not None
        half_made, in_work = dead.stdout.readline().strip(), alive.stdout.readline().strip()
        dead.kill()
        dead.wait(30)
        (journal.path / "making" / "gone-1").mkdir()
        assert in_making(journal) == sorted([half_made, in_work, mine, "gone-1"])
        new_journal(journal.spool.parent)
        assert in_making(journal) == sorted([in_work, mine])
    new_journal(journal.spool.parent)
    assert in_making(journal) == [mine]


def test_a_room_of_an_unreadable_owner_is_left_alone(journal: Journal) -> None:
    room = journal.room()
    for content in (b"", b'{"pid": "x"}', b"[]"):
        (room / "owner.json").write_bytes(content)
        new_journal(journal.spool.parent)
        assert in_making(journal) == [room.name]


def test_a_journal_knows_whether_its_writer_is_gone(journal: Journal) -> None:
    assert not journal.writer_is_gone
    with python("") as process:
        pid = process.pid
        process.wait(30)
    gone = {**Owner.me().to_dict(), "pid": pid, "started": 1}
    journal.describe({**journal.about, "writer": gone})
    assert journal.writer_is_gone
    journal.describe({"writer": {"pid": "unreadable"}})
    assert not journal.writer_is_gone


# --- files that are read while they are delivered -----------------------------


@pytest.mark.parametrize("ends", ["remove", "drop", "keep_copy", "replaced copy"])
def test_pinned_files_outlive_their_entry(ends: str, journal: Journal) -> None:
    entry = append_files(journal, 1)
    room = journal.pin(entry)
    if ends == "replaced copy":
        journal.keep_copy(entry, {})
        journal.keep_copy(append_files(journal, 2, b"others"), {})
    elif ends == "keep_copy":
        journal.keep_copy(entry, {})
    else:
        getattr(journal, ends)(entry)
    files = journal.files_of(room)
    assert (files / "data" / "model.keras").read_bytes() == b"weights"
    assert (files / MANIFEST).is_file()
    new_journal(journal.spool.parent)
    assert files.is_dir()
    journal.give_up(room)
    assert in_making(journal) == []


def test_pinned_files_are_no_copies_where_the_file_system_has_links(journal: Journal) -> None:
    entry = append_files(journal, 1)
    pinned = journal.files_of(journal.pin(entry)) / "data" / "model.keras"
    assert pinned.samefile(entry.files / "data" / "model.keras")


def test_files_are_copied_where_there_are_no_links(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    entry = append_files(journal, 1)
    pinned = journal.files_of(journal.pin(entry)) / "data" / "model.keras"
    journal.remove(entry)
    assert pinned.read_bytes() == b"weights"


@pytest.mark.parametrize("ends", ["remove", "drop"])
def test_what_is_gone_cannot_be_pinned(ends: str, journal: Journal) -> None:
    entry = append_files(journal, 1)
    getattr(journal, ends)(entry)
    with pytest.raises(FileNotFoundError):
        journal.pin(entry)
    assert in_making(journal) == []


def test_a_dropped_entry_gives_its_bytes_back_and_still_waits(journal: Journal) -> None:
    entry = append_files(journal, 1, bytes(100_000))
    before = journal.bytes
    journal.drop(entry)
    assert journal.bytes <= before - 100_000
    (waiting,) = journal.waiting()
    assert waiting.dropped
    assert waiting.data["number"] == 1


# --- refused, and asked again -------------------------------------------------


def test_refused_entries_come_back_first_and_in_order(journal: Journal) -> None:
    made = append(journal, 1, 2, 3, 4, 5)
    for entry in (made[1], made[3]):
        journal.refuse(entry, f"no {entry.data['number']}")
    assert numbers(journal.waiting()) == [1, 3, 5]
    assert numbers(journal.refused()) == [2, 4]
    assert [entry.progress["refused"] for entry in journal.refused()] == ["no 2", "no 4"]
    journal.ask_again()
    assert numbers(journal.waiting()) == [2, 4, 1, 3, 5]
    assert journal.refused() == []
    assert [entry.progress for entry in journal.waiting()] == [{}] * 5
    assert [e.uid for e in journal.waiting()[:2]] == [made[1].uid, made[3].uid]


def test_refused_entries_come_back_in_order_to_an_empty_journal(journal: Journal) -> None:
    for entry in append(journal, 1, 2, 3):
        journal.refuse(entry, "no")
    again = Journal(journal.path)
    again.ask_again()
    assert numbers(again.waiting()) == [1, 2, 3]
    assert numbers(append(again, 4)) == [4]
    assert numbers(again.waiting()) == [1, 2, 3, 4]


def test_an_entry_may_be_refused_again_and_again(journal: Journal) -> None:
    append(journal, 1, 2)
    for round_ in range(12):
        first = journal.first()
        assert first is not None
        journal.refuse(first, f"no, {round_}")
        journal.ask_again()
    assert numbers(journal.waiting()) == [1, 2]


def test_how_far_a_delivery_came_is_remembered(journal: Journal) -> None:
    entry = append(journal, 1)[0]
    assert entry.progress == {}
    entry.note({"model_id": "m-1"})
    assert Journal(journal.path).waiting()[0].progress == {"model_id": "m-1"}


# --- the local copy -----------------------------------------------------------


def test_the_newest_delivered_checkpoint_stays_as_a_copy(journal: Journal) -> None:
    assert (journal.copy(), journal.copied_at, journal.drop_copy()) == (None, 0.0, 0)
    journal.keep_copy(append_files(journal, 1, b"old"), {"model_id": "m-1"})
    journal.keep_copy(append_files(journal, 2, b"new"), {"model_id": "m-2"})
    copy = journal.copy()
    assert copy is not None
    assert (copy.files / "data" / "model.keras").read_bytes() == b"new"
    assert copy.progress == {"delivered": {"model_id": "m-2"}}
    assert journal.waiting() == []
    os.utime(copy.path, (1.0, 1.0))
    assert journal.copied_at == 1.0
    journal.touch_copy()
    assert journal.copied_at > 1.0
    before = journal.bytes
    assert journal.drop_copy() == before - journal.bytes > 3
    assert journal.copy() is None
    assert in_making(journal) == []


def test_a_copy_is_no_waiting_entry(journal: Journal) -> None:
    journal.keep_copy(append_files(journal, 1), {})
    assert (journal.first(), Waiting.read(journal).entries) == (None, 0)


# --- whose it is --------------------------------------------------------------


def test_only_its_owner_may_look_into_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        journal = new_journal(tmp_path)
    finally:
        os.umask(before)
    for folder in (journal.spool, journal.path.parent, journal.path, journal.path / "refused"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_another_user_is_an_error_with_a_way_out(journal: Journal) -> None:
    code = f"""
import os, sys
from pathlib import Path
from mlflow_ckpt.errors import SpoolError
from mlflow_ckpt.journal import Journal
os.setgroups([])
os.setegid({NOBODY})
os.seteuid({NOBODY})
try:
    Journal.create(Path(sys.argv[1]), "run", "ckpt", {{}})
except SpoolError as error:
    print(error)
"""
    with python(code, journal.spool) as process:
        said = process.communicate(timeout=60)[0]
    assert said == (
        f"The spool {journal.spool} cannot be written to: Permission denied. Name a folder on a "
        "local disk: Spool(dir=...) or MLFLOW_CKPT_SPOOL.\n"
    )


def test_a_spool_that_is_no_folder_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file")
    with pytest.raises(SpoolError, match=r"Not a directory.*MLFLOW_CKPT_SPOOL"):
        Journal.create(tmp_path / "spool", "run", "ckpt", {})


def test_what_a_journal_is_about_is_replaced_whole(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = journal.about

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(OSError, match="No space left"):
        journal.describe({"run_id": "another"})
    assert journal.about == before
    assert not any(path.name.startswith(".") for path in journal.path.iterdir())


def test_a_journal_that_is_not_there_is_empty(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "nowhere")
    found: list[Any] = [journal.about, journal.waiting(), journal.first(), journal.refused()]
    assert found == [{}, [], None, []]
    assert (journal.copy(), journal.bytes, journal.writer_is_gone) == (None, 0, False)
