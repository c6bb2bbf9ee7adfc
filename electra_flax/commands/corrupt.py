"""electra-flax corrupt: what a frozen generator samples, written ahead of the run."""

from __future__ import annotations

from electra_flax.commands.common import Devices, run_fields_help
from electra_flax.runtime.flags import ConfigName, Overridden, Place


class Corrupt(Overridden, Devices):
    """Write what a frozen generator samples, ahead of a run.

    Runs generator.frozen once over all batches of a run, those of its evaluations too. electra-flax pretrain with the
    same fields and --data.corrupted OUT then trains the discriminator alone, as if the generator were there: all
    parameters are the same. The same command goes on after an interruption. The discriminator's sizes, learning rate
    and weights of losses may be others; seed, steps, batch size, masking, temperature, evaluations and shards may not.
    """

    example = "electra-flax corrupt --config my.yaml --data shards --out samples --generator.frozen runs/teacher"
    interrupted = "the same command goes on with the parts that are written"

    config: ConfigName
    """a preset (see electra-flax configs), or your YAML file: that of the run"""
    data: Place
    """shards from electra-data shard, local or gs://"""
    long_data: Place | None = None
    """shards of the second phase (long_phase.steps)"""
    out: Place
    """local folder for the samples: 2 bytes (4 with more than 65,536 tokens) for each hidden token"""

    more_help = staticmethod(run_fields_help)

    def run(self) -> None:
        from electra_flax.config.loading import load_config

        config = load_config(self.config, self.overrides)
        self.use_devices()
        from electra_flax.training.corrupt import corrupt
        from electra_flax.weights.frozen import read_frozen

        corrupt(config, [self.data, self.long_data] if self.long_data else [self.data], self.out, read_frozen)
