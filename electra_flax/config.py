"""The run's configuration: schema, defaults and documentation in one place.

Every field is named, typed and explained here and nowhere else; `configs/*.yaml` hold only what differs, and
`config_io` reads them. Sizes, batch, length and learning rate have no default on purpose: the original's defaults
(SEMANTICS.md section 4) silently left the generator of a base model at 1/4.

Imports nothing heavy: data preparation uses this module without JAX. Annotations are types, not strings: to evaluate
strings, jsonargparse looks through all modules, and leaves a section out where a thread imports one meanwhile.
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from electra_flax.errors import UserError


def check(ok: bool, message: str) -> None:
    """Raises UserError where it is not so."""
    if not ok:
        raise UserError(message)


def check_positive(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        check(value > 0, f"{section}.{name}={value} must be greater than 0")


def check_probability(section: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        check(0 <= value < 1, f"{section}.{name}={value} must be at least 0 and less than 1")


def _check_heads(section: str, hidden_size: int, num_heads: int) -> None:
    check(
        hidden_size % num_heads == 0,
        f"{section}.hidden_size={hidden_size} must be a multiple of {section}.num_attention_heads={num_heads}",
    )


@dataclass(frozen=True)
class ModelConfig:
    """The discriminator, and what the generator shares with it. Names are those of Hugging Face's ElectraConfig."""

    vocab_size: int
    """Entries in vocab.txt; must equal that of the data."""
    embedding_size: int
    """Width of the word, position and token-type embeddings; projected to hidden_size when it differs."""
    hidden_size: int
    """Width of the transformer."""
    num_hidden_layers: int
    """Transformer layers."""
    num_attention_heads: int
    """Attention heads; the paper keeps hidden_size / heads at 64."""
    intermediate_size: int
    """Width of the feed-forward layer."""
    hidden_dropout_prob: float = 0.1
    """Dropout after the embeddings and after each sublayer."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on the attention probabilities."""
    max_position_embeddings: int = 512
    """Longest sequence that the position table can hold."""
    type_vocab_size: int = 2
    """Segments."""
    initializer_range: float = 0.02
    """Standard deviation parameter of the truncated normal initialiser."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        check_positive(
            "model", self, "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers",
            "num_attention_heads", "intermediate_size", "max_position_embeddings", "type_vocab_size",
        )  # fmt: skip
        _check_heads("model", self.hidden_size, self.num_attention_heads)
        check_probability("model", self, "hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator's own sizes, written out in full, and what it shares (SEMANTICS.md section 9)."""

    hidden_size: int
    """Width of the transformer (the paper: 1/4 of the discriminator's, 1/3 for base)."""
    num_hidden_layers: int
    """Transformer layers."""
    num_attention_heads: int
    """Attention heads."""
    intermediate_size: int
    """Width of the feed-forward layer."""
    untied_generator: bool = True
    """Own transformer; false: generator and discriminator are one transformer with two heads."""
    untied_generator_embeddings: bool = False
    """Own embeddings, of the generator's hidden size; false: word, position and token-type embeddings and their
    LayerNorm are shared."""
    uniform_generator: bool = False
    """No generator at all: replacements are drawn uniformly from the vocabulary."""

    def __post_init__(self) -> None:
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        check_positive("generator", self, *names)
        _check_heads("generator", self.hidden_size, self.num_attention_heads)
        check(
            not (self.uniform_generator and self.untied_generator_embeddings),
            "generator.untied_generator_embeddings=true needs a generator, but generator.uniform_generator=true "
            "has none: set one of them to false",
        )
        check(
            self.untied_generator or not self.untied_generator_embeddings,
            "generator.untied_generator_embeddings=true needs generator.untied_generator=true, got false: "
            "one shared transformer has one embedding table",
        )


@dataclass(frozen=True)
class MaskingConfig:
    """Which tokens are hidden, and how (SEMANTICS.md section 5)."""

    mask_prob: float = 0.15
    """Share of the tokens that are predicted."""
    mask_token_prob: float = 0.85
    """Chance that a chosen token becomes [MASK]; otherwise it stays as it is. There is no random-token branch."""

    def __post_init__(self) -> None:
        check(0 < self.mask_prob < 1, f"masking.mask_prob={self.mask_prob} must be between 0 and 1")
        check(
            0 <= self.mask_token_prob <= 1,
            f"masking.mask_token_prob={self.mask_token_prob} must be between 0 and 1, both included",
        )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is learned (SEMANTICS.md sections 6 and 7)."""

    electra_objective: bool = True
    """Replaced-token detection; false: plain masked-language modelling of the `model` section, no discriminator."""
    generator_weight: float = 1.0
    """Weight of the masked-LM loss."""
    discriminator_weight: float = 50.0
    """Weight of the replaced-token loss."""
    temperature: float = 1.0
    """Divides the generator's logits before sampling."""
    disallow_correct: bool = False
    """Never let the generator sample the original token."""

    def __post_init__(self) -> None:
        check_positive("objective", self, "temperature")


@dataclass(frozen=True)
class DataConfig:
    """What the model reads; the shards themselves are named on the command line."""

    max_seq_length: int
    """Tokens per example; must equal that of the shards."""
    vocab_file: str | None = None
    """vocab.txt, only for shards without a manifest (made by the original code); others carry their own."""
    staging_folder: str = "~/.cache/electra-flax/shards"
    """Where shards on gs:// are copied to before training. "" leaves them in the bucket and reads each example from
    there, as a disk that is too small does too: slower, and every example is a request."""
    shuffle_seed: int = 0
    """Seed of the global shuffle, drawn anew for each epoch."""
    read_threads: int = 4
    """Threads that read and decode batches ahead of training."""

    def __post_init__(self) -> None:
        check_positive("data", self, "max_seq_length", "read_threads")


@dataclass(frozen=True)
class TrainingConfig:
    """The loop."""

    batch_size: int
    """Sequences per optimizer step over all devices."""
    num_steps: int
    """Optimizer steps; the learning rate reaches 0 here."""
    gradient_accumulation_steps: int = 1
    """Slices into which a batch is cut when it does not fit; the result is that of the whole batch."""
    seed: int = 0
    """Seed of initialisation, masking, sampling and dropout."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of matrix products and activations; parameters, softmax, LayerNorm, losses stay float32."""
    compilation_cache: str = "~/.cache/electra-flax/compiled"
    """Folder, local or gs://, of compiled programs, which make later starts faster; "" keeps none. Whoever may write
    there can run code here."""
    max_skipped_steps: int = 10
    """Steps in a row whose loss or gradient is not finite that are skipped, changing nothing. One more and the run goes
    back to its last checkpoint; the second time at the same place it ends."""
    hang_minutes: float = 30.0
    """The process ends when no step, evaluation or save was finished for so long."""

    def __post_init__(self) -> None:
        check_positive("training", self, "batch_size", "num_steps", "gradient_accumulation_steps", "hang_minutes")
        check(
            self.max_skipped_steps >= 0,
            f"training.max_skipped_steps={self.max_skipped_steps} must not be negative",
        )
        check(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"training.batch_size={self.batch_size} must be a multiple of "
            f"training.gradient_accumulation_steps={self.gradient_accumulation_steps}",
        )


@dataclass(frozen=True)
class LongPhaseConfig:
    """A second phase on longer sequences, as BERT was trained (Devlin et al. 2019, appendix A.2): the same model and
    optimizer go on, and so does the schedule; the shards are those of --long-data."""

    steps: int = 0
    """How many of training.num_steps, the last ones, are on long sequences; 0: none."""
    max_seq_length: int = 512
    """Tokens per example; must equal that of the shards of --long-data."""
    batch_size: int = 0
    """Sequences per step; must be given where steps is."""
    gradient_accumulation_steps: int = 1
    """As in training."""

    def __post_init__(self) -> None:
        check(self.steps >= 0, f"long_phase.steps={self.steps} must not be negative")
        if self.steps:
            check_positive("long_phase", self, "max_seq_length", "batch_size", "gradient_accumulation_steps")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without bias correction (SEMANTICS.md section 10), or LAMB for very large batches."""

    learning_rate: float
    """Peak of the schedule."""
    algorithm: Literal["adamw", "lamb"] = "adamw"
    """lamb (You et al. 2020, algorithm 2): with bias correction, and every decayed parameter moves in proportion to its
    own norm."""
    warmup_steps: int = 10_000
    """Steps of linear warmup, which multiplies the decay."""
    decay_power: float = 1.0
    """Exponent of the polynomial decay to 0; 1 is linear."""
    weight_decay: float = 0.01
    """Decoupled weight decay of everything but biases and LayerNorms."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    epsilon: float = 1e-6
    """Added outside the square root."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""

    def __post_init__(self) -> None:
        check_positive("optimizer", self, "learning_rate", "epsilon", "max_grad_norm")
        check_probability("optimizer", self, "beta1", "beta2")
        check(self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must not be negative")


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged; the product must be the number of devices, -1 takes what is left."""

    data: int = -1
    """Replicas that split the batch."""
    fsdp: int = 1
    """Devices that split the batch and also parameters and optimizer state."""
    tensor: int = 1
    """Devices that split heads, feed-forward and vocabulary."""

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            check(size == -1 or size > 0, f"mesh.{name}={size} must be -1 or greater than 0")
        check(
            list(sizes.values()).count(-1) <= 1,
            f"mesh={sizes}: only one of the axes may be -1 (take what is left)",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """What is kept of the run."""

    every_steps: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    every_minutes: float = 10.0
    """Also a checkpoint when the last one is so old: what a machine that is taken away costs at most."""
    max_to_keep: int = 5
    """Newest checkpoints kept."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this are kept for good; 0: none."""
    keep_best: int = 1
    """Checkpoints with the lowest held-out loss kept, among those saved at a step that was evaluated."""

    def __post_init__(self) -> None:
        check_positive("checkpoint", self, "every_steps", "every_minutes", "max_to_keep")
        for name in ("keep_every_steps", "keep_best"):
            check(getattr(self, name) >= 0, f"checkpoint.{name}={getattr(self, name)} must not be negative")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out metrics on the validation split, with masks that never change."""

    every_steps: int = 10_000
    """Steps between evaluations; the last step is always evaluated."""
    max_batches: int = 100
    """Batches of training.batch_size read from the validation split, fewer if it is smaller."""
    seed: int = 0
    """Seed of the fixed masks and samples."""

    def __post_init__(self) -> None:
        check_positive("evaluation", self, "every_steps", "max_batches")


@dataclass(frozen=True)
class LoggingConfig:
    """What is written to metrics.jsonl, TensorBoard and the console."""

    every_steps: int = 100
    """Steps between records; each holds the averages since the one before."""
    wandb_project: str | None = None
    """Weights & Biases project that the numbers also go to; the run there continues when this one does."""

    def __post_init__(self) -> None:
        check_positive("logging", self, "every_steps")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig
    generator: GeneratorConfig
    data: DataConfig
    training: TrainingConfig
    optimizer: OptimizerConfig
    long_phase: LongPhaseConfig = field(default_factory=LongPhaseConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        check(
            self.data.max_seq_length <= self.model.max_position_embeddings,
            f"data.max_seq_length={self.data.max_seq_length} must be at most "
            f"model.max_position_embeddings={self.model.max_position_embeddings}",
        )
        check(
            self.max_predictions_per_seq > 0,
            f"masking.mask_prob={self.masking.mask_prob} of data.max_seq_length={self.data.max_seq_length} tokens "
            "is less than one token: raise one of them",
        )
        check(
            self.optimizer.warmup_steps <= self.training.num_steps,
            f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be at most "
            f"training.num_steps={self.training.num_steps}: the learning rate would never reach its peak",
        )
        check(
            self.long_phase.steps < self.training.num_steps,
            f"long_phase.steps={self.long_phase.steps} must be less than training.num_steps={self.training.num_steps}: "
            "they are the last of them",
        )
        if self.long_phase.steps:
            try:
                self.phases  # noqa: B018 the second one is checked like a configuration of its own
            except UserError as error:
                raise UserError(f"long phase: {error}") from None
        if self.objective.electra_objective:
            self._check_shared_transformer()
        else:
            check(
                not self.generator.uniform_generator,
                "generator.uniform_generator=true leaves nothing to learn with objective.electra_objective=false: "
                "set one of them the other way",
            )

    def _check_shared_transformer(self) -> None:
        if self.generator.untied_generator or self.generator.uniform_generator:
            return
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            ours, theirs = getattr(self.generator, name), getattr(self.model, name)
            check(
                ours == theirs,
                f"generator.{name}={ours} must equal model.{name}={theirs} with generator.untied_generator=false: "
                "they are one transformer",
            )

    @property
    def phases(self) -> "list[Phase]":
        """What the run consists of: one phase, or one on short sequences and one on long ones."""
        total, long = self.training.num_steps, self.long_phase
        if not long.steps:
            return [Phase("", self, 0, total)]
        training = replace(
            self.training,
            batch_size=long.batch_size,
            gradient_accumulation_steps=long.gradient_accumulation_steps,
        )
        data = replace(self.data, max_seq_length=long.max_seq_length)
        short = replace(self, long_phase=LongPhaseConfig())
        change = total - long.steps
        return [
            Phase("", short, 0, change),
            Phase("long phase: ", replace(short, data=data, training=training), change, total),
        ]

    def phase_of(self, step: int) -> int:
        """In which phase a step was made, 0 or 1."""
        return int(bool(self.long_phase.steps) and step > self.training.num_steps - self.long_phase.steps)

    @property
    def max_predictions_per_seq(self) -> int:
        """Columns of a batch's masked positions, the original's N (SEMANTICS.md section 4)."""
        return int((self.masking.mask_prob + 0.005) * self.data.max_seq_length)


class Phase(NamedTuple):
    """The steps after `start` up to `end`, with one shape of batches; what is said of it begins with `name`."""

    name: str
    config: Config
    start: int
    end: int
