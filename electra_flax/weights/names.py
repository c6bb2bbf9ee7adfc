"""One two-way table of parameter names: ours <-> Hugging Face Flax <-> Hugging Face PyTorch <-> TensorFlow 1.

Ours are Hugging Face's Flax names within one tree for both models. Imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

TF1_STEP = "global_step"

# (regex, replacement) of each direction, applied in order.
_TO_TORCH: tuple[tuple[str, str], ...] = (
    (r"/(kernel|scale|embedding)$", "/weight"),
    (r"/", "."),
)
# Rules are applied one after the other, the special ones first: what is still named "weight" at the end is a kernel.
_FROM_TORCH: tuple[tuple[str, str], ...] = (
    (r"\.", "/"),
    (r"_embeddings/weight$", "_embeddings/embedding"),
    (r"LayerNorm/(weight|gamma)$", "LayerNorm/scale"),  # gamma and beta: files of 2020
    (r"LayerNorm/beta$", "LayerNorm/bias"),
    (r"/weight$", "/kernel"),
)
_TO_TF1: tuple[tuple[str, str], ...] = (
    (r"encoder/layer/(\d+)/", r"encoder/layer_\1/"),
    (r"_embeddings/embedding$", "_embeddings"),
    (r"LayerNorm/scale$", "LayerNorm/gamma"),
    (r"LayerNorm/bias$", "LayerNorm/beta"),
    (r"^(generator|cloze)_lm_head/bias$", r"\1_predictions/output_bias"),
    (r"^discriminator_predictions/dense_prediction/", "discriminator_predictions/dense_1/"),
)
_FROM_TF1: tuple[tuple[str, str], ...] = (
    (r"encoder/layer_(\d+)/", r"encoder/layer/\1/"),
    (r"_embeddings$", "_embeddings/embedding"),
    (r"LayerNorm/gamma$", "LayerNorm/scale"),
    (r"LayerNorm/beta$", "LayerNorm/bias"),
    (r"^(generator|cloze)_predictions/output_bias$", r"\1_lm_head/bias"),
    (r"^discriminator_predictions/dense_1/", "discriminator_predictions/dense_prediction/"),
)
_ADAM_SLOT = re.compile(r"/adam_[mv]$")


def to_torch(name: str) -> str:
    """Return the name of one of our parameters in PyTorch's state dict."""
    return _rewrite(name, _TO_TORCH)


def to_tf1(name: str) -> str:
    """Return the name of one of our parameters in a checkpoint of the original code; shapes are the same."""
    return _rewrite(name, _TO_TF1)


def from_torch(name: str) -> str:
    """Return our name of a parameter of PyTorch's state dict."""
    return _rewrite(name, _FROM_TORCH)


def from_tf1(name: str) -> str:
    """Return our name of a variable of the original code."""
    return _rewrite(name, _FROM_TF1)


def tf1_slot(name: str, slot: str) -> str:
    """Return the variable of the original code that holds a `slot` (training/optimizers) of one of our parameters."""
    return f"{to_tf1(name)}/{slot}"


def is_tf1_parameter(name: str) -> bool:
    """Return whether a variable of the original code is a parameter: no moment of Adam's, no counter."""
    return name != TF1_STEP and not _ADAM_SLOT.search(name)


def is_transposed_in_torch(name: str) -> bool:
    """Return whether PyTorch keeps it as [out, in]: the kernel of a dense layer."""
    return name.endswith("/kernel")


def discriminator_names(names: Iterable[str]) -> dict[str, str]:
    """Return {name in Hugging Face's ElectraForPreTraining (Flax): our name}."""
    return {name: name for name in names if name.startswith(("electra/", "discriminator_predictions/"))}


def generator_names(names: Iterable[str]) -> dict[str, str]:
    """Return {name in Hugging Face's ElectraForMaskedLM (Flax): our name}.

    What the generator does not have of its own is the discriminator's: the embeddings, or everything.
    """
    names = list(names)
    own = [name for name in names if name.startswith("generator/")]
    own_embeddings = any(name.startswith("generator/embeddings/") for name in own)
    shared = "electra/embeddings/" if own else "electra/"
    table = {name: name for name in names if name.startswith(shared) and not own_embeddings}
    table |= {name.replace("generator/", "electra/", 1): name for name in own}
    return table | {name: name for name in names if name.startswith(("generator_predictions/", "generator_lm_head/"))}


def _rewrite(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
