"""What all doors lead to: a model as it was found, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture
from electra_flax.config.schema import Config
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.training.optimizers.optimizer import Optimizer
from electra_flax.trees import Params, nested
from electra_flax.weights.shapes import Shapes


def _no_moment(name: str, moment: str) -> np.ndarray:
    raise KeyError(f"{name}: no {moment} of an optimizer")


class Run(Protocol):
    """A workdir, as far as it is read here (storage/workdir.py); its text is its place."""

    folder: Path

    def read_config(self) -> Config: ...


@dataclass(frozen=True)
class Weights:
    """A model as it was found."""

    source: str
    architecture: Architecture
    """As the weights and the files beside them say, to be applied in float32."""
    shapes: Shapes
    """Of every parameter, by our names."""
    read: Callable[[str], np.ndarray]
    """A parameter, float32. Raises UserError where its bytes are damaged or its numbers not finite."""
    step: int = 0
    vocabulary: Vocabulary | None = None
    casing: Casing | None = None
    forget: Callable[[], None] = lambda: None
    """Gives back what `read` keeps: of a run all parameters, which come at once."""
    run: Run | None = None
    """The run that they come from, where it was one of ours."""
    max_seq_length: int | None = None
    """Tokens of the examples that they were learned from, where something says it."""
    folders: tuple[Path, ...] = ()
    """Hugging Face's folders that they come from, where they did."""
    optimizer: Optimizer | None = None
    """Of which there are moments, where there are any."""
    read_moment: Callable[[str, str], np.ndarray] = _no_moment
    """A parameter's moment, by the field of the optimizer's state that holds it."""
    unused: tuple[str, ...] = ()
    """Tensors there that are no parameter of ours."""
    remarks: tuple[str, ...] = ()
    """What was assumed, to be told to the user."""

    def to_params(self) -> Params:
        """Return all parameters, nested; never more than one of them twice in memory."""
        return nested({name: jnp.asarray(self.read(name)) for name in self.shapes})


def vocabulary_in(folder: Path) -> Vocabulary | None:
    path = folder / "vocab.txt"
    return Vocabulary.read(path) if path.exists() else None
