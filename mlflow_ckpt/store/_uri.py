"""Look at a tracking URI before MLflow does, and say what was probably meant.

MLflow takes what it cannot read for a folder, and makes an SQLite file that is not there: a
mistyped path, or the wrong folder, would look like a server that knows no run.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow_ckpt.errors import StoreError, UnsupportedStore

UPGRADE = (
    "Checkpoints are MLflow 3 logged models. Use a tracking server of MLflow 3 or later "
    'with a database, or mlflow.set_tracking_uri("sqlite:///mlflow.db").'
)
EXAMPLES = "http://host:5000 or sqlite:////path/to/mlflow.db"
HOW = "MLFLOW_TRACKING_URI or --tracking-uri"

_HOST = re.compile(r"(?P<host>localhost|[\w-]+(\.[\w-]+)*):(?P<port>\d{1,5})(/.*)?")
_SERVERS = ("http", "https")
_DATABASES = {"postgres": "postgresql", "mariadb": "mysql", "sqlite3": "sqlite"}
_MAGIC = b"SQLite format 3\0"
_SQLITE = (".db", ".sqlite", ".sqlite3")


def without_secret(uri: str) -> str:
    """`uri` without the user and password that may stand in it."""
    head, separator, host = uri.rpartition("@")
    return f"{head.partition('://')[0]}://***@{host}" if separator else uri


def hide_secret(text: object, uri: str) -> str:
    """`text`, in which somebody else may have repeated `uri` with its user and password."""
    secret, separator, _ = uri.partition("://")[2].rpartition("@")
    return str(text).replace(f"{secret}@", "***@") if separator else str(text)


def portable(uri: str) -> str:
    """`uri` as another process can use it, from any folder, without a password."""
    scheme, separator, name = uri.partition(":///")
    if scheme == "sqlite" and separator and name and not name.startswith((":", "/")):
        return f"sqlite:///{Path(name).absolute()}"
    return without_secret(uri)


def refuse(uri: str) -> None:
    """Refuse a tracking URI that cannot hold checkpoints, or leads nowhere.

    Raises:
        UnsupportedStore: If it names MLflow's file store.
        StoreError: If it is none.
    """
    if uri.startswith("databricks"):
        return
    if _is_misspelt(uri):
        raise unreadable(uri)
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        other = meant(uri)
        hint = f" Did you mean {other}?" if other else ""
        raise UnsupportedStore(
            f"The file store cannot hold checkpoints. Received: {uri!r}.{hint} {UPGRADE}"
        )


def unreadable(uri: str) -> StoreError:
    """What to raise for a URI that MLflow cannot read."""
    other = meant(uri)
    hint = f"Did you mean {without_secret(other)}? " if other else ""
    return StoreError(
        f"Expected a tracking URI, such as {EXAMPLES}. Received: {without_secret(uri)!r}. "
        f"{hint}Set it with {HOW}."
    )


def _is_misspelt(uri: str) -> bool:
    if _HOST.fullmatch(uri):
        return True
    scheme, _, rest = uri.partition(":")
    if scheme in _SERVERS:
        try:
            parts = urlsplit(uri)
            return not parts.hostname or parts.port == 0
        except ValueError:  # a port that is no number
            return True
    return scheme.partition("+")[0] == "sqlite" and not rest.startswith("///") and rest != "//"


def meant(uri: str) -> str | None:
    """The tracking URI that was probably meant."""
    if _HOST.fullmatch(uri):
        return f"http://{uri}"
    scheme, separator, rest = uri.partition(":")
    place = rest.lstrip("/")
    if not separator:
        return _database(uri) if _is_database(Path(uri)) else None
    if scheme in _DATABASES:
        return f"{_DATABASES[scheme]}:{rest}"
    near = difflib.get_close_matches(scheme, (*_SERVERS, "sqlite", "postgresql", "mysql"), n=1)
    if not near or not place:
        return None
    if near[0] == "sqlite":
        path = Path("/" + place)
        absolute = _is_database(path) or (rest.startswith("/") and not rest.startswith("//"))
        return _database(str(path) if absolute else place)
    found = f"{near[0]}://{place}"
    return found if found != uri and not _is_misspelt(found) else None


def _database(path: str) -> str:
    return f"sqlite:///{path}"


def _is_database(path: Path) -> bool:
    return path.is_file() and path.suffix in _SQLITE


def refuse_missing_database(uri: str) -> None:
    """Refuse a URI of an SQLite file that is not there: MLflow would make it.

    Raises:
        StoreError: If the file does not exist, or is no database.
    """
    scheme, _, name = uri.partition(":///")
    name = name.partition("?")[0]
    if not scheme.startswith("sqlite") or name in ("", ":memory:"):
        return
    path = Path(name) if Path(name).exists() else Path(unquote(name))
    if not path.is_file():
        raise StoreError(
            f"No MLflow database at {path.absolute()}. Go to the folder where the run was made, "
            f"or name its tracking server: {HOW}, such as "
            "sqlite:////path/to/mlflow.db or http://host:5000."
        )
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) not in (b"", _MAGIC):
            raise StoreError(f"Expected an SQLite database. Received: {path.absolute()}")
