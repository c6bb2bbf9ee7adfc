"""TFRecord files: framing with CRC32C, and random access by an index of offsets.

Beside each of our shards lies `<shard>.index`: the byte offset of every record and the file's size, as little-endian
uint64, which gives random access and shows a truncated file at once. Shards without one are scanned.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from electra_flax.errors import UserError
from electra_flax.files import check_file, read_bytes

_HEADER = struct.Struct("<QI")  # length of the payload, masked CRC32C of those 8 bytes
_FOOTER = struct.Struct("<I")  # masked CRC32C of the payload


def masked_crc(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """Return a payload as one TFRecord: length, its CRC, payload, its CRC."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _FOOTER.pack(masked_crc(length)), payload, _FOOTER.pack(masked_crc(payload))))


class Shard:
    """One TFRecord file with random access: `shard[i]` is record i's payload, CRC checked.

    Raises UserError for a truncated file, and on reading a record whose bytes have changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: np.ndarray | None = None
        self._bytes: mmap.mmap | bytes = b""
        if check_file(path):
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def offsets(self) -> np.ndarray:
        """Start of every record and the end of the last, int64 [records + 1]."""
        if self._offsets is None:
            index = index_path(self.path)
            self._offsets = self._read_index(index) if index.exists() else self._scan()
        return self._offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        data = self.framed(number)
        payload = data[12:-4]
        length, length_crc = _HEADER.unpack_from(data)
        (payload_crc,) = _FOOTER.unpack_from(data, len(data) - 4)
        if length != len(payload) or length_crc != masked_crc(data[:8]) or payload_crc != masked_crc(payload):
            raise UserError(
                f"{self.path}: record {number} at byte {self.offsets[number]} is damaged (its CRC32C does not match): "
                "copy this shard again from its source, or make the shards again with electra-data shard"
            )
        return payload

    @property
    def octets(self) -> np.ndarray:
        """All bytes of the file, uint8."""
        return np.frombuffer(self._bytes, np.uint8)

    def framed(self, number: int) -> bytes:
        """Return a record as `frame` made it, unchecked."""
        start, end = self.offsets[number : number + 2].tolist()
        return self._bytes[start:end]

    def _read_index(self, path: Path) -> np.ndarray:
        data = read_bytes(path)
        offsets = np.frombuffer(data[: len(data) // 8 * 8], dtype="<u8").astype(np.int64)
        if not len(offsets) or offsets[-1] != len(self._bytes):
            expected = f"{offsets[-1]:,}" if len(offsets) else "a whole index of"
            raise UserError(
                f"{self.path}: truncated or replaced: {len(self._bytes):,} bytes, expected {expected} bytes: "
                "copy it and its .index again, or make the shards again with electra-data shard"
            )
        if offsets[0] != 0 or (np.diff(offsets) < _HEADER.size + _FOOTER.size).any():
            raise UserError(
                f"{path}: damaged: its offsets are not those of records one after the other: copy it again, or remove "
                "it, and the shard is read without it"
            )
        return offsets

    def _scan(self) -> np.ndarray:
        """Walk the record headers: for shards without an index."""
        offsets, position, size = [0], 0, len(self._bytes)
        while position < size:
            header = self._bytes[position : position + 12]
            if len(header) == 12:
                length, crc = _HEADER.unpack(header)
                if crc != masked_crc(header[:8]):
                    raise UserError(
                        f"{self.path}: byte {position} does not begin a TFRecord: "
                        "not a TFRecord file, or a damaged one; copy it again"
                    )
                position += 12 + length + 4
            if len(header) < 12 or position > size:
                raise UserError(
                    f"{self.path}: truncated: ends at byte {size:,} in the middle of record {len(offsets) - 1}: "
                    "copy it again from its source"
                )
            offsets.append(position)
        return np.asarray(offsets, dtype=np.int64)


class ShardWriter:
    """Writes records made by `frame` to a TFRecord file and, on close, its index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("wb")
        self._offsets = [0]

    def write(self, record: bytes) -> None:
        self._file.write(record)
        self._offsets.append(self._offsets[-1] + len(record))

    def close(self) -> None:
        self._file.close()
        np.asarray(self._offsets, dtype="<u8").tofile(index_path(self.path))


def index_path(shard: Path) -> Path:
    """Return where the offsets of a shard's records lie."""
    return shard.with_name(shard.name + ".index")
