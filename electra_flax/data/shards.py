"""A folder of shards, and random access to its examples.

A shard is a TFRecord file (tfrecord.py) of examples (example.py). Needs numpy, numba and google-crc32c: neither
TensorFlow nor JAX.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from electra_flax.data.decoder import decode_records, record_lengths
from electra_flax.data.example import FEATURES, decode_example
from electra_flax.data.manifest import Manifest
from electra_flax.data.tfrecord import Shard
from electra_flax.errors import UserError
from electra_flax.files import remembered
from electra_flax.runtime.console import progress

_ORIGINAL_NAME = re.compile(r"pretrain_data\.tfrecord-(\d+)-of-(\d+)$")


class DataFolder(NamedTuple):
    """A folder of shards; `manifest` and `vocab_path` are None for one made by the original code."""

    path: Path
    splits: dict[str, list[Path]]
    manifest: Manifest | None
    vocab_path: Path | None

    @classmethod
    def open(cls, path: Path, without: str | None = None) -> DataFolder:
        """Find the shards, but for those of the split `without`.

        Raises UserError where there are none or the manifest names absent ones.
        """
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; electra-data shard --out {path} makes one")
        if (path / "manifest.json").exists():
            manifest = Manifest.read(path)
            splits = {
                name: [path / shard.file for shard in shards]
                for name, shards in manifest.splits.items()
                if name != without
            }
            if absent := [file.name for files in splits.values() for file in files if not file.exists()]:
                raise UserError(
                    f"{path}: manifest.json names {len(absent)} shards that are not there, the first {absent[0]}: "
                    "copy them, or make the shards again with electra-data shard"
                )
            return cls(path, splits, manifest, path / "vocab.txt")
        originals = sorted(
            (int(match[1]), file) for file in path.iterdir() if (match := _ORIGINAL_NAME.match(file.name))
        )
        if not originals:
            raise UserError(
                f"{path}: neither manifest.json nor pretrain_data.tfrecord-*-of-* there; "
                "a text becomes shards by electra-data shard --corpus TEXT --out DIR, and DIR is what --data takes"
            )
        return cls(path, {"train": [file for _, file in originals]}, None, None)


class ShardedExamples:
    """Random access to the examples of several shards as if they were one list."""

    def __init__(self, paths: Sequence[Path], max_seq_length: int, vocab_size: int) -> None:
        self.shards = [Shard(path) for path in paths]
        self._max_seq_length = max_seq_length
        self._vocab_size = vocab_size
        self._ends = list(itertools.accumulate(len(shard) for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, numbers: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return examples by number, int32 [len(numbers), 3, max_seq_length].

        Raises UserError for what cannot train.
        """
        places = []
        for number in np.asarray(numbers).tolist():
            shard_number = bisect.bisect_right(self._ends, number)
            shard = self.shards[shard_number]
            places.append((shard, number - self._ends[shard_number] + len(shard)))
        records = [shard.framed(record) for shard, record in places]
        examples = np.empty((len(records), len(FEATURES), self._max_seq_length), dtype=np.int32)
        ends = np.cumsum([len(record) for record in records], dtype=np.int64)
        if decode_records(np.frombuffer(b"".join(records), np.uint8), ends, examples) >= 0:
            # Damage, or another writer's form: the plain decoder knows all forms, and says what is wrong.
            for row, (shard, record) in zip(examples, places, strict=True):
                row[:] = decode_example(shard[record], self._max_seq_length, f"{shard.path}: record {record}")
        # A gather clamps silently: an id beyond the table would train as the table's last row.
        largest = examples[:, 0].max(axis=1)
        if (largest >= self._vocab_size).any():
            shard, record = places[int(largest.argmax())]
            raise UserError(
                f"{shard.path}: record {record} holds token id {largest.max()}, but model.vocab_size="
                f"{self._vocab_size}: these shards were made with another vocabulary"
            )
        return examples

    def lengths(self) -> np.ndarray:
        """Return the tokens of every example, int32 [examples]: a pass over the masks, whose CRCs are not checked.

        Raises UserError for what is no example of this length.
        """
        return np.concatenate([np.empty(0, np.int32), *map(self._lengths_of, self.shards)])

    def _lengths_of(self, shard: Shard) -> np.ndarray:
        found, done = np.empty(len(shard), np.int32), 0
        while (bad := record_lengths(shard.octets, shard.offsets[done:], found[done:], self._max_seq_length)) >= 0:
            # As above: damage, or another writer's form.
            done += bad
            mask = decode_example(shard[done], self._max_seq_length, f"{shard.path}: record {done}")[1]
            found[done] = np.flatnonzero(mask)[-1] + 1 if mask.any() else 0
            done += 1
        return found


def verify_shards(shards: Sequence[Shard], memory: Path | None) -> None:
    """Check the CRC32C of all records, so that damage shows before training and not on day three.

    `memory` remembers those already checked (files.remembered). Raises UserError naming the damaged shard and record.
    """
    with remembered([shard.path for shard in shards], memory) as unknown:
        todo = [shard for shard in shards if shard.path in unknown]
        total = sum(len(shard) for shard in todo)
        with progress(total, "checking shards", "examples", enabled=total >= 100_000) as bar:
            for shard in todo:
                for number in range(len(shard)):
                    shard[number]
                bar.update(len(shard))
