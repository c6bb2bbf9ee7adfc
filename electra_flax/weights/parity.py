"""The same model in several hands: our forward pass and those of transformers in Flax, PyTorch and TensorFlow."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture
from electra_flax.errors import UserError
from electra_flax.files import check_file
from electra_flax.model import electra
from electra_flax.runtime.host_memory import give_back_unused
from electra_flax.trees import Params
from electra_flax.weights import names
from electra_flax.weights.hugging_face import CONFIG, ModelFolder
from electra_flax.weights.tensor_files import MSGPACK, SAFETENSORS, is_labelled, write_msgpack, write_safetensors
from electra_flax.weights.weights import Weights

TEXTS = ("한국어 ELECTRA를 공유합니다. The quick brown fox jumps over the lazy dog.", "짧은 문장입니다.")
ARCHITECTURES = {"discriminator": "ElectraForPreTraining", "generator": "ElectraForMaskedLM"}
FRAMEWORKS = ("flax", "torch", "tensorflow")

Inputs = dict[str, np.ndarray]


class Outputs(NamedTuple):
    """Of one model for one batch, float32, at the positions that are no padding."""

    hidden: list[np.ndarray]
    """Input of the first layer and output of each, [positions, D]."""
    logits: np.ndarray
    """[positions] of a discriminator, [positions, V] of a generator."""


class Differences(NamedTuple):
    """Largest absolute differences of two models' outputs."""

    hidden: list[float]
    logits: float

    @property
    def largest(self) -> float:
        """Return the largest of all, NaN where any of them is."""
        return float(np.max([*self.hidden, self.logits]))

    def to_dict(self) -> dict[str, Any]:
        """Return the differences for JSON, which has no NaN: null in its place."""
        plain = [value if np.isfinite(value) else None for value in (*self.hidden, self.logits)]
        return {"hidden": plain[:-1], "logits": plain[-1]}


def compare(weights: Weights, folders: dict[str, Path]) -> dict[str, dict[str, Differences | None]]:
    """Compare our forward pass of `weights` with that of each framework that loads a part's folder.

    Returns {"discriminator": {"flax": ..., "torch": ..., "tensorflow": ...}, "generator": ...}; None where one is not
    installed.

    A framework that does not load the form that the weights are in is given them in its own.
    """
    longest = weights.architecture.model.max_position_embeddings
    inputs = {part: make_inputs(folder, longest) for part, folder in folders.items()}
    ours = our_outputs(weights, inputs)
    weights.forget()  # each framework holds the model twice while it reads it
    return {
        part: {
            framework: difference(ours[part], theirs) if theirs else None
            for framework in FRAMEWORKS
            for theirs in [_load_and_apply(framework, folder, part, inputs[part])]
        }
        for part, folder in folders.items()
    }


@contextlib.contextmanager
def _loadable(framework: str, folder: Path, part: str) -> Iterator[Path]:
    """Yield the folder, or a copy for a while in the form that the framework loads.

    msgpack for Flax, one safetensors file that says that it is PyTorch's for the others.
    """
    if (folder / MSGPACK).exists() if framework == "flax" else is_labelled(folder / SAFETENSORS):
        for name in (MSGPACK, SAFETENSORS):
            if (folder / name).exists():
                check_file(folder / name)
        yield folder
        return
    theirs = ModelFolder.open(str(folder))
    select = {"discriminator": names.discriminator_names, "generator": names.generator_names}[part]
    shapes = {name: theirs.shapes[name] for name in select(theirs.shapes)}
    name, write = (MSGPACK, write_msgpack) if framework == "flax" else (SAFETENSORS, write_safetensors)
    with tempfile.TemporaryDirectory(prefix="electra-flax-") as place:
        shutil.copy(folder / CONFIG, place)
        write(Path(place) / name, shapes, theirs.read, np.dtype(np.float32))
        yield Path(place)


def difference(ours: Outputs, theirs: Outputs) -> Differences:
    def largest(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b.reshape(a.shape)).max())

    return Differences(
        [largest(a, b) for a, b in zip(ours.hidden, theirs.hidden, strict=True)], largest(ours.logits, theirs.logits)
    )


def make_inputs(folder: Path, max_length: int) -> Inputs:
    """Return TEXTS as int32 [B, T], the shorter ones padded."""
    import transformers  # slow to import: only when there is something to compare

    for path in (*folder.glob("*token*.json"), folder / "vocab.txt"):
        check_file(path)  # others would wait at a FIFO for ever
    try:
        tokenizer = transformers.ElectraTokenizerFast.from_pretrained(folder)
        encoded = tokenizer(list(TEXTS), return_tensors="np", truncation=True, max_length=max_length, padding=True)
    except Exception as error:  # the library raises whatever it meets in a file
        problem = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: transformers cannot load tokenizer.json, tokenizer_config.json or vocab.txt "
            f"({type(error).__name__}: {problem}): export the model again, or copy them from its source"
        ) from error
    return {name: np.asarray(array, np.int32) for name, array in encoded.items()}


def our_outputs(weights: Weights, inputs: dict[str, Inputs]) -> dict[str, Outputs]:
    """Return our outputs of each part in `inputs`."""
    architecture, params = weights.architecture, weights.to_params()
    found = {part: _outputs(arrays, *_apply(architecture, params, part, arrays)) for part, arrays in inputs.items()}
    for part, outputs in found.items():
        check_finite(weights.source, part, outputs.logits)
    return found


def check_finite(source: str, part: str, logits: np.ndarray) -> None:
    """Raise UserError, in the name of `source`, for a model whose weights are finite and whose answers are not."""
    if not np.isfinite(logits).all():
        raise UserError(
            f"{source}: the outputs of its {part} are not finite: its training diverged: use an earlier checkpoint"
        )


def our_logits(architecture: Architecture, params: Params, part: str, inputs: Inputs) -> np.ndarray:
    """Return our own logits for Hugging Face's inputs: float32 [B, T] or, for the generator, [B, T, V]."""
    return np.asarray(_apply(architecture, params, part, inputs)[1])


def _apply(architecture: Architecture, params: Params, part: str, inputs: Inputs) -> tuple[list[jax.Array], jax.Array]:
    arrays = (jnp.asarray(inputs[key], jnp.int32) for key in ("input_ids", "attention_mask", "token_type_ids"))
    layers_and_logits: tuple[list[jax.Array], jax.Array] = _jitted(architecture, params, part, *arrays)
    return layers_and_logits


_jitted = jax.jit(electra.apply_with_layers, static_argnums=(0, 2))


def _load_and_apply(framework: str, folder: Path, part: str, inputs: Inputs) -> Outputs | None:
    import transformers

    prefix = {"flax": "Flax", "torch": "", "tensorflow": "TF"}[framework]
    needs = {"flax": "flax", "torch": "torch", "tensorflow": "tf_keras"}[framework]
    cls = getattr(transformers, prefix + ARCHITECTURES[part], None)
    if cls is None or importlib.util.find_spec(needs) is None:
        return None
    apply = {"flax": _apply_flax, "torch": _apply_torch, "tensorflow": _apply_tensorflow}[framework]
    give_back_unused()
    with quiet_transformers():
        try:
            with _loadable(framework, folder, part) as place:
                found = apply(cls, place, inputs)
        except UserError:
            raise
        except Exception as error:  # each framework raises whatever it meets in a file
            problem = " ".join(str(error).split())[:300]
            raise UserError(f"{folder}: {cls.__name__} cannot load it ({problem}): export it again") from error
        return _outputs(inputs, found.hidden_states, found.logits)


def _apply_flax(cls: Any, folder: Path, inputs: Inputs) -> Any:
    # Without the random parameters that it would make first.
    flax_model, params = cls.from_pretrained(folder, _do_init=False)
    # As one program: a hundred and more small ones take longer to compile.
    apply = jax.jit(lambda params, inputs: flax_model(**inputs, params=params, output_hidden_states=True))
    return apply(params, inputs)


def _apply_torch(cls: Any, folder: Path, inputs: Inputs) -> Any:
    import torch

    tensors = {name: torch.tensor(array, dtype=torch.long) for name, array in inputs.items()}
    with torch.no_grad():
        return cls.from_pretrained(folder, dtype="float32").eval()(**tensors, output_hidden_states=True)


def _apply_tensorflow(cls: Any, folder: Path, inputs: Inputs) -> Any:
    return cls.from_pretrained(folder)(**inputs, output_hidden_states=True)


def _outputs(inputs: Inputs, hidden: Any, logits: Any) -> Outputs:
    used = inputs["attention_mask"] == 1
    return Outputs([np.asarray(each, np.float32)[used] for each in hidden], np.asarray(logits, np.float32)[used])


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' deprecation notices for Flax, known and many; errors still show."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
