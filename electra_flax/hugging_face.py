"""Hugging Face model folders: config.json and weights, read and written without torch, a tensor at a time.

Weights are named as Hugging Face's Flax classes name them ("a/b/c", kernels [in, out]) whatever file they lie in.
Files are never unpickled: a checkpoint from elsewhere must not run code.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from flax.serialization import msgpack_restore
from safetensors import SafetensorError, safe_open

from electra_flax import hub, names
from electra_flax.architecture import Shapes, flat, nested, sizes_of
from electra_flax.config import ModelConfig
from electra_flax.errors import UserError

SAFETENSORS, MSGPACK, CONFIG = "model.safetensors", "flax_model.msgpack", "config.json"
HEADS = {"discriminator": "discriminator_predictions/", "generator": "generator_predictions/"}
_PICKLES = ("pytorch_model.bin", "model.pt", "model.ckpt")
_RESAVE = "save the model once more with transformers' save_pretrained, which writes model.safetensors"
_TIED = "generator_lm_head/kernel"  # PyTorch's second name of the word embeddings
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FILES = [CONFIG, SAFETENSORS, MSGPACK, "vocab.txt", "tokenizer*.json"]


class ModelFolder(NamedTuple):
    """One model's weights and sizes."""

    path: Path
    config: ModelConfig
    shapes: Shapes
    read: Callable[[str], np.ndarray]
    """A parameter in float32. Raises UserError."""
    unused: list[str]
    """Tensors that are no parameter of ELECTRA's."""

    @classmethod
    def open(cls, name: str) -> ModelFolder:
        """A folder, or OWNER/NAME on the hub. Raises UserError for anything that is not an ELECTRA to be read."""
        path = Path(name) if Path(name).is_dir() else hub.download(name, _FILES)
        shapes, read = _open_weights(path)
        known = re.compile(r"electra/(embeddings|embeddings_project|encoder)/|" + "|".join(HEADS.values()))
        unused = sorted(
            name for name in shapes if not known.match(name) and name not in ("generator_lm_head/bias", _TIED)
        )
        settings = _read_json(path / CONFIG)
        config = _model_config(path / CONFIG, settings)
        if not any(name.startswith("electra/") for name in shapes):
            raise UserError(f"{path}: none of its tensors is ELECTRA's; the first is {min(shapes, default='missing')}")
        if _TIED in shapes:
            _check_tied(path, shapes, read)
        found = {name: shape for name, shape in shapes.items() if name not in unused and name != _TIED}
        _check_sizes(path, config, found)
        return cls(path, config, found, read, unused)

    @property
    def heads(self) -> list[str]:
        """Of "discriminator" and "generator", those whose head is there."""
        return [part for part, prefix in HEADS.items() if any(name.startswith(prefix) for name in self.shapes)]


def hugging_face_config(sizes: ModelConfig, architecture: str, pad_token_id: int, dtype: str) -> dict[str, Any]:
    """config.json with this model's own sizes."""
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


def write_safetensors(path: Path, shapes: Shapes, read: Callable[[str], np.ndarray], dtype: np.dtype) -> None:
    """PyTorch's names and layout; one tensor in memory at a time, which the safetensors library cannot."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + dtype.itemsize * int(np.prod(shape))
        shape = shape[::-1] if names.is_transposed_in_torch(name) else shape
        header[names.to_torch(name)] = {
            "dtype": _SAFETENSORS_DTYPES[dtype.name], "shape": shape, "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)  # numbers begin at multiples of 8
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in shapes:
            value = read(name).astype(dtype, copy=False)
            value = np.ascontiguousarray(value.T if names.is_transposed_in_torch(name) else value)
            file.write(value.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own


def write_msgpack(path: Path, shapes: Shapes, read: Callable[[str], np.ndarray], dtype: np.dtype) -> None:
    """What flax.serialization.msgpack_serialize writes, one tensor in memory at a time."""
    packer = msgpack.Packer()

    def write(node: Any) -> None:
        if isinstance(node, str):
            value = np.ascontiguousarray(read(node).astype(dtype, copy=False))
            packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
            file.write(packer.pack(msgpack.ExtType(1, packed)))
            return
        file.write(packer.pack_map_header(len(node)))
        for key, child in node.items():
            file.write(packer.pack(key))
            write(child)

    with path.open("wb") as file:
        write(nested({name: name for name in shapes}))


# ---------------------------------------------------------------------------------------------------------- reading


def _open_weights(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    if (path / SAFETENSORS).exists():
        return _open_safetensors(path / SAFETENSORS)
    if (path / MSGPACK).exists():
        try:
            tensors = flat(msgpack_restore((path / MSGPACK).read_bytes()))
        except (OSError, ValueError, msgpack.UnpackException) as error:
            raise UserError(f"{path / MSGPACK}: cannot be read ({error}): copy it again") from None
        tensors = {_with_prefix(name): value for name, value in tensors.items()}
        return {name: value.shape for name, value in tensors.items()}, lambda name: tensors[name].astype(np.float32)
    if pickles := [name for name in _PICKLES if (path / name).exists()]:
        raise UserError(f"{path / pickles[0]}: a pickle, which can run code and is never read: {_RESAVE}")
    raise UserError(f"{path}: neither {SAFETENSORS} nor {MSGPACK} there; if it is a pickle: {_RESAVE}")


def _open_safetensors(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], np.ndarray]]:
    try:
        file: Any = safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cut off or damaged ({error}): copy it again") from None
    theirs = {_with_prefix(names.from_torch(name)): name for name in file.keys()}  # noqa: SIM118 it is no mapping

    def shape(name: str) -> tuple[int, ...]:
        found = tuple(file.get_slice(theirs[name]).get_shape())
        return found[::-1] if names.is_transposed_in_torch(name) else found

    def read(name: str) -> np.ndarray:
        value = file.get_tensor(theirs[name]).astype(np.float32, copy=False)
        return value.T if names.is_transposed_in_torch(name) else value

    return {name: shape(name) for name in theirs}, read


def _with_prefix(name: str) -> str:
    """ElectraModel, without a head, is saved without the "electra" that others have."""
    return f"electra/{name}" if re.match(r"(embeddings|embeddings_project|encoder)/", name) else name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: missing: without it heads and dropout are unknown; copy it from the source") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def _model_config(path: Path, settings: dict[str, Any]) -> ModelConfig:
    kind = settings.get("model_type")
    if kind != "electra":
        raise UserError(f"{path}: a model of type {kind}, not electra: {kind} has another architecture")
    for name, ours in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if settings.get(name, ours) != ours:
            raise UserError(f"{path}: {name}={settings[name]}: only {ours} is supported, which the original has")
    fields = dataclasses.fields(ModelConfig)
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in settings]:
        raise UserError(f"{path}: lacks {', '.join(missing)}")
    try:
        return ModelConfig(**{field.name: settings[field.name] for field in fields if field.name in settings})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _check_sizes(path: Path, config: ModelConfig, shapes: Shapes) -> None:
    try:
        sizes = sizes_of(shapes)
    except KeyError as error:
        raise UserError(f"{path}: lacks the tensor {error.args[0]}, without which it is no ELECTRA") from None
    for name, found in sizes.items():
        if (said := getattr(config, name)) != found:
            raise UserError(f"{path / CONFIG}: {name}={said}, but its weights have {found}: they belong to two models")


def _check_tied(path: Path, shapes: Shapes, read: Callable[[str], np.ndarray]) -> None:
    """The generator's output matrix must be the table of its word embeddings, whatever name it has."""
    words = "electra/embeddings/word_embeddings/embedding"
    if shapes[_TIED][::-1] != shapes.get(words) or not np.array_equal(read(_TIED).T, read(words)):
        raise UserError(
            f"{path}: generator_lm_head.weight is not the table of the word embeddings, as it is in every ELECTRA: "
            "this head was trained or initialised apart and cannot be kept"
        )
