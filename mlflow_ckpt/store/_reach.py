"""Ask whether a tracking server answers at all, and say in a few words why one does not.

Leans on `mlflow.utils.rest_utils.http_request`, which knows of proxies and certificates.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from mlflow_ckpt.errors import ServerAway
from mlflow_ckpt.store._uri import HOW, without_secret

_PATIENCE_S = 10.0


def reach_server(uri: str) -> None:
    """See that a server answers, whatever it says, before a person waits for its retries.

    MLflow itself waits for two minutes, several times.

    Raises:
        ServerAway: If nothing answers within ten seconds.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return
    try:
        http_request(
            get_default_host_creds(uri),
            "/health",
            "GET",
            max_retries=0,
            timeout=_PATIENCE_S,
            raise_on_status=False,
            stream=True,
        ).close()
    except MlflowException as error:
        why = reason(error)
        if why is not None:
            raise ServerAway(
                f"The tracking server {without_secret(uri)} does not answer: {why}. Start it, or "
                f"name another one: {HOW}."
            ) from error


def reason(error: BaseException) -> str | None:
    """Why nothing answers, if that is what an error says; its text holds a screenful."""
    for each in _below(error):
        name = type(each).__name__
        if "Timeout" in name or isinstance(each, TimeoutError):
            return "no answer in time"
        if isinstance(each, socket.gaierror) or name == "NameResolutionError":
            return "no host of this name"
        if "SSL" in name or "Certificate" in name:
            return " ".join(str(each).split())
        if isinstance(each, ConnectionError) and each.strerror:
            return each.strerror.lower()
        if name == "RemoteDisconnected":
            return "it closed the connection"
    return None


def _below(error: BaseException) -> Iterator[BaseException]:
    """Errors underneath, the innermost first: some stand in `reason` or among the arguments."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        more = [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
        waiting += [other for other in more if isinstance(other, BaseException)]
    yield from reversed(seen)
