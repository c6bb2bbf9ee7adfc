"""Reads every record of every shard once, before training, so that damage shows now and not on day three."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from electra_flax.data.tfrecord import Shard
from electra_flax.files import recall, write_whole
from electra_flax.runtime.console import progress


def verify_shards(shards: Sequence[Shard], memory: Path | None) -> None:
    """Check the CRC32C of all records; shards already checked at this size and time are skipped.

    `memory` is the JSON file that remembers (None: nothing is known, and nothing remembered). Raises UserError naming
    the damaged shard and record.
    """
    known = (recall(memory, dict[str, list[int]]) if memory else None) or {}
    stamps = {str(shard.path): [shard.path.stat().st_size, shard.path.stat().st_mtime_ns] for shard in shards}
    todo = [shard for shard in shards if known.get(str(shard.path)) != stamps[str(shard.path)]]
    total = sum(len(shard) for shard in todo)
    with progress(total, "checking shards", "examples", enabled=total >= 100_000) as bar:
        for shard in todo:
            for number in range(len(shard)):
                shard[number]
            bar.update(len(shard))
    if memory:
        write_whole(memory, json.dumps(stamps, indent=1) + "\n")
