"""Which tokens are hidden."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from electra_flax.config.ranges import Range
from electra_flax.errors import check_numbers


@dataclass(frozen=True)
class MaskingConfig:
    """Masking (docs/semantics.md, section 5)."""

    mask_prob: Annotated[float, Range(0, 1, "()")] = 0.15
    """Share of the tokens that are chosen for prediction."""
    final_mask_prob: Annotated[float | None, Range(0, 1, "()")] = None
    """Share at the last step, to which it goes in equal steps, such as 0.3 to 0.15; default: mask_prob throughout."""
    mask_token_prob: Annotated[float, Range(0, 1)] = 0.85
    """Chance that a chosen token becomes [MASK]; otherwise it stays as it is. There is no random-token branch."""
    unit: Literal["token", "word", "span"] = "token"
    """What is chosen: tokens, as the original does; words, all pieces of them (one that begins with ## continues a
    word); or spans of 1 to 10 words, 3.8 on average, the last one cut after a word."""

    def __post_init__(self) -> None:
        check_numbers(self, "masking")

    def of_phase(self, share: float | None) -> "MaskingConfig":
        """Return the masking of a phase that has a constant share of its own, or none."""
        return self if share is None else replace(self, mask_prob=share, final_mask_prob=None)

    @property
    def largest_share(self) -> float:
        return max(self.mask_prob, self.final_mask_prob or 0)

    @property
    def last_share(self) -> float:
        return self.mask_prob if self.final_mask_prob is None else self.final_mask_prob
