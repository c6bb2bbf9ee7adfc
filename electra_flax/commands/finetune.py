"""electra-flax finetune, scoreboard and predict."""

from typing import Annotated

from electra_flax.commands.common import Devices, Processes, Texts, texts_or_stdin
from electra_flax.config.ranges import MOST_UINT32, Range
from electra_flax.errors import UserError
from electra_flax.runtime.console import print_line, print_rows
from electra_flax.runtime.flags import File, Folder, Overridden, Place, fields_help


class Scoring(Overridden):
    """How a model is scored."""

    seeds: Annotated[tuple[int, ...], Range(0, MOST_UINT32), "N"] = (0,)
    """seeds, one fine-tuning each"""
    preset: Annotated[str, "NAME"] = ""
    """hyperparameters: koelectra, paper or original (default: the task's own)"""
    random_weights: bool = False
    """begin with random weights, to see what pretraining is worth"""
    published_protocol: bool = False
    """choose the best checkpoint on the scored examples themselves, as KoELECTRA's published scores did; such scores
    are too high"""

    @staticmethod
    def fields() -> type:
        from electra_flax.finetuning.task import Training

        return Training


class Finetune(Scoring, Devices, Processes):
    """Fine-tune a model on a task, with several seeds, and score it.

    Fine-tunes the discriminator and writes OUT: a model folder that transformers loads, predictions, and results.json
    with mean and standard deviation over the seeds. The best checkpoint is chosen on the dev examples (a tenth of the
    training examples where there are none), never on those that are scored. The same command continues an interrupted
    one. Override a hyperparameter of the preset with --NAME VALUE.
    """

    example = "electra-flax finetune --task nsmc --model tiny-ko --data data/nsmc --out runs/nsmc --seeds 0 1 2"

    task: Annotated[str, "NAME"]
    """a task (listed below), or your YAML file"""
    model: Place
    """an export or one of its two folders, OWNER/NAME on the hub, tiny-ko, orbax:DIR (a run) or tf1:PREFIX (a
    TensorFlow checkpoint)"""
    data: Folder
    """folder with the task's files"""
    out: Place
    """folder to write, or gs://BUCKET/FOLDER"""

    @staticmethod
    def more_help() -> str:
        from electra_flax.finetuning.task_files import load_task, task_names

        tasks = "\n".join(f"  {name:16s}{load_task(name).title}" for name in task_names())
        fields = "hyperparameters, each set by --NAME VALUE:"
        return f"tasks:\n{tasks}\n\n{fields}\n\n{fields_help(Finetune.fields(), 'from the preset')}"

    def run(self) -> None:
        self.use_devices()
        from electra_flax.api.tasks import finetune
        from electra_flax.finetuning.scoreboard import summary
        from electra_flax.runtime import processes
        from electra_flax.runtime.interruption import Interruption, metadata_host

        with Interruption(metadata_host()) as interruption, processes.joined(self.group):
            results = finetune(
                self.task, self.model, self.data, self.out, seeds=self.seeds, preset=self.preset,
                random_weights=self.random_weights, published_protocol=self.published_protocol,
                overrides=self.overrides, interruption=interruption,
            )  # fmt: skip
        if processes.is_main():
            print(summary(results))
            print_line(self.out)


class Scoreboard(Scoring, Devices, Processes):
    """Score models on all tasks that have data: one table.

    Fine-tunes each model on every task whose files are found, and writes one table with KoELECTRA's published scores
    beside: OUT/table.md, .json and .png. The same command continues an interrupted one. Override a hyperparameter with
    --NAME VALUE, as in finetune.
    """

    example = "electra-flax scoreboard --model tiny-ko runs/ko/export --data data --out runs/scoreboard"

    model: tuple[Place, ...]
    """one or more, a row each: an export or one of its two folders, OWNER/NAME on the hub, tiny-ko, orbax:DIR (a run)
    or tf1:PREFIX (a TensorFlow checkpoint)"""
    data: tuple[Place, ...]
    """one or more: a folder that holds a folder per task, named as the task; or TASK=FOLDER"""
    out: Place = "scoreboard"
    """folder to write, or gs://BUCKET/FOLDER"""
    tasks: Annotated[tuple[str, ...], "NAME"] = ()
    """only these tasks (default: all that have data)"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.finetuning import scoreboard
        from electra_flax.runtime import processes
        from electra_flax.runtime.interruption import Interruption, metadata_host

        protocol = scoreboard.Protocol(
            self.preset, self.overrides, self.seeds, self.published_protocol, self.random_weights
        )
        with Interruption(metadata_host()) as interruption, processes.joined(self.group):
            table = scoreboard.scoreboard(self.model, self.data, self.tasks, self.out, protocol, interruption)
        if processes.is_main():
            print(table)


class Predict(Devices):
    """Apply a fine-tuned model to your texts.

    Give texts as arguments, as lines of the standard input, or as a file in the task's format (--file), whose
    predictions are printed in that format. Separate the two texts of a pair, or a question and its context, by a tab.
    """

    example = 'electra-flax predict --model runs/nsmc "정말 재미있는 영화였다"'

    model: Folder
    """folder of electra-flax finetune"""
    texts: Annotated[Texts, "TEXT"] = ()
    """default: lines of the standard input"""
    file: File | None = None
    """a file in the task's format, with or without labels"""
    json: bool = False
    """print JSON, with probabilities"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.finetuning.predict import predict

        if self.file and self.texts:
            raise UserError(f"--file {self.file}: give either a file or texts")
        texts = [] if self.file else texts_or_stdin(self.texts)
        for line in predict(self.model, texts, self.file, self.json):
            print_rows(line)
