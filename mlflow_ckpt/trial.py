"""Train in processes of their own, kill them where asked, and hold the end against a whole run.

    whole run -> killed -> killed again -> ... -> to the end -> Proof, or NotExact

Every process is a new one: what a restarted script does not get back from the run, it does
not have. Counts are training batches over the whole training, from 1; times are seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow_ckpt import proof as compare
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.ground import standing_here
from mlflow_ckpt.proof import NotExact, Process, Proof
from mlflow_ckpt.record import STEP_METRIC
from mlflow_ckpt.store._trial import TrialStore
from mlflow_ckpt.trace import Task, Trace
from mlflow_ckpt.watched import Ended, Processes, failure

_SQLITE = "sqlite:///"


def prove(
    command: Sequence[str],
    kills: Sequence[int] | None,
    tracking_uri: str | None,
    *,
    environment: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Prove that `command`, killed and started again, ends as if it had not been killed.

    Args:
        command: Trains once. `{run_id}` and `{experiment_id}` in it are filled in.
        kills: Counts at which to kill; `None` chooses two.
        tracking_uri: Where the runs are recorded; `None` makes a store and removes it.
        environment: For the processes; `None` gives them this one's.
        tell: Called with what is about to happen.

    Raises:
        NotExact: If it does not, or if it could not be found out.
        ConfigError: If `kills` makes no sense.
    """
    chosen = None if kills is None else check_kills(kills)
    with TemporaryDirectory(prefix="mlflow-ckpt-") as name, _store(tracking_uri, Path(name)) as at:
        trial = _Trial(command, at, Path(name), dict(environment or os.environ), tell)
        try:
            trial.run(chosen)
        except NotExact as error:
            error.proof = trial.proof
            raise
        return trial.proof


def check_kills(kills: Sequence[int]) -> tuple[int, ...]:
    """Return `kills` if they are counts in an order that can happen.

    Raises:
        ConfigError: If they are not.
    """
    whole = all(isinstance(kill, int) and not isinstance(kill, bool) and kill > 0 for kill in kills)
    if not kills or not whole or list(kills) != sorted(kills):
        raise ConfigError(
            "Expected one or more numbers of training batches from 1, none smaller than the one "
            f"before. Received: kill_at={kills!r}"
        )
    return tuple(kills)


@contextmanager
def _store(uri: str | None, folder: Path) -> Iterator[TrialStore]:
    if uri is None:
        yield TrialStore(f"{_SQLITE}{folder / 'mlflow.db'}", folder / "artifacts")
        return
    path = uri.removeprefix(_SQLITE)
    if uri.startswith(_SQLITE) and not path.startswith((":", "/")):
        # A process may train in another folder.
        uri = f"{_SQLITE}{Path(path).absolute()}"
    yield TrialStore(uri)


class _Trial:
    """One proof in the making.

    Attributes:
        proof: What has been found so far.
    """

    def __init__(
        self,
        command: Sequence[str],
        store: TrialStore,
        folder: Path,
        environment: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self._store = store
        self._tell = tell
        self._processes = Processes(
            command,
            folder,
            environment,
            tracking_uri=store.uri,
            experiment_id=store.experiment_id,
        )
        self._whole = Trace()
        self.proof = Proof()

    def run(self, kills: Sequence[int] | None) -> None:
        began = time.perf_counter()
        try:
            whole_run = self._store.new_run("uninterrupted")
            self._train_whole(whole_run)
            kills = self._choose(kills, whole_run)
            run_id = self._store.new_run("killed and resumed")
            for number, kill in enumerate([*kills, None], 1):
                self._continue(run_id, kill, number, len(kills) + 1)
            self._compare_histories(whole_run, run_id)
        finally:
            self.proof = replace(self.proof, seconds=time.perf_counter() - began)

    # --- the run that is not interrupted --------------------------------------

    def _train_whole(self, run_id: str) -> None:
        self._tell("training without interruption")
        ended = self._processes.run(run_id, Task())
        if ended.code:
            raise NotExact(failure("The training fails without any interruption", ended))
        self._whole = ended.trace
        self._check_watched(ended.trace, run_id)
        variables = max(len(state.digests) for state in ended.trace.batches)
        self.proof = replace(self.proof, batches=ended.trace.count, variables=variables)

    @staticmethod
    def _check_watched(trace: Trace, run_id: str) -> None:
        """Whether what was seen is the training, all of it, in the run that was given."""
        if not trace.batches:
            raise NotExact(
                "No batch was trained under MlflowCheckpoint. Give it to model.fit(callbacks=...)."
            )
        _check_one_process(trace, run_id)

    def _choose(self, kills: Sequence[int] | None, run_id: str) -> Sequence[int]:
        """The kills, if this training has so many batches and a checkpoint to resume from."""
        total = self._whole.count
        if kills is None:
            kills = self._own_choice(run_id)
        late = next((kill for kill in kills if kill > total), None)
        if late is not None:
            raise NotExact(
                f"A kill after batch {late} cannot happen: the training ends after batch {total}. "
                f"Choose kill_at between 1 and {total}."
            )
        return kills

    def _own_choice(self, run_id: str) -> list[int]:
        """One third and two thirds of the training, but not before there is a checkpoint."""
        total, first = self._whole.count, self._first_checkpoint(run_id)
        if first >= total:
            raise NotExact(
                f"The first checkpoint is made after batch {first} of {total}, so there is nothing "
                "to resume from before the end. Save more often, or train longer."
            )
        return sorted({max(first + 1, total // 3), max(first + 1, 2 * total // 3)})

    def _first_checkpoint(self, run_id: str) -> int:
        """When the first checkpoint was made, by its step, which retention leaves alone."""
        steps = [
            step
            for key, rows in self._store.history(run_id).items()
            if key.rpartition("/")[2] == STEP_METRIC
            for step, _ in rows
        ]
        return min(steps, default=self._whole.count)

    # --- the run that is ------------------------------------------------------

    def _continue(self, run_id: str, kill: int | None, number: int, of: int) -> None:
        standing = self._standing(run_id)
        task = Task(kill_at=kill, standing=standing)
        until = "to the end" if kill is None else f"killed after batch {kill}"
        self._tell(f"training from batch {task.begins_at}, {until} ({number} of {of})")
        ended = self._processes.run(run_id, task)
        trace = ended.trace
        self._check_end(ended, kill)
        _check_one_process(trace, run_id)
        self._check_series(trace)
        end = self._whole.count if kill is None else trace.count
        process = Process(
            killed_at=None if kill is None else trace.count,
            resumed_from=trace.began_at,
            trained=trace.trained,
            expected=end - task.begins_at,
        )
        self._add(process, trace)
        _check_count(process, task.begins_at, number)
        if (text := compare.difference(self._whole, trace)) is not None:
            raise NotExact(f"{_not_exact(number, task.begins_at)}: {text}")
        if kill is None:
            self._check_last(trace)
        elif not self._standing(run_id):
            raise NotExact(
                f"Nothing was committed before the kill after batch {trace.count}, so that a "
                "resume would prove nothing. Save earlier, or choose a later kill_at."
            )

    def _standing(self, run_id: str) -> dict[str, int]:
        """Where the run can be resumed: of series that one fit writes, the newest counts."""
        newest = self._store.standing(run_id)
        for series, step in standing_here(self._processes.spool, run_id).items():
            newest[series] = max(step, newest.get(series, 0))
        members = {fit.series: fit.members for fit in self._whole.fits}
        found = {
            series: max(newest.get(name, 0) for name in names) for series, names in members.items()
        }
        return {series: step for series, step in found.items() if step}

    def _check_end(self, ended: Ended, kill: int | None) -> None:
        if ended.trace.killed and kill is not None:
            return
        if ended.code:
            raise NotExact(
                failure(
                    "The training fails after a resume"
                    if self.proof.processes
                    else "The training fails in its second run",
                    ended,
                )
            )
        if kill is not None:
            raise NotExact(
                f"The kill after batch {kill} did not happen: this process ended by itself "
                f"after batch {ended.trace.count}."
            )

    def _check_series(self, trace: Trace) -> None:
        known = {fit.series for fit in self._whole.fits}
        other = next((fit.series for fit in trace.fits if fit.series not in known), None)
        if other is not None:
            raise NotExact(
                f"The interrupted training writes the series {other!r}, which the uninterrupted "
                "one does not have. Give it the same name= in every process."
            )

    def _check_last(self, trace: Trace) -> None:
        ends = {state.key for state in trace.ends}
        last = self._whole.ends[-1] if self._whole.ends else None
        if last is not None and last.key not in ends:
            raise NotExact(
                f"The uninterrupted training ends after step {last.step} of the series "
                f"{last.series!r}, and the resumed one does not end there."
            )

    def _add(self, process: Process, trace: Trace) -> None:
        self.proof = replace(
            self.proof,
            processes=(*self.proof.processes, process),
            states=self.proof.states + compare.compared(self._whole, trace),
        )

    def _compare_histories(self, whole_run: str, run_id: str) -> None:
        whole, other = self._store.history(whole_run), self._store.history(run_id)
        if (text := compare.history_difference(whole, other)) is not None:
            raise NotExact(f"All variables agree, but {text}")
        self.proof = replace(self.proof, metric_points=compare.points(whole))


def _not_exact(number: int, begins_at: int) -> str:
    if begins_at:
        return f"Process {number}, resumed after batch {begins_at}, is not exact"
    return (
        f"Process {number} resumed nothing and yet is not exact, so that this training does not "
        "repeat itself even without a resume (is everything seeded?)"
    )


def _check_count(process: Process, begins_at: int, number: int) -> None:
    if process.trained == process.expected:
        return
    what = "more" if process.trained > process.expected else "fewer"
    raise NotExact(
        f"Process {number} trained {process.trained} batches, {what} than the {process.expected} "
        f"that were left: the newest checkpoint holds batch {begins_at}, and it began after batch "
        f"{process.resumed_from}. It did not continue from that checkpoint."
    )


def _check_one_process(trace: Trace, run_id: str) -> None:
    others = sorted({fit.run_id for fit in trace.fits} - {run_id})
    if others:
        raise NotExact(
            f"The training wrote to the run {others[0]} instead of the given one, {run_id}. Let "
            "mlflow.start_run() take the run from MLFLOW_RUN_ID, once, and without a run_id."
        )
    if trace.processes > 1:
        raise NotExact(
            f"Expected one training process. Received: {trace.processes}. Prove each by itself."
        )
