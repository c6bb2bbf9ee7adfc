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
    """one run each"""
    preset: Annotated[str, "NAME"] = ""
    """koelectra, paper or original (default: the task's own)"""
    random_weights: bool = False
    """not its weights: fresh ones, to see what pretraining is worth"""
    published_protocol: bool = False
    """choose the best checkpoint on the scored examples themselves, as KoELECTRA's published scores were: they are
    too good by that"""

    @staticmethod
    def fields() -> type:
        from electra_flax.finetuning.task import Training

        return Training


class Finetune(Scoring, Devices, Processes):
    """Fine-tune a model on a task, with several seeds, and score it.

    Fine-tunes the discriminator on a task and writes OUT: a model folder that transformers loads, predictions,
    results.json with mean and deviation over the seeds. The best checkpoint is chosen on the dev examples (a tenth of
    the training examples where there are none), never on those that are scored. The same command goes on with what is
    there. Hyperparameters are a preset's; each is overridden by --NAME VALUE.
    """

    task: Annotated[str, "NAME"]
    """a task (listed below), or your YAML file"""
    model: Place
    """an export, a model's own folder, OWNER/NAME on the hub, or tiny-ko, which ships with the package (a folder of
    that name comes first); orbax:DIR a run, tf1:PREFIX a checkpoint"""
    data: Folder
    """folder with the task's files"""
    out: Place
    """folder to write, or gs://BUCKET/FOLDER"""

    @staticmethod
    def more_help() -> str:
        from electra_flax.finetuning.task_files import load_task, task_names

        tasks = "\n".join(f"  {name:16s}{load_task(name).title}" for name in task_names())
        fields = "hyperparameters, each overridden by --NAME VALUE:"
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
    """Score models on all tasks whose data is there: one table.

    Fine-tunes the model on every task whose files are found, and writes one table: OUT/table.md, .json and .png,
    KoELECTRA's published rows beside it. The same command goes on with what is there. Hyperparameters are overridden
    by --NAME VALUE, as in finetune.
    """

    model: tuple[Place, ...]
    """an export, a model's own folder, OWNER/NAME on the hub, or tiny-ko, which ships with the package (a folder of
    that name comes first); orbax:DIR a run, tf1:PREFIX a checkpoint; several: a row each"""
    data: tuple[Place, ...]
    """a folder with a folder for each task, named as the task; or TASK=FOLDER, or several"""
    out: Place = "scoreboard"
    """folder, or gs://BUCKET/FOLDER"""
    tasks: Annotated[tuple[str, ...], "NAME"] = ()
    """these alone"""

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
    """Tell what a fine-tuned model says of your texts.

    Applies a folder of finetune. Texts are arguments, lines of the standard input, or a file in the task's own layout
    (--file), of which predictions are written in it. Of a task with two texts, the second comes after a tab; a
    question, a tab, its context.
    """

    model: Folder
    """folder of electra-flax finetune"""
    texts: Annotated[Texts, "TEXT"] = ()
    """none: lines of the standard input"""
    file: File | None = None
    """a file in the task's own layout, labels or not"""
    json: bool = False
    """print JSON, with probabilities"""

    def run(self) -> None:
        self.use_devices()
        from electra_flax.finetuning.predict import predict

        if self.file and self.texts:
            raise UserError(f"--file {self.file} and texts: give one of them")
        texts = [] if self.file else texts_or_stdin(self.texts)
        for line in predict(self.model, texts, self.file, self.json):
            print_rows(line)
