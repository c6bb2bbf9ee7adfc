"""Encode and decode a training example: a `tf.train.Example` of three int64 lists of max_seq_length values.

The lists are `input_ids`, `input_mask` and `segment_ids` (docs/semantics.md, section 2): the original's shards train
here, ours there. Needs numpy and protobuf: neither TensorFlow nor JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from electra_flax.data.protobuf import message_classes
from electra_flax.errors import UserError

FEATURES = ("input_ids", "input_mask", "segment_ids")

_CLASSES = message_classes({
    "Int64List": {"value": (1, "repeated int64")},
    "Feature": {"int64_list": (3, "Int64List")},
    "Entry": {"key": (1, "bytes"), "value": (2, "Feature")},  # as a map's entries are written
    "Features": {"feature": (1, "repeated Entry")},
    "Example": {"features": (1, "Features")},
})  # fmt: skip
_Example, _Entry = _CLASSES["Example"], _CLASSES["Entry"]


def encode_example(token_ids: Sequence[int], num_first: int, max_seq_length: int) -> bytes:
    """Return a tf.train.Example's bytes of token ids, zero-padded; the first `num_first` are segment 0."""
    used = len(token_ids)
    example = _Example()
    features = example.features.feature
    ids = features.add(key=b"input_ids").value.int64_list.value
    ids.extend(token_ids)
    ids.extend([0] * (max_seq_length - used))
    features.append(_ones_entry("input_mask", 0, used, max_seq_length))
    features.append(_ones_entry("segment_ids", num_first, used, max_seq_length))
    packed: bytes = example.SerializeToString()
    return packed


@functools.lru_cache(1 << 16)
def _ones_entry(name: str, start: int, end: int, length: int) -> Any:
    """Return a feature that is 1 from `start` to `end` and 0 elsewhere. Many examples have the same."""
    entry = _Entry(key=name.encode())
    entry.value.int64_list.value.extend([0] * start + [1] * (end - start) + [0] * (length - end))
    return entry


def decode_example(payload: bytes, max_seq_length: int, where: str) -> np.ndarray:
    """Return int32 [3, max_seq_length], in the order of FEATURES, of the bytes of a tf.train.Example.

    `where` is named in errors. Raises UserError when a feature is missing or of another length, or holds what is no id.
    """
    try:
        found = _Example.FromString(payload).features.feature
    except DecodeError:
        raise UserError(f"{where}: not a tf.train.Example: shards are made by electra-data shard") from None
    lists = {entry.key.decode(errors="replace"): entry.value.int64_list.value for entry in found}
    rows = np.empty((len(FEATURES), max_seq_length), dtype=np.int32)
    for row, name in zip(rows, FEATURES, strict=True):
        if name not in lists:
            raise UserError(f"{where}: holds {sorted(lists)}, expected the features {list(FEATURES)}")
        values = np.asarray(lists[name], np.int64)
        if len(values) != max_seq_length:
            raise UserError(
                f"{where}: {name} has {len(values)} values, but data.max_seq_length={max_seq_length}: set "
                f"data.max_seq_length to {len(values)} or make shards with --max-seq-length {max_seq_length}"
            )
        if (values >> 31).any():
            raise UserError(f"{where}: {name} holds {values[values >> 31 != 0][0]}, expected a token id")
        row[:] = values
    return rows
