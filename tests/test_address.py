"""The URI of a checkpoint: two spellings of one address are equal, and nothing else is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.address import Address, is_address
from mlflow_ckpt.errors import SelectorError
from mlflow_ckpt.selector import Selector

pytestmark = pytest.mark.pure

RUN = "2440a0191a3148b8a59dc32e1d92c259"
SERIES = st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
WORD = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)
METRIC = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="(),@"), min_size=1
).filter(lambda text: text.strip() == text)
PART = WORD.filter(lambda text: "/" not in text and text not in (".", ".."))
BEST = st.builds(
    Selector,
    kind=st.just("best"),
    metric=METRIC,
    mode=st.sampled_from([None, "min", "max"]),
    series=SERIES,
)


def of_run(which: str, path: str = "") -> Address:
    return Address(run_id=RUN, selector=Selector.parse(which), path=path)


def of_experiment(name: str, which: str = "best(val_loss)", path: str = "") -> Address:
    return Address(experiment=name, selector=Selector.parse(which), path=path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        pytest.param(f"ckpt:/{RUN}/best", of_run("best"), id="best"),
        pytest.param(f"ckpt:/{RUN}/step=12", of_run("step=12"), id="step"),
        pytest.param(f"ckpt:/{RUN}/step%3D12", of_run("step=12"), id="equals-encoded"),
        pytest.param(f"ckpt:/{RUN}/latest@head", of_run("latest@head"), id="series"),
        pytest.param(f"ckpt:/{RUN}/latest%40head", of_run("latest@head"), id="at-encoded"),
        pytest.param(f"ckpt:///{RUN}/latest", of_run("latest"), id="three-slashes"),
        pytest.param(f"CKPT:/{RUN}/latest", of_run("latest"), id="scheme-in-capitals"),
        pytest.param(f"ckpt:/{RUN}/latest/", of_run("latest"), id="slash-at-the-end"),
        pytest.param(f"ckpt:/{RUN}//latest//MLmodel", of_run("latest", "MLmodel"), id="doubled"),
        pytest.param(f" ckpt:/{RUN}/latest\n", of_run("latest"), id="spaces-around"),
        pytest.param(
            f"ckpt:/{RUN}/best/data/model.keras", of_run("best", "data/model.keras"), id="file"
        ),
        pytest.param(f"ckpt:/{RUN}/best/data/", of_run("best", "data"), id="folder"),
        pytest.param(f"ckpt:/{RUN}/best/./data", of_run("best", "data"), id="dot"),
        pytest.param(f"ckpt:/{RUN}/best/a%20%25", of_run("best", "a %"), id="path-encoded"),
        pytest.param(
            f"ckpt:/{RUN}/best(val_loss,min)@head",
            of_run("best(val_loss,min)@head"),
            id="all-literal",
        ),
        pytest.param(
            f"ckpt:/{RUN}/best%28val_loss%2Cmin%29%40head",
            of_run("best(val_loss,min)@head"),
            id="all-encoded",
        ),
        pytest.param(
            f"ckpt:/{RUN}/best(head/loss)/data", of_run("best(head/loss)", "data"), id="slash"
        ),
        pytest.param(
            f"ckpt:/{RUN}/best%28head/loss%29/data",
            of_run("best(head/loss)", "data"),
            id="slash-between-encoded-parentheses",
        ),
        pytest.param(
            f"ckpt:/{RUN}/best(head%2Floss)/data",
            of_run("best(head/loss)", "data"),
            id="slash-encoded",
        ),
        pytest.param(
            f"ckpt:/{RUN}/best(val loss)", of_run("best(val loss)"), id="space-in-a-metric"
        ),
        pytest.param(
            f"ckpt:/{RUN}/best(pr%C3%A9cision%20%25)",
            of_run("best(précision %)"),
            id="unicode-and-percent",
        ),
        pytest.param(f"ckpt:/{RUN}/best(précision)", of_run("best(précision)"), id="unicode"),
        pytest.param(f"ckpt:/{RUN}/best(100%)", of_run("best(100%)"), id="percent-alone"),
        pytest.param(
            "ckpt:/experiment/digits/best(val_loss)", of_experiment("digits"), id="experiment"
        ),
        pytest.param(
            "ckpt:/experiment/digits/best@head/MLmodel",
            of_experiment("digits", "best@head", "MLmodel"),
            id="experiment-and-file",
        ),
        pytest.param(
            "ckpt:/experiment/%2FShared%2Fa%20b%20%25%23%3F%C3%A9/best(val_loss)",
            of_experiment("/Shared/a b %#?é"),
            id="experiment-of-every-character",
        ),
        pytest.param(
            "ckpt:/experiment/a b (é)/best(val_loss)", of_experiment("a b (é)"), id="literal-name"
        ),
        pytest.param(
            "ckpt:/experiment/best/best(val_loss)", of_experiment("best"), id="experiment-best"
        ),
        pytest.param(
            "ckpt:/experiment/best/best/best", of_experiment("best", "best", "best"), id="best-file"
        ),
        pytest.param(
            "ckpt:/experiment/100%25/best(val_loss)", of_experiment("100%"), id="percent-in-a-name"
        ),
        pytest.param(
            "ckpt:/experiment/%2540/best(val_loss)", of_experiment("%40"), id="decoded-only-once"
        ),
    ],
)
def test_what_a_uri_means(uri: str, expected: Address) -> None:
    assert Address.parse(uri) == expected
    assert Address.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("address", "canonical"),
    [
        pytest.param(of_run("best(a/b c,min)@x"), f"ckpt:/{RUN}/best(a%2Fb%20c,min)@x", id="run"),
        pytest.param(of_run("epoch=5", "a b/é"), f"ckpt:/{RUN}/epoch=5/a%20b/%C3%A9", id="path"),
        pytest.param(
            of_experiment("/a (b)%#?"),
            "ckpt:/experiment/%2Fa%20%28b%29%25%23%3F/best(val_loss)",
            id="experiment",
        ),
    ],
)
def test_the_canonical_spelling(address: Address, canonical: str) -> None:
    assert str(address) == canonical


def test_the_whole_of_an_address_has_no_path() -> None:
    assert of_run("best", "data").whole == of_run("best")


def test_an_address_is_its_own_reading() -> None:
    address = of_run("best")
    assert Address.parse(address) is address


@given(selector=BEST, path=st.lists(PART, max_size=3).map("/".join))
def test_every_address_of_a_run_survives_its_spelling(selector: Selector, path: str) -> None:
    address = Address(run_id=RUN, selector=selector, path=path)
    assert Address.parse(str(address)) == address
    assert Address.parse(f"{address}/") == address


@given(name=WORD, selector=BEST)
def test_every_address_of_an_experiment_survives_its_spelling(
    name: str, selector: Selector
) -> None:
    address = Address(experiment=name, selector=selector)
    assert Address.parse(str(address)) == address
    # MLflow cuts at the last `/`, and reads these two itself.
    assert not {"?", "#"} & set(str(address))
    assert str(address).count("/") == 3


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        pytest.param("ckpt:/", r"Expected ckpt:/<run_id>/<selector>.*Type ckpt:/<run_id>/latest"),
        pytest.param(
            "ckpt:/abc", r"Received: 'ckpt:/abc'\. Type ckpt:/abc/latest or ckpt:/abc/best"
        ),
        pytest.param(
            "ckpt:/abc/bset", r"a selector: latest, final.*'bset'\. Type ckpt:/abc/best\."
        ),
        pytest.param("ckpt:/abc/best(a", r"the selector is 'best\(a'\. Type ckpt:/abc/best"),
        pytest.param("ckpt:/abc/best%28a%2Cb%29", r"the selector is 'best\(a,b\)'"),
        pytest.param("ckpt:/abc/best/../x", r"a path inside the checkpoint.*and no '\.\.'"),
        pytest.param("ckpt:/abc/best/%2e%2e%2Fx", r"a path inside the checkpoint"),
        pytest.param("ckpt:/abc/best/data%2Fx", r"Write each '/' of it as it is"),
        pytest.param("ckpt:/abc/best(%ff)", r"percent-encoded UTF-8.*urllib\.parse\.quote"),
        pytest.param("ckpt:/experiment", r"Type ckpt:/experiment/<name>/best\(val_loss\)"),
        pytest.param("ckpt:/experiment/x", r"Type ckpt:/experiment/x/best\(val_loss\)"),
        pytest.param("ckpt:/experiment/x/latest", r"'latest' is one of a run\. .*<run_id>/latest"),
        pytest.param("ckpt:/experiment/x/y", r"the selector is 'y'\. Type ckpt:/experiment/x/best"),
        pytest.param(
            "ckpt:/experiment//a/b c/best(loss)/data",
            r"as %2F: ckpt:/experiment/a%2Fb%20c/best\(loss\)/data",
        ),
        pytest.param("models:/m-1", r"Expected ckpt:/<run_id>.*Received: 'models:/m-1'"),
        pytest.param(7, r"Received: 7"),
    ],
)
def test_what_is_refused_says_what_to_type(uri: Any, message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        Address.parse(uri)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("ckpt:/x", True), (" ckpt:///x/y", True), ("ckpt:", False), (RUN, False), (None, False)],
)
def test_what_is_written_as_an_address(text: Any, is_one: bool) -> None:
    assert is_address(text) is is_one


DOCUMENT = (Path(__file__).parents[1] / "docs" / "uri.md").read_text(encoding="utf-8")


def test_every_uri_of_the_page_is_one() -> None:
    uris = re.findall(r"ckpt:/[^\s\"'`]*[^\s\"'`/.,:]", DOCUMENT)
    assert len(uris) > 15
    for uri in uris:
        if "<selector>" not in uri and not uri.startswith("ckpt:/experiment/<name>/best["):
            Address.parse(uri)


def test_the_table_of_encodings_is_what_is_read() -> None:
    rows = re.findall(r"^\| `(.)`(?:, `(.)`)? \| `(%..)`(?:, `(%..)`)?", DOCUMENT, flags=re.M)
    pairs = [pair for a, b, c, d in rows for pair in ((a, c), (b, d)) if pair[0]]
    assert [character for character, _ in pairs] == ["/", "%", "#", "?"]
    for character, code in pairs:
        assert Address.parse(f"ckpt:/experiment/{code}/best(x)") == of_experiment(
            character, "best(x)"
        )
        assert Address.parse(f"ckpt:/{RUN}/best(a{code})") == of_run(f"best(a{character})")
