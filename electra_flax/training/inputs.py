"""What a run reads, opened and checked before anything is compiled. `pretrain` ends at the first thing that is wrong;
`doctor` asks the same checks and names all."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from jax.sharding import Mesh

from electra_flax.config.schema import Config
from electra_flax.data.corrupted import Corrupted
from electra_flax.data.manifest import Manifest
from electra_flax.data.pipeline import Packed, check_vocabulary, find_vocabulary, open_split, pack
from electra_flax.data.shards import DataFolder, ShardedExamples, verify_shards
from electra_flax.data.tfrecord import Shard
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import Refusals, UserError
from electra_flax.model.sharding import check_batch, make_mesh
from electra_flax.runtime.host_memory import check_fits
from electra_flax.storage.bucket import patiently
from electra_flax.storage.staging import stage
from electra_flax.storage.workdir import Workdir
from electra_flax.training import identity
from electra_flax.training.probe import Probe, ProbeRows
from electra_flax.training.samples import Samples, samples_of
from electra_flax.training.state import TrainState

_LEAST_SAVED = 0.01
"""Of all rows, below which packing is not worth its masks."""


class FirstWeights(Protocol):
    """Weights that a new run begins with, wherever they come from (weights/start.py)."""

    @property
    def source(self) -> str: ...

    def check(self, config: Config, vocabulary: Vocabulary) -> None:
        """Raise UserError where a run cannot begin so; read no weights."""

    def apply(self, config: Config, vocabulary: Vocabulary, mesh: Mesh, state: TrainState) -> TrainState:
        """Return a fresh state with these weights."""


class Input(NamedTuple):
    """What a phase reads."""

    data: DataFolder
    vocabulary: Vocabulary
    examples: ShardedExamples
    held_out: ShardedExamples
    probe_rows: ProbeRows | None
    packed: Packed | None = None
    """The training examples in rows, where rows hold several."""
    samples: Samples | None = None
    """What a frozen generator sampled ahead (data.corrupted)."""

    @property
    def shards(self) -> list[Shard]:
        return [*self.examples.shards, *self.held_out.shards]


def open_all(
    config: Config,
    data_paths: Sequence[str],
    work: Workdir | None,
    begin_with: FirstWeights | None,
    refusals: Refusals,
    alive: Callable[[str], None] = lambda what: None,
    probe: Probe | None = None,
    packed_rows: Sequence[int] = (),
) -> list[Input]:
    """Return what each phase reads; less where `refusals` collects what is wrong.

    `alive` hears of every file that was copied. `packed_rows` are those a step of a run that goes on.
    """
    mesh, opened, corrupted = None, [], None
    if config.data.corrupted is not None:
        with refusals.each("data.corrupted="):
            place = stage(config.data.corrupted, config.data.staging_folder, alive=alive)
            corrupted = Corrupted.open(place, config.data.corrupted)
            packed_rows = packed_rows or corrupted.packed_rows
    with refusals.each():
        mesh = make_mesh(config.mesh)
        check_fits(config, mesh)
    with refusals.each():
        _check_wandb(config)
    with refusals.each():
        if data_paths and len(data_paths) != len(config.phases):
            expected = "--long-data too" if len(config.phases) > 1 else "no --long-data"
            raise UserError(f"long_phase.steps={config.long_phase.steps}: expected {expected}")
    for phase in config.phases if mesh is not None else ():
        training, together = phase.config.training, config.objective.rows_together
        with refusals.each(phase.name):
            check_batch(training.batch_size, training.gradient_accumulation_steps, mesh, together)
    for phase, path in zip(config.phases, data_paths, strict=False):
        if (found := _open(phase.config, path, phase.name, refusals, alive, probe)) is not None:
            opened.append(found)
    if config.is_packed and mesh is not None and len(opened) == len(config.phases):
        with refusals.each():
            opened = _pack(config, opened, mesh, packed_rows)
    with refusals.each():
        if len({found.vocabulary.sha256 for found in opened}) > 1:
            raise UserError(f"--data and --long-data ({', '.join(data_paths)}) have different vocabularies")
    if corrupted is not None and len(opened) == len(config.phases):
        with refusals.each("data.corrupted="):
            held_out = [len(found.held_out) for found in opened]
            samples = samples_of(config, corrupted, identity_of(opened), packed_rows_of(opened), held_out)
            opened = [found._replace(samples=each) for found, each in zip(opened, samples, strict=True)]
    if begin_with and work and opened and not patiently(work.checkpoints, work.checkpoints.exists):
        with refusals.each():
            begin_with.check(config, opened[0].vocabulary)
    return opened


def verify_samples(inputs: Sequence[Input], memory: Path | None) -> None:
    """Check what was sampled ahead, of all phases (data/corrupted.py); nothing where a generator runs."""
    samples = [found.samples for found in inputs if found.samples]
    if samples:
        samples[0].folder.verify([track for each in samples for track in (each.train, each.held_out)], memory)


def packed_rows_of(inputs: Sequence[Input]) -> list[int]:
    """Return the packed rows a step of each phase; none where each example has a row of its own."""
    return [found.packed.rows for found in inputs if found.packed]


def identity_of(inputs: Sequence[Input]) -> str:
    """Return what tells the data of two runs apart."""
    return "; ".join(identity.data_identity(found.data, found.vocabulary) for found in inputs)


def examine(config: Config, data_paths: Sequence[str], workdir_name: str | None) -> tuple[list[str], Manifest | None]:
    """Return everything for which `pretrain` would not begin, or go on, and what the first shards say of themselves.

    Shards on gs:// are copied as the run would, which then finds them there; nothing else is written. Without
    `data_paths`, data are not asked for.
    """
    refusals = Refusals(collects=True)
    work, packed_rows = None, []
    if workdir_name is not None:
        with refusals.each():
            work = Workdir(workdir_name).pull(without=("tensorboard/",))
            packed_rows = identity.packed_rows(work)
    inputs = open_all(config, data_paths, None, None, refusals, packed_rows=packed_rows)
    if work is not None:
        with refusals.each():
            is_all = len(inputs) == len(config.phases)
            identity.check_identity(work, config, identity_of(inputs) if is_all else None)
    for shard in (shard for found in inputs for shard in found.shards):
        with refusals.each():
            verify_shards([shard], None)
    with refusals.each():
        verify_samples(inputs, None)
    manifest = None
    with suppress(UserError):  # said above
        manifest = DataFolder.open(stage(data_paths[0], config.data.staging_folder)).manifest if data_paths else None
    return [str(error) for error in refusals.found], manifest


def _open(
    config: Config,
    path: str,
    name: str,
    refusals: Refusals,
    alive: Callable[[str], None],
    probe: Probe | None,
) -> Input | None:
    """Return what a phase reads, None where something is wrong, which only a collection of refusals lets happen."""
    data = vocabulary = None
    with refusals.each(name):
        data = DataFolder.open(stage(path, config.data.staging_folder, alive=alive))
    if data is None:
        return None
    with refusals.each(name):
        vocabulary = find_vocabulary(config, data)
    if vocabulary is None:
        return None
    before = len(refusals.found)
    check_vocabulary(config, data, vocabulary, refusals, name)
    if len(refusals.found) > before:  # the examples would only say the same again
        return None
    with refusals.each(name):
        examples, held_out = open_split(config, data, "train"), open_split(config, data, "validation")
        if not len(examples):
            raise UserError(f"{path}: the train split has no examples; make shards from a larger corpus")
        rows = None
        if probe is not None:
            if not len(held_out):
                raise UserError(f"--probe {probe.source}: {path} has no held-out examples, so nothing is evaluated")
            rows = probe.rows(vocabulary, identity.casing(data, vocabulary), config.data.max_seq_length)
        return Input(data, vocabulary, examples, held_out, rows)
    return None


def _pack(config: Config, inputs: Sequence[Input], mesh: Mesh, known: Sequence[int]) -> list[Input]:
    """Return the inputs with the examples of each phase in rows, as many a step as are `known`.

    Raises UserError where that saves nothing, or devices cannot share those rows evenly.
    """
    found = []
    for number, (phase, each) in enumerate(zip(config.phases, inputs, strict=True)):
        replicas, slices = mesh.shape["data"] * mesh.shape["fsdp"], phase.config.training.gradient_accumulation_steps
        rows = known[number] if number < len(known) else None
        if rows and rows % (replicas * slices):
            raise UserError(
                f"{phase.name}the run has {rows} packed rows a step, which {replicas} devices (mesh data x fsdp) x "
                f"{slices} accumulation steps do not divide: continue on a number of devices that does, as it began"
            )
        found.append(each._replace(packed=pack(phase.config, each.examples, replicas * slices, rows)))
    saved = [1 - each.packed.share for each in found if each.packed]
    if max(saved) < _LEAST_SAVED:
        shown = " and ".join(f"{share:.1%}" for share in saved)
        raise UserError(
            f"data.packing=best_fit would save {shown} of the rows: the examples of these shards are nearly as long as "
            "rows are, or no two fit into one, or there is only one; give --data.packing none"
        )
    return found


def _check_wandb(config: Config) -> None:
    if config.logging.wandb_project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"logging.wandb_project={config.logging.wandb_project} needs wandb: pip install 'electra-flax[wandb]'"
        )
