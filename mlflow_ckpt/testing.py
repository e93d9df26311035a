"""Prove in your own tests that your own training resumes exactly.

A callback cannot promise that: whether a resumed training ends on the same bits depends on
its data, its seeds and its own callbacks. So it is tried out, with real processes, a real
`SIGKILL` and every variable compared after every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mlflow_ckpt import target
from mlflow_ckpt.proof import NotExact, Process, Proof

__all__ = ["NotExact", "Process", "Proof", "assert_exact_resume"]


def assert_exact_resume(
    train: Callable[[], object] | Sequence[str],
    *,
    kill_at: int | Sequence[int] | None = None,
    tracking_uri: str | None = None,
) -> Proof:
    """Assert that `train`, killed and started again with its run ID, ends bitwise the same.

    `train` runs in new processes: once to the end; then, in a second run, it is killed by
    SIGKILL at each of `kill_at` in turn, started again each time, and at last runs to the end.
    Compared are all variables (weights, optimizers, seeds, metrics) after every batch that both
    runs trained and at the end of training, the number of batches that each process trained, and
    the metric history. Metrics with `ckpt/` or `system/` in their names, which measure the
    machine, are left out; so are the curves of `ckpt_step`, but for a step that is there twice.

    If the run has no checkpoint at all when a kill is due, what is on its way is committed first.

    Args:
        train: A function without arguments that stands at the top of a file and trains with
            `MlflowCheckpoint` inside `with mlflow.start_run():`. The environment gives it
            `MLFLOW_TRACKING_URI` and `MLFLOW_RUN_ID`, so it should set neither, nor an
            experiment. Or a command, in which `{run_id}` is replaced.
        kill_at: Training batches completed at a kill, counted from 1 over all fits and series
            of `train`; never decreasing. With `steps_per_execution` the kill comes at the
            first batch end at or past it. `None`: one third and two thirds of the training.
        tracking_uri: Where the runs are recorded, and stay. `None` uses a temporary database.

    Returns:
        What was compared.

    Raises:
        NotExact: If a variable, a metric or a number of batches differs (the first one is named),
            if a kill did not happen or came before any checkpoint, or if `train` fails. It is
            an AssertionError.
        ConfigError: If `train` or `kill_at` cannot be used.

    Example:

    ```python
    def train():
        keras.utils.set_random_seed(0)
        with mlflow.start_run():
            build_model().fit(x, y, epochs=3, callbacks=[MlflowCheckpoint()])

    def test_a_resume_is_exact():
        assert_exact_resume(train, kill_at=[7, 12])
    ```
    """
    from mlflow_ckpt.trial import check_kills, prove

    kills = [kill_at] if isinstance(kill_at, int) else kill_at
    if kills is not None:
        check_kills(kills)
    return prove(target.command(train), kills, tracking_uri)
