"""Which examples lie in which row: the plan of packing, and the rows that are made of it."""

import numpy as np
import pytest
from golden_tools import tiny_config
from run_tools import make_shards

from electra_flax.config.packing import PackingConfig
from electra_flax.data import packing, pipeline
from electra_flax.data.order import shuffled
from electra_flax.data.packing import PackedOrder, Packing, pack_epoch
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.tfrecord import ShardWriter, frame
from electra_flax.errors import UserError


def by_the_book(lengths, packing, seed, epoch):
    """The rows of an epoch, as a list of lists of examples: FRONTIER's words, slowly."""
    order, rows = shuffled(len(lengths), seed, epoch).tolist(), []
    for begin in range(0, len(order), packing.window):
        window = order[begin : begin + packing.window]
        opened = []  # lists of places in the window
        for place in sorted(range(len(window)), key=lambda place: -max(3, lengths[window[place]])):
            room = [packing.tokens - sum(max(3, lengths[window[i]]) for i in row) for row in opened]
            fits = [
                (free, number) for number, free in enumerate(room)
                if free >= max(3, lengths[window[place]]) and len(opened[number]) < packing.segments
            ]  # fmt: skip
            if not fits:
                opened.append([])
            opened[min(fits)[1] if fits else -1].append(place)
        rows += [[window[place] for place in row] for row in sorted(opened, key=min)]
    return rows


def as_lists(packed):
    return [packed.examples[a:b].tolist() for a, b in zip(packed.starts, packed.starts[1:], strict=False)]


@pytest.mark.parametrize(("tokens", "segments", "window"), [(64, 8, 50), (64, 2, 1024), (512, 4, 200), (16, 3, 7)])
def test_rows_are_the_best_fit(tokens, segments, window):
    random = np.random.default_rng(tokens + segments)
    for lengths in (random.integers(0, tokens + 1, 600), np.full(31, tokens // 3), np.full(31, tokens), [5]):
        lengths = np.asarray(lengths, np.uint16)
        packed = pack_epoch(lengths, Packing(tokens, segments, window), seed=3, epoch=2)
        assert as_lists(packed) == by_the_book(lengths.tolist(), Packing(tokens, segments, window), 3, 2)


LENGTHS = np.random.default_rng(0).integers(3, 65, 500).astype(np.uint16)


def test_every_example_is_read_once_an_epoch():
    order = PackedOrder(LENGTHS, Packing(64, 8, 100), seed=3)
    end, seen = 0, []
    for epoch in range(3):
        rows = order.rows_of_epoch(epoch)
        table = order.rows(end, end + rows)
        assert sorted(table[table >= 0]) == list(range(500))
        assert (LENGTHS[table] * (table >= 0)).sum(axis=1).max() <= 64
        seen.append(table)
        end += rows
    assert as_lists(pack_epoch(LENGTHS, order.packing, 3, 0)) != as_lists(pack_epoch(LENGTHS, order.packing, 3, 1))
    # Batches run over the ends of epochs, and begin anywhere.
    whole = np.concatenate(seen)
    for batch in (0, 17, len(whole) // 16 - 1):
        fresh = PackedOrder(LENGTHS, Packing(64, 8, 100), seed=3)
        np.testing.assert_array_equal(fresh.rows(16 * batch, 16 * batch + 16), whole[16 * batch : 16 * batch + 16])
    assert (PackedOrder(LENGTHS, order.packing, seed=4).rows(0, 16) != whole[:16]).any()


def test_lengths_are_those_of_the_masks(tmp_path, sample_corpus):
    make_shards(tmp_path, sample_corpus)
    examples = ShardedExamples(DataFolder.open(tmp_path / "shards").splits["train"], 32, 600)
    np.testing.assert_array_equal(examples.lengths(), examples.read(range(len(examples)))[:, 1].sum(axis=1))
    with pytest.raises(UserError, match="has 32 values, but data.max_seq_length=64"):
        ShardedExamples(DataFolder.open(tmp_path / "shards").splits["train"], 64, 600).lengths()


def test_lengths_of_another_writers_records_and_of_an_empty_shard(tmp_path):
    """Features that are not packed, and one more than the three; a shard of no bytes between two."""
    from electra_flax.data.example import encode_example

    def other(used):
        ones = b"".join(b"\x08" + bytes([number < used]) for number in range(4))

        def field(tag, content):
            return bytes([tag, len(content)]) + content

        def entry(name):
            return field(0x0A, field(0x0A, name) + field(0x12, field(0x1A, ones)))

        return field(0x0A, b"".join(map(entry, (b"input_ids", b"more", b"input_mask", b"segment_ids"))))

    paths = []
    for name, records in (("a", [encode_example([2, 9, 3], 3, 4), other(2)]), ("b", []), ("c", [other(4)] * 2)):
        writer = ShardWriter(tmp_path / name)
        for record in records:
            writer.write(frame(record))
        writer.close()
        paths.append(tmp_path / name)
    np.testing.assert_array_equal(ShardedExamples(paths, 4, 600).lengths(), [3, 2, 4, 4])


@pytest.mark.slow
def test_ten_million_examples_take_seconds():
    import time

    random = np.random.default_rng(0)
    lengths = np.where(random.random(10_000_000) < 0.45, 512, random.integers(5, 513, 10_000_000)).astype(np.uint16)
    packing.pack_epoch(lengths[:2000], Packing(512, 8, 1024), 0, 0)  # compiled
    begin = time.perf_counter()
    packed = packing.pack_epoch(lengths, Packing(512, 8, 1024), 0, 0)
    assert time.perf_counter() - begin < 10
    assert lengths.sum() / 512 / len(packed) > 0.98


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_every_example_is_read_once_an_epoch_by_any_number_of_processes(
    processes, tmp_path, sample_corpus, monkeypatch
):
    """And each row is made of what the shards hold, in the same batch for all of them."""
    make_shards(tmp_path, sample_corpus)
    examples = ShardedExamples(DataFolder.open(tmp_path / "shards").splits["train"], 32, 600)
    config = tiny_config(data={"packing": "best_fit"}, packing={"window": 64})
    packed = pipeline.pack(config, examples, unit=8)
    assert packed.share < 0.97 and packed.rows % 8 == 0
    rows = packed.order.rows_of_epoch(0)
    monkeypatch.setattr(pipeline, "global_batch", lambda mesh, size, rows, arrays: arrays)
    read, seen = [], []
    for process in range(processes):
        held = np.arange(packed.rows).reshape(processes, -1)[process]
        monkeypatch.setattr(pipeline, "rows_of_process", lambda mesh, size, held=held: held)
        batches = pipeline.packed_batches(config, packed, None, 0)
        for number in range(-(-rows // packed.rows)):
            arrays = next(batches)
            inside = number * packed.rows + held < rows  # the last batch has rows of the next epoch
            for row in np.flatnonzero(inside):
                for segment in range(1, arrays["segments"][row].max() + 1):
                    at, example = arrays["segments"][row] == segment, int(arrays["examples"][row, segment - 1])
                    seen.append(example)
                    ids, mask, types = examples.read([example])[0]
                    for name, expected in (("input_ids", ids), ("token_type_ids", types)):
                        np.testing.assert_array_equal(arrays[name][row, at], expected[mask == 1])
                    np.testing.assert_array_equal(arrays["places"][row, at], np.arange(mask.sum()))
            np.testing.assert_array_equal(arrays["attention_mask"], arrays["segments"] > 0)
            read.append((number, held.tolist(), arrays["input_ids"].tolist()))
    assert sorted(seen) == list(range(len(examples)))
    again = pipeline.packed_batches(config, packed, None, 2)
    np.testing.assert_array_equal(next(again)["input_ids"], read[-1 - (len(read) // processes - 1) + 2][2])


class OfLengths:
    def __init__(self, lengths):
        self._lengths = np.asarray(lengths, np.int32)

    def lengths(self):
        return self._lengths


@pytest.mark.parametrize(("unit", "rows", "said"), [(1, 8, None), (16, 16, "a step has 2.00 times the tokens")])
def test_rows_that_devices_cannot_share_evenly_are_said(caplog, unit, rows, said):
    config = tiny_config(data={"packing": "best_fit"}, training={"batch_size": 16})
    packed = pipeline.pack(config, OfLengths([config.data.max_seq_length // 2] * 64), unit)
    assert packed.rows == rows and (said or "") in caplog.text and bool(caplog.text) == bool(said)


def test_rows_a_step_keep_the_tokens_of_the_recipe():
    tokens, rows = PackingConfig(), PackingConfig(batch="rows")
    assert tokens.rows_a_step(256, 0.668, 8) == 168 and rows.rows_a_step(256, 0.668, 8) == 256
    assert tokens.rows_a_step(8, 0.3, 8) == 8
