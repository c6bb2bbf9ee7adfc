"""What a run reads."""

from dataclasses import dataclass
from typing import Annotated, Literal

from electra_flax.config.ranges import Range, Seed, Size
from electra_flax.errors import check_numbers


@dataclass(frozen=True)
class DataConfig:
    """Input; the shards themselves are given with --data."""

    max_seq_length: Size
    """Tokens per example; must equal that of the shards."""
    vocab_file: str | None = None
    """vocab.txt, only for shards without a manifest (made by the original code); others carry their own."""
    staging_folder: str = "~/.cache/electra-flax/shards"
    """Local folder that shards on gs:// are copied to before training; a later start copies only what changed."""
    shuffle_seed: Seed = 0
    """Seed of the global shuffle, drawn anew for each epoch."""
    read_threads: Annotated[int, Range(1, 1024)] = 4
    """Threads that read and decode batches ahead of training."""
    packing: Literal["none", "best_fit"] = "none"
    """best_fit: several short examples in one row, which see nothing of each other, instead of padding."""
    corrupted: str | None = None
    """Folder of electra-flax corrupt, local or gs://: the discriminator learns from what generator.frozen sampled, also
    for evaluations; the generator is not loaded, and nothing is recorded of its losses."""

    def __post_init__(self) -> None:
        check_numbers(self, "data")
