"""Shards -> deterministic, per-process, resumable global batches.

The order is a shuffle of all examples, drawn anew each epoch; global batch k is entry k of an endless list, so the
position of the input is the number of steps made. A process reads only the rows that its devices hold, and each row's
place in the global batch is the same for any number of processes and any order of their devices.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import grain
import numpy as np
from jax.sharding import Mesh

from electra_flax.config.schema import Config
from electra_flax.data.corrupted import More, no_more
from electra_flax.data.order import GlobalOrder
from electra_flax.data.packing import ROW_ARRAYS, PackedOrder, Packing, fill_rows
from electra_flax.data.shards import DataFolder, ShardedExamples
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import Refusals, UserError
from electra_flax.model.sharding import global_batch, rows_of_process
from electra_flax.trees import Batch

log = logging.getLogger("electra_flax")

_TOKENS_OFF = 0.05
"""From how much more or less than the recipe's tokens a step has, rounded to whole rows of devices, it is said."""

_PREFETCH = 8  # batches decoded ahead
_ENDLESS = 1 << 40  # batches


def read_vocabulary(config: Config, data: DataFolder) -> Vocabulary:
    """Return the vocabulary of the shards.

    Raises UserError where length or vocabulary differ from the configuration.
    """
    vocabulary = find_vocabulary(config, data)
    check_vocabulary(config, data, vocabulary, Refusals())
    return vocabulary


def find_vocabulary(config: Config, data: DataFolder) -> Vocabulary:
    """Return the vocabulary of the shards, unchecked."""
    if data.manifest is None and config.data.vocab_file is None:
        raise UserError(
            f"{data.path} has no manifest.json (shards of the original code): name their vocabulary with "
            "--data.vocab_file PATH"
        )
    return Vocabulary.read(data.vocab_path or Path(str(config.data.vocab_file)))


def check_vocabulary(
    config: Config, data: DataFolder, vocabulary: Vocabulary, refusals: Refusals, name: str = ""
) -> None:
    """Refuse shards and vocabulary that are not those of the configuration, or not of each other."""
    path, manifest, size = vocabulary.path, data.manifest, len(vocabulary.tokens)
    with refusals.each(name):
        vocabulary.special  # noqa: B018 refuses what is no vocabulary for ELECTRA
    with refusals.each(name):
        if size != config.model.vocab_size:
            raise UserError(
                f"model.vocab_size={config.model.vocab_size}, but {path} has {size} entries: set model.vocab_size to "
                f"{size}, or make shards with a vocabulary of {config.model.vocab_size} (electra-data shard --vocab; "
                "with --init-from that of the model)"
            )
    with refusals.each(name):
        if config.masking.unit != "token" and not vocabulary.continuations:
            raise UserError(
                f"masking.unit={config.masking.unit}: {path} has no entry that begins with ##, so that each token is a "
                "word: set masking.unit=token"
            )
    if manifest is None:
        return
    with refusals.each(name):
        if manifest.max_seq_length != config.data.max_seq_length:
            raise UserError(
                f"data.max_seq_length={config.data.max_seq_length}, but the shards in {data.path} have "
                f"{manifest.max_seq_length} tokens per example: set data.max_seq_length to "
                f"{manifest.max_seq_length}, or make shards with --max-seq-length {config.data.max_seq_length}"
            )
    with refusals.each(name):
        if manifest.vocab_sha256 != vocabulary.sha256:
            raise UserError(
                f"{path} is not the vocabulary of these shards: its sha256 is {vocabulary.sha256[:12]}..., "
                f"manifest.json says {manifest.vocab_sha256[:12]}...: put the right vocab.txt back"
            )


def open_split(config: Config, data: DataFolder, split: str) -> ShardedExamples:
    """Return the examples of a split. Raises UserError where a shard is truncated or the first record does not fit."""
    examples = ShardedExamples(data.splits.get(split, []), config.data.max_seq_length, config.model.vocab_size)
    if len(examples):
        examples.read([0])
    return examples


def training_batches(
    config: Config, examples: ShardedExamples, mesh: Mesh, start: int, more: More = no_more
) -> Iterator[Batch]:
    """Yield endless global batches from number `start` on: int32 arrays [batch_size, max_seq_length] on the mesh.

    And what there is `more` of each.
    """
    order = GlobalOrder(len(examples), config.training.batch_size, config.data.shuffle_seed)
    rows = rows_of_process(mesh, config.training.batch_size)

    def make(number: int) -> Batch:
        chosen = order.batch(number)[rows]
        return _to_devices(examples.read(chosen), rows, mesh, config.training.batch_size, more(number))

    return _endless(config, make, start)


def packed_batches(config: Config, packed: Packed, mesh: Mesh, start: int, more: More = no_more) -> Iterator[Batch]:
    """Yield the same of packed rows, [packed.rows, max_seq_length]: ROW_ARRAYS, and "examples" [packed.rows, S].

    Those are the numbers of each row's examples, of which randomness is a function.
    """
    size = packed.rows
    rows = rows_of_process(mesh, size)

    def make(number: int) -> Batch:
        table_RS = packed.order.rows(number * size, (number + 1) * size)[rows]
        chosen = table_RS[table_RS >= 0]
        arrays = np.empty((len(ROW_ARRAYS), len(rows), config.data.max_seq_length), np.int32)
        fill_rows(packed.examples.read(chosen), packed.lengths[chosen], table_RS, arrays)
        named = dict(zip(ROW_ARRAYS, arrays, strict=True))
        named["examples"] = np.maximum(table_RS, 0).astype(np.uint32).view(np.int32)
        return global_batch(mesh, size, rows, named | _of_rows(more(number), rows))

    return _endless(config, make, start)


def _endless(config: Config, make: Callable[[int], Batch], start: int) -> Iterator[Batch]:
    """Yield what `make` makes of a batch's number, from `start` on, read ahead in threads."""
    options = grain.ReadOptions(num_threads=config.data.read_threads, prefetch_buffer_size=_PREFETCH)
    batches = grain.MapDataset.range(_ENDLESS).map(make)
    # A batch is a function of its number alone, so going on from one is no matter of skipping those before it.
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    batches_on_devices: Iterator[Batch] = iterator
    return batches_on_devices


class Packed(NamedTuple):
    """Training examples, several a row."""

    examples: ShardedExamples
    lengths: np.ndarray
    order: PackedOrder
    rows: int
    """Of a global batch."""
    share: float
    """Rows of an epoch over its examples."""
    fill: float
    """Tokens of an epoch over the places of its rows."""


def pack(config: Config, examples: ShardedExamples, unit: int, size: int | None = None) -> Packed:
    """Return the examples in rows, `size` a step, or so many as config.packing says: a multiple of `unit`.

    Reads the length of every example.
    """
    lengths = examples.lengths()
    settings = config.packing
    packing = Packing(config.data.max_seq_length, settings.segments, settings.window)
    order = PackedOrder(lengths, packing, config.data.shuffle_seed)
    rows = order.rows_of_epoch(0)
    batch_size = config.training.batch_size
    size = size or settings.rows_a_step(batch_size, rows / len(lengths), unit)
    times = size * len(lengths) / (rows * batch_size)
    if settings.batch == "tokens" and abs(times - 1) > _TOKENS_OFF:
        log.warning(
            "packed: a step has %.2f times the tokens of training.batch_size=%d examples, because its %d rows are a "
            "multiple of %d (devices x accumulation steps): closer with fewer accumulation steps or a larger batch",
            times, batch_size, size, unit,
        )  # fmt: skip
    return Packed(examples, lengths, order, size, rows / len(lengths), int(lengths.sum()) / (rows * packing.tokens))


class Rows(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return int32 [len(numbers), 3, max_seq_length]: input_ids, attention_mask, token_type_ids."""


def evaluation_batches(
    config: Config, examples: Rows, mesh: Mesh, max_batches: int, more: More = no_more
) -> Iterator[Batch]:
    """Yield the split in file order; the last batch is filled up with empty rows, which count for nothing."""
    batch_size = config.training.batch_size
    rows = rows_of_process(mesh, batch_size)
    for start in range(0, min(len(examples), max_batches * batch_size), batch_size):
        numbers = start + rows[rows < len(examples) - start]
        array = np.zeros((len(rows), 3, config.data.max_seq_length), np.int32)
        array[: len(numbers)] = examples.read(numbers)
        yield _to_devices(array, rows, mesh, batch_size, more(start // batch_size))


def _of_rows(more: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: array[rows] for name, array in more.items()}


def _to_devices(
    array: np.ndarray, rows: np.ndarray, mesh: Mesh, batch_size: int, more: Mapping[str, np.ndarray]
) -> Batch:
    """Return int32 [these rows, 3, T] as the model's inputs under Hugging Face's names, each in one piece."""
    features = np.ascontiguousarray(array.swapaxes(0, 1))
    names = ("input_ids", "attention_mask", "token_type_ids")
    return global_batch(mesh, batch_size, rows, dict(zip(names, features, strict=True)) | _of_rows(more, rows))
