"""What is learned."""

from dataclasses import dataclass
from typing import Annotated, Literal

from electra_flax.config.ranges import Range, Weight
from electra_flax.errors import check, check_numbers

ObjectiveKind = Literal["replaced_tokens", "masked_tokens", "electric"]
"""The names of training/objectives."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Training objective (docs/semantics.md, sections 6 and 7)."""

    kind: ObjectiveKind = "replaced_tokens"
    """replaced_tokens: ELECTRA; masked_tokens: plain masked-language modelling of the `model` section, no
    discriminator; electric: ELECTRA whose discriminator's logit is an energy, -log of how likely a token is in its
    context but for a constant, with a generator of two towers."""
    generator_weight: Weight = 1.0
    """Weight of the masked-LM loss; of two towers' loss over all tokens."""
    discriminator_weight: Weight = 50.0
    """Weight of the replaced-token loss; of Electric's, which tells drawn tokens from those of the text."""
    temperature: Annotated[float, Range(0, 10**6, "(]")] = 1.0
    """Divides the generator's logits before sampling; with a schedule, what it goes to, and that of evaluations."""
    temperature_schedule: Literal["constant", "exponential", "linear"] = "constant"
    """How it goes there from initial_temperature: not at all, or with the share u of the steps done. exponential: what
    is left of the way is exp(-u / temperature_tau); linear: 1 - u."""
    initial_temperature: Annotated[float, Range(0, 10**6, "(]")] = 2.0
    """Temperature of the first step of a schedule."""
    temperature_tau: Annotated[float, Range(0, 10**6, "(]")] = 0.1
    """Share of the steps in which an exponential schedule goes 63% of what is left of the way."""
    disallow_correct: bool = False
    """Never let the generator sample the original token."""
    corrective_lm_weight: Weight = 0.0
    """Experimental, 0 for none: weight of a loss by which the discriminator also guesses the hidden tokens from the
    text in which they are replaced (COCO-LM). Its head for that is left out of exports."""

    contrast_weight: Weight = 0.0
    """Experimental, 0 for none: weight of a loss by which the discriminator tells, from [CLS] alone, which corrupted
    text and which nine tenths of a clean one belong together (COCO-LM). Its head for that is left out of exports."""
    contrast_rows: Annotated[int, Range(2, 2**16)] = 16
    """Consecutive sequences of a batch among which it tells; must divide the rows of a slice on a device."""
    contrast_from: Annotated[float, Range(0, 1)] = 0.95
    """Share of the steps done from which on it is learned: such a step has a pass of the discriminator more, 84% more
    operations of a base model. 1: in none."""

    def __post_init__(self) -> None:
        check_numbers(self, "objective")

    @property
    def contrasts(self) -> bool:
        """Return whether steps learn the contrast of sequences: all those of a part of a phase, or none."""
        return self.contrast_weight > 0 and self.contrast_from < 1

    @property
    def rows_together(self) -> int:
        """Return how many consecutive rows of a batch no cut may part, counted from its first."""
        return self.contrast_rows if self.contrast_weight else 1

    def check_contrast(self, kind: str, packing: str, batch_size: int, slices: int) -> None:
        """Raise UserError where sequences are to be contrasted and cannot be."""
        if not self.contrast_weight:
            return
        given = f"objective.contrast_weight={self.contrast_weight}"
        check(kind == "replaced_tokens", f"{given} needs objective.kind=replaced_tokens with a generator of one tower, "
              f"got {kind}")  # fmt: skip
        check(packing == "none", f"{given} needs data.packing=none, got {packing}: a row must be one sequence")
        check(
            batch_size // slices % self.contrast_rows == 0,
            f"objective.contrast_rows={self.contrast_rows} must divide the {batch_size // slices} rows of a slice of "
            f"the batch (training.batch_size={batch_size}, gradient_accumulation_steps={slices})",
        )
