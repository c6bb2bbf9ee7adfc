"""Weights from wherever they are: a run of ours, Hugging Face folders, a checkpoint of the original."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from electra_flax import shipped
from electra_flax.config.schema import MeshConfig
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.model.electra import expected_shapes
from electra_flax.model.sharding import make_mesh
from electra_flax.storage.bucket import is_remote
from electra_flax.storage.workdir import Workdir, is_workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.initial_state import abstract_state
from electra_flax.training.optimizers import OPTIMIZERS
from electra_flax.trees import flat
from electra_flax.weights.delta import fold
from electra_flax.weights.hugging_face import HEADS
from electra_flax.weights.read_hugging_face import read_hugging_face
from electra_flax.weights.read_tf1 import read_tf1
from electra_flax.weights.tensor_files import finite
from electra_flax.weights.weights import Weights

SOURCES = "hf:DISC[,GEN], tf1:PREFIX or orbax:DIR"


def _read_run(source: str, place: str, step: int | None) -> Weights:
    """Return the weights of a run of ours."""
    work = Workdir(place).pull(without=("tensorboard/",))
    config = work.read_config()
    # The heads that correct and contrast are left behind: nobody else has a place for them.
    architecture = dataclasses.replace(
        config.architecture.learned, compute_dtype="float32", has_corrective_head=False, has_contrast_head=False
    )
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
            chains = state.opt_state.values() if config.optimizer.decoupled else [state.opt_state]
            for chain in chains:
                found = next(part for part in chain if isinstance(part, optimizer.state or ()))
                for slot in optimizer.slots:
                    moments.setdefault(slot, {}).update(flat(getattr(found, slot)))
        return np.asarray(moments[moment][name])

    return Weights(
        source, architecture, expected_shapes(architecture), finite(read, source), step,
        Vocabulary.read(work.folder / "tokenizer/vocab.txt"), Casing.read(work.folder / "tokenizer"),
        forget=params.clear, run=work, max_seq_length=config.data.max_seq_length,
        optimizer=optimizer if optimizer.slots else None, read_moment=read_moment,
    )  # fmt: skip


_READERS = {"orbax": _read_run, "hf": read_hugging_face, "tf1": read_tf1}


def is_source(place: str) -> bool:
    """Return whether a place says what lies there: hf:, tf1: or orbax:."""
    return place.partition(":")[0] in _READERS


def find_weights(
    source: str,
    step: int | None = None,
    vocab_file: Path | None = None,
    *,
    needs_head: bool = True,
    is_folded: bool = True,
) -> Weights:
    """Return what `source` names, unread but for its headers (of a run, the first parameter that is read brings all).

    A model that ships with the package has a name, with or without hf:. `vocab_file` stands for a vocab.txt that is not
    beside the weights. Without `needs_head` an encoder alone will do, also that of a fine-tuned model. The tables of a
    discriminator that has them as a difference are written out where it `is_folded`. Raises UserError where there is
    nothing, or it is no ELECTRA, or not a whole one.
    """
    kind, _, place = f"hf:{source}".partition(":") if source in shipped.names() else source.partition(":")
    if not place or kind not in _READERS:
        raise UserError(f"{source}: expected {SOURCES}{shipped.offered()}")
    if kind == "hf":
        place = shipped.located(place)
    if step is not None and kind != "orbax":
        raise UserError(f"--step {step}: only a run (orbax:DIR) has several steps: leave --step out")
    found = _READERS[kind](source, place, step)
    found = _whole(found, needs_head)
    if is_folded:
        found = fold(found)
    if vocab_file is not None:
        found = dataclasses.replace(
            found, vocabulary=Vocabulary.read(vocab_file), casing=found.casing or Casing.read(vocab_file.parent)
        )
    vocabulary, rows = found.vocabulary, found.architecture.model.vocab_size
    if vocabulary is None and found.folders:
        raise UserError(
            f"{found.folders[0]}: no vocab.txt, which names the {rows:,} rows of the embeddings: copy it from the "
            "source, or give it to export with --vocab FILE"
        )
    if vocabulary is not None and len(vocabulary.tokens) != rows:
        raise UserError(
            f"{vocabulary.path}: {len(vocabulary.tokens):,} tokens, but the embeddings of {source} have {rows:,} rows: "
            "it belongs to another model (if the last rows are spare, add lines [unused0], [unused1] ... for them)"
        )
    return found


def find_part(place: str, part: str, *, needs_head: bool = True) -> Weights:
    """Return one model of those at a place, as `located_part` takes it; `needs_head` as in find_weights.

    Raises UserError where it is not there.
    """
    weights = find_weights(located_part(place, part), needs_head=needs_head)
    if part not in (parts := weights.architecture.parts):
        if part == "generator" and weights.architecture.has_two_towers:
            raise UserError(f"{place}: its generator is two towers, which read no [MASK]: give a model that has one")
        beside = Path(place).parent / part
        theirs = beside if not is_source(place) and beside.is_dir() else "its folder"
        raise UserError(f"{place}: a {' and '.join(parts)}; expected a {part}: give {theirs}, or an export of both")
    return weights


def located_part(place: str, part: str) -> str:
    """Return what `find_weights` takes for one model of those at a place.

    A place is an export of both, a model's own folder, one that ships, OWNER/NAME on the hub, a workdir, or a source.
    """
    if is_source(place):
        return place
    if is_remote(place) or is_workdir(Path(place)):
        return f"orbax:{place}"
    own = Path(shipped.located(place)) / part
    return f"hf:{own if own.is_dir() else place}"


def _whole(weights: Weights, needs_head: bool) -> Weights:
    """Return the same without what an ELECTRA of these sizes does not have.

    Raises UserError where anything is missing.
    """
    expected = expected_shapes(weights.architecture)
    if not any(name.startswith(tuple(HEADS.values())) for name in weights.shapes):
        if needs_head:
            raise UserError(
                f"{weights.source}: has neither head of ELECTRA's pretraining "
                f"({', '.join(weights.unused) or 'an encoder'} instead): give a pretrained ELECTRA; to fine-tune "
                "this one, use finetune --model"
            )
        expected = {name: shape for name, shape in expected.items() if name.startswith("electra/")}
    missing = sorted(expected.keys() - weights.shapes.keys())
    if missing:
        raise UserError(
            f"{weights.source}: {len(missing)} of {len(expected)} tensors are missing, the first {missing[0]}"
        )
    for name, shape in expected.items():
        if weights.shapes[name] != shape:
            raise UserError(f"{weights.source}: {name} has the shape {weights.shapes[name]}, expected {shape}")
    more = sorted(weights.shapes.keys() - expected.keys())
    return dataclasses.replace(weights, shapes=expected, unused=(*weights.unused, *more))
