"""The page about a run's checkpoints, and the table beside it.

    gather(store, run) -> Facts -> figures -> html
                                -> table, note

    _facts     what is known of a run's checkpoints, from the server
    _figures   curves and costs as Plotly figures: plain JSON values
    _timeline  the same of when it was trained, interrupted, continued and forked
    _draw      what figures have in common
    _html      one file that needs no network: page.html is its template
    _table     the same checkpoints in the form of `mlflow.load_table`
    _note      a few lines for the run's description

Everything behind `gather` is pure.
"""

from mlflow_ckpt.page._facts import Facts, Held, Part, gather
from mlflow_ckpt.page._figures import figures
from mlflow_ckpt.page._html import PATH as REPORT
from mlflow_ckpt.page._html import TITLE, html
from mlflow_ckpt.page._note import is_ours, note
from mlflow_ckpt.page._table import PATH as TABLE
from mlflow_ckpt.page._table import table

__all__ = [
    "Facts",
    "Held",
    "Part",
    "REPORT",
    "TABLE",
    "TITLE",
    "figures",
    "gather",
    "html",
    "is_ours",
    "note",
    "table",
]
