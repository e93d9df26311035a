"""Ask the tracking server about the checkpoints of all runs of an experiment.

A deleted run leaves its checkpoints where a search finds them, so the runs are asked for too.
Metric names depend on the series: see `Series.prefix`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModel, LoggedModelStatus, ViewType

from mlflow_ckpt import worker
from mlflow_ckpt.errors import NotFound
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    FORK_STATE_TAG,
    FORKING,
    SERIES_TAG,
    Checkpoint,
    Run,
)
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.store import _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._missing import no_experiment

_RUNS = 1_000
_EXPERIMENTS = 1_000
# The best ones stand first; a search for more of them is one for ties.
_MODELS = 20
_LOOKED_AT = 100


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A committed checkpoint, and the run that it is of."""

    run: Run
    checkpoint: Checkpoint


class Across:
    """Looks at an experiment of one tracking server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: MlflowClient = connection.client

    def runs(self, name: str) -> list[Run]:
        """The active runs of the experiment called `name` that have a series.

        What this process still writes to them is waited for, as `Store.run` does.

        Raises:
            NotFound: If there is no such experiment, or it is deleted.
        """
        experiment = self._experiment(name)
        for run_id in worker.writing_to(self._connection.uri):
            worker.settle((self._connection.uri, run_id))
        found = list[Run]()
        token: str | None = None
        while True:
            with translated(f"search the runs of experiment {name!r}"):
                page = self._client.search_runs(
                    [experiment.experiment_id],
                    run_view_type=ViewType.ACTIVE_ONLY,
                    max_results=_RUNS,
                    page_token=token,
                )
            found += [
                Run(
                    run_id=each.info.run_id,
                    experiment_id=each.info.experiment_id,
                    name=each.info.run_name or "",
                    status=each.info.status,
                    tags=dict(each.data.tags),
                )
                for each in page
            ]
            token = page.token
            if not token:
                break
        return [run for run in found if run.series and run.tags.get(FORK_STATE_TAG) != FORKING]

    def ranked(
        self, runs: Sequence[Run], prefix: str, metric: str, mode: Mode, series: str | None
    ) -> Iterator[Ranked]:
        """Checkpoints of these runs that have `metric`, best first, by one search.

        Args:
            runs: Of one experiment, at least one.
            prefix: Only those of series that put this before their metrics' names.
            series: Only those of this series.
        """
        known = {run.run_id: run for run in runs}
        key = prefix + metric
        order = {"field_name": f"metrics.{key}", "ascending": mode == "min"}
        kinds = [_query.any_of(_query.ANY_KIND)]
        for model in self._committed(runs[0].experiment_id, series, kinds, order):
            # The server lists last what does not have the metric at all.
            if all(each.key != key for each in model.metrics or []):
                return
            found = _ranked(model, known, prefix)
            if found:
                yield found

    def metrics(self, runs: Sequence[Run], series: str | None) -> set[str]:
        """What the newest checkpoints of these runs have; runs and series as in `ranked`."""
        known = {run.run_id: run for run in runs}
        order: _query.Order = {"field_name": "creation_time", "ascending": False}
        newest = islice(self._committed(runs[0].experiment_id, series, [], order), _LOOKED_AT)
        found = [_ranked(model, known, None) for model in newest]
        return {name for each in found if each for name in each.checkpoint.metrics}

    def _committed(
        self, experiment_id: str, series: str | None, clauses: list[str], order: _query.Order
    ) -> Iterator[LoggedModel]:
        """Every committed checkpoint of the experiment, of deleted runs too, page by page."""
        asked = [_query.tag(COMPLETE_TAG, "true"), *clauses]
        if series is not None:
            asked.append(_query.tag(SERIES_TAG, series))
        token: str | None = None
        while True:
            with translated("search logged models"):
                page = self._client.search_logged_models(
                    [experiment_id],
                    filter_string=" AND ".join(asked),
                    max_results=_MODELS,
                    order_by=[order],
                    page_token=token,
                )
            yield from page
            token = page.token
            if not token:
                return

    def _experiment(self, name: str) -> Experiment:
        with translated(f"read experiment {name!r}"):
            found = self._client.get_experiment_by_name(name)
        if found is None:
            with translated("search experiments"):
                known = self._client.search_experiments(max_results=_EXPERIMENTS)
            raise no_experiment(self._client, name, [each.name for each in known])
        if found.lifecycle_stage != "active":
            raise NotFound(
                f"The experiment {name!r} is deleted. Restore it with: "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return found


def _ranked(model: LoggedModel, known: Mapping[str, Run], prefix: str | None) -> Ranked | None:
    """A model as a checkpoint of one of the known runs, if it is one that can be used."""
    run = known.get(model.source_run_id)
    series = run.series.get(model.tags.get(SERIES_TAG, "")) if run else None
    if run is None or series is None or prefix not in (None, series.prefix):
        return None
    if model.status != LoggedModelStatus.READY:
        return None
    return Ranked(run=run, checkpoint=_query.to_checkpoint(model, series))
