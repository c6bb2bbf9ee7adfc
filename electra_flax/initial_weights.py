"""Weights to begin with that another run has learned (--init-from); everything else of the run is fresh."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from electra_flax import model
from electra_flax.checkpoint import Checkpoints
from electra_flax.config import Config, UserError
from electra_flax.records import Vocabulary
from electra_flax.sharding import tree_names
from electra_flax.step import abstract_state
from electra_flax.workdir import Workdir


def initial_params(source: str, config: Config, vocabulary: Vocabulary, mesh: Mesh) -> model.Params:
    """The parameters of the newest checkpoint that `find_weights` finds, placed on the mesh. Raises UserError."""
    theirs, checkpoints = find_weights(source, config, vocabulary)
    return checkpoints.restore(theirs, mesh).params


def find_weights(source: str, config: Config, vocabulary: Vocabulary) -> tuple[Config, Checkpoints]:
    """What orbax:DIR names, unread.

    Raises UserError where there is nothing, or it is of a model of another shape or vocabulary.
    """
    kind, _, folder = source.partition(":")
    if kind != "orbax" or not folder:
        raise UserError(f"--init-from {source}: expected orbax:DIR, DIR being the workdir of another run")
    work = Workdir(folder).pull(without=("tensorboard/",))
    theirs = work.read_config()
    if Vocabulary.read(work.folder / "tokenizer/vocab.txt").sha256 != vocabulary.sha256:
        raise UserError(
            f"--init-from {source}: learned with another vocabulary than that of the shards: make shards with "
            f"{folder}/tokenizer"
        )
    found, expected = (_shapes(abstract_state(which).params) for which in (theirs, config))
    if found != expected:
        different = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        name = different[0]
        raise UserError(
            f"--init-from {source}: {len(different)} of {len(expected)} parameters differ, the first {name}: "
            f"{found.get(name, 'absent')} there, {expected.get(name, 'absent')} here: take over its model and "
            "generator sections"
        )
    return theirs, Checkpoints(work.checkpoints)


def _shapes(params: model.Params) -> dict[str, tuple[int, ...]]:
    names = jax.tree.leaves(tree_names(params))
    return {name: leaf.shape for name, leaf in zip(names, jax.tree.leaves(params), strict=True)}
