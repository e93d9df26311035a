"""Keep two processes from writing to one series: an advisory lease in a tag.

MLflow locks nothing and its tags have no compare-and-swap, so this narrows the race and
cannot close it. Hence three defences: who begins looks whether somebody else is alive, who
writes looks again before every commit, and the one that was overwritten stops.

    acquire()   free, ours, or of a dead process -> taken at once
                otherwise watched: its beat moves -> LeaseHeld; quiet for the TTL -> taken
    a thread    counts the beat up, for those that watch
    check()     before every commit; somebody else's nonce in the tag -> LeaseLost
    release()   by that thread too: a beat that lands after the clear would haunt the series

Who took over from a process that may still run leaves a record marked `done` instead of
nothing: to the one that wakes up later, a missing tag would look like one to write again.

Times are seconds by the monotonic clock; clocks of two machines are never compared.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable

from mlflow_ckpt.errors import ConfigError, LeaseHeld, LeaseLost
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.say import say
from mlflow_ckpt.tenure import LeaseTag, Record, Tenure, who

__all__ = ["Lease", "LeaseTag"]

_POLL_S = 1.0


class Lease:
    """The right to write to one series, as far as it can be had.

    Args:
        tag: Where the record lies.
        where: Begins what is said and raised, such as `run 1f…, series 'ckpt'`.
        force: Take over from a live holder too.
        ttl_s: How long a holder must be quiet until it counts as gone.
        beat_s: Between two signs of life.
        needed: Asked at each of them; if not, the lease is given back. For a holder that may
            end without a word.

    Raises:
        ConfigError: If the holder would not beat twice within the TTL.
    """

    def __init__(
        self,
        tag: LeaseTag,
        *,
        where: str,
        force: bool = False,
        ttl_s: float = 30.0,
        beat_s: float = 10.0,
        needed: Callable[[], bool] = lambda: True,
    ) -> None:
        if not 0 < 2 * beat_s <= ttl_s:
            raise ConfigError(
                "Expected a TTL of at least two beats. "
                f"Received: ttl_s={ttl_s!r}, beat_s={beat_s!r}"
            )
        self._tag = tag
        self._where = where
        self._force = force
        self._ttl_s = ttl_s
        self._beat_s = beat_s
        self._needed = needed
        self._tenure: Tenure | None = None
        self._turn = threading.Lock()

    @property
    def held(self) -> bool:
        """Whether it was acquired, not released since, and is not known to be lost."""
        tenure = self._mine()
        return tenure is not None and not tenure.released and tenure.lost is None

    @property
    def lost(self) -> LeaseLost | None:
        """What `check` raises, as soon as a beat or a check has noticed."""
        tenure = self._mine()
        return tenure.lost if tenure is not None else None

    def acquire(self) -> None:
        """Take the lease and keep it alive; nothing to do where that is so already.

        Says from whom it takes over. May wait about `ttl_s`, and says for whom.

        Raises:
            LeaseHeld: If another process is alive and writes to the series.
            StoreError: If the tag cannot be read or written.
        """
        with self._turn:
            tenure = self._mine()
            if tenure is not None and tenure.alive:
                return
            found = self._tag.read()
            while True:
                line = self._way_in(found)
                if line is None:
                    found, line = self._outwait(found)
                if self._claim(found):
                    break
                # Somebody wrote between our reading and our writing: begin again with that.
                found = self._tag.read()
        if line:
            say(f"{self._where}: {line}")

    def check(self) -> None:
        """Make sure, before a commit, that nobody else has taken the series over.

        A tag that is missing is written again; a lease that is not held is acquired.

        Raises:
            LeaseLost: If somebody has; from then on always.
            LeaseHeld: If it was not held and cannot be had.
            StoreError: If the tag cannot be read or written.
        """
        tenure = self._mine()
        if tenure is None or not tenure.stands():
            self.acquire()

    def stop(self) -> None:
        """Beat no more and leave the tag: others may take over after the TTL."""
        if tenure := self._mine():
            tenure.stop()

    def release(self) -> bool:
        """Give the lease back; whether it was, by now.

        Waits a second or two for a server that does not answer, and then leaves it to the
        thread. Nothing happens where it is not held, nor in a forked child.
        """
        tenure = self._mine()
        return tenure.release() if tenure is not None else False

    def _mine(self) -> Tenure | None:
        """The tenure, unless it came with a fork: it is the parent's."""
        tenure = self._tenure
        return tenure if tenure and tenure.record.owner.pid == os.getpid() else None

    def _way_in(self, found: str | None) -> str | None:
        """What to say on taking the lease at once ("" for nothing); `None` if it must wait."""
        if found is None:
            return ""
        record = Record.parse(found)
        if record is not None:
            if record.done or record.owner.is_me():
                return ""
            if record.owner.is_dead():
                return f"taken over from {record.owner}, which has died."
        if self._force:
            return f"taken over by force from {who(found)}, which stops at its next commit."
        return None

    def _outwait(self, found: str | None) -> tuple[str | None, str]:
        """Watch the holder until it is gone; return the tag then, and what to say.

        Raises:
            LeaseHeld: If the tag moves.
        """
        say(
            f"{self._where}: waits up to {self._ttl_s:g} s for a sign of life of {who(found)}, "
            "which may still write to it."
        )
        quiet, last, poll = 0.0, time.monotonic(), min(_POLL_S, self._ttl_s / 10)
        while quiet < self._ttl_s:
            time.sleep(min(poll, self._ttl_s - quiet))
            now = self._tag.read()
            if (line := self._way_in(now)) is not None:
                return now, line
            if now != found:
                raise LeaseHeld(
                    f"{self._where}: Expected that no other process writes to it. "
                    f"Received: {who(now)}, which is alive. Stop that process, or take over "
                    "with resume=Resume(force=True), or write to another name= or another run."
                )
            # A server that did not answer us may have kept the holder's beats waiting too.
            asked, last = last, time.monotonic()
            quiet += min(last - asked, 2 * poll)
        return found, f"taken over from {who(found)}: no sign of life in {self._ttl_s:g} s."

    def _claim(self, found: str | None) -> bool:
        """Write our record over `found`; whether it stayed."""
        before = Record.parse(found) if found is not None else None
        gone = found is None or (before is not None and before.owner.is_dead())
        over = (before is not None and before.over) or not gone
        record = Record(Owner.me(), secrets.token_hex(8), over=over)
        self._tag.write(record.text())
        now = self._tag.read()
        if now is None or not record.same(now):
            return False
        self._tenure = Tenure(self._tag, self._where, record, self._needed)
        self._tenure.begin(self._beat_s)
        return True
