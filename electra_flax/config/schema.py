"""The run's configuration: schema, defaults and documentation in one place.

Every field is named, typed, bounded and explained here and nowhere else; `configs/*.yaml` hold only what differs, and
`loading` reads them. Sizes, batch, length and learning rate have no default on purpose: the original's defaults
(docs/semantics.md, section 4) silently left the generator of a base model at 1/4.

Imports nothing heavy: data preparation uses this module without JAX. Annotations are types, not strings: to evaluate
strings, jsonargparse looks through all modules, and leaves a section out where a thread imports one meanwhile.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NamedTuple

from electra_flax.config.architecture import Architecture, ComputeDtype, GeneratorConfig, ModelConfig
from electra_flax.config.data import DataConfig
from electra_flax.config.masking import MaskingConfig
from electra_flax.config.objective import ObjectiveConfig
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.config.packing import PackingConfig
from electra_flax.config.ranges import Axis, Batch, Minutes, Range, Seed, Size, Steps, StepsOrZero
from electra_flax.errors import UserError, check, check_numbers

COMPILATION_CACHE = "~/.cache/electra-flax/compiled"


@dataclass(frozen=True)
class TrainingConfig:
    """Training."""

    batch_size: Batch
    """Sequences per optimizer step over all devices."""
    num_steps: Steps
    """Optimizer steps; the learning rate reaches 0 here."""
    gradient_accumulation_steps: Batch = 1
    """Slices into which a batch is cut so that it fits; the result is that of the whole batch."""
    seed: Seed = 0
    """Seed of initialisation, masking, sampling and dropout."""
    first_values: Literal["original", "neighbours"] = "original"
    """Initial values of a new model. neighbours: token frequencies in the generator's output, sines as positions and
    heads that look at the next token, so that a small model leaves its plateau in a quarter of the steps."""
    compute_dtype: ComputeDtype = "bfloat16"
    """Type of matrix products and activations; parameters, softmax, LayerNorm, losses stay float32."""
    compilation_cache: str = COMPILATION_CACHE
    """Folder, local or gs://, of compiled programs, for faster later starts; "" keeps none. Whoever can write there can
    run code here."""
    max_skipped_steps: StepsOrZero = 10
    """Most steps in a row that are skipped because loss or gradient is not finite. After one more the run goes back to
    its last checkpoint; the second time at the same place it stops."""
    hang_minutes: Minutes = 30.0
    """Minutes without a finished step, evaluation or save after which the process stops."""

    def __post_init__(self) -> None:
        check_numbers(self, "training")
        check(
            self.batch_size % self.gradient_accumulation_steps == 0,
            f"training.batch_size={self.batch_size} must be a multiple of "
            f"training.gradient_accumulation_steps={self.gradient_accumulation_steps}",
        )


@dataclass(frozen=True)
class LongPhaseConfig:
    """A second phase on longer sequences, those of --long-data, as BERT had one (Devlin et al. 2019, appendix A.2).

    Model, optimizer and schedule go on."""

    steps: StepsOrZero = 0
    """How many of training.num_steps, the last ones, use long sequences; 0: none."""
    max_seq_length: Size = 512
    """Tokens per example; must equal that of the shards of --long-data."""
    batch_size: Annotated[int, Range(0, 2**24)] = 0
    """Sequences per step; must be given where steps is."""
    gradient_accumulation_steps: Batch = 1
    """As in training."""
    mask_prob: Annotated[float | None, Range(0, 1, "()")] = None
    """masking.mask_prob of this phase, constant; default: as in masking."""

    def __post_init__(self) -> None:
        check_numbers(self, "long_phase")
        given = f"long_phase.steps={self.steps}"
        check(self.batch_size > 0 or not self.steps, f"long_phase.batch_size=0 must be greater than 0 with {given}")
        is_used = self.mask_prob is None or self.steps > 0
        check(is_used, f"long_phase.mask_prob={self.mask_prob} has no effect with {given}")


@dataclass(frozen=True)
class MeshConfig:
    """Mesh of devices; the product of the sizes must be the number of devices, -1 takes the rest."""

    data: Axis = -1
    """Devices that split the batch."""
    fsdp: Axis = 1
    """Devices that split the batch and also parameters and optimizer state."""
    tensor: Axis = 1
    """Devices that split heads, feed-forward and vocabulary."""

    def __post_init__(self) -> None:
        check_numbers(self, "mesh")
        check(
            [self.data, self.fsdp, self.tensor].count(-1) <= 1,
            f"mesh.data={self.data}, mesh.fsdp={self.fsdp}, mesh.tensor={self.tensor}: only one may be -1",
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints."""

    every_steps: Steps = 1000
    """Steps between checkpoints; the last step is always saved."""
    every_minutes: Minutes = 10.0
    """Longest time between checkpoints, in minutes: the work that a preemption costs at most."""
    max_to_keep: Annotated[int, Range(1, 10**6)] = 5
    """Newest checkpoints kept."""
    keep_every_steps: StepsOrZero = 0
    """Checkpoints at multiples of this are kept for good; 0: none."""
    keep_best: Annotated[int, Range(0, 10**6)] = 1
    """Checkpoints with the lowest held-out loss kept, among those saved at a step that was evaluated."""

    def __post_init__(self) -> None:
        check_numbers(self, "checkpoint")


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out metrics on the validation split, with masks that never change."""

    every_steps: Steps = 10_000
    """Steps between evaluations; also evaluated are the last step and, in runs of 1,000 steps or more, those at 1% and
    2%."""
    max_batches: Steps = 100
    """Batches of training.batch_size read from the validation split, fewer if it is smaller."""
    seed: Seed = 0
    """Seed of the fixed masks and samples."""

    def __post_init__(self) -> None:
        check_numbers(self, "evaluation")


@dataclass(frozen=True)
class LoggingConfig:
    """Metrics in metrics.jsonl, TensorBoard and on the console."""

    every_steps: Steps = 100
    """Steps between records; a record has the averages since the last one."""
    wandb_project: str | None = None
    """Weights & Biases project for the metrics; a continued run continues there too."""

    def __post_init__(self) -> None:
        check_numbers(self, "logging")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig
    generator: GeneratorConfig
    data: DataConfig
    training: TrainingConfig
    optimizer: OptimizerConfig
    packing: PackingConfig = field(default_factory=PackingConfig)
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
        warmup = self.optimizer.generator_warmup_steps
        check(
            warmup is None or warmup <= self.training.num_steps,
            f"optimizer.generator_warmup_steps={warmup} must be at most training.num_steps={self.training.num_steps}: "
            "the learning rate would never reach its peak",
        )
        check(
            self.long_phase.steps < self.training.num_steps,
            f"long_phase.steps={self.long_phase.steps} must be less than training.num_steps={self.training.num_steps}: "
            "they are the last of them",
        )
        if self.long_phase.steps:
            self._check_long_phase()
        aims_heads = self.training.first_values == "neighbours"
        check(not aims_heads or self.model.initializer_range > 0, "training.first_values=neighbours scales "
              "model.initializer_range=0: give the range, 0.02 as the original's")  # fmt: skip
        self._check_objective()

    def _check_long_phase(self) -> None:
        share, last = self.long_phase.mask_prob, self.masking.final_mask_prob
        check(
            share is None or last is None,
            f"long_phase.mask_prob={share}, masking.final_mask_prob={last}: both name what the last steps hide: "
            "leave one out",
        )
        check(
            share is None or int((share + 0.005) * self.long_phase.max_seq_length) > 0,
            f"long_phase.mask_prob={share} of long_phase.max_seq_length={self.long_phase.max_seq_length} tokens is "
            "less than one token: raise one of them",
        )
        try:
            self.phases  # noqa: B018 the second one is checked like a configuration of its own
        except UserError as error:
            raise UserError(f"long phase: {error}") from None

    def _check_objective(self) -> None:
        check(
            not self.objective.corrective_lm_weight or self.objective.kind == "replaced_tokens",
            f"objective.corrective_lm_weight={self.objective.corrective_lm_weight} needs objective.kind="
            f"replaced_tokens, got {self.objective.kind}: it adds to that loss",
        )
        if self.has_two_towers:
            self._check_two_towers()
        if self.objective.kind != "masked_tokens":
            self._check_shared_transformer()
        else:
            check(
                not self.generator.uniform_generator,
                "generator.uniform_generator=true leaves nothing to learn with objective.kind=masked_tokens: "
                "set one of them the other way",
            )
            check(self.generator.dropout is None, "generator.dropout needs an objective.kind with two models: "
                  "masked_tokens has one, whose dropout is model's")  # fmt: skip
        kind = "two towers" if self.has_two_towers else self.objective.kind
        check(self.generator.embedding_sharing != "gdes" or kind == "replaced_tokens", "generator.embedding_sharing="
              f"gdes needs objective.kind=replaced_tokens with a generator of one tower, got {kind}")  # fmt: skip
        self.generator.check_tables(self.model.embedding_size)
        if self.generator.frozen is not None:
            check(
                kind == "replaced_tokens" and not self.optimizer.decoupled,
                f"generator.frozen={self.generator.frozen} needs objective.kind=replaced_tokens with a generator of "
                f"one tower and optimizer.decoupled=false, got {kind} and {str(self.optimizer.decoupled).lower()}: "
                "only a discriminator learns",
            )
        check(
            self.data.corrupted is None or self.generator.frozen is not None,
            f"data.corrupted={self.data.corrupted} needs generator.frozen: give what electra-flax corrupt had",
        )
        self.optimizer.check_disjoint(kind, self.generator.embedding_sharing)
        training = self.training
        self.objective.check_contrast(
            kind, self.data.packing, training.batch_size, training.gradient_accumulation_steps
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

    def _check_two_towers(self) -> None:
        kind, generator = self.objective.kind, self.generator
        given = "generator.two_towers=true" if kind != "electric" else "objective.kind=electric has two towers, and"
        check(kind != "masked_tokens", "generator.two_towers=true needs a discriminator, and objective.kind="
              "masked_tokens has none: leave one of them out")  # fmt: skip
        generator.check_towers(given)
        change = self.masking.final_mask_prob if self.long_phase.mask_prob is None else self.long_phase.mask_prob
        check(kind != "electric" or change is None, f"objective.kind=electric needs one masking.mask_prob throughout, "
              "which is a term of its loss: leave out masking.final_mask_prob and long_phase.mask_prob, got "
              f"{change}")  # fmt: skip

    @property
    def has_two_towers(self) -> bool:
        return self.generator.two_towers or self.objective.kind == "electric"

    @property
    def samples_online(self) -> bool:
        """Return whether steps take a frozen generator's weights, and not what it sampled ahead."""
        return self.generator.frozen is not None and self.data.corrupted is None

    def online(self) -> "Config":
        """Return the same run, in which a generator samples as it goes."""
        return replace(self, data=replace(self.data, corrupted=None))

    @property
    def architecture(self) -> Architecture:
        """Return the models of the run, without what is said of training them."""
        generator, trains_both = self.generator, self.objective.kind != "masked_tokens"
        has_generator = not generator.uniform_generator
        sizes = replace(
            self.model,
            hidden_size=generator.hidden_size,
            num_hidden_layers=generator.num_hidden_layers,
            num_attention_heads=generator.num_attention_heads,
            intermediate_size=generator.intermediate_size,
            embedding_size=(
                generator.hidden_size if generator.embedding_sharing == "separate" else self.model.embedding_size
            ),
        )
        dropout = 0.0 if generator.frozen is not None else generator.dropout
        if dropout is not None:
            sizes = replace(sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
        return Architecture(
            model=self.model,
            generator=sizes if trains_both and has_generator and generator.untied_generator else None,
            has_own_embeddings=generator.embedding_sharing == "separate" or generator.frozen is not None,
            has_frozen_generator=generator.frozen is not None,
            has_delta=generator.embedding_sharing == "gdes",
            has_generator_head=has_generator,
            has_discriminator_head=trains_both,
            has_corrective_head=self.objective.corrective_lm_weight > 0,
            has_contrast_head=self.objective.contrast_weight > 0,
            has_two_towers=self.has_two_towers,
            logit="energy" if self.objective.kind == "electric" else "replaced",
            compute_dtype=self.training.compute_dtype,
        )

    @property
    def phases(self) -> "list[Phase]":
        """Return what the run consists of: one phase, or one on short sequences and one on long ones."""
        total, long = self.training.num_steps, self.long_phase
        if not long.steps:
            return [Phase("", self, 0, total)]
        training = replace(
            self.training, batch_size=long.batch_size, gradient_accumulation_steps=long.gradient_accumulation_steps
        )
        data, masking = replace(self.data, max_seq_length=long.max_seq_length), self.masking.of_phase(long.mask_prob)
        short = replace(self, long_phase=LongPhaseConfig())
        change = total - long.steps
        return [
            Phase("", short, 0, change),
            Phase("long phase: ", replace(short, data=data, training=training, masking=masking), change, total),
        ]

    def phase_of(self, step: int) -> int:
        """Return in which phase a step was made, 0 or 1."""
        return int(bool(self.long_phase.steps) and step > self.training.num_steps - self.long_phase.steps)

    @property
    def is_packed(self) -> bool:
        return self.data.packing == "best_fit"

    def of_rows(self, rows: int) -> "Config":
        """Return the configuration whose training batches have so many rows."""
        return replace(self, training=replace(self.training, batch_size=rows))

    @property
    def max_predictions_per_seq(self) -> int:
        """Return columns of a batch's masked positions, the original's N (docs/semantics.md, section 4)."""
        return min(self.data.max_seq_length, int((self.masking.largest_share + 0.005) * self.data.max_seq_length))


class Phase(NamedTuple):
    """The steps after `start` up to `end`, with one shape of batches; what is said of it begins with `name`."""

    name: str
    config: Config
    start: int
    end: int

    @property
    def parts(self) -> "list[Phase]":
        """Return it in the pieces that are one program each: without the contrast of sequences, and with it."""
        objective = self.config.objective
        if not objective.contrast_weight:
            return [self]
        begin = round(objective.contrast_from * self.config.training.num_steps)
        ends = ((self.start, min(begin, self.end), 1.0), (max(begin, self.start), self.end, 0.0))
        return [
            Phase(self.name, replace(self.config, objective=replace(objective, contrast_from=share)), start, end)
            for start, end, share in ends
            if start < end
        ]
