"""Rows of unequal length -> batches of few shapes, so that little is padded and little is compiled.

The order is a pure function of (seed, epoch).
"""

from collections.abc import Sequence

import numpy as np

from electra_flax.finetuning.encoding import IGNORED, Row

# Each is compiled for itself, so there are few; by steps of a half or a third, so that little is padding. The attention
# kernel takes 128, 256, 384 and 512.
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024, 2048)
_SORTED_TOGETHER = 32  # batches among which rows are sorted by length


def padded_lengths(longest: int) -> list[int]:
    """Return the lengths that batches may have, of rows of at most `longest` tokens."""
    return [*(size for size in _LENGTHS if size < longest), longest]


def padded_length(length: int, longest: int) -> int:
    """Return to how many tokens a row is padded."""
    return next(size for size in padded_lengths(longest) if size >= length)


def epoch_batches(rows: Sequence[Row], batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return indices of the rows of each batch of an epoch: rows of like length together, the order random.

    The last but for one may be smaller.
    """
    # Sorted within chunks of many batches only: little padding, and still other rows together in each epoch.
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(rows))
    lengths = np.asarray([len(row.input_ids) for row in rows])
    chunk = batch_size * _SORTED_TOGETHER
    batches = []
    for begin in range(0, len(order), chunk):
        some = order[begin : begin + chunk]
        some = some[np.argsort(lengths[some], kind="stable")]
        batches += [some[i : i + batch_size] for i in range(0, len(some), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]  # else each chunk would end with its long texts


def sorted_batches(rows: Sequence[Row], batch_size: int) -> list[np.ndarray]:
    """Return all rows once, by length."""
    order = np.argsort([len(row.input_ids) for row in rows], kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def collate(
    rows: Sequence[Row], indices: np.ndarray, batch_size: int, longest: int, pad_id: int, is_tagging: bool
) -> dict[str, np.ndarray]:
    """Return the rows as arrays, filled up to batch_size.

    int32 input_ids, attention_mask and token_type_ids [batch_size, T], target, and weight float32 [batch_size]: 1, and
    0 for rows that only fill up a batch.
    """
    chosen = [rows[i] for i in indices]
    length = padded_length(max(len(row.input_ids) for row in chosen), longest)
    batch = {
        "input_ids": np.full((batch_size, length), pad_id, np.int32),
        "attention_mask": np.zeros((batch_size, length), np.int32),
        "token_type_ids": np.zeros((batch_size, length), np.int32),
        "weight": np.zeros(batch_size, np.float32),
    }
    first = chosen[0].target
    shape = (batch_size, length) if is_tagging else (batch_size, *first.shape)
    batch["target"] = np.full(shape, IGNORED if is_tagging else 0, first.dtype)
    for place, row in enumerate(chosen):
        size = len(row.input_ids)
        batch["input_ids"][place, :size] = row.input_ids
        batch["attention_mask"][place, :size] = 1
        batch["token_type_ids"][place, :size] = row.token_type_ids
        batch["weight"][place] = 1
        if is_tagging:
            batch["target"][place, :size] = row.target
        else:
            batch["target"][place] = row.target
    batch["attention_mask"][len(chosen) :, 0] = 1  # softmax over nothing is not finite
    return batch
