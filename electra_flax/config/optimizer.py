"""How parameters move."""

from dataclasses import dataclass
from typing import Annotated, Literal

from electra_flax.config.ranges import MOST_INT32, BelowOne, Range, StepsOrZero
from electra_flax.errors import check, check_numbers


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW without bias correction (docs/semantics.md, section 10), or LAMB for very large batches."""

    learning_rate: Annotated[float, Range(0, 1000, "(]")]
    """Peak of the schedule."""
    algorithm: Literal["adamw", "lamb"] = "adamw"
    """lamb (You et al. 2020, algorithm 2): with bias correction, and every decayed parameter moves in proportion to its
    own norm."""
    warmup_steps: StepsOrZero = 10_000
    """Steps of linear warmup, which multiplies the decay."""
    decay_power: Annotated[float, Range(0, 100)] = 1.0
    """Exponent of the polynomial decay to 0; 1 is linear."""
    weight_decay: Annotated[float, Range(0, 1000)] = 0.01
    """Decoupled weight decay of everything but biases and LayerNorms."""
    beta1: BelowOne = 0.9
    """Decay of the first moment."""
    beta2: BelowOne = 0.999
    """Decay of the second moment."""
    epsilon: Annotated[float, Range(0, 1, "(]")] = 1e-6
    """Added outside the square root."""
    max_grad_norm: Annotated[float, Range(0, 1e30, "(]")] = 1.0
    """Gradients are clipped to this global norm."""
    decoupled: bool = False
    """An optimizer for each model: the generator's moves first, and the discriminator learns from what it then is. Each
    clips by the norm of its own gradient; needs generator.embedding_sharing gdes or separate."""
    generator_learning_rate: Annotated[float | None, Range(0, 1000)] = None
    """Peak of the decoupled generator's schedule; default: learning_rate."""
    generator_warmup_steps: Annotated[int | None, Range(0, MOST_INT32)] = None
    """Its steps of linear warmup; default: warmup_steps."""

    def __post_init__(self) -> None:
        check_numbers(self, "optimizer")
        for name in ("generator_learning_rate", "generator_warmup_steps"):
            given = getattr(self, name)
            check(
                given is None or self.decoupled,
                f"optimizer.{name}={given} needs optimizer.decoupled=true: else one optimizer moves all",
            )

    def check_disjoint(self, kind: str, embedding_sharing: str) -> None:
        """Raise UserError where two optimizers would move one parameter, or there is one model."""
        if not self.decoupled:
            return
        check(
            kind == "replaced_tokens",
            f"optimizer.decoupled=true needs objective.kind=replaced_tokens with a generator of one tower, got {kind}",
        )
        check(
            embedding_sharing != "shared",
            "optimizer.decoupled=true needs parameters that the two models do not share, got "
            "generator.embedding_sharing=shared: set it to gdes or separate",
        )
