"""Which runs are killed: every pair of circumstances that can meet, in as few cells as that takes.

A bug of a resume hides where two things meet (a gradient accumulation under a kill inside an
epoch, an input of unknown length under a kill in the validation), rarely where three do.
So each pair of values below stands in at least one cell. What no cover reaches, such as two
series in one run, are cells of their own: `EXTRAS`.

Epochs and batches count from 0 here, as Keras hands them to callbacks.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

EPOCHS = 4
BATCH = 8
SAMPLES = 48

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "input": (
        "arrays", "dataset", "unknown", "repeat", "pydataset", "grain", "epoch_data",
    ),
    "interruption": ("boundary", "middle", "validation", "writing", "twice", "thrice"),
    "model": ("convnet", "lstm", "mixed", "gan", "shared", "subclassed"),
    "callbacks": ("stopping", "plateau", "schedule", "swap", "own"),
    "weights": ("none", "class", "sample"),
    "position": ("first", "middle", "last"),
}  # fmt: skip

# Pairs that cannot meet.
EXCLUDED: Mapping[tuple[str, str], str] = {
    ("gan", "validation"): "a train step of its own has no validation here",
    ("gan", "class"): "it has no labels",
    ("gan", "sample"): "it has no labels",
    ("gan", "plateau"): "ReduceLROnPlateau turns model.optimizer; a GAN trains with two others",
    ("gan", "schedule"): "LearningRateScheduler turns model.optimizer, as above",
    ("gan", "swap"): "SwapEMAWeights swaps the weights of model.optimizer, as above",
    ("convnet", "plateau"): "nobody can set the rate of a CosineDecay",
    ("convnet", "schedule"): "nobody can set the rate of a CosineDecay",
    ("grain", "class"): "Keras refuses class_weight beside Grain",
    ("epoch_data", "class"): "Keras would not look at class_weight beside a data adapter",
}

Place = Literal["boundary", "batch", "end", "validation", "write"]


class Kill(NamedTuple):
    """Where a process kills itself.

    Attributes:
        place: `boundary`: before the first batch of `epoch`; `batch`: when `batch` batches of
            it are done; `end`: in the hook of its last batch, before our callback's;
            `validation`: in it; `write`: while the `batch`-th checkpoint is being written.
        settled: Whether what was handed to the writer is committed first. Without it the
            place of the kill does not determine which checkpoint is the newest.
    """

    place: Place
    epoch: int = 0
    batch: int = 0
    settled: bool = True


@dataclass(frozen=True)
class Cell:
    """One run that is killed, and one that is not.

    Attributes:
        input, interruption, model, callbacks, weights: Values of `DIMENSIONS`, and what only
            `EXTRAS` name.
        position: Where our callback stands among the others.
        save_freq, steps_per_execution, verbose: As Keras takes them.
        keep: How many checkpoints stay; `None` keeps all.
        published: Whether a kill in a write comes behind all but its last request.
        series: One `fit` for each.
    """

    input: str
    interruption: str
    model: str
    callbacks: str
    weights: str
    position: str
    save_freq: int | Literal["epoch"] = 2
    keep: int | None = None
    steps_per_execution: int = 1
    verbose: int = 0
    published: bool = False
    series: tuple[str, ...] = ("ckpt",)

    @property
    def name(self) -> str:
        values = [getattr(self, dimension) for dimension in DIMENSIONS]
        if self.steps_per_execution > 1:
            values.append(f"execution{self.steps_per_execution}")
        if self.verbose:
            values.append("verbose")
        return "-".join(values + [s for s in self.series if s != "ckpt"])

    @property
    def steps(self) -> int:
        """Batches of an epoch: with `repeat`, fewer than one pass over the data has."""
        return 5 if self.input in ("repeat", "grain_repeat") else SAMPLES // BATCH

    @property
    def hold(self) -> int | None:
        """Batches that may be trained before a kill in a write: one more than it holds."""
        last = self.kills[-1] if self.kills else None
        if last is None or last.place != "write":
            return None
        return self.every * last.batch + 1

    @property
    def every(self) -> int:
        """Batches from one checkpoint to the next."""
        return self.steps if self.save_freq == "epoch" else self.save_freq

    @property
    def kills(self) -> tuple[Kill, ...]:
        """The kills of the processes in turn; the one after the last ends by itself."""
        return {
            "boundary": (Kill("boundary", 2),),
            "first": (Kill("batch", 2, 1),),
            "middle": (Kill("batch", 2, 3),),
            "last": (Kill("end", 2),),
            "at-once": (Kill("batch", 2, 3, settled=False),),
            "validation": (Kill("validation", 2),),
            "writing": (Kill("write", batch=8),),  # In the third epoch of every input.
            "twice": (Kill("batch", 1, 1), Kill("end", 1)),
            "thrice": (Kill("batch", 0, 4), Kill("boundary", 1), Kill("batch", 2, 3)),
            "second": (Kill("batch", EPOCHS + 1, 3),),
            "never": (),
        }[self.interruption]


_FREQUENCY: Mapping[str, int | Literal["epoch"]] = {
    "boundary": "epoch",
    "first": 1,
    "last": 1,
    "twice": 1,
}


def cell(**values: object) -> Cell:
    """A cell; what is not said takes what suits the interruption."""
    plain = {"weights": "none", "position": "last", "callbacks": "own", "model": "subclassed"}
    made = Cell(**{**plain, **values})  # type: ignore[arg-type]
    frequency = values.get("save_freq", _FREQUENCY.get(made.interruption, 2))
    return Cell(**{**vars(made), "save_freq": frequency})


def excluded(left: str, right: str) -> bool:
    return (left, right) in EXCLUDED or (right, left) in EXCLUDED


def pairs(row: Mapping[str, str]) -> Iterator[frozenset[tuple[str, str]]]:
    """Each pair of (dimension, value) in a row."""
    return (frozenset(pair) for pair in itertools.combinations(row.items(), 2))


def wanted() -> set[frozenset[tuple[str, str]]]:
    """Each pair that can meet."""
    found = set()
    for (a, left), (b, right) in itertools.combinations(DIMENSIONS.items(), 2):
        for p, q in itertools.product(left, right):
            if not excluded(p, q):
                found.add(frozenset({(a, p), (b, q)}))
    return found


def cover(seed: int, tries: int = 40) -> list[dict[str, str]]:
    """Rows that hold every pair: each takes, of some drawn at random, the one with most new."""
    draw = random.Random(seed)
    missing = wanted()
    rows = []
    while missing:
        drawn = [_row(draw, missing) for _ in range(tries)]
        best = max(drawn, key=lambda row: sum(p in missing for p in pairs(row)))
        missing.difference_update(pairs(best))
        rows.append(best)
    return rows


def _row(draw: random.Random, missing: set[frozenset[tuple[str, str]]]) -> dict[str, str]:
    """Begin with a missing pair, then give each dimension the value that adds most new pairs."""
    while True:
        row = dict(draw.choice(sorted(map(sorted, missing))))
        left = [d for d in DIMENSIONS if d not in row]
        draw.shuffle(left)
        for dimension in left:
            fitting = [
                v for v in DIMENSIONS[dimension] if not any(excluded(v, u) for u in row.values())
            ]
            if not fitting:
                break
            gains = {
                v: sum(frozenset({(dimension, v), item}) in missing for item in row.items())
                for v in fitting
            }
            most = max(gains.values())
            row[dimension] = draw.choice([v for v in fitting if gains[v] == most])
        else:
            return {d: row[d] for d in DIMENSIONS}


def _covering() -> list[Cell]:
    """The cover; the seed is the one of a hundred that needs the fewest rows."""
    return [
        cell(**row, keep=3 if number % 2 else None, published=number % 4 < 2)
        for number, row in enumerate(cover(24))
    ]


COVER = _covering()
EXTRAS = [
    cell(input="arrays", interruption="first", model="mlp", position="first"),
    cell(input="dataset", interruption="last", model="mlp", weights="sample"),
    cell(input="arrays", interruption="at-once", model="mlp", callbacks="stopping"),
    cell(input="grain_repeat", interruption="middle", model="mlp", callbacks="plateau"),
    cell(input="arrays", interruption="middle", model="shared", steps_per_execution=2),
    cell(input="dataset", interruption="twice", model="mlp", steps_per_execution=2),
    cell(input="dataset", interruption="middle", model="mlp", verbose=1),
    cell(input="arrays", interruption="second", model="mlp", series=("head", "finetune")),
]

CELLS: Mapping[str, Cell] = {c.name: c for c in [*COVER, *EXTRAS]}
