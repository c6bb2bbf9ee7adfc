"""How parameters move, one file each; a new one is a file here, a line in this table, and its name in the schema."""

from electra_flax.training.optimizers.adamw import ADAMW
from electra_flax.training.optimizers.lamb import LAMB
from electra_flax.training.optimizers.optimizer import Optimizer

OPTIMIZERS: dict[str, Optimizer] = {"adamw": ADAMW, "lamb": LAMB}
