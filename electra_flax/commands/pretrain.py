"""electra-flax pretrain and evaluate: a run, and what its checkpoints are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from electra_flax.commands.common import Devices, Processes
from electra_flax.config.ranges import MOST_INT32, Range
from electra_flax.errors import UserError
from electra_flax.runtime.console import print_json, write_line
from electra_flax.runtime.flags import Command, ConfigName, Overridden, Place, fields_help

if TYPE_CHECKING:
    from electra_flax.finetuning.probe import TaskProbe
    from electra_flax.weights.start import Start


class Beginning(Command):
    """Weights to begin with.

    DISC and GEN are each a Hugging Face folder or OWNER/NAME on the hub, PREFIX a checkpoint of the original
    (model.ckpt-1000000), DIR a run. tiny-ko is a model that ships with the package, where no folder has that name. What
    became of every tensor is printed.
    """

    init_from: Annotated[Place | None, "SOURCE"] = None
    """hf:DISC[,GEN], tf1:PREFIX, orbax:DIR or tiny-ko: a new run with their weights, its optimizer and schedule fresh;
    rows of tokens that their vocabulary lacks are the mean of their pieces'"""
    warm_start_generator: bool = False
    """where SOURCE has no generator: cut one out of the discriminator (its first layers, heads and units)"""
    stretch_positions: Literal["", "interpolate", "tile"] = ""
    """where SOURCE has fewer positions than model.max_position_embeddings: how to make more"""
    resume_from: Annotated[Place | None, "tf1:PREFIX"] = None
    """a run of the original goes on: weights, moments of Adam and step"""

    def start(self) -> Start | None:
        """Return what a new run begins with. Raises UserError where flags contradict each other."""
        from electra_flax.weights.start import Start

        if self.init_from is not None and self.resume_from is not None:
            raise UserError("--init-from begins a new run, --resume-from goes on with an old one: give one of them")
        source = self.init_from if self.init_from is not None else self.resume_from
        if source is not None:
            return Start(source, self.resume_from is not None, self.stretch_positions, self.warm_start_generator)
        if self.stretch_positions or self.warm_start_generator:
            raise UserError("--stretch-positions and --warm-start-generator belong to --init-from, which is not given")
        return None


class Probing(Command):
    """A task on which evaluations try the states.

    A logistic regression on frozen states tells the labels of at most 1,000 texts apart, learned from 1,000 others; the
    run is the same without.
    """

    probe: Annotated[Place | None, "TASK=DIR"] = None
    """a classification (electra-flax finetune --help lists them, or a YAML file), and the folder with its files"""

    def task(self) -> TaskProbe | None:
        """Return what was given. Raises UserError where it is no classification."""
        from electra_flax.finetuning.probe import TaskProbe

        return TaskProbe.of(self.probe) if self.probe is not None else None


class Pretrain(Overridden, Beginning, Probing, Devices, Processes):
    """Train, or continue, a run.

    Trains both models jointly. The workdir is the run: the same command continues it. Fields of the configuration,
    listed at the end, are overridden by --section.field VALUE.
    """

    config: ConfigName
    """a preset (electra-flax configs lists them), or your YAML file; a file of that name comes first"""
    data: Place
    """shards of electra-data shard, local or gs://"""
    long_data: Place | None = None
    """shards of the second phase (long_phase.steps)"""
    workdir: Place
    """the run, local or gs://; created if absent"""

    @staticmethod
    def more_help() -> str:
        fields = "fields of the configuration, each overridden by --section.field VALUE:"
        return f"{fields}\n\n{fields_help(Pretrain.fields(), 'from the preset')}"

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
    says whether the generator is below frequency_loss: what a guess has that knows only how often each token occurs.
    """

    workdir: Place
    """the run"""
    data: Place | None = None
    """other shards than the run's own"""
    step: Annotated[int | None, Range(0, MOST_INT32), "N"] = None
    """checkpoint (default: the newest)"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.training.evaluate import evaluate

        found = evaluate(self.workdir, self.data, self.step, self.task())
        print_json(found)
        if "frequency_loss" not in found:
            return
        guessed, loss = found["frequency_loss"], found["generator_loss"]
        verdict = "it guesses from context" if loss < guessed else "not below that; it needs more text or more steps"
        write_line(f"generator {loss:.2f} nats a token; knowing only how often each occurs, {guessed:.2f}: {verdict}")
