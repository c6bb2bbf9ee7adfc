"""electra-flax pretrain and evaluate: a run, and what its checkpoints are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from electra_flax.commands.common import Devices, Processes, run_fields_help
from electra_flax.config.ranges import MOST_INT32, Range
from electra_flax.errors import UserError
from electra_flax.runtime.console import print_json, write_line
from electra_flax.runtime.flags import Command, ConfigName, Overridden, Place

if TYPE_CHECKING:
    from electra_flax.finetuning.probe import TaskProbe
    from electra_flax.weights.start import Start


class Beginning(Command):
    """Initial weights.

    DISC and GEN: a Hugging Face folder or OWNER/NAME on the hub. PREFIX: a TensorFlow checkpoint of the original code
    (model.ckpt-1000000). DIR: a run. Prints what is done with every tensor.
    """

    init_from: Annotated[Place | None, "SOURCE"] = None
    """start a new run, with a new optimizer and schedule, from these weights: hf:DISC[,GEN], tf1:PREFIX, orbax:DIR or
    tiny-ko; the embedding of a token that their vocabulary lacks is the mean of its pieces'"""
    warm_start_generator: bool = False
    """if SOURCE has no generator, cut one out of the discriminator: its first layers, heads and units"""
    stretch_positions: Literal["", "interpolate", "tile"] = ""
    """if SOURCE has fewer positions than model.max_position_embeddings, make more this way"""
    resume_from: Annotated[Place | None, "tf1:PREFIX"] = None
    """continue a run of the original code: weights, Adam moments and step"""

    def start(self) -> Start | None:
        """Return what a new run begins with. Raises UserError where flags contradict each other."""
        from electra_flax.weights.start import Start

        if self.init_from is not None and self.resume_from is not None:
            raise UserError("--init-from starts a new run, --resume-from continues an old one: give one of them")
        source = self.init_from if self.init_from is not None else self.resume_from
        if source is not None:
            return Start(source, self.resume_from is not None, self.stretch_positions, self.warm_start_generator)
        if self.stretch_positions or self.warm_start_generator:
            raise UserError("--stretch-positions and --warm-start-generator need --init-from SOURCE")
        return None


class Probing(Command):
    """Probe.

    At each evaluation, trains a logistic regression on the frozen hidden states of up to 1,000 labelled texts and
    scores it on 1,000 others. Training itself is not affected.
    """

    probe: Annotated[Place | None, "TASK=DIR"] = None
    """a classification task (a name in electra-flax finetune --help, or a YAML file) and the folder of its files"""

    def task(self) -> TaskProbe | None:
        """Return what was given. Raises UserError where it is no classification."""
        from electra_flax.finetuning.probe import TaskProbe

        return TaskProbe.of(self.probe) if self.probe is not None else None


class Pretrain(Overridden, Beginning, Probing, Devices, Processes):
    """Start or continue a run.

    Trains generator and discriminator jointly. The workdir holds the run; the same command continues it. Override a
    field of the configuration (listed below) with --section.field VALUE.
    """

    example = (
        "electra-flax pretrain --config koelectra_small_v3 --data shards --workdir runs/ko\n"
        "electra-flax pretrain --config tiny_ko --data shards --workdir runs/tiny --training.num_steps 1000"
    )

    config: ConfigName
    """a preset (see electra-flax configs), or your YAML file"""
    data: Place
    """shards from electra-data shard, local or gs://"""
    long_data: Place | None = None
    """shards of the second phase (long_phase.steps)"""
    workdir: Place
    """folder of the run, local or gs://; created if missing"""

    more_help = staticmethod(run_fields_help)

    def run(self) -> None:
        from electra_flax.config.loading import load_config
        from electra_flax.runtime.interruption import Interruption, metadata_host

        config, begin_with, group = load_config(self.config, self.overrides), self.start(), self.group
        paths = [self.data, self.long_data] if self.long_data else [self.data]
        with Interruption(metadata_host()) as interruption:
            self.use_devices()
            from electra_flax.api.runs import pretrain
            from electra_flax.runtime import processes

            with processes.joined(group):
                pretrain(config, paths, self.workdir, init_from=begin_with, probe=self.probe, interruption=interruption)


class Evaluate(Probing, Devices):
    """Print held-out metrics as JSON.

    Prints a checkpoint's metrics on the validation split as JSON; the masks never change. A line on the standard error
    compares the generator's loss with frequency_loss, the loss of guessing by token frequency alone.
    """

    example = "electra-flax evaluate --workdir runs/ko"

    workdir: Place
    """folder of the run"""
    data: Place | None = None
    """other shards (default: the run's own)"""
    step: Annotated[int | None, Range(0, MOST_INT32), "N"] = None
    """step of the checkpoint (default: the newest)"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.training.evaluate import evaluate
        from electra_flax.weights.frozen import read_frozen

        found = evaluate(self.workdir, self.data, self.step, self.task(), read_frozen)
        print_json(found)
        if "frequency_loss" not in found:
            return
        guessed, loss = found["frequency_loss"], found["generator_loss"]
        verdict = "the generator uses context" if loss < guessed else "no better yet: train longer, or on more text"
        write_line(f"generator loss {loss:.2f} nats/token, by token frequency alone {guessed:.2f}: {verdict}")
