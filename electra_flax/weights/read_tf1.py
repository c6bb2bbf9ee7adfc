"""Weights of a checkpoint of the original, and what its hparams.json says."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from electra_flax.config.architecture import ModelConfig
from electra_flax.config.data import DataConfig
from electra_flax.data.tokenizer import Casing
from electra_flax.errors import UserError
from electra_flax.files import read_json
from electra_flax.model.electra import expected_shapes
from electra_flax.training.optimizers.adamw import ADAMW
from electra_flax.weights import names
from electra_flax.weights.shapes import HEAD_SIZE, LEFT_TOWER, Shapes, architecture_of, own_generator, sizes_of
from electra_flax.weights.tensor_files import finite
from electra_flax.weights.tf1_checkpoint import Tf1Checkpoint
from electra_flax.weights.weights import Weights, vocabulary_in

_DEBUG_HEADS = 4  # of the original's debug=true, which wins over everything


@dataclass(frozen=True)
class _Overrides:
    """What the original lets a user override of its rules, as far as no variable's shape says it."""

    num_attention_heads: int | None = None
    hidden_dropout_prob: float | None = None
    attention_probs_dropout_prob: float | None = None
    initializer_range: float | None = None
    layer_norm_eps: float | None = None


@dataclass(frozen=True)
class _Hparams:
    """Of the original's hparams.json, what is read."""

    model_hparam_overrides: _Overrides = _Overrides()
    max_seq_length: int | None = None
    do_lower_case: bool | None = None
    debug: bool = False
    electric_objective: bool = False


def read_tf1(source: str, place: str, step: int | None) -> Weights:
    del step
    prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", place))
    _check_prefix(source, prefix)
    checkpoint = Tf1Checkpoint(prefix)
    variables = {names.from_tf1(name): name for name in checkpoint.shapes if names.is_tf1_parameter(name)}
    shapes = {ours: checkpoint.shapes[theirs] for ours, theirs in variables.items()}
    if not any(name.startswith("electra/") for name in shapes):
        raise UserError(f"{source}: no variable of it is ELECTRA's; the first is {min(shapes, default='missing')}")
    hparams = _read_hparams(prefix.parent / "hparams.json")
    remarks, where = [], f"{source} with {prefix.parent / 'hparams.json'}"
    if hparams is None:
        where = source
        remarks.append(f"no hparams.json beside it: attention heads taken to be hidden size / {HEAD_SIZE}")
        if own_generator(shapes) == LEFT_TOWER:
            remarks.append("its two towers are taken to be ELECTRA's: Electric's have the same variables")
    hparams = hparams or _Hparams()
    try:
        model = _tf1_model(shapes, hparams)
        own = own_generator(shapes)
        generator = _tf1_generator(shapes, model, own) if own else None
        if hparams.max_seq_length is not None:
            DataConfig(max_seq_length=hparams.max_seq_length)  # refused beyond its range
            if hparams.max_seq_length > model.max_position_embeddings:
                raise UserError(
                    f"max_seq_length={hparams.max_seq_length} must be at most the {model.max_position_embeddings} "
                    "positions of the model"
                )
    except KeyError as error:
        raise UserError(f"{source}: lacks {names.to_tf1(error.args[0])}: not a whole ELECTRA") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    architecture = architecture_of(shapes, model, generator)
    if hparams.electric_objective:
        architecture = dataclasses.replace(architecture, logit="energy")
    expected = expected_shapes(architecture)
    slots = ADAMW.slots
    has_moments = all(names.tf1_slot(name, slot) in checkpoint.shapes for name in expected for slot in slots.values())
    lower = hparams.do_lower_case

    def read_moment(name: str, moment: str) -> np.ndarray:
        return finite(checkpoint.read, source)(names.tf1_slot(name, slots[moment]))

    return Weights(
        source, architecture, shapes, finite(lambda name: checkpoint.read(variables[name]), source),
        step=int(checkpoint.read(names.TF1_STEP)) if names.TF1_STEP in checkpoint.shapes else 0,
        vocabulary=vocabulary_in(prefix.parent),
        casing=None if lower is None else Casing(lower, lower),  # the original strips accents where it lower-cases
        optimizer=ADAMW if has_moments else None, read_moment=read_moment,
        max_seq_length=hparams.max_seq_length,
        remarks=tuple(remarks),
    )  # fmt: skip


def _check_prefix(source: str, prefix: Path) -> None:
    """Raise UserError where `prefix` is a folder; it says which checkpoints are there."""
    if not prefix.is_dir():
        return
    there = sorted(str(path.with_suffix("")) for path in prefix.glob("*.index"))
    found = ", ".join(f"tf1:{path}" for path in there[-5:]) or "none"
    raise UserError(
        f"{source}: a folder; a checkpoint is named by its prefix, and these are there: {found}"
        + (f" and {len(there) - 5} earlier ones" if len(there) > 5 else "")
    )


def _tf1_model(shapes: Shapes, hparams: _Hparams) -> ModelConfig:
    """Return sizes as the variables have them, the rest by the original's rules (docs/semantics.md, section 4)."""
    sizes: dict[str, Any] = dict(sizes_of(shapes))
    sizes["num_attention_heads"] = max(1, sizes["hidden_size"] // HEAD_SIZE)
    overrides = dataclasses.asdict(hparams.model_hparam_overrides)
    sizes |= {name: value for name, value in overrides.items() if value is not None}
    if hparams.debug:
        sizes["num_attention_heads"] = _DEBUG_HEADS
    return ModelConfig(**sizes)


def _tf1_generator(shapes: Shapes, model: ModelConfig, own: str) -> ModelConfig:
    """Return the discriminator's settings in the sizes of the generator's variables, heads by the original's rule."""
    table = own if any(name.startswith(f"{own}/embeddings/") for name in shapes) else "electra"
    sizes: dict[str, Any] = dict(sizes_of(shapes, own, table))
    return dataclasses.replace(model, **sizes, num_attention_heads=max(1, sizes["hidden_size"] // HEAD_SIZE))


def _read_hparams(path: Path) -> _Hparams | None:
    fix = "expected the --hparams that the checkpoint was trained with"
    return read_json(path, _Hparams, fix, is_ours=False) if path.exists() else None
