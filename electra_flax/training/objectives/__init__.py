"""What is learned, one file each; a new one is a file, a line in this table, metrics, and its name in the schema."""

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.training.objectives.masked_tokens import MaskedTokens
from electra_flax.training.objectives.objective import Objective
from electra_flax.training.objectives.replaced_tokens import Electric, FromSamples, ReplacedTokens, TwoTowers

OBJECTIVES: dict[str, type[Objective]] = {
    "masked_tokens": MaskedTokens,
    "replaced_tokens": ReplacedTokens,
    "electric": Electric,
}


def make_objective(config: Config, special: SpecialTokens, continuations: tuple[int, ...] = ()) -> Objective:
    """Return the objective of a run; `continuations` are needed where masking.unit is not token."""
    kind = OBJECTIVES[config.objective.kind]
    if kind is ReplacedTokens and config.has_two_towers:
        kind = TwoTowers
    if config.data.corrupted is not None:
        kind = FromSamples
    return kind(config, special, continuations)
