"""Several examples in one row: which, by best fit, as a function of their lengths, a seed and the epoch alone.

An epoch's order of examples is that without packing (order.py). It is cut into windows. In a window the longest example
goes first, each into the row with the least room that still takes it; rows then follow each other as the first of their
examples do, and windows as in the order. So rows of an epoch are found without anything that a run must remember, each
example is in one of them, and a batch is as random as the order is. Needs numpy and numba, no JAX.

Array names: N examples, W examples of a window, R rows, S examples of a row.
"""

from __future__ import annotations

import bisect
import functools
import threading
from typing import NamedTuple

import numpy as np

from electra_flax.data.order import shuffled
from electra_flax.runtime.compiled import compiled

LEAST_LENGTH = 3
"""[CLS], a token, [SEP]: a shorter example takes the room of one, which bounds how many tokens of a row are masked."""


ROW_ARRAYS = ("input_ids", "attention_mask", "token_type_ids", "segments", "places")
"""int32 [R, T] each; segments: 0 at padding, 1, 2 and so on in each example of the row; places: from 0 in each."""


class Packing(NamedTuple):
    """How rows are filled."""

    tokens: int
    """Of a row."""
    segments: int
    """Examples of a row at most."""
    window: int
    """Examples among which those of a row are chosen."""


class PackedRows(NamedTuple):
    """Rows after one another: row r holds `examples[starts[r] : starts[r + 1]]`."""

    examples: np.ndarray
    """uint32 [N]"""
    starts: np.ndarray
    """int64 [R + 1]"""

    def __len__(self) -> int:
        return len(self.starts) - 1


@compiled
def _longest_first(lengths_W, tokens, ranked_W):  # type: ignore[no-untyped-def]
    """Fill `ranked_W` with the places of a window, the longest first, of equals the earlier: a counting sort."""
    starts = np.zeros(tokens + 2, np.int64)
    for length in lengths_W:
        starts[tokens - length + 1] += 1
    for key in range(1, tokens + 2):
        starts[key] += starts[key - 1]
    for place in range(len(lengths_W)):
        key = tokens - lengths_W[place]
        ranked_W[starts[key]] = place
        starts[key] += 1


@compiled
def _join(row, room, first, last, after):  # type: ignore[no-untyped-def]
    """Put a row into the list of those with the same room, which is in the order in which they were opened."""
    if first[room] < 0 or first[room] > row:
        after[row] = first[room]
        first[room] = row
        if after[row] < 0:
            last[room] = row
        return
    before = last[room] if last[room] < row else first[room]  # nearly always at the end
    while 0 <= after[before] < row:
        before = after[before]
    after[row] = after[before]
    after[before] = row
    if after[row] < 0:
        last[room] = row


@compiled
def _best_fit(lengths_W, ranked_W, tokens, segments, row_W, count_R):  # type: ignore[no-untyped-def]
    """Fill `row_W` with the row of each ranked example, `count_R` with examples of a row; return how many rows."""
    first, last = np.full(tokens + 1, -1), np.full(tokens + 1, -1)  # of the list of rows with so much room
    after = np.empty(len(ranked_W), np.int64)
    rows = 0
    for k in range(len(ranked_W)):
        length = np.int64(lengths_W[ranked_W[k]])
        room = length
        while room <= tokens and first[room] < 0:
            room += 1
        if room > tokens:
            row, room = rows, tokens
            rows, count_R[row] = rows + 1, 0
        else:
            row = first[room]
            first[room] = after[row]
            if first[room] < 0:
                last[room] = -1
        row_W[k] = row
        count_R[row] += 1
        if count_R[row] < segments and room > length:
            _join(row, room - length, first, last, after)
    return rows


@compiled
def _write(order_W, ranked_W, row_W, count_R, rows, examples_W, ends_R):  # type: ignore[no-untyped-def]
    """Write rows by the first of their examples in the order, examples of a row as they were put there."""
    owner_R, next_R = np.full(rows, len(order_W)), np.empty(rows, np.int64)
    for k in range(len(order_W)):
        owner_R[row_W[k]] = min(owner_R[row_W[k]], ranked_W[k])
    owned_W = np.full(len(order_W), -1)
    for row in range(rows):
        owned_W[owner_R[row]] = row
    end, written = np.int64(0), 0
    for row in owned_W:
        if row >= 0:
            next_R[row] = end
            end += count_R[row]
            ends_R[written] = end
            written += 1
    for k in range(len(order_W)):
        examples_W[next_R[row_W[k]]] = order_W[ranked_W[k]]
        next_R[row_W[k]] += 1


@compiled
def _pack(order_N, lengths_N, tokens, segments, window, examples_N, starts_R):  # type: ignore[no-untyped-def]
    """Pack all windows; return the number of rows. `lengths_N` are those of the order."""
    ranked_W, row_W, count_R = np.empty((3, window), np.int64)
    rows = 0
    for begin in range(0, len(order_N), window):
        end = min(begin + window, len(order_N))
        size, lengths_W = end - begin, lengths_N[begin:end]
        _longest_first(lengths_W, tokens, ranked_W)
        found = _best_fit(lengths_W, ranked_W[:size], tokens, segments, row_W, count_R)
        ends_R = starts_R[rows + 1 : rows + 1 + found]
        _write(order_N[begin:end], ranked_W, row_W, count_R, found, examples_N[begin:end], ends_R)
        ends_R += begin
        rows += found
    return rows


def pack_epoch(lengths_N: np.ndarray, packing: Packing, seed: int, epoch: int) -> PackedRows:
    """Return the rows of an epoch, in which each example is once. `lengths_N`, int32, are at most packing.tokens."""
    order = shuffled(len(lengths_N), seed, epoch)
    examples, starts = np.empty_like(order), np.zeros(len(order) + 1, np.int64)
    taken_N = np.maximum(lengths_N, min(LEAST_LENGTH, packing.tokens))[order]
    rows = _pack(order, taken_N, packing.tokens, packing.segments, packing.window, examples, starts)
    return PackedRows(examples, starts[: rows + 1].copy())


class PackedOrder:
    """Which examples are in which row of which global batch; epochs follow each other seamlessly.

    A function of (lengths, packing, seed) and the number of a batch and of its rows alone, so it is the same after any
    interruption and for any number of processes.
    """

    def __init__(self, lengths_N: np.ndarray, packing: Packing, seed: int) -> None:
        self.packing = packing
        # Two epochs are kept, for the batch across their border.
        self._epoch = functools.lru_cache(2)(functools.partial(pack_epoch, lengths_N, packing, seed))
        self._ends: list[int] = []  # rows of the epochs so far and all before them
        self._lock = threading.Lock()

    def rows_of_epoch(self, epoch: int) -> int:
        """Return in how many rows an epoch's examples lie; epochs differ by a few."""
        with self._lock:
            return len(self._epoch(epoch))

    def rows(self, first: int, stop: int) -> np.ndarray:
        """Return the example numbers of some rows of the endless list, int64 [R, S]; -1 where a row has fewer."""
        table_RS = np.full((stop - first, self.packing.segments), -1, np.int64)
        with self._lock:  # or several threads would pack the same epoch
            for row in range(first, stop):
                while not self._ends or self._ends[-1] <= row:  # once; 1.3 s an epoch of 10 million examples
                    before = self._ends[-1] if self._ends else 0
                    self._ends.append(before + len(self._epoch(len(self._ends))))
                epoch = bisect.bisect_right(self._ends, row)
                packed, number = self._epoch(epoch), row - (self._ends[epoch - 1] if epoch else 0)
                start, end = packed.starts[number : number + 2]
                table_RS[row - first, : end - start] = packed.examples[start:end]
        return table_RS


@compiled
def fill_rows(examples_N3T, lengths_N, table_RS, rows_5RT):  # type: ignore[no-untyped-def]
    """Fill int32 `rows_5RT` with what ROW_ARRAYS names of the examples that `table_RS` asks for.

    `examples_N3T` are those that it names, in its order, `lengths_N` their tokens.
    """
    rows_5RT[:] = 0
    example = 0
    for row in range(table_RS.shape[0]):
        start = 0
        for segment in range(table_RS.shape[1]):
            if table_RS[row, segment] < 0:
                break
            for place in range(lengths_N[example]):
                is_token = examples_N3T[example, 1, place]
                rows_5RT[0, row, start + place] = examples_N3T[example, 0, place]
                rows_5RT[1, row, start + place] = is_token
                rows_5RT[2, row, start + place] = examples_N3T[example, 2, place]
                rows_5RT[3, row, start + place] = is_token * (segment + 1)
                rows_5RT[4, row, start + place] = place
            start += lengths_N[example]
            example += 1
