"""What a model is, apart from how it was or is trained: all that is needed to apply it.

Weights found anywhere have an architecture; only a run has a configuration (schema.py). Imports nothing heavy, and
annotations are types, as in schema.py.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from electra_flax.config.ranges import BelowOne, Range, Size
from electra_flax.errors import check, check_numbers

# Far beyond any model that there is, and within what the counters of a device can hold.
ComputeDtype = Literal["float32", "bfloat16"]
Logit = Literal["replaced", "energy"]
"""What a discriminator's logit says: the log-odds that a token was replaced; or its energy, which is high where a token
is unlikely in its context: -log of its probability but for a constant (Electric)."""


def check_heads(section: str, hidden_size: int, num_heads: int) -> None:
    heads = f"{section}.num_attention_heads={num_heads}"
    check(hidden_size % num_heads == 0, f"{section}.hidden_size={hidden_size} must be a multiple of {heads}")


@dataclass(frozen=True)
class ModelConfig:
    """The discriminator, and what the generator shares with it. Names are those of Hugging Face's ElectraConfig."""

    vocab_size: Annotated[int, Range(1, 2**24)]
    """Entries in vocab.txt; must equal that of the data."""
    embedding_size: Size
    """Width of the word, position and token-type embeddings; projected to hidden_size when it differs."""
    hidden_size: Size
    """Width of the transformer."""
    num_hidden_layers: Annotated[int, Range(1, 1024)]
    """Transformer layers."""
    num_attention_heads: Annotated[int, Range(1, 2**16)]
    """Attention heads; the paper keeps hidden_size / heads at 64."""
    intermediate_size: Size
    """Width of the feed-forward layer."""
    hidden_dropout_prob: BelowOne = 0.1
    """Dropout after the embeddings and after each sublayer."""
    attention_probs_dropout_prob: BelowOne = 0.1
    """Dropout on the attention probabilities."""
    max_position_embeddings: Size = 512
    """Longest sequence that the position table can hold."""
    type_vocab_size: Annotated[int, Range(1, 2**16)] = 2
    """Segments."""
    initializer_range: Annotated[float, Range(0, 1000)] = 0.02
    """Standard deviation parameter of the truncated normal initialiser."""
    layer_norm_eps: Annotated[float, Range(0, 0.1, "(]")] = 1e-12
    """Epsilon of every LayerNorm; the original's, and that of its published weights, is always 1e-12."""

    def __post_init__(self) -> None:
        check_numbers(self, "model")
        check_heads("model", self.hidden_size, self.num_attention_heads)


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator's own sizes, written out in full, and what it shares (docs/semantics.md, section 9)."""

    hidden_size: Size
    """Width of the transformer (the paper: 1/4 of the discriminator's, 1/3 for base)."""
    num_hidden_layers: Annotated[int, Range(1, 1024)]
    """Transformer layers."""
    num_attention_heads: Annotated[int, Range(1, 2**16)]
    """Attention heads."""
    intermediate_size: Size
    """Width of the feed-forward layer."""
    untied_generator: bool = True
    """Own transformer; false: generator and discriminator are one transformer with two heads."""
    embedding_sharing: Literal["shared", "gdes", "separate"] = "shared"
    """shared: word, position and token-type embeddings and their LayerNorm are those of the discriminator; gdes: the
    discriminator's tables are the generator's, which it cannot change, plus a difference of its own, 0 at first
    (DeBERTaV3); separate: own ones, of the generator's hidden size."""
    uniform_generator: bool = False
    """No generator at all: replacements are drawn uniformly from the vocabulary."""
    two_towers: bool = False
    """Two transformers of these sizes instead of one: each reads the text as it is, one what lies left of a token, one
    what lies right of it, and together they guess every token. objective.kind=electric always has them."""
    dropout: Annotated[float | None, Range(0, 1, "[)")] = None
    """Dropout of its own transformer, attention included; default: the model's."""
    frozen: str | None = None
    """Weights of a generator that does not learn: a model's folder, an export of both, OWNER/NAME on the hub, a name
    that ships, a workdir, or as --init-from has it. It has the sizes above; the discriminator has tables of its own."""
    initialize_discriminator_embeddings: bool = False
    """Whether a new discriminator's tables begin as those of the frozen generator, and not at random."""

    def __post_init__(self) -> None:
        check_numbers(self, "generator")
        self._check_frozen()
        check(
            self.dropout is None or (self.untied_generator and not self.uniform_generator),
            f"generator.dropout={self.dropout} needs a transformer of the generator's own: leave it out with "
            "generator.untied_generator=false or generator.uniform_generator=true",
        )
        check_heads("generator", self.hidden_size, self.num_attention_heads)
        check(
            not self.uniform_generator or self.embedding_sharing == "shared",
            f"generator.embedding_sharing={self.embedding_sharing} needs a generator, but "
            "generator.uniform_generator=true has none: leave one of them out",
        )
        check(
            self.untied_generator or self.embedding_sharing == "shared",
            f"generator.embedding_sharing={self.embedding_sharing} needs generator.untied_generator=true, got false: "
            "one shared transformer has one embedding table",
        )

    def check_towers(self, given: str) -> None:
        """Raise UserError where a generator of two towers, which `given` asks for, cannot be had."""
        check(
            self.untied_generator,
            f"{given} needs generator.untied_generator=true, got false: each tower is a transformer of its own",
        )
        check(
            not self.uniform_generator,
            f"{given} needs a generator, but generator.uniform_generator=true has none: leave one of them out",
        )

    def check_tables(self, embedding_size: int) -> None:
        """Raise UserError where a discriminator with embeddings of that size cannot begin with the generator's."""
        width = self.hidden_size if self.embedding_sharing == "separate" else embedding_size
        check(
            not self.initialize_discriminator_embeddings or width == embedding_size,
            "generator.initialize_discriminator_embeddings=true needs tables of one width, got the generator's "
            f"{width} and model.embedding_size={embedding_size}",
        )

    def _check_frozen(self) -> None:
        if self.frozen is None:
            check(
                not self.initialize_discriminator_embeddings,
                "generator.initialize_discriminator_embeddings=true needs generator.frozen: what learns with the "
                "discriminator begins at random",
            )
            return
        given = f"generator.frozen={self.frozen}"
        check(
            self.untied_generator and not self.uniform_generator,
            f"{given} is a transformer of its own: leave out generator.untied_generator=false and "
            "generator.uniform_generator=true",
        )
        check(
            self.embedding_sharing != "gdes",
            f"{given} with generator.embedding_sharing=gdes: the discriminator has tables of its own; set shared where "
            "the generator's are model.embedding_size wide, separate where they are as wide as its layers",
        )
        check(self.dropout is None, f"{given} with generator.dropout={self.dropout}: it has none; leave it out")


@dataclass(frozen=True)
class Architecture:
    """Generator and discriminator, or one of them: sizes, what they share, heads, and the type of their arithmetic."""

    model: ModelConfig
    """The discriminator's transformer; the only one where there is no `generator`."""
    generator: ModelConfig | None
    """The generator's own transformer, or each of two towers. Its embedding size is that of the table it uses."""
    has_own_embeddings: bool = False
    """Whether the generator's tables are its own."""
    has_delta: bool = False
    """Whether the discriminator's tables are the generator's and a difference (embedding_sharing=gdes)."""
    has_frozen_generator: bool = False
    """Whether the generator's weights are given beside the parameters, which then are the discriminator's alone."""
    has_generator_head: bool = True
    """Whether anything predicts masked tokens."""
    has_discriminator_head: bool = True
    """Whether anything tells replaced tokens; also true of an encoder alone, as fine-tuning leaves it."""
    has_corrective_head: bool = False
    """Whether the discriminator guesses hidden tokens too, which it does only while it is trained."""
    has_contrast_head: bool = False
    """Whether the discriminator also tells which texts belong together, which it does only while it is trained."""
    has_two_towers: bool = False
    """Whether the generator is two transformers, one for either side of a token."""
    logit: Logit = "replaced"
    """What the discriminator's logit is."""
    compute_dtype: ComputeDtype = "float32"
    """Type of matrix products and activations."""

    @property
    def generator_sizes(self) -> ModelConfig:
        """Return the sizes of the transformer below the generator's head."""
        return self.generator or self.model

    def sizes_of(self, part: str) -> ModelConfig:
        """Return the sizes of one of the `parts`."""
        return self.generator_sizes if part == "generator" else self.model

    @property
    def parts(self) -> list[str]:
        """Return which of the two models there is to publish; two towers are no model that others have."""
        given = self.has_two_towers or self.has_frozen_generator
        has = {
            "discriminator": self.has_discriminator_head,
            "generator": self.has_generator_head and not given,
        }
        return [part for part, there in has.items() if there]

    @property
    def learned(self) -> "Architecture":
        """Return the same without what is frozen."""
        if not self.has_frozen_generator:
            return self
        return replace(
            self, generator=None, has_own_embeddings=False, has_frozen_generator=False, has_generator_head=False
        )
