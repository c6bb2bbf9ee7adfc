"""Step time while a checkpoint is written in the background, beside the steps between saves: the same run.

python benchmarks/save_speed.py --config configs/electra_small.yaml --batch 8 --out runs/bench
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from electra_flax.config.loading import load_config
from electra_flax.config.schema import CheckpointConfig
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model.sharding import make_mesh
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_batch, init_state
from electra_flax.training.objectives import make_objective
from electra_flax.training.step import make_train_step

SAVES = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="a file of configs/")
    parser.add_argument("--batch", type=int, required=True, help="sequences a step")
    parser.add_argument("--save-every", type=int, default=15, metavar="STEPS", help="longer than a save takes (15)")
    parser.add_argument("--out", type=Path, required=True, help="folder for save_speed.json")
    args = parser.parse_args()
    preset = load_config(args.config)
    config = dataclasses.replace(preset, training=dataclasses.replace(preset.training, batch_size=args.batch))
    mesh = make_mesh(config.mesh)
    state = init_state(config, mesh)
    step = make_train_step(config, make_objective(config, SpecialTokens(0, 1, 2, 3, 4)), mesh)
    rng = np.random.default_rng(0)
    shapes = abstract_batch(config)
    batch = {name: np.ones(leaf.shape, np.int32) for name, leaf in shapes.items()}
    batch["input_ids"] = rng.integers(5, config.model.vocab_size, batch["input_ids"].shape, np.int32)
    seconds: dict[str, list[float]] = {"during a save": [], "between saves": []}
    blocked = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), CheckpointConfig(max_to_keep=2))
        for number in range(SAVES * args.save_every):
            begin = time.perf_counter()
            is_saving = checkpoints.is_saving
            state, sums = step(state, batch)
            jax.block_until_ready(sums)
            if number > 2:  # compiling, and the allocator's first touches
                seconds["during a save" if is_saving else "between saves"].append(time.perf_counter() - begin)
            if number % args.save_every == args.save_every - 1:
                begin = time.perf_counter()
                assert not checkpoints.save(state, {})
                blocked.append(time.perf_counter() - begin)
        assert not checkpoints.wait()
    medians = {name: statistics.median(found) for name, found in seconds.items() if found}
    result = {"seconds_a_step": medians, "seconds_blocked_by_a_save": statistics.median(blocked), "steps": seconds}
    if len(medians) == 2:
        result["times_slower_during_a_save"] = medians["during a save"] / medians["between saves"]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "save_speed.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if name != "steps"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
