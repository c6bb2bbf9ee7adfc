"""Hugging Face model folders: config.json and weights (tensor_files.py), checked to be those of one ELECTRA."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import create_model

from electra_flax.config.architecture import Logit, ModelConfig
from electra_flax.errors import UserError
from electra_flax.files import read_json
from electra_flax.weights import hub
from electra_flax.weights.shapes import Shapes, sizes_of
from electra_flax.weights.tensor_files import MSGPACK, SAFETENSORS, SHARDS, Read, open_tensors

CONFIG = "config.json"
ENERGY = {"electra_flax_logit": "energy"}
"""In config.json of a discriminator whose logit is an energy (architecture.Logit), not the log-odds of `replaced`."""
HEADS = {"discriminator": "discriminator_predictions/", "generator": "generator_predictions/"}
_TIED = "generator_lm_head/kernel"  # PyTorch's second name of the word embeddings
_FILES = [CONFIG, SAFETENSORS, SHARDS, "model-*-of-*.safetensors", MSGPACK, "vocab.txt", "tokenizer*.json"]
_FIX = "copy it again from its source"
_FIELDS = dataclasses.fields(ModelConfig)
# Of config.json, what is read and the types there: our sizes have Hugging Face's names.
_READ: dict[str, Any] = {"model_type": str, **{field.name: field.type for field in _FIELDS}}
_Settings = create_model("_Settings", **{name: (kind, None) for name, kind in _READ.items()})  # type: ignore[call-overload]
_FIXED = {"hidden_act": "gelu", "position_embedding_type": "absolute"}


class ModelFolder(NamedTuple):
    """One model's weights and sizes."""

    path: Path
    config: ModelConfig
    shapes: Shapes
    read: Read
    """A parameter in float32. Raises UserError, also for one that is not finite."""
    unused: list[str]
    """Tensors that are no parameter of ELECTRA's."""
    logit: Logit = "replaced"
    """Of the discriminator, where it has that head."""

    @classmethod
    def open(cls, name: str) -> ModelFolder:
        """Open a folder, or OWNER/NAME on the hub. Raises UserError for anything that is not an ELECTRA to be read."""
        path = Path(name) if Path(name).is_dir() else hub.download(name, _FILES)
        shapes, read = open_tensors(path)
        known = re.compile(r"electra/(embeddings|embeddings_project|encoder)/|" + "|".join(HEADS.values()))
        unused = sorted(
            name for name in shapes if not known.match(name) and name not in ("generator_lm_head/bias", _TIED)
        )
        config, logit = _model_config(path / CONFIG)
        if not any(name.startswith("electra/") for name in shapes):
            raise UserError(f"{path}: none of its tensors is ELECTRA's; the first is {min(shapes, default='missing')}")
        if _TIED in shapes:
            _check_tied(path, shapes, read)
        found = {name: shape for name, shape in shapes.items() if name not in unused and name != _TIED}
        _check_sizes(path, config, found)
        return cls(path, config, found, read, unused, logit)

    @property
    def heads(self) -> list[str]:
        """Return those of "discriminator" and "generator" whose head is there."""
        return [part for part, prefix in HEADS.items() if any(name.startswith(prefix) for name in self.shapes)]


def hugging_face_config(sizes: ModelConfig, architecture: str, pad_token_id: int, dtype: str) -> dict[str, Any]:
    """Return config.json with this model's own sizes."""
    return {
        "architectures": [architecture],
        "model_type": "electra",
        "vocab_size": sizes.vocab_size,
        "embedding_size": sizes.embedding_size,
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_hidden_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "intermediate_size": sizes.intermediate_size,
        "hidden_act": "gelu",
        "hidden_dropout_prob": sizes.hidden_dropout_prob,
        "attention_probs_dropout_prob": sizes.attention_probs_dropout_prob,
        "max_position_embeddings": sizes.max_position_embeddings,
        "type_vocab_size": sizes.type_vocab_size,
        "initializer_range": sizes.initializer_range,
        "layer_norm_eps": sizes.layer_norm_eps,
        "pad_token_id": pad_token_id,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        "dtype": dtype,
        "torch_dtype": dtype,  # what transformers before 4.56 calls it
    }


def _model_config(path: Path) -> tuple[ModelConfig, Logit]:
    """Return what config.json says: sizes, and what the discriminator's logit is."""
    if not path.exists():
        raise UserError(f"{path}: missing: without it heads and dropout are unknown; copy it from the source")
    settings = read_json(path, dict[str, Any], _FIX)
    known = read_json(path, _Settings, _FIX, is_ours=False).model_dump(exclude_unset=True)
    if (kind := known.pop("model_type", None)) is None:
        raise UserError(f'{path}: lacks model_type: if it is an ELECTRA, add "model_type": "electra"')
    if kind != "electra":
        raise UserError(f"{path}: a model of type {kind}, not electra: {kind} has another architecture")
    for name, ours in _FIXED.items():
        if settings.get(name, ours) != ours:
            raise UserError(f"{path}: {name}={settings[name]}: only {ours} is supported, which the original has")
    logit: Logit = "energy" if ENERGY.items() <= settings.items() else "replaced"
    required = [field.name for field in _FIELDS if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in known]:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    try:
        return ModelConfig(**known), logit
    except UserError as error:
        raise UserError(f"{path}: {str(error).replace('model.', '')}") from None


def _check_sizes(path: Path, config: ModelConfig, shapes: Shapes) -> None:
    try:
        sizes = sizes_of(shapes)
    except KeyError as error:
        raise UserError(f"{path}: lacks the tensor {error.args[0]}, without which it is no ELECTRA") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for name, found in sizes.items():
        if (said := getattr(config, name)) != found:
            raise UserError(f"{path / CONFIG}: {name}={said}, but its weights have {found}: they belong to two models")


def _check_tied(path: Path, shapes: Shapes, read: Read) -> None:
    """Raise UserError where the generator's output matrix, whatever its name, is not its table of word embeddings."""
    words = "electra/embeddings/word_embeddings/embedding"
    if shapes[_TIED][::-1] != shapes.get(words) or not np.array_equal(read(_TIED).T, read(words)):
        raise UserError(
            f"{path}: generator_lm_head.weight is not the table of the word embeddings, as it is in every ELECTRA: "
            "this head was trained or initialised apart and cannot be kept"
        )
