"""Weights from wherever they are: a run of ours, Hugging Face folders, a checkpoint of the original.

What all doors lead to is `Weights`: parameters by our names (names.py), read one at a time, the configuration that they
have and the vocabulary that they were learned with.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from electra_flax.config.architecture import Architecture, ModelConfig
from electra_flax.config.schema import DataConfig, MeshConfig
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import read_json
from electra_flax.model import electra
from electra_flax.model.sharding import make_mesh
from electra_flax.storage.workdir import Workdir
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.optimizers import OPTIMIZERS
from electra_flax.training.optimizers.adamw import ADAMW
from electra_flax.training.optimizers.optimizer import Optimizer
from electra_flax.training.step import abstract_state
from electra_flax.trees import flat, nested
from electra_flax.weights import names
from electra_flax.weights.hugging_face import HEADS, ModelFolder
from electra_flax.weights.shapes import HEAD_SIZE, Shapes, architecture_of, expected_shapes, sizes_of
from electra_flax.weights.tensor_files import finite
from electra_flax.weights.tf1_checkpoint import Tf1Checkpoint

SOURCES = "hf:DISC[,GEN], tf1:PREFIX or orbax:DIR"
_DEBUG_HEADS = 4  # of the original's debug=true, which wins over everything


@dataclass(frozen=True)
class _Overrides:
    """What the original lets a user override of its rules, as far as no variable's shape says it."""

    num_attention_heads: int | None = None
    hidden_dropout_prob: float | None = None
    attention_probs_dropout_prob: float | None = None
    initializer_range: float | None = None
    layer_norm_eps: float | None = None


@dataclass(frozen=True)
class _Hparams:
    """Of the original's hparams.json, what is read."""

    model_hparam_overrides: _Overrides = _Overrides()
    max_seq_length: int | None = None
    do_lower_case: bool | None = None
    debug: bool = False


def _no_moment(name: str, moment: str) -> np.ndarray:
    raise KeyError(f"{name}: no {moment} of an optimizer")


@dataclass(frozen=True)
class Weights:
    """A model as it was found."""

    source: str
    architecture: Architecture
    """As the weights and the files beside them say, to be applied in float32."""
    shapes: Shapes
    """Of every parameter, by our names."""
    read: Callable[[str], np.ndarray]
    """A parameter, float32. Raises UserError where its bytes are damaged or its numbers not finite."""
    step: int = 0
    vocabulary: Vocabulary | None = None
    casing: Casing | None = None
    forget: Callable[[], None] = lambda: None
    """Gives back what `read` keeps: of a run all parameters, which come at once."""
    run: Workdir | None = None
    """The run that they come from, where it was one of ours."""
    max_seq_length: int | None = None
    """Tokens of the examples that they were learned from, where something says it."""
    folders: tuple[Path, ...] = ()
    """Hugging Face's folders that they come from, where they did."""
    optimizer: Optimizer | None = None
    """Of which there are moments, where there are any."""
    read_moment: Callable[[str, str], np.ndarray] = _no_moment
    """A parameter's moment, by the field of the optimizer's state that holds it."""
    unused: tuple[str, ...] = ()
    """Tensors there that are no parameter of ours."""
    remarks: tuple[str, ...] = ()
    """What was assumed, to be told to the user."""

    def to_params(self) -> electra.Params:
        """Return all parameters, nested; never more than one of them twice in memory."""
        return nested({name: jnp.asarray(self.read(name)) for name in self.shapes})


def is_source(place: str) -> bool:
    """Return whether a place says what lies there: hf:, tf1: or orbax:."""
    return place.partition(":")[0] in ("hf", "tf1", "orbax")


def find_weights(
    source: str, step: int | None = None, vocab_file: Path | None = None, *, needs_head: bool = True
) -> Weights:
    """Return what `source` names, unread but for its headers (of a run, the first parameter that is read brings all).

    `vocab_file` stands for a vocab.txt that is not beside the weights. Without `needs_head` an encoder alone will do,
    also that of a fine-tuned model. Raises UserError where there is nothing, or it is no ELECTRA, or not a whole one.
    """
    kind, _, place = source.partition(":")
    if not place or not is_source(source):
        raise UserError(f"{source}: expected {SOURCES}")
    if step is not None and kind != "orbax":
        raise UserError(f"--step {step}: only a run (orbax:DIR) has several steps, {source} has one")
    found = {"orbax": _of_run, "hf": _of_hugging_face, "tf1": _of_tf1}[kind](source, place, step)
    found = _whole(found, needs_head)
    if vocab_file is not None:
        found = dataclasses.replace(
            found, vocabulary=Vocabulary.read(vocab_file), casing=found.casing or Casing.read(vocab_file.parent)
        )
    vocabulary, rows = found.vocabulary, found.architecture.model.vocab_size
    if vocabulary is None and found.folders:
        raise UserError(
            f"{found.folders[0]}: no vocab.txt there: without it nobody can say what the {rows:,} rows of the "
            "embeddings stand for; copy it from the source, or name it with --vocab FILE of export"
        )
    if vocabulary is not None and len(vocabulary.tokens) != rows:
        raise UserError(
            f"{vocabulary.path}: {len(vocabulary.tokens):,} tokens, but the embeddings of {source} have {rows:,} rows: "
            "a vocabulary of another model (if rows are only spare, add lines [unused0], [unused1] ... for them)"
        )
    return found


def find_part(place: str, part: str, *, needs_head: bool = True) -> Weights:
    """Return one model: of an export of both, in a folder of its own, or OWNER/NAME on the hub. Raises UserError.

    `needs_head` as in find_weights.
    """
    own = Path(place) / part
    weights = find_weights(f"hf:{own if own.is_dir() else place}", needs_head=needs_head)
    if part not in (parts := weights.architecture.parts):
        raise UserError(f"--model {place}: a {' and '.join(parts)}; this command asks the {part}")
    return weights


def _vocabulary_in(folder: Path) -> Vocabulary | None:
    path = folder / "vocab.txt"
    return Vocabulary.read(path) if path.exists() else None


def _whole(weights: Weights, needs_head: bool) -> Weights:
    """Return the same without what an ELECTRA of these sizes does not have.

    Raises UserError where anything is missing.
    """
    expected = expected_shapes(weights.architecture)
    if not any(name.startswith(tuple(HEADS.values())) for name in weights.shapes):
        if needs_head:
            raise UserError(
                f"{weights.source}: has neither head of ELECTRA's pretraining "
                f"({', '.join(weights.unused) or 'an encoder'} instead): a new head would be random; to fine-tune it, "
                "give it to finetune --model"
            )
        expected = {name: shape for name, shape in expected.items() if name.startswith("electra/")}
    missing = sorted(expected.keys() - weights.shapes.keys())
    if missing:
        raise UserError(
            f"{weights.source}: {len(missing)} of {len(expected)} tensors are missing, the first {missing[0]}"
        )
    for name, shape in expected.items():
        if weights.shapes[name] != shape:
            raise UserError(f"{weights.source}: {name} has the shape {weights.shapes[name]}, expected {shape}")
    more = sorted(weights.shapes.keys() - expected.keys())
    return dataclasses.replace(weights, shapes=expected, unused=(*weights.unused, *more))


# ------------------------------------------------------------------------------------------------------ a run of ours


def _of_run(source: str, place: str, step: int | None) -> Weights:
    work = Workdir(place).pull(without=("tensorboard/",))
    config = work.read_config()
    architecture = dataclasses.replace(config.architecture, compute_dtype="float32")
    checkpoints = Checkpoints(work.checkpoints)
    step = checkpoints.existing(step)
    params: dict[str, np.ndarray] = {}
    moments: dict[str, dict[str, Any]] = {}

    def read(name: str) -> np.ndarray:
        if not params:
            params.update(flat(checkpoints.restore_params(abstract_state(config).params, step)))
        return params[name]

    optimizer = OPTIMIZERS[config.optimizer.algorithm]

    def read_moment(name: str, moment: str) -> np.ndarray:
        if not moments:
            state = checkpoints.restore(abstract_state(config), make_mesh(MeshConfig()), step)
            found = next(part for part in state.opt_state if isinstance(part, optimizer.state or ()))
            moments.update({slot: flat(getattr(found, slot)) for slot in optimizer.slots})
        return np.asarray(moments[moment][name])

    return Weights(
        source, architecture, expected_shapes(architecture), finite(read, source), step,
        Vocabulary.read(work.folder / "tokenizer/vocab.txt"), Casing.read(work.folder / "tokenizer"),
        forget=params.clear, run=work, max_seq_length=config.data.max_seq_length,
        optimizer=optimizer if optimizer.slots else None, read_moment=read_moment,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------ Hugging Face


def _of_hugging_face(source: str, place: str, step: int | None) -> Weights:
    del step
    parts = [Path(place) / part for part in HEADS]
    is_export = all(path.is_dir() for path in parts)
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
    first, second = (_vocabulary_in(folder.path) for folder in folders)
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
    if not shares_embeddings and generator.config.embedding_size != generator.config.hidden_size:
        raise UserError(
            f"{source}: the embeddings of the two differ: they were not trained together; give hf:{discriminator.path} "
            "alone, with --warm-start-generator to begin with"
        )
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
    vocabulary = _vocabulary_in(folders[0].path)
    return Weights(
        source, architecture_of(shapes, folders[0].config, generator), shapes,
        lambda name: owners[name].read(table[name]),
        vocabulary=vocabulary, casing=Casing.read(folders[0].path) if vocabulary else None,
        unused=tuple(f"{folder.path}: {name}" for folder in folders for name in folder.unused),
        folders=tuple(folder.path for folder in folders),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------- the original


def _of_tf1(source: str, place: str, step: int | None) -> Weights:
    del step
    prefix = Path(re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", place))
    _check_prefix(source, prefix)
    checkpoint = Tf1Checkpoint(prefix)
    variables = {names.from_tf1(name): name for name in checkpoint.shapes if names.is_tf1_parameter(name)}
    shapes = {ours: checkpoint.shapes[theirs] for ours, theirs in variables.items()}
    if not any(name.startswith("electra/") for name in shapes):
        raise UserError(f"{source}: no variable of it is ELECTRA's; the first is {min(shapes, default='missing')}")
    hparams = _read_hparams(prefix.parent / "hparams.json")
    remarks, where = [], f"{source} with {prefix.parent / 'hparams.json'}"
    if hparams is None:
        where = source
        remarks.append(f"no hparams.json beside it: attention heads taken to be hidden size / {HEAD_SIZE}")
    hparams = hparams or _Hparams()
    try:
        model = _tf1_model(shapes, hparams)
        own = [name for name in shapes if name.startswith("generator/")]
        table = "generator" if any(name.startswith("generator/embeddings/") for name in own) else "electra"
        generator = _tf1_generator(shapes, model, table) if own else None
        if hparams.max_seq_length is not None:
            DataConfig(max_seq_length=hparams.max_seq_length)  # refused beyond its range
            if hparams.max_seq_length > model.max_position_embeddings:
                raise UserError(
                    f"max_seq_length={hparams.max_seq_length} must be at most the {model.max_position_embeddings} "
                    "positions of the model"
                )
    except KeyError as error:
        raise UserError(f"{source}: lacks {names.to_tf1(error.args[0])}: not a whole ELECTRA") from None
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    architecture = architecture_of(shapes, model, generator)
    expected = expected_shapes(architecture)
    slots = ADAMW.slots
    has_moments = all(names.tf1_slot(name, slot) in checkpoint.shapes for name in expected for slot in slots.values())
    lower = hparams.do_lower_case

    def read_moment(name: str, moment: str) -> np.ndarray:
        return finite(checkpoint.read, source)(names.tf1_slot(name, slots[moment]))

    return Weights(
        source, architecture, shapes, finite(lambda name: checkpoint.read(variables[name]), source),
        step=int(checkpoint.read(names.TF1_STEP)) if names.TF1_STEP in checkpoint.shapes else 0,
        vocabulary=_vocabulary_in(prefix.parent),
        casing=None if lower is None else Casing(lower, lower),  # the original strips accents where it lower-cases
        optimizer=ADAMW if has_moments else None, read_moment=read_moment,
        max_seq_length=hparams.max_seq_length,
        remarks=tuple(remarks),
    )  # fmt: skip


def _check_prefix(source: str, prefix: Path) -> None:
    """Raise UserError where `prefix` is a folder; it says which checkpoints are there."""
    if not prefix.is_dir():
        return
    there = sorted(str(path.with_suffix("")) for path in prefix.glob("*.index"))
    found = ", ".join(f"tf1:{path}" for path in there[-5:]) or "none"
    raise UserError(
        f"{source}: a folder; a checkpoint is named by its prefix, and these are there: {found}"
        + (f" and {len(there) - 5} earlier ones" if len(there) > 5 else "")
    )


def _tf1_model(shapes: Shapes, hparams: _Hparams) -> ModelConfig:
    """Return sizes as the variables have them, the rest by the original's rules (docs/semantics.md, section 4)."""
    sizes: dict[str, Any] = dict(sizes_of(shapes))
    sizes["num_attention_heads"] = max(1, sizes["hidden_size"] // HEAD_SIZE)
    overrides = dataclasses.asdict(hparams.model_hparam_overrides)
    sizes |= {name: value for name, value in overrides.items() if value is not None}
    if hparams.debug:
        sizes["num_attention_heads"] = _DEBUG_HEADS
    return ModelConfig(**sizes)


def _tf1_generator(shapes: Shapes, model: ModelConfig, embeddings: str) -> ModelConfig:
    """Return the discriminator's settings in the sizes of the generator's variables, heads by the original's rule."""
    sizes = sizes_of(shapes, "generator", embeddings)
    return dataclasses.replace(model, **sizes, num_attention_heads=max(1, sizes["hidden_size"] // HEAD_SIZE))


def _read_hparams(path: Path) -> _Hparams | None:
    fix = "expected the --hparams that the checkpoint was trained with"
    return read_json(path, _Hparams, fix, is_ours=False) if path.exists() else None
