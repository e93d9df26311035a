"""Read the URI that names a checkpoint, or a file in one, in every MLflow API.

    ckpt:/<run_id>/<selector>[/<path>]
    ckpt:/experiment/<name>/best[(<metric>[,min|max])][@<series>][/<path>]

A URI is percent-encoded (RFC 3986, section 2.1): an experiment's name is one segment, so that
a `/` in it is `%2F`. In a selector parentheses, commas, `=` and `@` may stand as they are, and
so may a `/` between the parentheses, as in `best(head/val_loss)`. MLflow cuts a URI at its last
`/` and reads `?` and `#` itself: whoever writes these two into a name has to encode them.

An address is parsed here and answered by the resolver: this module is pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from mlflow_ckpt.errors import SelectorError
from mlflow_ckpt.selector import GRAMMAR, Selector

SCHEME = "ckpt"
OF_A_RUN = "ckpt:/<run_id>/<selector>[/<path>]"
OF_AN_EXPERIMENT = "ckpt:/experiment/<name>/best(<metric>[,min|max])[@<series>][/<path>]"

_EXPERIMENT = "experiment"
_PREFIX = re.compile(r"ckpt:/+", re.IGNORECASE)
# Either may be encoded, and what is between them is one word, slashes included.
_PARENTHESES = {"%28": "(", "%29": ")"}
_SELECTOR = re.compile(r"[^/()]*\([^()]*\)[^/]*|[^/]+")
_STANDING = "(),=@"


def is_address(text: object) -> bool:
    """Whether `text` is written as a URI of this scheme, well-formed or not."""
    return isinstance(text, str) and _PREFIX.match(text.strip()) is not None


@dataclass(frozen=True, kw_only=True)
class Address:
    """One parsed URI; `str()` gives its one canonical spelling.

    Attributes:
        run_id: The run whose checkpoint is named; `None` for an experiment.
        experiment: The name of the experiment whose best checkpoint is named, else `None`.
        selector: Which checkpoint.
        path: A file or folder in the checkpoint, POSIX; empty for the whole of it.
    """

    run_id: str | None = None
    experiment: str | None = None
    selector: Selector
    path: str = ""

    def __str__(self) -> str:
        where = (
            quote(self.run_id or "", safe="")
            if self.experiment is None
            else f"{_EXPERIMENT}/{quote(self.experiment, safe='')}"
        )
        which = quote(str(self.selector), safe=_STANDING)
        return f"{SCHEME}:/{where}/{which}" + (f"/{quote(self.path)}" if self.path else "")

    @property
    def whole(self) -> Address:
        """The same checkpoint without the path in it."""
        return replace(self, path="")

    @classmethod
    def parse(cls, uri: str | Address) -> Address:
        """Parse `uri`; a `/` too many, at the end or between two segments, does no harm.

        Raises:
            SelectorError: If it does not follow the grammar of this module.
        """
        if isinstance(uri, Address):
            return uri
        if not is_address(uri):
            raise SelectorError(
                f"Expected {OF_A_RUN} or {OF_AN_EXPERIMENT}. Received: {uri!r}. "
                "Type ckpt:/<run_id>/latest, with the ID of a run."
            )
        where, rest = _first(_PREFIX.sub("", uri.strip(), count=1))
        if where != _EXPERIMENT:
            return _of_a_run(uri, where, rest)
        return _of_an_experiment(uri, rest)


def _of_a_run(uri: str, run_id: str, rest: str) -> Address:
    if not run_id or not rest:
        begin = f"ckpt:/{run_id or '<run_id>'}"
        raise SelectorError(
            f"Expected {OF_A_RUN}. Received: {uri!r}. Type {begin}/latest or {begin}/best."
        )
    selector, path = _split(uri, rest, OF_A_RUN, f"ckpt:/{run_id}/best")
    return Address(run_id=_decoded(uri, run_id), selector=selector, path=path)


def _of_an_experiment(uri: str, rest: str) -> Address:
    name, rest = _first(rest)
    if not name or not rest:
        raise SelectorError(
            f"Expected {OF_AN_EXPERIMENT}. Received: {uri!r}. "
            f"Type ckpt:/experiment/{name or '<name>'}/best(val_loss)."
        )
    # A name with its own `/` is the likeliest mistake, and seen by where `best` stands.
    meant = re.fullmatch(r"(?P<more>.*[^/])/+(?P<which>best(?![^/(@%]).*)", rest)
    if meant and not rest.startswith("best"):
        whole = quote(unquote(f"{name}/{meant['more']}"), safe="")
        raise SelectorError(
            f"Expected the name of an experiment as one segment. Received: {uri!r}. "
            f"Write each '/' of it as %2F: ckpt:/experiment/{whole}/{meant['which']}"
        )
    selector, path = _split(uri, rest, OF_AN_EXPERIMENT, f"ckpt:/experiment/{name}/best(val_loss)")
    if selector.kind != "best":
        raise SelectorError(
            f"Expected {OF_AN_EXPERIMENT}. Received: {uri!r}: {str(selector)!r} is one of a run. "
            f"Type ckpt:/experiment/{name}/best(val_loss), or ckpt:/<run_id>/{selector}."
        )
    return Address(experiment=_decoded(uri, name), selector=selector, path=path)


def _split(uri: str, rest: str, expected: str, next_try: str) -> tuple[Selector, str]:
    """The selector at the beginning of `rest`, and the path behind it."""
    for code, character in _PARENTHESES.items():
        rest = rest.replace(code, character)
    match = _SELECTOR.match(rest)
    which = match[0] if match else ""
    text = _decoded(uri, which)
    try:
        selector = Selector.parse(text)
    except SelectorError as error:
        raise SelectorError(
            f"Expected {expected} with a selector: {GRAMMAR}. "
            f"Received: {uri!r}, in which the selector is {text!r}. Type {next_try}."
        ) from error
    return selector, _path(uri, rest[len(which) :])


def _path(uri: str, encoded: str) -> str:
    parts = [part for each in encoded.split("/") if (part := _decoded(uri, each)) not in ("", ".")]
    if ".." in parts or any("/" in part for part in parts):
        raise SelectorError(
            f"Expected a path inside the checkpoint. Received: {uri!r}. "
            "Write each '/' of it as it is, and no '..'."
        )
    return "/".join(parts)


def _first(text: str) -> tuple[str, str]:
    """The first segment, and what follows without the slashes between."""
    head, _, rest = text.lstrip("/").partition("/")
    return head, rest.lstrip("/")


def _decoded(uri: str, text: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise SelectorError(
            f"Expected percent-encoded UTF-8. Received: {uri!r}. "
            "Encode names with urllib.parse.quote(name, safe='')."
        ) from error
