"""TFRecords of a batch -> one array, compiled; example.py has the plain form, which also explains errors."""

from __future__ import annotations

import numpy as np

from electra_flax.runtime.compiled import compiled

_NAMES = np.zeros((3, 11), np.uint8)
_LENGTHS = np.zeros(3, np.int64)
for _row, _name in enumerate((b"input_ids", b"input_mask", b"segment_ids")):
    _NAMES[_row, : len(_name)] = np.frombuffer(_name, np.uint8)
    _LENGTHS[_row] = len(_name)
# An Example is Features, a map: entries of a name and a Feature, which holds a packed list of varints. As its writers
# nest it, each level is one field, so that a field's tag and length are all there is to read between the numbers.
_NESTED = 0x0A  # field 1, length-delimited: the only kind that an Example of packed lists holds, but two
_VALUE = 0x12  # field 2 of a map's entry
_INT64_LIST = 0x1A  # field 3 of a Feature


@compiled
def _varint(data, position):  # type: ignore[no-untyped-def]
    """Return a number, or -1 where it does not end, and where it ends."""
    value, shift = np.int64(0), 0
    while position < len(data):
        octet = np.int64(data[position])
        position += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, position
        shift += 7
    return np.int64(-1), position


@compiled
def _enter(data, position, end, tag):  # type: ignore[no-untyped-def]
    """Return start and end of the field at `position`, or -1 where it has another tag or runs over `end`."""
    if position >= end or data[position] != tag:
        return np.int64(-1), end
    length, start = _varint(data, position + 1)
    return (start, start + length) if 0 <= length <= end - start else (np.int64(-1), end)


@compiled
def _name_of(data, start, end):  # type: ignore[no-untyped-def]
    for row in range(3):
        if end - start == _LENGTHS[row]:
            same = True
            for i in range(end - start):
                same &= data[start + i] == _NAMES[row, i]
            if same:
                return row
    return -1


@compiled
def _enter_feature(data, position, end):  # type: ignore[no-untyped-def]
    """Return which of the three features an entry of the map is (-1: another), where its packed list begins and ends,
    and where the entry does. The list begins at -1 where it is nested in another way.
    """
    entry, entry_end = _enter(data, position, end, _NESTED)
    if entry < 0:
        return -1, entry, entry_end, entry_end
    name, name_end = _enter(data, entry, entry_end, _NESTED)
    feature, feature_end = _enter(data, name_end, entry_end, _VALUE)
    values, values_end = _enter(data, feature, feature_end, _INT64_LIST)
    packed, packed_end = _enter(data, values, values_end, _NESTED)
    if name < 0 or feature < 0 or values < 0 or packed < 0:
        return -1, np.int64(-1), packed_end, entry_end
    return _name_of(data, name, name_end), packed, packed_end, entry_end


def _crc_tables() -> np.ndarray:
    """Return what a byte does to a CRC32C when 0 to 7 more follow it, uint32 [8, 256]."""
    tables = np.zeros((8, 256), np.uint32)
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):  # bit by bit: division by CRC32C's polynomial, its bits in reverse order
        values = np.where(values & 1, values >> 1 ^ np.uint32(0x82F63B78), values >> 1)
    tables[0] = values
    for more in range(1, 8):
        tables[more] = tables[more - 1] >> 8 ^ tables[0][tables[more - 1] & 255]
    return tables


_CRC = _crc_tables()


@compiled
def _little_endian(data, start):  # type: ignore[no-untyped-def]
    value = np.uint64(0)
    for i in range(4):
        value |= np.uint64(data[start + i]) << np.uint64(8 * i)
    return value


@compiled
def masked_crc(data, start, end):  # type: ignore[no-untyped-def]
    """Return TFRecord's masked CRC32C of data[start:end], as uint64 (numba widens all arithmetic)."""
    # Byte by byte, each look-up waits for the one before it. Eight bytes at a time ("slicing by 8"), each has a table
    # of its own, which knows how many bytes follow it, and none waits; only the first four meet the CRC so far.
    crc = np.uint64(0xFFFFFFFF)
    i = start
    while i + 8 <= end:
        low = crc ^ _little_endian(data, i)
        crc = np.uint64(
            _CRC[7, low & 255] ^ _CRC[6, low >> 8 & 255] ^ _CRC[5, low >> 16 & 255] ^ _CRC[4, low >> 24]
            ^ _CRC[3, data[i + 4]] ^ _CRC[2, data[i + 5]] ^ _CRC[1, data[i + 6]] ^ _CRC[0, data[i + 7]]
        )  # fmt: skip
        i += 8
    while i < end:
        crc = np.uint64(_CRC[0, (crc ^ data[i]) & 255]) ^ crc >> np.uint64(8)
        i += 1
    crc ^= np.uint64(0xFFFFFFFF)
    rotated = crc >> np.uint64(15) | crc << np.uint64(17)
    return (rotated + np.uint64(0xA282EAD8)) & np.uint64(0xFFFFFFFF)


@compiled
def decode_records(data, ends, rows):  # type: ignore[no-untyped-def]
    """Fill `rows`, int32 [records, 3, T], from the TFRecords in `data`, uint8, of which number k ends at `ends[k]`.

    Returns the number of the first that is damaged, or not three packed lists of T values in the usual nesting, or -1.
    """
    start = np.int64(0)
    for number in range(len(ends)):
        begin, end = start + 12, ends[number] - 4
        length = np.int64(_little_endian(data, start) | _little_endian(data, start + 4) << np.uint64(32))
        if (
            length != end - begin
            or masked_crc(data, start, start + 8) != _little_endian(data, start + 8)
            or masked_crc(data, begin, end) != _little_endian(data, end)
        ):
            return number
        position, features_end = _enter(data, begin, end, _NESTED)
        found = 0
        while 0 <= position < features_end:
            row, packed, packed_end, position = _enter_feature(data, position, features_end)
            if packed < 0:
                return number
            if row >= 0:  # others' features are passed over
                count = 0
                while packed < packed_end:
                    value, packed = _varint(data, packed)
                    if count == rows.shape[2] or packed > packed_end or not 0 <= value < 1 << 31:
                        return number
                    rows[number, row, count] = value
                    count += 1
                if count != rows.shape[2]:
                    return number
                found |= 1 << row
        if found != 7 or features_end != end:
            return number
        start = ends[number]
    return -1


@compiled
def record_lengths(data, offsets, lengths, tokens):  # type: ignore[no-untyped-def]
    """Fill `lengths` with the place after the last token of each record of a shard, whose offsets are given.

    Checks no CRC. Returns the number of the first record whose mask is not a packed list of `tokens` small numbers in
    the usual nesting, or -1.
    """
    for number in range(len(lengths)):
        begin, end = offsets[number] + 12, offsets[number + 1] - 4
        position, features_end = _enter(data, begin, end, _NESTED)
        length = np.int64(-1)
        while 0 <= position < features_end and length < 0:
            row, packed, packed_end, position = _enter_feature(data, position, features_end)
            if packed < 0 or (row == 1 and packed_end - packed != tokens):
                return number
            if row == 1:
                length = packed_end - packed
                while length > 0 and data[packed + length - 1] == 0:
                    length -= 1
        if length < 0:
            return number
        lengths[number] = length
    return -1
