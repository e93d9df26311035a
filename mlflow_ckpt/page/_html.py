"""One HTML file that needs no network.

plotly.js lies in it, compressed, as the Python package brings it: 1.9 MB instead of 4.8. The
browser decompresses it with `DecompressionStream` (Chrome 80, Firefox 113, Safari 16.4); one
that cannot shows everything but the figures. A content security policy forbids every request.

What is said about the run is escaped by Jinja, and in the figures by JSON without `<`.
"""

from __future__ import annotations

import base64
import functools
import gzip
import json
from importlib import resources
from typing import Any

from mlflow_ckpt import __version__
from mlflow_ckpt.page._draw import Figure, when
from mlflow_ckpt.page._facts import Facts
from mlflow_ckpt.page._figures import figures as draw
from mlflow_ckpt.table import human_bytes, numbers

PATH = "checkpoints/report.html"
TITLE = b"<title>Checkpoints of "
_MOST_METRICS = 6


def html(facts: Facts) -> bytes:
    """The page, as UTF-8."""
    return (
        _template()
        .render(
            facts=facts,
            figures=_in_script(draw(facts)),
            plotly=_plotly(),
            metrics=_columns(facts),
            bytes=sum(each.checkpoint.bytes for each in facts.held),
            corrupt=[each for each in facts.held if each.reason],
            verified=[each for each in facts.held if each.state == "verified"],
            stall=_median_stall(facts),
            example=facts.example,
            version=__version__,
        )
        .encode()
    )


def _columns(facts: Facts) -> dict[str, list[str]]:
    """Cells of the metrics' columns, what is monitored first."""
    monitors = [part.series.monitor for part in facts.parts if part.series.monitor]
    held = facts.held
    names = {name for each in held for name in each.checkpoint.metrics}
    order = sorted(names, key=lambda name: (name not in monitors, name))[:_MOST_METRICS]
    return {name: numbers([each.checkpoint.metrics.get(name) for each in held]) for name in order}


def _median_stall(facts: Facts) -> float | None:
    stalls = sorted(
        made.stall_ms
        for part in facts.parts
        for made in part.history.made
        if made.stall_ms is not None
    )
    return stalls[len(stalls) // 2] if stalls else None


def _in_script(found: dict[str, Figure]) -> str:
    """JSON that ends no script element and begins no comment in it."""
    text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@functools.cache
def _plotly() -> str:
    """plotly.js, compressed and in base64. It is the same for every page of a process."""
    source = resources.files("plotly") / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(source.read_bytes(), mtime=0)).decode()


@functools.cache
def _template() -> Any:
    import jinja2  # takes a moment, which a process that only saves need not spend at its start

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=human_bytes, when=when)
    source = resources.files("mlflow_ckpt.page") / "page.html"
    return environment.from_string(source.read_text(encoding="utf-8"))
