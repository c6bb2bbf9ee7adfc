"""Weights -> two complete Hugging Face model folders and the proof that they compute the same, or a checkpoint that
the original loads. One tensor is in memory at a time, beside what the source holds."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.data.tokenizer import Casing, save_tokenizer
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import replaced, write_whole
from electra_flax.runtime.console import progress
from electra_flax.weights import names, parity
from electra_flax.weights.hugging_face import CONFIG, ENERGY, hugging_face_config
from electra_flax.weights.model_card import Publication, model_card
from electra_flax.weights.shapes import Shapes
from electra_flax.weights.tensor_files import MSGPACK, SAFETENSORS, check_narrow, write_msgpack, write_safetensors
from electra_flax.weights.tf1_checkpoint import write_tf1_checkpoint
from electra_flax.weights.weights import Weights

log = logging.getLogger("electra_flax")


# What the original makes of model_size by rules, and what it takes where nothing overrides it.
_RULED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_ORIGINAL = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
}


class ModelPart(NamedTuple):
    """One of the two models as Hugging Face sees it."""

    name: str
    config: ModelConfig
    ours: dict[str, str]
    """{Hugging Face's Flax name: our name}."""


def model_parts(architecture: Architecture, shapes: Shapes) -> list[ModelPart]:
    """Return what there is to publish: both models, or one of them for objectives that train only one."""
    select = {"discriminator": names.discriminator_names, "generator": names.generator_names}
    return [ModelPart(part, architecture.sizes_of(part), select[part](shapes)) for part in architecture.parts]


def export_to_hugging_face(
    weights: Weights, out: Path, dtype: str, publication: Publication
) -> dict[str, dict[str, float | None]]:
    """Write out/discriminator, out/generator and out/parity.json; return what that holds.

    {"discriminator": {"flax": largest difference of hidden states and logits, "torch": ...}, "generator": ...}, null
    where a framework is not installed. Raises UserError where there is no vocabulary, a number is not finite in
    `dtype`, or `out` cannot be written.
    """
    vocabulary, casing = _tokenizer_of(weights)
    parts = model_parts(weights.architecture, weights.shapes)
    if weights.architecture.has_two_towers:
        log.info("NOTE: no generator folder: Hugging Face has no model of two towers; --to tf1 keeps them")
    folders = {part.name: out / part.name for part in parts}
    for other in parity.ARCHITECTURES:  # two of different runs would be taken for a pair
        if weights.run is not None and other not in folders and (out / other).exists():
            raise UserError(f"--out {out}: already has a {other}, and this run has none: choose another folder")
    if (out / "parity.json").exists():
        log.warning("--out %s: replacing the model that was exported there before", out)
    numbers = sum(int(np.prod(weights.shapes[ours])) for part in parts for ours in part.ours.values())
    with _progress("parameters", numbers, 3, weights.read) as read:
        ours = dict.fromkeys(name for part in parts for name in part.ours.values())
        check_narrow(ours, read, weights.source, jnp.dtype(dtype))
        for part in parts:
            _write_model(weights, part, vocabulary, casing, folders[part.name], jnp.dtype(dtype), read, publication)
    report = {
        part: {framework: found.largest if found else None for framework, found in frameworks.items()}
        for part, frameworks in parity.compare(weights, folders).items()
    }
    text = json.dumps({"texts": parity.TEXTS, "dtype": dtype, **report}, indent=1, ensure_ascii=False)
    write_whole(out / "parity.json", text + "\n")
    return report


def export_to_tf1(weights: Weights, out: Path) -> Path:
    """Write a checkpoint of the original's, hparams.json and vocab.txt; return its prefix.

    With moments of Adam and step where there are any. Raises UserError where `out` cannot be written.
    """
    vocabulary, casing = _tokenizer_of(weights)
    shapes = {names.to_tf1(name): shape for name, shape in weights.shapes.items()} | {names.TF1_STEP: ()}
    ours: dict[str, Callable[[], np.ndarray]] = {
        names.to_tf1(name): partial(weights.read, name) for name in weights.shapes
    }
    ours[names.TF1_STEP] = lambda: np.asarray(weights.step, np.int64)
    for moment, slot in weights.optimizer.slots.items() if weights.optimizer else ():
        for name, shape in weights.shapes.items():
            variable = names.tf1_slot(name, slot)
            shapes[variable], ours[variable] = shape, partial(weights.read_moment, name, moment)
    prefix = out / f"model.ckpt-{weights.step}"
    longest = weights.max_seq_length or weights.architecture.model.max_position_embeddings
    hparams = original_hparams(weights.architecture, longest, casing)
    if "layer_norm_eps" in hparams["model_hparam_overrides"]:
        log.warning(
            "layer_norm_eps=%g: the original's code has %g and reads no other: this checkpoint computes something else "
            "there; electra-flax reads the value back from hparams.json",
            weights.architecture.model.layer_norm_eps, _ORIGINAL["layer_norm_eps"],
        )  # fmt: skip
    values = sum(int(np.prod(shape)) for shape in shapes.values())  # moments too
    with _progress("values", values, 2, lambda name: ours[name]()) as read:
        for name in shapes:
            read(name)  # refused, where it is not finite, before anything is written
        _make_folder(out)
        try:
            write_tf1_checkpoint(prefix, shapes, read)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written ({error.strerror}): free some space") from None
    write_whole(out / "hparams.json", json.dumps(hparams, indent=1) + "\n")
    write_whole(out / "vocab.txt", vocabulary.path.read_bytes())
    return prefix


def original_hparams(architecture: Architecture, max_seq_length: int, casing: Casing) -> dict[str, Any]:
    """Return the original's --hparams, from which alone it builds the same variables (docs/semantics.md, section 4).

    Raises UserError where its rules cannot make this generator.
    """
    sizes, generator = architecture.model, architecture.generator_sizes
    width = generator.hidden_size
    rules = {"num_attention_heads": max(1, width // 64), "intermediate_size": 4 * width}
    for name, expected in rules.items() if architecture.generator else ():
        if (ours := getattr(generator, name)) != expected:
            raise UserError(
                f"--to tf1: generator.{name}={ours}, which the original cannot build: its rule gives {expected}"
            )
    if architecture.has_own_embeddings and generator.embedding_size != width:
        raise UserError(
            f"--to tf1: the generator's own embeddings are {generator.embedding_size} wide and its hidden size is "
            f"{width}: the original has tables of its own only as wide as its layers"
        )
    overrides = {name: getattr(sizes, name) for name in _RULED}
    overrides |= {name: ours for name, its in _ORIGINAL.items() if (ours := getattr(sizes, name)) != its}
    is_electric = architecture.logit == "energy" and architecture.has_two_towers
    # Of these, earlier versions of the original know nothing, and refuse what they do not know.
    newer = {"two_tower_generator": architecture.has_two_towers, "electric_objective": is_electric}
    return {
        "model_size": "small",  # every size is written out below
        "vocab_size": sizes.vocab_size,
        "embedding_size": sizes.embedding_size,
        "max_seq_length": max_seq_length,
        "do_lower_case": casing.do_lower_case,
        "model_hparam_overrides": overrides,
        "generator_hidden_size": width / sizes.hidden_size,
        "generator_layers": generator.num_hidden_layers / sizes.num_hidden_layers,
        "untied_generator": architecture.generator is not None,
        "untied_generator_embeddings": architecture.has_own_embeddings,
        "uniform_generator": not architecture.has_generator_head,
        "electra_objective": architecture.has_discriminator_head and not is_electric,
        **{name: value for name, value in newer.items() if value},
    }


def _tokenizer_of(weights: Weights) -> tuple[Vocabulary, Casing]:
    if weights.vocabulary is None:
        raise UserError(f"{weights.source}: no vocab.txt beside the weights: name it with --vocab FILE")
    vocabulary = weights.vocabulary
    _ = vocabulary.special  # refused, where it lacks one, before anything is written
    return vocabulary, weights.casing or Casing.read(vocabulary.path.parent)


def _write_model(
    weights: Weights,
    part: ModelPart,
    vocabulary: Vocabulary,
    casing: Casing,
    folder: Path,
    dtype: np.dtype,
    read: Callable[[str], np.ndarray],
    publication: Publication,
) -> None:
    """Write config.json, flax_model.msgpack, model.safetensors, tokenizer files and the model card."""
    _make_folder(folder)
    shapes = {theirs: weights.shapes[ours] for theirs, ours in part.ours.items()}
    for name, write in ((SAFETENSORS, write_safetensors), (MSGPACK, write_msgpack)):
        with replaced(folder / name) as path:
            write(path, shapes, lambda theirs: read(part.ours[theirs]), dtype)
    settings = hugging_face_config(part.config, parity.ARCHITECTURES[part.name], vocabulary.special.pad, dtype.name)
    if weights.architecture.logit == "energy" and part.name == "discriminator":
        settings |= ENERGY
    write_whole(folder / CONFIG, json.dumps(settings, indent=2) + "\n")
    save_tokenizer(vocabulary, casing, folder, part.config.max_position_embeddings)
    for name, content in model_card(weights, part.name, part.config, publication).items():
        write_whole(folder / name, content)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {folder}: cannot be written ({error.strerror}): choose a folder that you may write to"
        ) from None


@contextmanager
def _progress(
    unit: str, total: int, passes: int, read: Callable[[str], np.ndarray]
) -> Iterator[Callable[[str], np.ndarray]]:
    """Yield `read`, with a bar that shows how many of the parameters were written; each is read `passes` times."""
    with progress(total, "writing", unit, scaled=True, delay=1.0) as bar:

        def reading(name: str) -> np.ndarray:
            value = read(name)
            bar.update(value.size / passes)
            return value

        yield reading
