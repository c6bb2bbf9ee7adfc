"""The order of examples: a shuffle of all, anew each epoch, and which of them are in which global batch."""

from __future__ import annotations

import functools
import threading

import numpy as np


class GlobalOrder:
    """Which examples are in which global batch: a shuffle of all, anew each epoch; epochs follow each other seamlessly.

    A function of (number of examples, batch size, seed) alone, so it is the same after any interruption and for any
    number of processes.
    """

    def __init__(self, num_examples: int, batch_size: int, seed: int) -> None:
        self._num_examples, self._batch_size = num_examples, batch_size
        # 4 bytes an example and a second for 20 million; two epochs are kept, for the batch across their border.
        self._epoch = functools.lru_cache(2)(functools.partial(shuffled, num_examples, seed))
        self._lock = threading.Lock()

    def batch(self, number: int) -> np.ndarray:
        """Return the example numbers of a global batch, uint32 [batch_size]."""
        position, end = number * self._batch_size, (number + 1) * self._batch_size
        parts = []
        while position < end:
            epoch, start = divmod(position, self._num_examples)
            with self._lock:  # or several threads would shuffle the same epoch
                part = self._epoch(epoch)[start : start + end - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)


def shuffled(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Return the numbers of all examples in the order of an epoch, uint32."""
    # RandomState, whose numbers are frozen: a newer numpy must not change the order of a run that goes on.
    numbers = np.arange(num_examples, dtype=np.uint32)
    np.random.RandomState([seed, epoch]).shuffle(numbers)
    return numbers
