"""What an optimizer is: what it does between clipping and the learning rate, and what its state is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax

from electra_flax.trees import tree_names

# (regex over "a/b/c" parameter names, whether decayed); the first match decides.
WEIGHT_DECAY_RULES: tuple[tuple[str, bool], ...] = (
    (r"LayerNorm/", False),
    (r"/bias$", False),
    (r".*", True),
)


class Optimizer(NamedTuple):
    """One file of this folder."""

    parts: Callable[..., list[optax.GradientTransformation]]
    """(OptimizerConfig, corrects_bias) -> what stands between clipping and the learning rate, in one flat chain: the
    names of arrays in checkpoints are places in it."""
    state: type | None = None
    """The type of the part of its state that the original's checkpoints hold too; None: they have nothing like it."""
    slots: Mapping[str, str] = {}
    """{field of that state: what the original calls it}."""
    has_adams_rates: bool = False
    """Whether its learning rates are of the size of Adam's, with which doctor compares them."""


def is_decayed(params: Any) -> Any:
    """Return a tree that is true for every parameter that weight decay touches."""

    def decide(name: str) -> bool:
        return next(decayed for pattern, decayed in WEIGHT_DECAY_RULES if re.search(pattern, name))

    return jax.tree.map(decide, tree_names(params))
