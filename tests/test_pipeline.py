"""tf.data pipelines: checkpoints of iterators, orders that repeat, and those that may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_ckpt.keras_internals import _pipeline, _skipping
from mlflow_ckpt.keras_internals._pipeline import (
    _CHECKPOINTED,
    IteratorCheckpoint,
    can_checkpoint,
    count_iterators,
    counts_every_iterator,
    iterators_of,
    make_iterators,
    restore_checkpoint,
    shuffles,
    why_not_exact,
    with_checkpoints,
)
from mlflow_ckpt.keras_internals._skipping import advance, without_first

pytestmark = pytest.mark.pure

N = 24
Dataset = tf.data.Dataset
Make = Callable[[], Any]


@pytest.fixture(autouse=True)
def no_global_seed() -> Iterator[None]:
    """Every seed that a test relies on stands in its pipeline."""
    tf.random.set_seed(None)
    yield
    tf.random.set_seed(None)


def numbers() -> Any:
    return Dataset.range(N)


def shuffled() -> Any:
    return numbers().shuffle(N, seed=3)


def read(iterator: Any, count: int | None = None) -> list[Any]:
    """The next elements, as nested lists of plain numbers."""
    found: list[Any] = []
    while count is None or len(found) < count:
        try:
            element = next(iterator)
        except StopIteration:
            break
        found.append(keras.tree.map_structure(_plain, element))
    return found


def _plain(tensor: Any) -> Any:
    if isinstance(tensor, tf.RaggedTensor):
        return tensor.to_list()
    return np.asarray(tensor).tolist()


def checkpoint(iterator: Any) -> Any:
    return np.asarray(IteratorCheckpoint(iterator))


@pytest.fixture(autouse=True)
def counting() -> None:
    count_iterators()


def bring(other: list[Any], one: list[Any]) -> bool:
    """Make as many iterators over `other` datasets as were made over the ones like them."""
    counts = [iterators_of(node) for dataset in one for node in shuffles(dataset)]
    return make_iterators([node for dataset in other for node in shuffles(dataset)], counts)


def classes(dataset: Any) -> set[str]:
    return {type(node).__name__ for node in _pipeline._nodes(dataset)}


# --- a checkpoint in the middle -------------------------------------------------

CHECKPOINTED: dict[str, Make] = {
    "_BatchDataset": lambda: shuffled().batch(2),
    "_FilterDataset": lambda: shuffled().filter(lambda n: n % 3 != 0),
    "_MapDataset": lambda: shuffled().map(lambda n: n * 2),
    "_OptionsDataset": lambda: shuffled().with_options(tf.data.Options()),
    "_ParallelMapDataset": lambda: shuffled().map(lambda n: n * 2, num_parallel_calls=2),
    "_PrefetchDataset": lambda: shuffled().prefetch(3),
    "_RangeDataset": numbers,
    "_RepeatDataset": lambda: shuffled().repeat(3),
    "_ShardDataset": lambda: shuffled().shard(2, 1),
    "_ShuffleDataset": lambda: numbers().shuffle(5, seed=3),
    "_SkipDataset": lambda: shuffled().skip(3),
    "_TakeDataset": lambda: shuffled().take(20),
    "_TensorSliceDataset": lambda: Dataset.from_tensor_slices(np.arange(N)),
    "_ZipDataset": lambda: Dataset.zip((shuffled(), numbers().shuffle(7, seed=9))),
}


def test_every_transformation_that_is_trusted_has_a_case() -> None:
    assert set(CHECKPOINTED) == _CHECKPOINTED
    for name, make in CHECKPOINTED.items():
        assert name in classes(make())


@pytest.mark.parametrize("read_before", [1, 7, 11])
@pytest.mark.parametrize("name", sorted(CHECKPOINTED))
def test_a_checkpoint_restores_the_exact_rest(name: str, read_before: int) -> None:
    make = CHECKPOINTED[name]
    first = iter(with_checkpoints(make()))
    read(first, read_before)
    stored = checkpoint(first)
    rest = read(first)

    again = iter(with_checkpoints(make()))
    restore_checkpoint(again, stored)
    assert read(again) == rest
    assert can_checkpoint(make())


def test_a_checkpoint_in_the_second_epoch_restores_that_epochs_rest() -> None:
    def pipeline() -> Any:
        return with_checkpoints(shuffled().map(lambda n: n + 1).batch(4).prefetch(2))

    dataset = pipeline()
    whole = read(iter(dataset))
    second = iter(dataset)
    read(second, 2)
    stored = checkpoint(second)
    rest, third = read(second), read(iter(dataset))

    other = pipeline()
    make_iterators(shuffles(other), [1])
    again = iter(other)
    restore_checkpoint(again, stored)
    assert read(again) == rest != whole[2:]
    assert read(iter(other)) == third


def test_a_checkpoint_in_a_repetition_restores_the_repetitions_after_it() -> None:
    def pipeline() -> Any:
        return with_checkpoints(shuffled().repeat(4).batch(5))

    first = iter(pipeline())
    read(first, 9)
    stored = checkpoint(first)
    again = iter(pipeline())
    restore_checkpoint(again, stored)
    assert read(again) == read(first)


SAMPLES = np.random.default_rng(0).random((64, 9))


def slices() -> Any:
    return Dataset.from_tensor_slices(SAMPLES)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: slices().batch(4), id="batch"),
        pytest.param(lambda: slices().batch(4).prefetch(3), id="prefetch"),
        pytest.param(
            lambda: slices().map(lambda v: v, num_parallel_calls=4).batch(2).prefetch(-1), id="map"
        ),
        pytest.param(lambda: Dataset.zip((slices(), slices())).repeat().batch(2), id="zip-repeat"),
        pytest.param(lambda: slices().filter(lambda v: True).shard(2, 0).batch(2), id="filter"),
        pytest.param(lambda: slices().skip(2).take(50).prefetch(5), id="skip-take"),
        pytest.param(lambda: slices().shuffle(8, seed=1).batch(4), id="shuffle"),
        pytest.param(lambda: slices().batch(4).shuffle(8, seed=1), id="shuffled-batches"),
        pytest.param(
            lambda: Dataset.range(64).shuffle(64, seed=1).map(lambda i: tf.gather(SAMPLES, i)),
            id="shuffled-indices",
        ),
    ],
)
def test_a_checkpoint_holds_no_element_of_the_data(make: Make) -> None:
    """A shuffle keeps the elements of its buffer in the checkpoint, whatever the option says."""
    if can_checkpoint(make()):
        iterator = iter(with_checkpoints(make()))
        read(iterator, 5)
        stored = checkpoint(iterator).tobytes()
        assert not any(row[:1].tobytes() in stored for row in SAMPLES)


def test_a_shuffle_of_samples_gets_no_checkpoint_and_one_of_indices_does() -> None:
    assert not can_checkpoint(slices().shuffle(8, seed=1))
    assert not can_checkpoint(slices().map(lambda v: v).batch(4).shuffle(8, seed=1).prefetch(1))
    assert can_checkpoint(Dataset.range(64).shuffle(64, seed=1).map(lambda i: i))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: shuffled().cache(), id="cache"),
        pytest.param(
            lambda: Dataset.from_generator(
                lambda: iter(range(3)), output_signature=tf.TensorSpec((), tf.int64)
            ),
            id="from_generator",
        ),
        pytest.param(
            lambda: numbers().interleave(lambda n: Dataset.from_tensors(n)), id="interleave"
        ),
        pytest.param(lambda: numbers().batch(2).unbatch(), id="unbatch"),
        pytest.param(lambda: numbers().shuffle(1025, seed=1), id="large-buffer"),
        pytest.param(
            lambda: numbers().shuffle(600, seed=1).shuffle(600, seed=2), id="two-large-buffers"
        ),
        pytest.param(lambda: numbers().map(lambda n: tf.random.uniform(())), id="random-op"),
        pytest.param(lambda: numbers().shuffle(N), id="no-seed"),
    ],
)
def test_what_was_not_tried_out_gets_no_checkpoint(make: Make) -> None:
    assert can_checkpoint(make()) is False


def test_a_buffer_at_the_limit_gets_a_checkpoint() -> None:
    assert can_checkpoint(numbers().shuffle(1024, seed=1))


# --- is the order the same again? -----------------------------------------------


def lookup() -> Any:
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(
            tf.range(N, dtype=tf.int64), tf.range(N, dtype=tf.int64) * 2
        ),
        default_value=-1,
    )
    return shuffled().map(table.lookup)


def preprocessed() -> Any:
    normalize = keras.layers.Normalization(mean=3.0, variance=2.0)
    hashing = keras.layers.Hashing(num_bins=7)
    strings = keras.layers.StringLookup(vocabulary=["1", "2", "3"])

    def prepare(number: Any) -> Any:
        return (
            normalize(tf.cast(number, tf.float32)[None]),
            hashing(tf.strings.as_string(number)[None]),
            strings(tf.strings.as_string(number)[None]),
        )

    return shuffled().map(prepare)


def windows() -> Any:
    return numbers().window(4, drop_remainder=True).flat_map(lambda w: w.batch(4)).shuffle(9, 2)


def ragged() -> Any:
    rows = tf.ragged.constant([[1, 2], [3], [], [4, 5, 6]])
    return Dataset.from_tensor_slices(rows).shuffle(4, seed=1).batch(2)


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """Two text files of five lines, and a TFRecord file beside each."""
    for file in "ab":
        (tmp_path / f"{file}.txt").write_text("".join(f"{file}{n}\n" for n in range(5)))
        with tf.io.TFRecordWriter(str(tmp_path / f"{file}.rec")) as writer:
            for n in range(5):
                writer.write(f"{file}{n}".encode())
    return [str(tmp_path / "a"), str(tmp_path / "b")]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: shuffled().batch(4).prefetch(2), id="shuffle-batch-prefetch"),
        pytest.param(numbers, id="no-shuffle"),
        pytest.param(lookup, id="lookup-table"),
        pytest.param(preprocessed, id="preprocessing-layers"),
        pytest.param(
            lambda: shuffled().map(lambda n: tf.range(n)).padded_batch(4), id="padded_batch"
        ),
        pytest.param(ragged, id="ragged"),
        pytest.param(lambda: Dataset.zip((numbers(), shuffled())), id="zip"),
        pytest.param(lambda: shuffled().skip(4), id="skip"),
        pytest.param(lambda: shuffled().take(4), id="take"),
        pytest.param(lambda: numbers().concatenate(numbers()).shuffle(9, seed=1), id="concatenate"),
        pytest.param(windows, id="window"),
        pytest.param(lambda: numbers().cache().shuffle(9, seed=1).batch(2), id="cache-shuffle"),
        pytest.param(lambda: numbers().batch(3).unbatch().shuffle(9, seed=1), id="unbatch"),
        pytest.param(lambda: numbers().shuffle(9, 1).repeat().take(30), id="repeat"),
        pytest.param(lambda: numbers().shard(2, 0).shuffle(9, seed=1), id="shard"),
        pytest.param(
            lambda: shuffled().map(lambda n: (tf.debugging.assert_less(n, np.int64(99)), n)[1]),
            id="assertion",
        ),
        pytest.param(
            lambda: shuffled().map(lambda n: tf.cond(n > 3, lambda: n, lambda: -n)), id="condition"
        ),
        pytest.param(
            lambda: shuffled().map(lambda n: tf.random.stateless_uniform((), seed=[1, 2])),
            id="stateless-random",
        ),
    ],
)
def test_a_seeded_pipeline_is_exact(make: Make) -> None:
    assert why_not_exact(make()) is None
    assert read(iter(make())) == read(iter(make()))


@pytest.mark.parametrize("kind", ["txt", "rec"])
@pytest.mark.parametrize("parallel", [None, 2], ids=["one", "parallel"])
@pytest.mark.parametrize("how", ["files", "flat_map", "interleave"])
def test_files_in_a_given_order_are_exact(
    lines: list[str], kind: str, parallel: int | None, how: str
) -> None:
    reader = tf.data.TextLineDataset if kind == "txt" else tf.data.TFRecordDataset
    files = [f"{name}.{kind}" for name in lines]
    names = Dataset.from_tensor_slices(files)
    dataset = {
        "files": lambda: reader(files, num_parallel_reads=parallel),
        "flat_map": lambda: names.shuffle(2, seed=1).flat_map(reader),
        "interleave": lambda: names.shuffle(2, seed=1).interleave(
            reader, cycle_length=2, num_parallel_calls=parallel
        ),
    }[how]()
    assert why_not_exact(dataset.shuffle(10, seed=4).batch(2)) is None


def test_files_listed_with_a_seed_are_exact(lines: list[str]) -> None:
    pattern = str(Path(lines[0]).with_name("*.txt"))
    listed = Dataset.list_files(pattern, seed=1)
    assert why_not_exact(listed.flat_map(tf.data.TextLineDataset)) is None
    assert why_not_exact(Dataset.list_files(pattern, shuffle=False)) is None
    found = why_not_exact(Dataset.list_files(pattern))
    assert found is not None
    assert found.level == "false"


def by_option() -> Any:
    options = tf.data.Options()
    options.deterministic = False
    return shuffled().with_options(options).batch(2)


def noise() -> tuple[Any, Any]:
    return tf.random.normal(()), tf.random.uniform((), maxval=3, dtype=tf.int32)


@pytest.mark.parametrize(
    ("make", "level", "reason"),
    [
        pytest.param(
            lambda: numbers().shuffle(N), "false", "shuffle() without a seed", id="no-seed"
        ),
        pytest.param(
            lambda: numbers().shuffle(N).shuffle(3, seed=1), "false", "without a seed", id="below"
        ),
        pytest.param(
            lambda: numbers().map(lambda n: tf.py_function(lambda v: v, [n], tf.int64)),
            "unknown",
            "EagerPyFunc",
            id="py_function",
        ),
        pytest.param(
            lambda: numbers().map(lambda n: tf.numpy_function(lambda v: v, [n], tf.int64)),
            "unknown",
            "PyFunc",
            id="numpy_function",
        ),
        pytest.param(
            lambda: Dataset.from_generator(
                lambda: iter(range(3)), output_signature=tf.TensorSpec((), tf.int64)
            ),
            "unknown",
            "GeneratorDataset",
            id="from_generator",
        ),
        pytest.param(
            lambda: numbers().map(lambda n: noise()), "unknown", "RandomStandardNormal", id="noise"
        ),
        pytest.param(
            lambda: numbers().map(lambda n: tf.cond(n > 3, lambda: noise(), lambda: noise())),
            "unknown",
            "RandomStandardNormal",
            id="noise-in-a-branch",
        ),
        pytest.param(by_option, "unknown", "option deterministic=False", id="option"),
        pytest.param(
            lambda: numbers().map(lambda n: n, num_parallel_calls=2, deterministic=False),
            "unknown",
            "deterministic=False",
            id="argument",
        ),
        pytest.param(
            lambda: shuffled().cache(), "unknown", "cache() behind a shuffle()", id="cache"
        ),
        pytest.param(
            lambda: shuffled().map(lambda n: n).cache().batch(2),
            "unknown",
            "cache() behind a shuffle()",
            id="cache-further-behind",
        ),
        pytest.param(
            lambda: numbers().flat_map(lambda n: Dataset.range(n).shuffle(9)),
            "unknown",
            "",
            id="no-seed-in-flat_map",
        ),
        pytest.param(
            lambda: numbers().interleave(lambda n: Dataset.range(4).map(lambda v: noise()[1])),
            "unknown",
            "",
            id="noise-in-interleave",
        ),
        pytest.param(
            lambda: Dataset.sample_from_datasets([numbers(), numbers()]),
            "unknown",
            "",
            id="sample_from_datasets",
        ),
        pytest.param(lambda: Dataset.random().take(3), "unknown", "", id="random-source"),
        pytest.param(
            lambda: numbers().enumerate(), "unknown", "VariantDataset", id="hides-its-inputs"
        ),
    ],
)
def test_what_may_differ_is_said_with_its_reason(make: Make, level: str, reason: str) -> None:
    found = why_not_exact(make())
    assert found is not None
    assert found.level == level
    assert reason in found.reason


def test_a_global_seed_seeds_a_shuffle_that_has_none() -> None:
    tf.random.set_seed(3)
    assert why_not_exact(numbers().shuffle(N)) is None


# --- how many iterators were made -------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4])
def test_shuffles_come_to_the_order_of_their_turn(count: int) -> None:
    def pipeline() -> Any:
        return shuffled().batch(2).flat_map(Dataset.from_tensor_slices).prefetch(1)

    one, other = pipeline(), pipeline()
    for _ in range(count):
        read(iter(one))
    assert bring([other], [one])
    assert [read(iter(one)) for _ in range(3)] == [read(iter(other)) for _ in range(3)]


def test_two_datasets_that_share_a_shuffle_share_its_turns() -> None:
    def split() -> tuple[Any, Any]:
        whole = numbers().shuffle(N, seed=5)
        return whole.skip(6).batch(4), whole.take(6).batch(3)

    train, validation = split()
    for _ in range(3):
        read(iter(train))
        read(iter(validation))
    train_again, validation_again = split()
    assert bring([train_again, validation_again], [train, validation])
    assert read(iter(train)) == read(iter(train_again))
    assert read(iter(validation)) == read(iter(validation_again))


def test_a_zip_of_one_shuffle_with_itself_counts_twice() -> None:
    def pipeline() -> Any:
        one = shuffled()
        return Dataset.zip((one, one))

    first, second = pipeline(), pipeline()
    for _ in range(2):
        read(iter(first))
    assert bring([second], [first])
    assert read(iter(first)) == read(iter(second))


def test_who_made_more_iterators_than_asked_for_cannot_go_back() -> None:
    one, other = shuffled(), shuffled()
    read(iter(other))
    assert not bring([other], [one])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(lambda: shuffled().batch(2).prefetch(1), True, id="plain"),
        pytest.param(lambda: shuffled().repeat(), False, id="repeat-above"),
        pytest.param(lambda: numbers().repeat().shuffle(9, seed=1), True, id="repeat-below"),
        pytest.param(lambda: shuffled().batch(2).shuffle(9, seed=1), False, id="two-shuffles"),
        pytest.param(lambda: shuffled().concatenate(numbers()), False, id="concatenate"),
        pytest.param(
            lambda: shuffled().flat_map(lambda n: Dataset.from_tensors(n)), True, id="flat_map"
        ),
        pytest.param(
            lambda: numbers().shuffle(9, 1, reshuffle_each_iteration=False).repeat(),
            True,
            id="one-order",
        ),
    ],
)
def test_a_shuffle_below_what_reads_it_several_times_is_not_counted(
    make: Make, expected: bool
) -> None:
    assert counts_every_iterator(make()) is expected


# --- read on ------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: shuffled().map(lambda n: n * 2).batch(4), id="map-batch"),
        pytest.param(
            lambda: shuffled().batch(4).map(lambda n: n + 1, num_parallel_calls=2).prefetch(2),
            id="batch-map-prefetch",
        ),
        pytest.param(
            lambda: numbers().shuffle(5, seed=3).batch(4, drop_remainder=True), id="drop-remainder"
        ),
        pytest.param(
            lambda: Dataset.zip((shuffled(), numbers())).map(lambda a, b: (a, b * 2)).batch(3),
            id="pairs",
        ),
        pytest.param(lambda: shuffled().repeat(3).batch(7), id="repeat"),
        pytest.param(lambda: shuffled().filter(lambda n: n % 2 == 0).batch(2), id="filter"),
        pytest.param(lambda: with_checkpoints(shuffled().batch(4)), id="options"),
        pytest.param(lambda: shuffled().map(lambda n: (n, (n, n))).batch(4), id="structure"),
    ],
)
def test_what_is_left_without_the_first_is_the_same(make: Make, count: int) -> None:
    whole, left = make(), without_first(make(), count)
    assert read(iter(left)) == read(iter(whole))[count:]
    assert left.element_spec == whole.element_spec


@pytest.mark.parametrize("count", [0, 1, 10, 11, 23])
def test_advance_reads_exactly_so_many(count: int) -> None:
    one, other = iter(shuffled()), iter(shuffled())
    read(one, count)
    told: list[int] = []
    seconds = advance(other, count, lambda n, _: told.append(n))
    assert seconds >= 0
    assert read(one) == read(other)
    assert told == []


def test_advance_beyond_the_end_raises() -> None:
    with pytest.raises(tf.errors.OutOfRangeError):
        advance(iter(numbers()), N + 1, lambda *_: None)


def test_a_long_way_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(_skipping.time, "perf_counter", lambda: next(now))
    told: list[tuple[int, float]] = []
    advance(iter(Dataset.range(3000)), 2500, lambda n, s: told.append((n, s)))
    assert told == [(10, 6)]
