"""The exported folders, loaded by transformers, against our own forward pass on a fixed text."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from electra_flax import model
from electra_flax.config import Config
from electra_flax.records import Vocabulary

TEXT = "한국어 ELECTRA를 공유합니다. The quick brown fox jumps over the lazy dog."
_ARCHITECTURES = {"discriminator": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"}


def measure(config: Config, params: model.Params, vocabulary: Vocabulary, out: Path) -> dict[str, Any]:
    """{"text", "discriminator": {"flax": max |difference| of logits, "torch": ...}, "generator": {...}}.

    A framework that is not installed is reported as null.
    """
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, compute_dtype="float32"))
    report: dict[str, Any] = {"text": TEXT}
    for part in ("discriminator", "generator"):
        if not (out / part).is_dir():
            continue
        with quiet_transformers():
            report[part] = _compare(config, params, vocabulary, out / part, part)
    return report


def _compare(
    config: Config, params: model.Params, vocabulary: Vocabulary, folder: Path, part: str
) -> dict[str, float | None]:
    import transformers  # slow to import: only when there is something to compare

    tokenizer = transformers.ElectraTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(TEXT, return_tensors="np", truncation=True, max_length=config.data.max_seq_length)
    ours = our_logits(config, params, part, inputs)
    theirs: dict[str, float | None] = {"flax": None, "torch": None}
    flax_class = getattr(transformers, f"Flax{_ARCHITECTURES[part]}", None)
    if flax_class is not None:
        logits = flax_class.from_pretrained(folder)(**inputs).logits
        theirs["flax"] = _difference(ours, np.asarray(logits))
    if importlib.util.find_spec("torch") is not None:
        torch_model = getattr(transformers, _ARCHITECTURES[part]).from_pretrained(folder).eval()
        tensors = tokenizer(TEXT, return_tensors="pt", truncation=True, max_length=config.data.max_seq_length)
        theirs["torch"] = _difference(ours, torch_model(**tensors).logits.detach().numpy())
    return theirs


def our_logits(config: Config, params: model.Params, part: str, inputs: Any) -> np.ndarray:
    """Our own logits for Hugging Face's inputs: float32 [B, T] or, for the generator, [B, T, V]."""
    ids_BT, mask_BT, types_BT = (
        jnp.asarray(inputs[name], jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")
    )
    if part == "discriminator":
        return np.asarray(model.apply_discriminator(config, params, ids_BT, mask_BT, types_BT))
    everywhere_BT = jnp.broadcast_to(jnp.arange(ids_BT.shape[1])[None, :], ids_BT.shape)
    return np.asarray(model.apply_generator(config, params, ids_BT, mask_BT, types_BT, everywhere_BT))


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs.reshape(ours.shape)).max())


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Its deprecation notices for Flax are known and would drown the report; errors still show."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
