"""Weights of one Hugging Face folder, or of two that belong together."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from electra_flax.config.architecture import ModelConfig
from electra_flax.data.tokenizer import Casing
from electra_flax.errors import UserError
from electra_flax.weights.hugging_face import HEADS, ModelFolder
from electra_flax.weights.shapes import architecture_of
from electra_flax.weights.weights import Weights, vocabulary_in


def read_hugging_face(source: str, place: str, step: int | None) -> Weights:
    del step
    parts = [path for path in (Path(place) / part for part in HEADS) if path.is_dir()]
    # An export holds one part where its run had one.
    is_export = len(parts) == len(HEADS) or (parts and not (Path(place) / "config.json").exists())
    folders = [ModelFolder.open(str(name)) for name in (parts if is_export else place.split(","))]
    if len(folders) > 2:
        raise UserError(f"{source}: {len(folders)} folders, expected one or two: hf:DISC[,GEN]")
    if len(folders) == 1:
        (folder,) = folders
        return _joined(source, folders, dict.fromkeys(folder.shapes, folder), {name: name for name in folder.shapes})
    for folder, part in zip(folders, HEADS, strict=True):
        if part not in folder.heads:
            head = f"the head of a {folder.heads[0]}" if folder.heads else "neither head of ELECTRA's pretraining"
            raise UserError(
                f"{folder.path}: given as the {part}, but it has {head} (hidden size {folder.config.hidden_size}): "
                "expected the discriminator first and the generator second, hf:DISC,GEN"
            )
    first, second = (vocabulary_in(folder.path) for folder in folders)
    if first and second and first.tokens != second.tokens:
        raise UserError(f"{source}: the two have different vocabularies: they do not belong together")
    return _pair(source, *folders)


def _pair(source: str, discriminator: ModelFolder, generator: ModelFolder) -> Weights:
    """Return both models in one tree: what is equal in both is shared."""

    # Both folders hold a whole model, what the two share twice: only the numbers tell.
    def is_same(prefix: str) -> bool:
        theirs = [name for name in generator.shapes if name.startswith(prefix)]
        return all(
            discriminator.shapes.get(name) == generator.shapes[name]
            and np.array_equal(discriminator.read(name), generator.read(name))
            for name in theirs
        )

    shares_embeddings = is_same("electra/embeddings/")
    shares_all = shares_embeddings and is_same("electra/")
    table = {name: name for name in discriminator.shapes if not name.startswith(HEADS["generator"])}
    table.pop("generator_lm_head/bias", None)
    owners = dict.fromkeys(table, discriminator)
    for name in generator.shapes:
        if name.startswith(HEADS["discriminator"]) or (shares_all and name.startswith("electra/")):
            continue
        if shares_embeddings and name.startswith("electra/embeddings/"):
            continue
        ours = re.sub("^electra/", "generator/", name)
        table[ours], owners[ours] = name, generator
    return _joined(source, [discriminator, generator], owners, table, None if shares_all else generator.config)


def _joined(
    source: str,
    folders: list[ModelFolder],
    owners: dict[str, ModelFolder],
    table: dict[str, str],
    generator: ModelConfig | None = None,
) -> Weights:
    """Return the weights of `table`, {our name: theirs}."""
    shapes = {name: owners[name].shapes[theirs] for name, theirs in table.items()}
    vocabulary = vocabulary_in(folders[0].path)
    return Weights(
        source, dataclasses.replace(architecture_of(shapes, folders[0].config, generator), logit=folders[0].logit),
        shapes,
        lambda name: owners[name].read(table[name]),
        vocabulary=vocabulary, casing=Casing.read(folders[0].path) if vocabulary else None,
        unused=tuple(f"{folder.path}: {name}" for folder in folders for name in folder.unused),
        folders=tuple(folder.path for folder in folders),
    )  # fmt: skip
