"""How rows are filled with several examples."""

from dataclasses import dataclass
from typing import Annotated, Literal

from electra_flax.config.ranges import Range
from electra_flax.errors import check_numbers


@dataclass(frozen=True)
class PackingConfig:
    """How rows are filled where data.packing=best_fit; losses and gradients are those of the same examples in rows of
    their own."""

    segments: Annotated[int, Range(2, 8)] = 8
    """Examples of a row at most."""
    window: Annotated[int, Range(2, 2**16)] = 1024
    """Examples, one after the other in the epoch's order, among which those of a row are chosen."""
    batch: Literal["tokens", "rows"] = "tokens"
    """tokens: a step has about as many tokens as training.batch_size examples, in fewer rows; rows: it has
    training.batch_size rows, and so more tokens."""

    def __post_init__(self) -> None:
        check_numbers(self, "packing")

    def rows_a_step(self, batch_size: int, share: float, unit: int) -> int:
        """Return the rows of a step, a multiple of `unit`, where examples need `share` as many rows as they are."""
        if self.batch == "rows":
            return batch_size
        return max(1, round(batch_size * share / unit)) * unit
