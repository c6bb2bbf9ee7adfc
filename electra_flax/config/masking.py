"""Which tokens are hidden."""

from dataclasses import dataclass
from typing import Annotated, Literal

from electra_flax.config.ranges import Range
from electra_flax.errors import check_numbers


@dataclass(frozen=True)
class MaskingConfig:
    """Masking (docs/semantics.md, section 5)."""

    mask_prob: Annotated[float, Range(0, 1, "()")] = 0.15
    """Share of the tokens that are chosen for prediction."""
    mask_token_prob: Annotated[float, Range(0, 1)] = 0.85
    """Chance that a chosen token becomes [MASK]; otherwise it stays as it is. There is no random-token branch."""
    unit: Literal["token", "word", "span"] = "token"
    """What is chosen: tokens, as the original does; whole words (a piece that begins with ## continues one); or spans
    of 1 to 10 words, 3.8 on average, short ones more often. The share of the tokens is the same."""

    def __post_init__(self) -> None:
        check_numbers(self, "masking")
