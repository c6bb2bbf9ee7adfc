"""A frozen generator runs once over all batches of a run, and what it samples is written (Fast-ELECTRA, offline)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import jax
import numpy as np
from jax.sharding import Mesh

from electra_flax import formats
from electra_flax.config.schema import Config, Phase
from electra_flax.data.corrupted import Corrupted, Track
from electra_flax.data.pipeline import evaluation_batches, packed_batches, training_batches
from electra_flax.data.shards import verify_shards
from electra_flax.errors import Refusals, UserError
from electra_flax.model.attention import Attend
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.sharding import batch_sharding, make_mesh, whole
from electra_flax.runtime.compiler import set_up_compiler
from electra_flax.runtime.console import progress
from electra_flax.runtime.progress_bar import Bar
from electra_flax.storage.bucket import is_remote
from electra_flax.storage.workdir import Workdir, refuse_inside
from electra_flax.training.fingerprint import fingerprint
from electra_flax.training.frozen import ReadFrozen
from electra_flax.training.inputs import Input, identity_of, open_all, packed_rows_of
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.objective import OfTwoModels, batch_seeds
from electra_flax.training.samples import depends_on, tracks_of
from electra_flax.training.state import over_slices
from electra_flax.trees import Batch, Params

log = logging.getLogger("electra_flax")

_SPARE = 1 << 28  # bytes of the disk that are left alone

Sample = Callable[[Params, Batch, np.int32], tuple[jax.Array, jax.Array]]


def corrupt(config: Config, data_paths: Sequence[str], out: str, read_frozen: ReadFrozen) -> None:
    """Write what the frozen generator of a run samples, or go on with it. Raises UserError for what can be fixed."""
    config = config.online()
    if config.generator.frozen is None:
        raise UserError("generator.frozen=None: expected a generator that does not learn: --generator.frozen SOURCE")
    if is_remote(out):
        raise UserError(f"--out {out}: expected a local folder; gcloud storage cp -r brings it to a bucket")
    folder = Path(out)
    refuse_inside(folder)
    Corrupted.begun(folder)  # before a lock would be left in a folder of other things
    with Workdir(folder).lock():
        _write_all(config, data_paths, folder, read_frozen)
    log.info("%s is done; next: electra-flax pretrain ... --data.corrupted %s", out, out)


def _write_all(config: Config, data_paths: Sequence[str], folder: Path, read_frozen: ReadFrozen) -> None:
    set_up_compiler(config.training.compilation_cache)
    there = Corrupted.begun(folder)
    known = there.packed_rows if there else []
    inputs = open_all(config, data_paths, None, None, Refusals(), packed_rows=known)
    verify_shards([shard for found in inputs for shard in found.shards], None)
    frozen = read_frozen(config, inputs[0].vocabulary)
    assert frozen is not None, "it is named"
    rows, held_out = packed_rows_of(inputs), [len(found.held_out) for found in inputs]
    needs = depends_on(config, identity_of(inputs), rows, held_out, frozen.sha256)
    writer = Corrupted.begin(folder, needs, str(config.generator.frozen))
    tracks = tracks_of(config, rows, held_out)
    total = sum(track.batches for both in tracks for track in both)
    done = _check_room(folder, writer, [track for both in tracks for track in both])
    mesh = make_mesh(config.mesh)
    weights = frozen.place(config, mesh)
    with progress(total, "corrupting", "batches", initial=done) as bar:
        for phase, found, (train, evaluated) in zip(config.phases, inputs, tracks, strict=True):
            _write_phase(writer, phase, found, train, evaluated, weights, mesh, bar)


def _check_room(folder: Path, writer: Corrupted, tracks: Sequence[Track]) -> int:
    """Say what will be written, and return the batches that are there. Raises UserError where there is no room."""
    size = sum(track.num_bytes for track in tracks)
    there = sum(part.end - part.first for track in tracks for part in track.parts() if writer.has(part))
    missing = sum(
        (part.end - part.first) * track.record.itemsize
        for track in tracks for part in track.parts() if not writer.has(part)
    )  # fmt: skip
    train = tracks[0]
    log.info(
        "%s in %s: %d bytes an example x %s examples of training and evaluations; %s still to write",
        formats.size(size), folder, train.record.itemsize // train.rows,
        f"{sum(track.batches * track.rows for track in tracks):,}", formats.size(missing),
    )  # fmt: skip
    free = max(shutil.disk_usage(folder).free - _SPARE, 0)
    if missing > free:
        raise UserError(
            f"--out {folder}: {formats.size(missing)} to write, but room for {formats.size(free)}: take a larger disk, "
            "or name a folder on another one"
        )
    return there


def _write_phase(
    writer: Corrupted, phase: Phase, found: Input, train: Track, evaluated: Track, weights: Params, mesh: Mesh, bar: Bar
) -> None:
    config, vocabulary = phase.config, found.vocabulary
    objective = cast(OfTwoModels, make_objective(config, vocabulary.special, vocabulary.continuations))
    length = config.data.max_seq_length

    def training(start: int) -> Iterator[Batch]:
        if found.packed:
            return packed_batches(config, found.packed, mesh, start)
        return training_batches(config, found.examples, mesh, start)

    def evaluation(start: int) -> Iterator[Batch]:
        batches = evaluation_batches(config, found.held_out, mesh, config.evaluation.max_batches)
        return (batch for number, batch in enumerate(batches) if number >= start)

    for track, batches, is_training in ((train, training, True), (evaluated, evaluation, False)):
        attend = choose_attention(config.architecture, length, mesh, is_packed=is_training and config.is_packed)
        sample = make_sample(config, objective, mesh, attend, is_training)
        first = phase.start if is_training else 0
        _write_track(
            writer, track, batches, lambda batch, number, s=sample, f=first: s(weights, batch, f + number), bar
        )


def _write_track(
    writer: Corrupted,
    track: Track,
    batches: Callable[[int], Iterator[Batch]],
    sample: Callable[..., tuple[jax.Array, jax.Array]],
    bar: Bar,
) -> None:
    source: Iterator[Batch] = iter(())
    following = -1
    for part in track.parts():
        if writer.has(part):
            continue
        if following != part.first:
            source = batches(part.first)
        following = part.end
        records = np.zeros(part.end - part.first, track.record)
        for number in range(part.first, part.end):
            ids, prints = sample(next(source), np.int32(number))
            records[number - part.first] = (np.asarray(prints), np.asarray(ids))
            bar.update()
        writer.write(part, records)


def make_sample(config: Config, objective: OfTwoModels, mesh: Mesh, attend: Attend, is_training: bool) -> Sample:
    """Return (weights, batch, steps before it) -> the ids that its step samples, int32 [B, M], and its prints.

    Not `is_training`: of an evaluation's batch by its number. Ids of unused columns are 0.
    """
    slices = config.training.gradient_accumulation_steps if is_training else 1
    seed = config.training.seed if is_training else config.evaluation.seed

    def sample(weights: Params, batch: Batch, number: jax.Array) -> tuple[jax.Array, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        draws = objective.draw(batch, batch_seeds(key, batch), number if is_training else None)

        def of_slice(rows: tuple[Batch, object]) -> tuple[tuple[()], jax.Array]:
            return (), objective.generate(weights, *rows, attend, is_training)[1]

        _, sampled_BM = over_slices(of_slice, (batch, draws), slices)
        prints = fingerprint((batch["input_ids"], draws.masked.positions_BM))
        return sampled_BM * (draws.masked.weights_BM > 0), prints

    everywhere = whole(mesh)
    return jax.jit(sample, in_shardings=(everywhere, batch_sharding(mesh), None), out_shardings=everywhere)
