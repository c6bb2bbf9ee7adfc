"""A checkpoint -> two complete Hugging Face model folders, and the proof that they compute the same.

`flax.serialization` is used here and nowhere else outside the model: it writes the msgpack format that Hugging Face's
Flax classes read. safetensors are written without torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from electra_flax import model, names, parity
from electra_flax.checkpoint import Checkpoints
from electra_flax.config import Config, MeshConfig, ModelConfig, UserError
from electra_flax.records import Vocabulary
from electra_flax.sharding import make_mesh, tree_names
from electra_flax.tokenizer import Casing, save_tokenizer
from electra_flax.workdir import Workdir


class ModelPart(NamedTuple):
    """One of the two models as Hugging Face sees it."""

    name: str
    architecture: str
    config: ModelConfig
    parameters: dict[str, np.ndarray]
    """By Hugging Face's Flax names, "a/b/c"."""


def export(given: str, out: Path, step: int | None) -> dict[str, Any]:
    """Writes out/discriminator, out/generator and out/parity.json of the workdir `given`; returns the parity report.

    Raises UserError where there is no checkpoint or `out` cannot be written.
    """
    work = Workdir(given).pull(without=("tensorboard/",))
    config = work.read_config()
    # Whatever mesh the run had: an export may happen on a machine with one device.
    state = Checkpoints(work.checkpoints).restore(config, make_mesh(MeshConfig()), step)
    params = jax.device_get(state.params)
    vocabulary = Vocabulary.read(work.folder / "tokenizer" / "vocab.txt")
    casing = Casing.read(work.folder / "tokenizer")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part in model_parts(config, params):
            write_model(part, vocabulary, casing, out / part.name, int(state.step), config)
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror}): choose a folder that you may write to"
        ) from None
    report = parity.measure(config, params, vocabulary, out)
    (out / "parity.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def model_parts(config: Config, params: model.Params) -> list[ModelPart]:
    """What there is to publish: both models, or one of them for objectives that train only one."""
    flat = dict(zip(jax.tree.leaves(tree_names(params)), jax.tree.leaves(params), strict=True))

    def pick(select: Callable[[Any], dict[str, str]]) -> dict[str, np.ndarray]:
        return {theirs: np.asarray(flat[ours]) for theirs, ours in select(flat).items()}

    parts = []
    if config.objective.electra_objective:
        parts.append(ModelPart("discriminator", "ElectraForPreTraining", config.model, pick(names.discriminator_names)))
    if model.has_generator_head(config):
        generator = model.generator_model_config(config)
        parts.append(ModelPart("generator", "ElectraForMaskedLM", generator, pick(names.generator_names)))
    return parts


def write_model(
    part: ModelPart, vocabulary: Vocabulary, casing: Casing, folder: Path, step: int, config: Config
) -> None:
    """config.json, flax_model.msgpack, model.safetensors, tokenizer files and the model card."""
    save_tokenizer(vocabulary, casing, folder, part.config.max_position_embeddings)
    settings = hugging_face_config(part, vocabulary)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "flax_model.msgpack").write_bytes(msgpack_serialize(_nested(part.parameters)))
    tensors = {
        names.to_torch(name): np.ascontiguousarray(value.T if names.is_transposed_in_torch(name) else value)
        for name, value in part.parameters.items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(_model_card(part, config, step), encoding="utf-8")


def hugging_face_config(part: ModelPart, vocabulary: Vocabulary) -> dict[str, Any]:
    """config.json with this model's own sizes."""
    sizes = part.config
    return {
        "architectures": [part.architecture],
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
        "pad_token_id": vocabulary.special.pad,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
    }


def _nested(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def _model_card(part: ModelPart, config: Config, step: int) -> str:
    sizes = part.config
    does = {
        "discriminator": "tells replaced tokens from original ones; fine-tune this one",
        "generator": "fills in [MASK]; use it to continue pretraining",
    }[part.name]
    return f"""---
library_name: transformers
tags:
- electra
- {"fill-mask" if part.name == "generator" else "replaced-token-detection"}
---
# ELECTRA {part.name}

An ELECTRA {part.name} ({does}), pretrained with electra-flax for {step:,} steps of
{config.training.batch_size} sequences of {config.data.max_seq_length} tokens.

| layers | hidden | embedding | heads | feed-forward | vocabulary |
| --- | --- | --- | --- | --- | --- |
| {sizes.num_hidden_layers} | {sizes.hidden_size} | {sizes.embedding_size} | {sizes.num_attention_heads} | {sizes.intermediate_size} | {sizes.vocab_size:,} |

```python
from transformers import {part.architecture}, ElectraTokenizerFast

model = {part.architecture}.from_pretrained("{part.name}")
tokenizer = ElectraTokenizerFast.from_pretrained("{part.name}")
```

Citation: Clark et al., ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, ICLR 2020.
"""  # noqa: E501
