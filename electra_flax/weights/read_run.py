"""Weights of a run of ours."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from electra_flax.config.schema import MeshConfig
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.model.sharding import make_mesh
from electra_flax.storage.workdir import Workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.optimizers import OPTIMIZERS
from electra_flax.trees import flat
from electra_flax.weights.shapes import expected_shapes
from electra_flax.weights.tensor_files import finite
from electra_flax.weights.weights import Weights


def read_run(source: str, place: str, step: int | None) -> Weights:
    work = Workdir(place).pull(without=("tensorboard/",))
    config = work.read_config()
    architecture = dataclasses.replace(config.architecture, compute_dtype="float32")
    checkpoints = Checkpoints(work.checkpoints)
    step = checkpoints.existing(step)
    params: dict[str, np.ndarray] = {}
    moments: dict[str, dict[str, Any]] = {}

    def read(name: str) -> np.ndarray:
        if not params:
            params.update(flat(checkpoints.restore_params(abstract_state(config).params, step)))
        return params[name]

    optimizer = OPTIMIZERS[config.optimizer.algorithm]

    def read_moment(name: str, moment: str) -> np.ndarray:
        if not moments:
            state = checkpoints.restore(abstract_state(config), make_mesh(MeshConfig()), step)
            found = next(part for part in state.opt_state if isinstance(part, optimizer.state or ()))
            moments.update({slot: flat(getattr(found, slot)) for slot in optimizer.slots})
        return np.asarray(moments[moment][name])

    return Weights(
        source, architecture, expected_shapes(architecture), finite(read, source), step,
        Vocabulary.read(work.folder / "tokenizer/vocab.txt"), Casing.read(work.folder / "tokenizer"),
        forget=params.clear, run=work, max_seq_length=config.data.max_seq_length,
        optimizer=optimizer if optimizer.slots else None, read_moment=read_moment,
    )  # fmt: skip
