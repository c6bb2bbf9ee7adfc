"""Files of tensors as Hugging Face's folders have them, read and written a tensor at a time and without torch.

Tensors are named as Hugging Face's Flax classes name them ("a/b/c", kernels [in, out]) whatever file they lie in.
Files are never unpickled: a checkpoint from elsewhere must not run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from safetensors import SafetensorError, safe_open

from electra_flax.errors import UserError
from electra_flax.files import check_file, read_json
from electra_flax.trees import nested
from electra_flax.weights import names
from electra_flax.weights.shapes import Shapes

SAFETENSORS, MSGPACK = "model.safetensors", "flax_model.msgpack"
SHARDS = f"{SAFETENSORS}.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt")
_RESAVE = "save the model once more with transformers' save_pretrained, which writes model.safetensors"
_COPY = "copy it again from the source"
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Numbers of positions and segments, which transformers wrote beside the weights for years.
_BUFFER = re.compile(r"(^|/)(position_ids|token_type_ids)$")
_ENCODER = re.compile(r"(embeddings|embeddings_project|encoder)/")

_PACKED_ARRAY = 1  # flax.serialization's type of msgpack's extensions
_MOST_LEVELS = 100

Read = Callable[[str], np.ndarray]


def open_tensors(folder: Path) -> tuple[dict[str, tuple[int, ...]], Read]:
    """Return the shapes of all tensors in a model's folder, buffers left out, and what reads one of them in float32.

    Raises UserError where there are none, and later for one whose numbers are damaged or not finite.
    """
    if (folder / SAFETENSORS).exists():
        return _open_safetensors(folder, [folder / SAFETENSORS])
    if (folder / SHARDS).exists():
        return _open_safetensors(folder, _shards(folder))
    if (folder / MSGPACK).exists():
        return _open_msgpack(folder / MSGPACK)
    if pickles := [name for name in _PICKLES if (folder / name).exists()]:
        raise UserError(f"{folder / pickles[0]}: a pickle, which can run code and is never read: {_RESAVE}")
    raise UserError(f"{folder}: neither {SAFETENSORS} nor {MSGPACK} there; if it is a pickle: {_RESAVE}")


def is_labelled(path: Path) -> bool:
    """Return whether this is a safetensors file that says that its tensors are PyTorch's.

    Without that, transformers does not load it everywhere.
    """
    if not path.is_file():
        return False
    with safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get("format") == "pt"


def finite(read: Read, source: object) -> Read:
    """Return `read`, which then refuses tensors that hold NaN or infinity, in the name of `source`."""

    def reading(name: str) -> np.ndarray:
        value = read(name)
        if not np.isfinite(value).all():
            wrong = value[~np.isfinite(value)]
            raise UserError(
                f"{source}: {name} holds {wrong.size:,} of {value.size:,} values that are not finite, the first "
                f"{wrong[0]}: damaged, or the training that made it diverged: take weights from before"
            )
        return value

    return reading


def narrowed(source: object, name: str, value: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return `value` in `dtype`. Raises UserError where a number is beyond what that can hold."""
    with np.errstate(over="ignore"):
        found = value.astype(dtype, copy=False)
    if dtype.itemsize < value.dtype.itemsize and not np.isfinite(found.astype(np.float32)).all():
        largest = value.reshape(-1)[np.abs(value).argmax()]
        raise UserError(f"{source}: {name} holds {largest:g}, beyond what {dtype.name} can hold: export it as float32")
    return found


# ---------------------------------------------------------------------------------------------------------- reading


def _shards(folder: Path) -> list[Path]:
    """Return the files of a model that is in several."""
    path = folder / SHARDS
    index = read_json(path, dict[str, Any], _COPY)
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f'{path}: lacks "weight_map", which says in which file each tensor lies: {_COPY}')
    files = sorted(set(table.values()))
    for name in files:
        if Path(name).name != name:
            raise UserError(f'{path}: weight_map names "{name}", expected a file beside it: {_COPY}')
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: missing, {path.name} names it: {_COPY}")
    return [folder / name for name in files]


def _open_safetensors(folder: Path, paths: list[Path]) -> tuple[dict[str, tuple[int, ...]], Read]:
    theirs: dict[str, tuple[Any, str]] = {}
    for path in paths:
        check_file(path)
        try:
            file: Any = safe_open(path, framework="numpy")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: cut off or damaged ({error}): {_COPY}") from None
        for name in file.keys():  # noqa: SIM118 it is no mapping
            ours = _ours(names.from_torch(name))
            if ours in theirs:
                raise UserError(f"{path}: {theirs[ours][1]} and {name} are the same tensor, {ours}: {_RESAVE}")
            theirs[ours] = (file, name)
    theirs = {name: place for name, place in theirs.items() if not _BUFFER.search(name)}

    def shape(name: str) -> tuple[int, ...]:
        file, stored = theirs[name]
        found = tuple(file.get_slice(stored).get_shape())
        return found[::-1] if names.is_transposed_in_torch(name) else found

    def read(name: str) -> np.ndarray:
        file, stored = theirs[name]
        kind = file.get_slice(stored).get_dtype()
        try:
            value = file.get_tensor(stored)
        except (SafetensorError, OSError, TypeError, AttributeError, KeyError) as error:
            raise UserError(f"{folder}: {stored} of type {kind} cannot be read ({error}): {_RESAVE}") from None
        value = _as_float32(folder, stored, value, kind)
        return value.T if names.is_transposed_in_torch(name) else value

    return {name: shape(name) for name in theirs}, finite(read, folder)


def _open_msgpack(path: Path) -> tuple[dict[str, tuple[int, ...]], Read]:
    check_file(path)
    try:
        tree = msgpack.unpackb(path.read_bytes(), raw=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:  # TypeError: a list as a key
        raise UserError(f"{path}: cut off or damaged ({error or type(error).__name__}): {_COPY}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no tree of tensors but {_kind(tree)}: {_COPY}")
    leaves = [(name, leaf) for name, leaf in _leaves(path, tree) if not _BUFFER.search(name)]
    tensors: dict[str, np.ndarray] = {}
    for name, leaf in leaves:
        if _ours(name) in tensors:
            raise UserError(f"{path}: {name} stands there twice, with and without its prefix: {_RESAVE}")
        tensors[_ours(name)] = _unpacked(path, name, leaf)

    def read(name: str) -> np.ndarray:
        return _as_float32(path, name, tensors[name], tensors[name].dtype.name)

    return {name: value.shape for name, value in tensors.items()}, finite(read, path)


def _leaves(path: Path, tree: dict[Any, Any], above: str = "", level: int = 0) -> list[tuple[str, Any]]:
    """Return every tensor's name and what stands there; an array that flax cut into chunks counts as one."""
    found: list[tuple[str, Any]] = []
    for key, child in tree.items():
        name = f"{above}{key}"
        if not isinstance(key, str) or level > _MOST_LEVELS:
            raise UserError(f"{path}: {name[:60]} is no name of a tensor: {_COPY}")
        if isinstance(child, dict) and "__msgpack_chunked_array__" not in child:
            found += _leaves(path, child, f"{name}/", level + 1)
        else:
            found.append((name, child))
    return found


def _unpacked(path: Path, name: str, leaf: Any) -> np.ndarray:
    """Return the array that flax packed. Raises UserError for what is no array."""
    if isinstance(leaf, dict):
        return _joined(path, name, leaf)
    if not isinstance(leaf, msgpack.ExtType) or leaf.code != _PACKED_ARRAY:
        raise UserError(f"{path}: {name} is {_kind(leaf)}, expected an array: {_COPY}")
    try:
        shape, kind, data = msgpack.unpackb(leaf.data, raw=True)
        dtype = _dtype(kind.decode())
        if dtype is None:
            raise UserError(f"{path}: {name} is of type {kind.decode()}, expected floating-point numbers: {_RESAVE}")
        return np.frombuffer(data, dtype).reshape(shape)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise UserError(f"{path}: {name} is damaged ({error or type(error).__name__}): {_COPY}") from None


def _joined(path: Path, name: str, leaf: dict[str, Any]) -> np.ndarray:
    """Return an array of more than a gigabyte, which flax writes in chunks."""
    try:
        shape = [leaf["shape"][str(i)] for i in range(len(leaf["shape"]))]
        chunks = [leaf["chunks"][str(i)] for i in range(len(leaf["chunks"]))]
        return np.concatenate([_unpacked(path, name, chunk) for chunk in chunks]).reshape(shape)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {name} lacks some of its chunks ({error}): {_COPY}") from None


def _dtype(name: str) -> np.dtype | None:
    """Return the dtype of floating-point numbers.

    None for whole ones: they are no weights without the scales that they were quantized with.
    """
    import ml_dtypes  # numpy has no bfloat16 of its own

    known = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "V2": np.dtype(ml_dtypes.bfloat16)}
    return known.get(name) or (np.dtype(name) if name in ("float16", "float32", "float64") else None)


def _as_float32(source: object, name: str, value: np.ndarray, kind: str) -> np.ndarray:
    if _dtype(value.dtype.name) is None:
        raise UserError(f"{source}: {name} is of type {kind}, expected floating-point numbers: {_RESAVE}")
    with np.errstate(over="ignore"):
        return value.astype(np.float32, copy=False)


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _ours(name: str) -> str:
    """Return our name: ElectraModel, without a head, is saved without the "electra" that others have."""
    return f"electra/{name}" if _ENCODER.match(name) else name


# ---------------------------------------------------------------------------------------------------------- writing


def write_safetensors(path: Path, shapes: Shapes, read: Read, dtype: np.dtype) -> None:
    """Write PyTorch's names and layout; one tensor in memory at a time, which the safetensors library cannot."""
    # The file is the header's length, the header with every tensor's place, and the numbers: all shapes must be known
    # before the first number is read.
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
            value = narrowed(path, name, read(name), dtype)
            value = np.ascontiguousarray(value.T if names.is_transposed_in_torch(name) else value)
            file.write(value.reshape(-1).view(np.uint8).data)  # bfloat16 has no buffer of its own


def write_msgpack(path: Path, shapes: Shapes, read: Read, dtype: np.dtype) -> None:
    """Write what flax.serialization.msgpack_serialize does, one tensor in memory at a time."""
    packer = msgpack.Packer()

    def write(node: Any) -> None:
        if isinstance(node, str):
            value = np.ascontiguousarray(narrowed(path, node, read(node), dtype))
            packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
            file.write(packer.pack(msgpack.ExtType(1, packed)))  # flax's number for an array
            return
        file.write(packer.pack_map_header(len(node)))
        for key, child in node.items():
            file.write(packer.pack(key))
            write(child)

    with path.open("wb") as file:
        write(nested({name: name for name in shapes}))


def check_narrow(shapes: Mapping[str, object], read: Read, source: object, dtype: np.dtype) -> None:
    """Read every tensor once, before anything is written; raise UserError for the first that cannot be kept."""
    for name in shapes:
        narrowed(source, name, read(name), dtype)
