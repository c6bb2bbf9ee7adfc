"""What a frozen generator sampled for every batch of a run, written ahead by `electra-flax corrupt`.

A folder of parts, numpy files of records, one a batch: the sampled ids, 2 bytes each where the vocabulary fits, and a
fingerprint of the batch's tokens and of the places that are replaced. The places themselves are a function of seed,
step and row, as in any run, so they are not kept; the fingerprint tells that they are still the same ones.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from electra_flax.errors import UserError
from electra_flax.files import read_bytes, read_json, remembered, write_whole
from electra_flax.runtime.console import progress

More = Callable[[int], Mapping[str, np.ndarray]]
"""A batch's number -> arrays of all its rows, beside what the shards have."""


def no_more(number: int) -> Mapping[str, np.ndarray]:
    """Return that the shards have all."""
    del number
    return {}


_VERSION = 1  # changes with what follows too
_PART_BYTES = 1 << 25  # what a killed process has to make again, and a thread checks at once
_MOST_BYTES = 1 << 33  # of a part of one batch that is larger
_MANIFEST, _EXPECTED = "manifest.json", "expected a folder that electra-flax corrupt wrote"
_AGAIN = "the same electra-flax corrupt writes it again"
GENERATOR, PACKED_ROWS = "generator sha256", "packed rows a step"


class Part(NamedTuple):
    """Batches from `first` up to `end`."""

    name: str
    first: int
    end: int


class Track(NamedTuple):
    """The batches of a phase, or those of its evaluations."""

    name: str
    batches: int
    rows: int
    columns: int
    vocab_size: int

    @property
    def record(self) -> np.dtype:
        kind = "<u2" if self.vocab_size <= 1 << 16 else "<u4"
        return np.dtype([("prints", "<u4", (2,)), ("ids", kind, (self.rows, self.columns))])

    @property
    def num_bytes(self) -> int:
        return self.batches * self.record.itemsize

    @property
    def length(self) -> int:
        """Return the batches of a part."""
        return max(1, _PART_BYTES // self.record.itemsize)

    def parts(self) -> list[Part]:
        starts = range(0, self.batches, self.length)
        return [
            Part(f"{self.name}-{number:05d}.npy", start, min(start + self.length, self.batches))
            for number, start in enumerate(starts)
        ]


@dataclass
class Written:
    """manifest.json of the folder."""

    depends_on: dict[str, str]
    """All that the samples are a function of."""
    source: str
    """What generator.frozen named; the same weights may lie elsewhere another time."""
    parts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each that is there: its size in bytes and its CRC-32."""
    format_version: int = _VERSION


class Corrupted:
    """A folder of samples: `given` as the user named it."""

    def __init__(self, folder: Path, given: str, written: Written) -> None:
        self._folder, self._given, self._written = folder, given, written
        self._open = functools.lru_cache(4)(self._map)

    @classmethod
    def open(cls, folder: Path, given: str) -> Corrupted:
        """Return what is there. Raises UserError where that is no such folder."""
        path = folder / _MANIFEST
        if not path.exists():
            raise UserError(f"{given}: no {_MANIFEST} there: {_EXPECTED}")
        written = read_json(path, Written, _EXPECTED)
        if written.format_version != _VERSION:
            raise UserError(
                f"{path}: format_version is {written.format_version}, this release reads {_VERSION}: write it again "
                "with electra-flax corrupt"
            )
        return cls(folder, given, written)

    @classmethod
    def begun(cls, folder: Path) -> Corrupted | None:
        """Return what a folder to write to holds, None where it holds nothing. Raises UserError for anything else."""
        given = f"--out {folder}"
        try:
            names = {path.name for path in folder.iterdir()} - {"lock"} if folder.exists() else set()
        except OSError as error:
            raise UserError(f"{given}: cannot be read as a folder ({error.strerror}): name another") from None
        if names and _MANIFEST not in names:
            raise UserError(f"{given}: holds something else: name a new folder")
        return cls.open(folder, given) if names else None

    @classmethod
    def begin(cls, folder: Path, depends_on: dict[str, str], source: str) -> Corrupted:
        """Return a folder to write to, which may hold parts of the same samples. Raises UserError for others.

        Nothing is written before the first part.
        """
        found = cls.begun(folder) or cls(folder, f"--out {folder}", Written(depends_on, source))
        found.check_same(depends_on, "name a new folder, or give what the first command had")
        return found

    @property
    def generator(self) -> str:
        """Return the sha256 of the generator's weights."""
        return self._written.depends_on.get(GENERATOR, "")

    @property
    def source(self) -> str:
        """Return what generator.frozen named when it was written."""
        return self._written.source

    @property
    def packed_rows(self) -> list[int]:
        """Return the rows a step of each phase, none where each example has its own."""
        return [int(rows) for rows in self._written.depends_on.get(PACKED_ROWS, "").split() if rows.isdecimal()]

    @property
    def digest(self) -> str:
        """Return what tells two folders of samples apart."""
        return hashlib.sha256(json.dumps(self._written.parts, sort_keys=True).encode()).hexdigest()

    def check_same(self, depends_on: Mapping[str, str], fix: str) -> None:
        """Raise UserError for the first thing in which a run differs from the one that was written for."""
        for name in [*depends_on, *(self._written.depends_on.keys() - depends_on.keys())]:
            theirs, ours = (each.get(name, "nothing") for each in (self._written.depends_on, depends_on))
            if theirs != ours:
                raise UserError(f"{self._given}: written with {name}={theirs}, this run has {ours}: {fix}")

    def check_written(self, tracks: Sequence[Track]) -> None:
        """Raise UserError where `electra-flax corrupt` has not come to the end."""
        parts = [part for track in tracks for part in track.parts()]
        missing = [part.name for part in parts if part.name not in self._written.parts]
        if missing:
            raise UserError(
                f"{self._given}: {len(parts) - len(missing)} of {len(parts)} parts are written: the same "
                "electra-flax corrupt goes on with it"
            )

    def verify(self, tracks: Sequence[Track], memory: Path | None) -> None:
        """Raise UserError where a part is missing, short or damaged.

        All are read but those that `memory` says were (files.remembered).
        """
        sizes = {self._folder / part.name: self._written.parts[part.name] for track in tracks for part in track.parts()}
        for path in sizes:
            if not path.is_file():
                raise UserError(f"{path}: missing: {_AGAIN}")
        with remembered(list(sizes), memory) as unknown:
            total = sum(sizes[path][0] for path in unknown)
            with progress(total, "checking samples", "B", enabled=total >= 1 << 30) as bar:
                for path in sorted(unknown):
                    size, checksum = sizes[path]
                    data = read_bytes(path, _MOST_BYTES)
                    if len(data) != size or zlib.crc32(data) != checksum:
                        raise UserError(
                            f"{path}: cut off or damaged ({len(data):,} bytes of {size:,}): remove it, and {_AGAIN}"
                        )
                    bar.update(size)

    def has(self, part: Part) -> bool:
        """Return whether a part was written, and is there."""
        return part.name in self._written.parts and (self._folder / part.name).is_file()

    def write(self, part: Part, records: np.ndarray) -> None:
        """Write a part whole, and that it is there."""
        content = io.BytesIO()
        np.save(content, records)
        data = content.getvalue()
        write_whole(self._folder / part.name, data)
        self._written.parts[part.name] = (len(data), zlib.crc32(data))
        write_whole(self._folder / _MANIFEST, json.dumps(dataclasses.asdict(self._written), indent=1) + "\n")

    def record(self, track: Track, number: int) -> np.void:
        """Return a batch's prints and ids; the last one's for any after it, which is read ahead and never used."""
        number = min(number, track.batches - 1)
        part, place = divmod(number, track.length)
        found: np.void = self._open(track.parts()[part].name)[place]
        return found

    def ids_of(self, track: Track) -> More:
        """Return what gives a batch its `sampled_ids`, int32 [rows, columns]."""
        return lambda number: {"sampled_ids": self.record(track, number)["ids"].astype(np.int32)}

    def _map(self, name: str) -> np.ndarray:
        found: np.ndarray = np.load(self._folder / name, mmap_mode="r", allow_pickle=False)
        return found
