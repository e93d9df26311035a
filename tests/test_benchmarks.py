"""The benchmark: its arithmetic, and that every figure can be measured. No timing is asserted."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as bench
from benchmarks import cost, hooks, loads, memory, peers, process, report, sparse, thousand
from benchmarks.peers import CONTROL, KERAS, OURS
from benchmarks.results import Bar, Figure, Sample, best_peer, interval, rotated, slope

pytestmark = pytest.mark.pure

TINY = bench.Plan(
    sizes=(0.05,),
    repeats=2,
    apart_s=(0.0, 0.0),
    dense=(4, 4),
    sparse_s=0.0,
    sparse_epochs=2,
    counts=(4, 8),
    many=20,
    outage=(4, 2),
    fresh_repeats=1,
)


def sample(*values: float, role: Any = "peer") -> Sample:
    return Sample(role=role, unit="ms", values=values)


@pytest.mark.parametrize(
    ("ratio", "limit", "at_least", "verdict"),
    [
        pytest.param(0.2, 0.25, False, "met", id="below"),
        pytest.param(0.25, 0.25, False, "met", id="at-the-bar"),
        pytest.param(0.3, 0.25, False, "missed", id="above"),
        pytest.param(9.0, 8.0, True, "met", id="enough"),
        pytest.param(7.9, 8.0, True, "missed", id="not-enough"),
        pytest.param(float("nan"), 8.0, True, "missed", id="not-a-number"),
    ],
)
def test_a_bar_is_met_on_its_own_side(
    ratio: float, limit: float, at_least: bool, verdict: str
) -> None:
    bar = Bar(text="a ÷ b", value=ratio * 2, divisor=2, limit=limit, at_least=at_least)
    assert bar.verdict == verdict
    assert Bar(text="a", value=0, limit=0).verdict == "met"


@pytest.mark.parametrize("divisor", [0.0, -3.0])
@pytest.mark.parametrize("at_least", [True, False])
def test_a_ratio_to_noise_meets_no_bar(divisor: float, at_least: bool) -> None:
    bar = Bar(text="a ÷ b", value=1, divisor=divisor, limit=0.3, at_least=at_least)
    assert (bar.met, bar.verdict) == (False, "unclear")


def test_a_sample_needs_values() -> None:
    assert (sample(3, 1, 2).median, sample(3, 1, 2).low, sample(3, 1, 2).high) == (2, 1, 3)
    with pytest.raises(ValueError, match="Expected at least one value"):
        sample()


def test_the_best_peer_is_a_peer() -> None:
    samples = {"a": sample(1, role="ours"), "b": sample(3), "c": sample(2)}
    samples["d"] = sample(0.1, role="limit")
    assert best_peer(samples) == ("c", samples["c"])
    assert best_peer({"a": samples["a"]}) is None


def test_every_variant_goes_first_once() -> None:
    orders = [rotated("abc", turn) for turn in range(3)]
    assert orders == [list("abc"), list("bca"), list("cab")]
    assert sorted(rotated("abc", -1)) == list("abc")


def test_a_slope_does_not_mind_a_step() -> None:
    line = [(float(x), 2.0 * x) for x in range(20)]
    assert slope(line) == 2
    assert slope([(x, y + (500 if x == 19 else 0)) for x, y in line]) == 2


def test_an_interval_holds_the_median() -> None:
    low, high = interval([1, 2, 3, 4, 100])
    assert 1 <= low <= 3 <= high <= 100
    assert interval([1, 2, 3, 4, 100]) == (low, high)


def test_a_checkpoint_is_paired_with_its_neighbours_and_the_first_left_out() -> None:
    drifting = [10.0, 99.0, 12.0, 13.4, 14.0, 15.4, 16.0]
    assert cost.differences(drifting) == pytest.approx([0.4, 0.4])
    assert cost.differences(drifting[:3]) == []


def dense_rows() -> list[dict[str, Any]]:
    """Two rounds: a checkpoint of ours costs 0.1 s, Keras's 0.5 s, the plain write 0.05 s."""
    behind = {OURS: [0.5], cost.PLAIN: [0.25]}
    more = {OURS: 0.1, KERAS: 0.5, cost.PLAIN: 0.05}
    return [
        {
            "turn": turn,
            "variant": name,
            "blocks": [1.0, 9.0, 1.0, 1.0 + seconds, 1.0, 1.0 + seconds, 1.0],
            "first_s": 0.2,
            "behind_s": behind.get(name, []),
        }
        for turn in range(2)
        for name, seconds in more.items()
    ]


def test_cost_and_throughput_come_out_of_the_rounds() -> None:
    raw = {"mib": 100, "rows": dense_rows(), "checkpoints": 3, "steps": 5, "bytes": 100 * 2**20}
    whole, behind = cost.figures(raw)
    assert whole.samples[OURS].values == pytest.approx((100,) * 4)
    assert "The first checkpoint's hook, with the template: 200 ms." in whole.notes
    assert whole.bars[0].ratio == pytest.approx(0.2)
    assert (whole.bars[0].limit, whole.bars[0].verdict) == (0.3, "met")
    assert behind.samples[OURS].median == pytest.approx(200)
    assert behind.bars[0].ratio == pytest.approx(0.5)
    large, _ = cost.figures({**raw, "mib": 1062})
    assert large.bars[0].limit == 0.25


def test_hooks_and_stall_are_held_against_the_memory_copy() -> None:
    times = {OURS: (0.002, 0.03), KERAS: (0.4, 0.45), "other": (0.3, 0.36)}
    rows = [
        {
            "variant": name,
            "hook_s": hook,
            "stall_s": stall,
            "first_s": 0.2,
            "usual_s": 0.1,
            "stats": {},
        }
        for name, (hook, stall) in times.items()
    ]
    errors = {"gone": "ImportError: x"}
    raw = {"mib": 112, "rows": rows, "errors": errors, "copy_s": [0.01], "steps": 3}
    hook, stall = hooks.figures(raw)
    assert [bar.ratio for bar in hook.bars] == pytest.approx([0.2, 0.5])
    assert [bar.limit for bar in hook.bars] == [0.25, 1.0]
    assert [bar.ratio for bar in stall.bars] == pytest.approx([3, 12])
    assert "other" in stall.bars[1].text
    assert hook.errors == errors
    assert hooks.figures({**raw, "mib": 1062})[0].bars[0].limit == 0.1


def test_the_other_figures_are_held_against_their_bars() -> None:
    whole = {CONTROL: 30.0, sparse.LOCAL: 30.3, sparse.HTTP: 36.0}
    rows = [{"turn": 0, "variant": name, "seconds": s} for name, s in whole.items()]
    local, http = sparse.figures({"mib": 112, "rows": rows, "epochs": 3})
    assert local.bars[0].ratio == pytest.approx(1.01)
    assert (local.bars[0].verdict, http.bars[0].verdict) == ("met", "missed")

    peaks = {CONTROL: 1000, OURS: 1000 + 150, KERAS: 1000 + 300}
    state = {"turn": 0, "state": 100 * 2**20}
    found = memory.figures(
        {"mib": 100, "rows": [{**state, "variant": n, "peak": p * 2**20} for n, p in peaks.items()]}
    )
    assert found[0].bars[0].ratio == pytest.approx(150 / 210)

    seconds = {OURS: [0.1], "Keras": [1.0], "plain read of the file": [0.05]}
    kinds = {"model": {"bytes": 1, "seconds": seconds}}
    assert loads.figures({"mib": 1062, "kinds": kinds})[0].bars[0].ratio == pytest.approx(0.1)

    line = {name: [(x, x * rate) for x in range(100)] for name, rate in ((CONTROL, 5), (OURS, 6))}
    counts = {"threads": 4, "descriptors": 9}
    rows = [{"variant": n, "points": p, "before": counts, "after": counts} for n, p in line.items()]
    long = thousand.figures({"count": 100, "rows": rows})[0]
    assert [bar.ratio for bar in long.bars] == [1, 0, 0]


def test_a_report_names_verdicts_errors_and_failures(tmp_path: Path) -> None:
    figure = Figure(
        key="hooks",
        title="Time",
        mib=112,
        samples={OURS: sample(1, 2, 3, role="ours")},
        errors={"peer": "ValueError: a | b"},
        bars=[Bar(text="a ÷ b", value=3, divisor=1, limit=2)],
    )
    report.write(tmp_path, [figure], {"loads": "out of disk"}, {"quick": True})
    text = (tmp_path / "report.md").read_text()
    assert "| Time | 112 MiB | a ÷ b | 3 | ≤ 2 | **missed** |" in text
    assert r"ValueError: a \| b" in text
    assert "out of disk" in text
    assert "mean nothing" in text
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["figures"][0]["bars"][0]["verdict"] == "missed"
    assert document["environment"]["packages"]["keras"]


def test_a_process_that_fails_shows_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(process.MeasurementFailed, match="No such thing|has no attribute"):
        process.call("benchmarks.results:nothing", {}, scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_what_it_does_not_know() -> None:
    runner = CliRunner()
    for arguments, text in (
        (["--figures", "speed"], "Expected some of hooks"),
        (["--sizes", "big"], "Expected numbers such as 112,1062"),
    ):
        result = runner.invoke(bench.main, arguments)
        assert result.exit_code == 2
        assert text in result.output


def measured(figures: Sequence[str], tmp_path: Path) -> dict[str, Figure]:
    found, failures = bench.run(figures, TINY, tmp_path, lambda *_: None)
    assert failures == {}
    for figure in found:
        assert len(figure.of("ours")) >= 1
        assert figure.bars
        assert json.loads(json.dumps(figure.to_dict()))["bars"][0]["verdict"] in (
            "met",
            "missed",
            "unclear",
        )
    return {figure.key: figure for figure in found}


@pytest.mark.slow
def test_hooks_of_ours_and_of_keras_can_be_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "VARIANTS", peers.VARIANTS[:2])
    found = measured(["hooks"], tmp_path)
    assert set(found) == {"hooks", "stall"}
    for figure in found.values():
        assert figure.errors == {}
        assert {s.role for s in figure.samples.values()} == {"ours", "peer", "limit"}
        assert all(len(s.values) == TINY.repeats for s in figure.samples.values())
    assert found["stall"].samples[OURS].median >= found["hooks"].samples[OURS].low


@pytest.mark.slow
def test_every_installed_peer_can_be_measured(tmp_path: Path) -> None:
    scarce = {v.name for v in peers.VARIANTS if v.missing}
    found = measured(["hooks"], tmp_path)["hooks"]
    assert set(found.errors) == scarce
    assert {v.name for v in peers.VARIANTS} - scarce <= set(found.samples)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("figure", "keys"),
    [
        ("cost", {"cost", "throughput"}),
        ("fit", {"fit", "http"}),
        ("loads", {"load-weights", "load-trained", "load-model"}),
        ("memory", {"memory"}),
        ("outage", {"outage"}),
        ("resolve", {f"resolve-{p}-{w}" for p in ("sqlite", "http") for w in ("latest", "best")}),
        ("resume", {"resume"}),
        ("thousand", {"thousand"}),
    ],
)
def test_every_figure_can_be_measured(figure: str, keys: set[str], tmp_path: Path) -> None:
    found = measured([figure], tmp_path)
    assert set(found) == keys
    assert list(tmp_path.iterdir()) == []
    if figure == "resolve":
        searches = [f.bars[0].ratio for f in found.values()]
        assert searches == [1, 1, 1, 1]
    if importlib.util.find_spec("matplotlib"):
        drawn = bench.plots.draw(found.values(), tmp_path)
        assert all(path.stat().st_size > 1000 for path in drawn)


def test_a_plan_changes_only_what_was_asked_for() -> None:
    plan = bench._plan(bench.Plan(), sizes=(8.0,), repeats=None)
    assert plan == replace(bench.Plan(), sizes=(8.0,))
