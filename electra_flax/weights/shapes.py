"""What a model's tensors say of its configuration: every size but the number of heads."""

from __future__ import annotations

import re
from collections.abc import Mapping

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_ANY = "encoder/layer/0/intermediate/dense/kernel"  # of every transformer
LEFT_TOWER = "generator_ltr"
"""The transformer that reads what lies left of a token: of two towers, which have the same sizes, the first."""
HEAD_SIZE = 64  # of every model of the paper and of KoELECTRA


def sizes_of(shapes: Shapes, transformer: str = "electra", embeddings: str = "electra") -> dict[str, int]:
    """Return the fields of ModelConfig that the shapes of one transformer's parameters decide.

    Raises KeyError where a parameter is missing without which it is no ELECTRA, UserError where one has no such shape
    or layers are missing between others.
    """

    def matrix(name: str) -> tuple[int, ...]:
        shape = shapes[name]
        if len(shape) != 2 or not all(shape):
            raise UserError(f"{name} has the shape {shape}, expected a matrix")
        return shape

    table = f"{embeddings}/embeddings"
    layer = f"{transformer}/encoder/layer"
    vocab_size, embedding_size = matrix(f"{table}/word_embeddings/embedding")
    hidden_size, intermediate_size = matrix(f"{layer}/0/intermediate/dense/kernel")
    numbers = {match[1] for name in shapes if (match := re.match(rf"{layer}/(\d+)/", name))}
    if missing := {str(i) for i in range(len(numbers))} - numbers:
        raise UserError(f"has {len(numbers)} layers, but layer {min(missing)} is missing among them")
    return {
        "vocab_size": vocab_size,
        "embedding_size": embedding_size,
        "hidden_size": hidden_size,
        "num_hidden_layers": len(numbers),
        "intermediate_size": intermediate_size,
        "max_position_embeddings": matrix(f"{table}/position_embeddings/embedding")[0],
        "type_vocab_size": matrix(f"{table}/token_type_embeddings/embedding")[0],
    }


def own_generator(shapes: Shapes) -> str | None:
    """Return the name of the generator's own transformer, of two towers that of the left one; None: it has none."""
    return next((name for name in ("generator", LEFT_TOWER) if f"{name}/{_ANY}" in shapes), None)


def architecture_of(shapes: Shapes, model: ModelConfig, generator: ModelConfig | None) -> Architecture:
    """Return the architecture under which a model has parameters of these names; `generator` is its own transformer."""
    tower = own_generator(shapes)
    has_generator_head = not shapes.keys().isdisjoint(("generator_lm_head/bias", "cloze_lm_head/bias"))
    return Architecture(
        model=model,
        generator=generator,
        has_two_towers=tower == LEFT_TOWER,
        has_own_embeddings=f"{tower}/embeddings/word_embeddings/embedding" in shapes,
        has_delta="discriminator_delta/word_embeddings/embedding" in shapes,
        has_generator_head=has_generator_head,
        has_discriminator_head="discriminator_predictions/dense/kernel" in shapes or not has_generator_head,
    )
