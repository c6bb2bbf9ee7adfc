"""What is learned, one file each; a new one is a file, a line in this table, metrics, and its name in the schema."""

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.training.objectives.masked_tokens import MaskedTokens
from electra_flax.training.objectives.objective import Objective
from electra_flax.training.objectives.replaced_tokens import ReplacedTokens

OBJECTIVES: dict[str, type[Objective]] = {"masked_tokens": MaskedTokens, "replaced_tokens": ReplacedTokens}


def make_objective(config: Config, special: SpecialTokens, continuations: tuple[int, ...] = ()) -> Objective:
    """Return the objective of a run; `continuations` are needed where masking.unit is not token."""
    return OBJECTIVES[config.objective.kind](config, special, continuations)
