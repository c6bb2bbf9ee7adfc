"""What a task is: files, columns, labels, metrics; and how a model is fine-tuned. Read by task_files.py."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any, Literal

from electra_flax.config.ranges import Range
from electra_flax.errors import check, check_numbers

SPLITS = ("train", "dev", "test")

Share = Annotated[float, Range(0, 1, "[)")]
Tokens = Annotated[int, Range(1, 2**16)]
Times = Annotated[int, Range(0, 10_000)]
Kind = Literal["classification", "regression", "tagging", "answers"]
Metric = Literal[
    "accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "f1_at_3",
    "entity_f1", "entity_macro_f1", "character_macro_f1",
    "exact_match", "answer_f1", "korquad_exact_match", "korquad_f1", "klue_exact_match", "klue_rouge_w",
]  # fmt: skip


@dataclass(frozen=True)
class Files:
    """Of each split, the names that its file may have, the first that is there is read. A name may stand for several
    files, with spaces between them, which are read one after the other."""

    train: list[str]
    """What is learned from."""
    dev: list[str] = field(default_factory=list)
    """What decides which checkpoint is the best; where there is none, a part of the training examples does."""
    test: list[str] = field(default_factory=list)
    """What is scored; where there is none, dev is."""


@dataclass(frozen=True)
class Columns:
    """Where things are in a row: a name of the header, a number from 0, or a path of names, "labels.real-label"."""

    text: str = ""
    """The text, or the first of two."""
    pair: str = ""
    """The second text."""
    label: str = ""
    """The label or the score; "" where a file has none."""
    id: str = ""
    """What the row is called in a submission; "": its number from 0."""


@dataclass(frozen=True)
class Task:
    """One task."""

    title: str
    """As tables name it."""
    kind: Kind
    """What is predicted: a label of a text or two, a score, a tag for each word, the answer to a question."""
    files: Files
    """Names in the data folder."""
    metrics: list[Metric]
    """What is computed; the first decides which checkpoint is the best."""
    format: Literal["tsv", "json", "naver-ner", "klue-ner", "conll", "squad"] = "tsv"
    """tsv: a row a line, cells between tabs, quotes are characters like others; json: a list of objects, or one a
    line; the others: the layouts that they are named after."""
    columns: Columns = field(default_factory=Columns)
    """Of tsv and json."""
    has_header: bool = True
    """Whether the first line of a tsv names the columns."""
    unlabelled: Columns = field(default_factory=Columns)
    """Of a tsv without labels whose header names other columns, as CoLA's test file in GLUE does."""
    labels: dict[str, str] = field(default_factory=dict)
    """{label in the files: its name}, in the order of the model's outputs; empty: those of the training file."""
    skipped_labels: list[str] = field(default_factory=list)
    """Rows with these are left out, and counted."""
    skipped_texts: list[str] = field(default_factory=list)
    """Rows with one of these texts are left out, and counted."""
    largest_score: Annotated[float, Range(0, 10**6, "(]")] = 5.0
    """Of a regression; the smallest is 0."""
    submission: str = ""
    """Name of the file in which the task's authors want predictions; "": predictions.tsv or predictions.json."""
    language: str = ""
    """Code of the texts' language."""
    preset: Literal["koelectra", "paper", "original"] = "koelectra"
    """Hyperparameters that are used where none are named."""
    training: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of this task that differ from its preset's."""

    def __post_init__(self) -> None:
        of_kind = {"tagging": ("naver-ner", "klue-ner", "conll"), "answers": ("squad",)}
        expected = of_kind.get(self.kind, ("tsv", "json"))
        check(self.format in expected, f"format={self.format}: a task of kind {self.kind} has {' or '.join(expected)}")
        check(self.format not in ("tsv", "json") or bool(self.columns.text), "columns.text must be named")
        entries = (*self.files.train, *self.files.dev, *self.files.test)
        check(all(map(str.split, entries)), "files: an empty name")
        for entry in entries:
            twice = [name for name, count in Counter(map(PurePath, entry.split())).items() if count > 1]
            check(not twice, f"files: {entry}: names {', '.join(map(str, twice))} twice: its rows would count twice")
        check(bool(self.files.train), "files.train: empty, expected the names that the training file may have")
        check(
            PurePath(self.submission).name == self.submission != "..",
            f"submission={self.submission}: expected the name of a file, without folders",
        )
        check(
            PurePath(self.submission).suffix in ("", ".tsv", ".csv", ".txt") or self.submission == "predictions.json",
            f"submission={self.submission}: expected a name that ends with .tsv, .csv or .txt: a model's files do not",
        )
        names = list(self.labels.values())
        unnamed = [label for label, name in self.labels.items() if not name.strip()]
        check(not unnamed, f"labels: {', '.join(unnamed)[:200]}: an empty name, expected what predictions shall say")
        check(len({*names}) == len(names), f"labels: two of them have the same name: {', '.join(names)[:200]}")
        allowed = METRICS_OF[self.kind]
        check(bool(self.metrics), f"metrics: empty; of kind {self.kind} are {', '.join(allowed)}")
        for metric in self.metrics:
            check(metric in allowed, f"metrics: {metric} is not of kind {self.kind}: {', '.join(allowed)} are")
        check_numbers(self)


METRICS_OF: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "macro_f1", "matthews"),
    "regression": ("pearson", "spearman", "f1_at_3"),
    "tagging": ("entity_f1", "entity_macro_f1", "character_macro_f1"),
    "answers": ("exact_match", "answer_f1", "korquad_exact_match", "korquad_f1", "klue_exact_match", "klue_rouge_w"),
}


@dataclass(frozen=True)
class Training:
    """How a model is fine-tuned."""

    learning_rate: Annotated[float, Range(0, 10, "(]")]
    """Peak of the schedule, which decays linearly to 0."""
    epochs: Annotated[int, Range(1, 10_000)]
    """Passes over the training examples."""
    batch_size: Annotated[int, Range(1, 2**16)]
    """Examples per step, over all devices."""
    max_seq_length: Annotated[int, Range(4, 2**16)]
    """Tokens per example; longer texts are cut, the longer of a pair first; long contexts become several windows."""
    warmup_proportion: Share
    """Share of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Range(0, 1)]
    """Decoupled weight decay, of everything but biases and LayerNorms."""
    bias_correction: bool
    """Bias correction of Adam, for smaller first updates; the original has none (docs/semantics.md, section 10)."""
    epsilon: Annotated[float, Range(0, 1, "(]")]
    """Epsilon of Adam, added outside the square root."""
    layer_decay: Annotated[float, Range(0, 1, "(]")]
    """Learning rate of each layer relative to the one above it; 1: the same for all."""
    layer_decay_form: Literal["paper", "original"] = "paper"
    """paper: the top layer has layer_decay of the head's rate; original: as the original's code has it, one power
    more for all layers and the embeddings (docs/semantics.md, section 10)."""
    head: Literal["huggingface", "original"] = "huggingface"
    """huggingface: what ElectraForSequenceClassification and its kin have; original: the original's heads, which no
    class of transformers loads."""
    loss: Literal["mean", "sum"] = "mean"
    """Over a batch's examples; sum is the original's, after which clipping is nearly always on."""
    max_grad_norm: Annotated[float, Range(0, 10**6, "(]")] = 1.0
    """Gradients are clipped to this global norm."""
    gradient_accumulation_steps: Annotated[int, Range(1, 2**16)] = 1
    """Slices into which a batch is cut so that it fits; the result is that of the whole batch."""
    dropout: Share = 0.1
    """In the encoder and before the head."""
    dev_fraction: Share = 0.1
    """Share of the training examples held out as dev, where the task has no dev file."""
    evaluations: Times = 0
    """Evaluations on dev, evenly over the run; 0: after each epoch."""
    patience: Times = 0
    """Evaluations without improvement after which a run stops; 0: it runs to its last epoch."""
    doc_stride: Tokens = 128
    """Tokens by which two windows of a context differ."""
    max_query_length: Tokens = 64
    """Tokens of a question; longer ones are cut."""
    max_answer_length: Tokens = 30
    """Tokens of an answer."""
    hang_minutes: Annotated[float, Range(0, 10**6, "(]")] = 30.0
    """Minutes without a finished step, evaluation or save after which the process stops."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products and activations; on a TPU, float32 products are of bfloat16 numbers all the same."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"batch_size={self.batch_size} must be a multiple of gradient_accumulation_steps="
            f"{self.gradient_accumulation_steps}",
        )

    def steps_per_epoch(self, num_rows: int) -> int:
        """Return the steps of an epoch, whose last batch may be smaller."""
        return -(-num_rows // self.batch_size)

    def num_steps(self, num_rows: int) -> int:
        """Return the steps of all epochs."""
        return self.steps_per_epoch(num_rows) * self.epochs
