"""Checkpoints of the original code, read and written without TensorFlow: TensorFlow's "tensor bundle" format.

`<prefix>.data-00000-of-00001` holds the tensors' bytes one after the other, `<prefix>.index` says where: a sorted
string table (LevelDB's format: blocks of entries whose keys share prefixes, an index block, a footer) of protocol
buffer messages, each with a tensor's type, shape, place and CRC32C. No maintained library reads it but TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError

from electra_flax.data.protobuf import message_classes
from electra_flax.data.tfrecord import masked_crc
from electra_flax.errors import UserError
from electra_flax.files import check_file

_MAGIC = 0xDB4775248B80FB57  # at the end of a table
_FOOTER_SIZE = 48
_BLOCK_SIZE = 4096
_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    3: np.dtype("<i4"),
    9: np.dtype("<i8"),
}  # numbers of TensorFlow's DataType


# tensorflow/core/protobuf/tensor_bundle.proto, as far as it is needed.
_CLASSES = message_classes({
    "Dim": {"size": (1, "uint64")},
    "Shape": {"dim": (2, "repeated Dim")},
    "Slice": {},
    "Version": {"producer": (1, "int32")},
    "Header": {"num_shards": (1, "uint32"), "endianness": (2, "uint32"), "version": (3, "Version")},
    "Entry": {
        "dtype": (1, "uint32"), "shape": (2, "Shape"), "shard": (3, "uint32"), "offset": (4, "uint64"),
        "size": (5, "uint64"), "crc32c": (6, "fixed32"), "slices": (7, "repeated Slice"),
    },
})  # fmt: skip
_Header, _Entry = _CLASSES["Header"], _CLASSES["Entry"]


class Tf1Checkpoint:
    """One checkpoint, opened by its prefix ("model.ckpt-200"); tensors are read one at a time, CRC checked.

    Raises UserError where there is none or it is damaged.
    """

    def __init__(self, prefix: Path) -> None:
        self._prefix = prefix
        index = prefix.with_name(prefix.name + ".index")
        try:
            check_file(index)
            table = dict(_read_table(index.read_bytes()))
            header = _Header.FromString(table.pop(b""))
            self._num_shards = header.num_shards
            assert header.num_shards and not header.endianness, "big-endian, or without shards"
            self._entries = {key.decode(): _entry(value) for key, value in table.items()}
        except OSError as error:
            raise UserError(
                f"{index}: cannot be read ({error.strerror}): name a TensorFlow checkpoint by its prefix, as in "
                "model.ckpt-1000000"
            ) from None
        except (AssertionError, KeyError, IndexError, ValueError, TypeError, struct.error, DecodeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{index}: not the index of a TensorFlow checkpoint, or damaged ({error}): copy it again"
            ) from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every variable, slots and counters included."""
        return {name: _shape(entry) for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """Return a variable, in its own type. Raises UserError where its bytes are not those that were written."""
        entry = self._entries[name]
        path = _data_path(self._prefix, entry.shard, self._num_shards)
        try:
            check_file(path)
            with path.open("rb") as file:
                file.seek(entry.offset)
                data = file.read(entry.size)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}): copy it beside its .index") from None
        if len(data) != entry.size or masked_crc(data) != entry.crc32c:
            problem = "cut off" if len(data) != entry.size else "its CRC32C does not match"
            raise UserError(f"{path}: {name} is damaged ({problem}): copy the checkpoint again")
        return np.frombuffer(data, _DTYPES[entry.dtype]).reshape(_shape(entry))


def write_tf1_checkpoint(
    prefix: Path, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]
) -> None:
    """Write variables, one at a time, and the `checkpoint` file that names the newest."""
    # The header stands under the empty key, which sorts before every name; endianness 0, left out, is little-endian.
    entries = [(b"", _Header(num_shards=1, version={"producer": 1}).SerializeToString())]
    offset = 0
    with _data_path(prefix, 0, 1).open("wb") as file:
        for name in sorted(shapes, key=str.encode):
            value = np.asarray(read(name))
            assert value.shape == shapes[name], name
            number = next(number for number, dtype in _DTYPES.items() if dtype == value.dtype)
            data = value.tobytes()
            file.write(data)
            shape = {"dim": [{"size": size} for size in value.shape]}
            entry = _Entry(dtype=number, shape=shape, offset=offset, size=value.nbytes, crc32c=masked_crc(data))
            entries.append((name.encode(), entry.SerializeToString()))
            offset += value.nbytes
    with prefix.with_name(prefix.name + ".index").open("wb") as file:
        _write_table(file, entries)
    line = f'model_checkpoint_path: "{prefix.name}"\nall_model_checkpoint_paths: "{prefix.name}"\n'
    prefix.with_name("checkpoint").write_text(line)


def _data_path(prefix: Path, shard: int, num_shards: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{num_shards:05d}")


def _entry(message: bytes) -> Any:
    found = _Entry.FromString(message)
    if found.dtype not in _DTYPES:
        raise ValueError(f"type {found.dtype} of TensorFlow is not among those of ELECTRA's variables")
    if found.slices:
        raise ValueError("a variable is in slices")
    return found


def _shape(entry: Any) -> tuple[int, ...]:
    return tuple(dim.size for dim in entry.shape.dim)


# ------------------------------------------------------------------------------------------------ sorted string table


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every key and value. Raises ValueError and IndexError where the bytes are no table."""
    if len(data) < _FOOTER_SIZE or struct.unpack("<Q", data[-8:])[0] != _MAGIC:
        raise ValueError("it does not end as a table does")
    # A handle is where a block lies: offset and size, without the five bytes of compression and CRC behind it.
    handles, position = data[-_FOOTER_SIZE:], 0
    numbers = []
    for _ in range(4):  # offset and size of the block of metadata, and of the index
        number, position = _read_varint(handles, position)
        numbers.append(number)
    for _, handle in _read_block(data, numbers[2], numbers[3]):
        offset, position = _read_varint(handle, 0)
        size, _ = _read_varint(handle, position)
        yield from _read_block(data, offset, size)


def _read_block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    block, (compression, crc) = data[offset : offset + size], struct.unpack_from("<BI", data, offset + size)
    if masked_crc(data[offset : offset + size + 1]) != crc:
        raise ValueError("the CRC32C of a block does not match")
    if compression:
        raise ValueError("it is compressed, which no TensorFlow since 1.2 does")
    # A key is what it shares with the one before it, by length, and the rest. Restarts, where a key shares nothing,
    # are listed at the block's end for binary search; read from the beginning, they are only skipped.
    (num_restarts,) = struct.unpack_from("<I", block, size - 4)
    position, end, key = 0, size - 4 * (num_restarts + 1), b""
    while position < end:
        shared, position = _read_varint(block, position)
        unshared, position = _read_varint(block, position)
        length, position = _read_varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length


def _write_table(file: BinaryIO, entries: list[tuple[bytes, bytes]]) -> None:
    """Write a table of entries sorted by key."""
    handles: list[tuple[bytes, bytes]] = []
    block: list[tuple[bytes, bytes]] = []
    for number, (key, value) in enumerate(entries):
        block.append((key, value))
        is_full = sum(len(key) + len(value) for key, value in block) >= _BLOCK_SIZE
        if is_full or number == len(entries) - 1:
            # The index names each block by its last key: a search takes the first name that is not less.
            handles.append((key, _write_block(file, block)))
            block = []
    metadata, index = _write_block(file, []), _write_block(file, handles)
    file.write((metadata + index).ljust(_FOOTER_SIZE - 8, b"\0") + struct.pack("<Q", _MAGIC))


def _write_block(file: BinaryIO, entries: list[tuple[bytes, bytes]]) -> bytes:
    """Write a block; return where it lies, as the index says it."""
    offset, restarts, data = file.tell(), [], b""
    for key, value in entries:
        # Every key is a restart: no prefix to look for, and the index of a few hundred names is small anyway.
        restarts.append(len(data))
        data += _varint(0) + _varint(len(key)) + _varint(len(value)) + key + value
    restarts = restarts or [0]  # as LevelDB's writer begins every block, one without entries too
    data += struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))
    uncompressed = data + b"\0"  # the kind of compression, which the CRC covers too
    file.write(uncompressed + struct.pack("<I", masked_crc(uncompressed)))
    return _varint(offset) + _varint(len(data))


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
