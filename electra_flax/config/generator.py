"""The generator: sizes of its own, and what it shares."""

from dataclasses import dataclass
from typing import Annotated

from electra_flax.config.architecture import Size, check_heads
from electra_flax.config.ranges import Range
from electra_flax.errors import check, check_numbers


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
    untied_generator_embeddings: bool = False
    """Own embeddings, of the generator's hidden size; false: word, position and token-type embeddings and their
    LayerNorm are shared."""
    uniform_generator: bool = False
    """No generator at all: replacements are drawn uniformly from the vocabulary."""
    dropout: Annotated[float | None, Range(0, 1, "[)")] = None
    """Dropout of its own transformer, attention included; default: the model's."""

    def __post_init__(self) -> None:
        check_numbers(self, "generator")
        check(
            self.dropout is None or (self.untied_generator and not self.uniform_generator),
            f"generator.dropout={self.dropout} needs a transformer of the generator's own: leave it out with "
            "generator.untied_generator=false or generator.uniform_generator=true",
        )
        check_heads("generator", self.hidden_size, self.num_attention_heads)
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
