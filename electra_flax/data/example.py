"""Encode and decode a training example: a `tf.train.Example` of three int64 lists of max_seq_length values.

The lists are `input_ids`, `input_mask` and `segment_ids` (docs/semantics.md, section 2): the original's shards train
here, ours there. Needs numpy alone: neither TensorFlow nor JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from electra_flax.errors import UserError

FEATURES = ("input_ids", "input_mask", "segment_ids")


def encode_example(token_ids: Sequence[int], num_first: int, max_seq_length: int) -> bytes:
    """Token ids, of which the first `num_first` are segment 0 -> the bytes of a tf.train.Example, zero-padded."""
    used = len(token_ids)
    table = _varint_table()
    try:
        ids = b"".join([table[id_] for id_ in token_ids])
    except IndexError:  # a vocabulary beyond the table
        ids = b"".join(map(_varint, token_ids))
    ids += bytes(max_seq_length - used)
    return _field(
        1,
        _ids_head(len(ids)) + ids + _mask_entry(used, max_seq_length) + _segment_entry(num_first, used, max_seq_length),
    )


@functools.cache
def _ids_head(num_bytes: int) -> bytes:
    """What stands before so many bytes of ids in their entry."""
    return _entry("input_ids", bytes(num_bytes))[:-num_bytes]


@functools.cache
def _mask_entry(used: int, max_seq_length: int) -> bytes:
    return _entry("input_mask", b"\1" * used + bytes(max_seq_length - used))


@functools.lru_cache(1 << 16)
def _segment_entry(num_first: int, used: int, max_seq_length: int) -> bytes:
    values = bytes(num_first) + b"\1" * (used - num_first) + bytes(max_seq_length - used)
    return _entry("segment_ids", values)


def _entry(name: str, packed: bytes) -> bytes:
    """A feature's name and its int64 list, as the map entry of a tf.train.Example."""
    return _field(1, _field(1, name.encode()) + _field(2, _field(3, _field(1, packed))))


def decode_example(payload: bytes, max_seq_length: int, where: str) -> np.ndarray:
    """The bytes of a tf.train.Example -> int32 [3, max_seq_length] in the order of FEATURES.

    `where` is named in errors. Raises UserError when a feature is missing or of another length.
    """
    lists = dict(_feature_lists(payload))
    rows = np.empty((len(FEATURES), max_seq_length), dtype=np.int32)
    for row, name in zip(rows, FEATURES, strict=True):
        if name not in lists:
            raise UserError(f"{where}: holds {sorted(lists)}, expected the features {list(FEATURES)}")
        values = _from_varints(lists[name])
        if len(values) != max_seq_length:
            raise UserError(
                f"{where}: {name} has {len(values)} values, but data.max_seq_length={max_seq_length}: set "
                f"data.max_seq_length to {len(values)} or make shards with --max-seq-length {max_seq_length}"
            )
        row[:] = values
    return rows


@functools.cache
def _varint_table() -> list[bytes]:
    return [_varint(value) for value in range(1 << 16)]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, data: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return bytes((number << 3 | 2,)) + _varint(len(data)) + data


def _from_varints(data: bytes) -> np.ndarray:
    octets = np.frombuffer(data, dtype=np.uint8)
    last = octets < 0x80
    if last.all():
        return octets
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(octets)) - np.repeat(starts, np.diff(np.append(starts, len(octets))))
    return np.add.reduceat((octets & 0x7F).astype(np.int64) << (7 * place), starts)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of the length-delimited fields of a message; Example uses no other kind."""
    position = 0
    while position < len(data):
        tag = data[position]
        position, length, shift = position + 1, 0, 0
        while True:
            octet = data[position]
            position, length, shift = position + 1, length | (octet & 0x7F) << shift, shift + 7
            if octet < 0x80:
                break
        yield tag >> 3, data[position : position + length]
        position += length


def _feature_lists(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """(feature name, packed int64 values) of a tf.train.Example."""
    for _, features in _fields(payload):
        for _, entry in _fields(features):
            pair = dict(_fields(entry))
            int64_list = dict(_fields(pair.get(2, b""))).get(3, b"")
            yield pair.get(1, b"").decode(), dict(_fields(int64_list)).get(1, b"")
