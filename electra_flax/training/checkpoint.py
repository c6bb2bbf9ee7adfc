"""Saving and restoring a run with Orbax.

A checkpoint `<workdir>/checkpoints/<step>` holds the train state and a small JSON: the position of the input (the
next global batch), the release that wrote it, what the loop had noted (averages that were not written yet), and a
fingerprint of every array, so that bytes that changed on the disk are found when they are read. The configuration lies
once in `<workdir>/config.yaml`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers as policies

import electra_flax
from electra_flax.config.schema import CheckpointConfig
from electra_flax.errors import Problem, RunError, Unavailable, UserError, reason
from electra_flax.files import parse_json, read_bytes
from electra_flax.model.sharding import state_shardings
from electra_flax.runtime import processes
from electra_flax.storage import bucket
from electra_flax.storage.bucket import is_away, is_remote, patiently
from electra_flax.training.fingerprint import fingerprint, is_whole
from electra_flax.training.state import TrainState
from electra_flax.trees import Params

log = logging.getLogger("electra_flax")
# Orbax explains its own options at every start.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname or record.levelno > logging.WARNING)

_BARRIER_SECONDS = 300  # that a process waits for the others to have written their part

Notes = dict[str, Any]


@dataclass(frozen=True)
class _Meta:
    """The small JSON beside a state."""

    next_batch: int
    electra_flax: str
    notes: Notes
    fingerprint: list[int] | None = None
    """None: of an earlier release."""


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]  # Orbax has no types
    """Orbax's; a checkpoint whose metrics are damaged counts as one that was not evaluated."""

    def metrics(self, step: int) -> dict[str, float] | None:
        path = self.directory / str(step) / "metrics/metrics"
        if not path.exists():
            return None
        try:
            data = path.read_bytes() if is_remote(str(path)) else read_bytes(Path(path))
            return parse_json(data, _Evaluated, path, "this checkpoint counts as not evaluated").__dict__
        except UserError as error:
            log.warning("%s", error)
            return None


@dataclass(frozen=True)
class _Evaluated:
    """What is kept beside a checkpoint that was evaluated."""

    loss: float


class Checkpoints:
    """The checkpoints of one workdir, by the step after which they were made; saves in the background."""

    def __init__(self, folder: epath.PathLike, config: CheckpointConfig | None = None, notes: Any = Notes) -> None:
        """Open those in `folder`, local or gs://; to read only where `config` is None.

        A checkpoint whose notes are not of the type `notes` is damaged. Raises UserError where `folder` is none.
        """
        self._path, self._config, self._notes = epath.Path(folder), config, notes
        options = ocp.CheckpointManagerOptions(read_only=True, enable_async_checkpointing=False)
        if config is not None:
            options = ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                best_fn=_loss,
                preservation_policy=_kept(config),
                async_options=ocp.AsyncOptions(timeout_secs=_BARRIER_SECONDS),
            )

        def open_manager() -> ocp.CheckpointManager:
            if config is None and not self._path.is_dir():
                workdir = self._path.parent
                raise UserError(
                    f"{workdir}: no checkpoints there; electra-flax pretrain --workdir {workdir} creates them"
                )
            # Floats hardly shrink: compressing them only takes the host's time from the step.
            state_handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=_array_handlers())
            handlers = {"state": state_handler, "meta": ocp.JsonCheckpointHandler()}
            return _Manager(self._path, options=options, item_handlers=handlers)

        if config is None:
            self._check_readable()
        else:
            with processes.together():  # all of them are here, and none opens before process 0 is done
                if processes.is_main():
                    self._set_unreadable_aside()
        self._manager = patiently(self._path, open_manager)

    def _check_readable(self) -> None:
        """Raise UserError where a checkpoint keeps Orbax from opening the folder at all."""
        if damaged := self._unreadable():
            shown = "; ".join(f"{self._path / str(step)}: damaged ({problem})" for step, problem in damaged.items())
            raise UserError(f"{shown}: move it away, or have electra-flax pretrain set it aside")

    def _set_unreadable_aside(self) -> None:
        """Move away what Orbax cannot describe. Raises UserError where none is left."""
        damaged = self._unreadable()
        if damaged and len(damaged) == len(self._folders()):
            self._refuse(damaged)
        self._set_aside(damaged)

    def _unreadable(self) -> dict[int, str]:
        """Return {step: why} of the checkpoints that Orbax cannot describe, or whose reading would not end."""
        damaged: dict[int, str] = {}
        for folder in self._folders():
            try:
                _check_files(folder)
                described = folder / "_CHECKPOINT_METADATA"
                if patiently(described, described.is_file):
                    data = patiently(described, described.read_bytes)
                    parse_json(data, dict[str, Any], described.name, "it was damaged")
            except FileNotFoundError:
                if folder.exists():  # else a run that goes on has just removed it
                    damaged[int(folder.name)] = "a part of it is missing"
            except Unavailable:
                raise
            except UserError as error:
                damaged[int(folder.name)] = str(error)
        return damaged

    def _folders(self) -> list[epath.Path]:
        return patiently(
            self._path,
            lambda: [path for path in self._path.iterdir() if path.name.isdecimal()] if self._path.is_dir() else [],
        )

    @property
    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, notes: Notes, held_out_loss: float | None = None) -> None:
        """Start saving, once the save before is done; returns as soon as the arrays are copied off the devices.

        `notes` come back with the state, as JSON keeps them. Raises Problem where this save, or the one before, could
        not be made: older checkpoints stay as they are. Raises RunError where that happens to one of several processes.
        """
        step, before = int(state.step), None
        try:
            self.wait()
        except Problem as problem:  # this one may succeed
            before = problem
        if step not in self._manager.all_steps():
            meta = {
                "next_batch": step,
                "electra_flax": electra_flax.__version__,
                "notes": notes,
                "fingerprint": np.asarray(fingerprint(state)).tolist(),
            }
            try:
                self._manager.save(
                    step,
                    args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)),
                    metrics=None if held_out_loss is None else {"loss": held_out_loss},
                    force=True,
                )
            except Exception as error:  # whatever a disk or a bucket answers
                raise before or self._give_up(error) from None
        if before is not None:
            raise before

    def check(self) -> None:
        """Raise Problem where the save in the background could not be made; nothing where it still goes on."""
        if not self.is_saving:
            self.wait()

    @property
    def is_saving(self) -> bool:
        return bool(self._manager.is_saving_in_progress())

    def wait(self) -> None:
        """Wait for the save in the background. Raises Problem where it could not be made."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._give_up(error) from None

    def finish(self, state: TrainState, notes: Notes, held_out_loss: float | None) -> None:
        """Wait until the last state of all is saved; where a bucket refused it, save it again after pauses.

        Raises Problem, in all processes, where it is not there in the end.
        """
        step = int(state.step)

        def attempt() -> None:
            problem = "it is not there"
            try:
                self.save(state, notes, held_out_loss)  # nothing where it is there
                self.wait()
            except Problem as error:
                problem = str(error)
            processes.raise_first("" if step in self.steps else problem)

        bucket.until_done(self._path / str(step), attempt)

    def _give_up(self, error: Exception) -> Problem:
        """Return what became of a save; raise RunError where there are other processes."""
        if jax.process_count() > 1:  # the others wait for this one in Orbax's barriers, and would be a save behind
            raise RunError(
                f"process {jax.process_index()}: a checkpoint could not be written ({reason(error)}); those of steps "
                f"{', '.join(map(str, self.steps)) or 'none yet'} are intact; the same command on all hosts continues"
            )
        if processes.is_main():
            for unfinished in self._path.glob("*.orbax-checkpoint-tmp*"):
                with contextlib.suppress(OSError):
                    unfinished.rmtree()  # it may be what fills the disk
        with contextlib.suppress(UserError):
            patiently(self._path, self._manager.reload)
        return Problem(reason(error))

    def restore(self, shapes: TrainState, mesh: Mesh, step: int | None = None) -> TrainState:
        """Return the state of a step (the newest by default), placed on the mesh; `shapes` are those of its arrays.

        Raises UserError where there is no such checkpoint, or it is damaged, Unavailable where a bucket is away.
        """
        step = self.existing(step)
        try:
            return self._read(shapes, mesh, step)[0]
        except Problem as problem:
            raise self._refusal(step, problem) from None

    def restore_params(self, shapes: Params, step: int) -> Params:
        """Return the parameters alone, as numpy arrays: a third of the memory of a state.

        Raises UserError where there is no such checkpoint, or it is damaged, Unavailable where a bucket is away.
        """
        target = {"params": shapes}
        restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), target)
        args = ocp.args.PyTreeRestore(target, restore_args, partial_restore=True)
        try:
            params: dict[str, Any] = self._try_until_done(args, self.existing(step))[0]["params"]
            return params
        except Problem as problem:
            raise self._refusal(step, problem) from None

    def existing(self, step: int | None) -> int:
        """Return the step, or the newest. Raises UserError where there is no such checkpoint."""
        steps = self.steps
        if not steps or (step is not None and step not in steps):
            there = ", ".join(map(str, steps)) or "none"
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise UserError(f"{self._path}: {wanted}; there are: {there}")
        return steps[-1] if step is None else step

    def _refusal(self, step: int, problem: Problem) -> UserError:
        if is_remote(str(self._path)) and is_away(str(problem)):
            return Unavailable(
                f"{self._path / str(step)}: cannot be read for now ({problem}); run the same command again"
            )
        return UserError(f"{self._path / str(step)}: damaged ({problem}): take an older one")

    def restore_newest(self, shapes: TrainState, mesh: Mesh) -> tuple[TrainState, Notes] | None:
        """Return the newest state that can be read and its notes, or None where there is no checkpoint at all.

        Damaged ones that are newer are moved to `<workdir>/damaged`, with a warning. Raises UserError where all are,
        Unavailable where a bucket is away: nothing of it may pass for damaged.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                found = self._read(shapes, mesh, step)
            except Problem as problem:
                if isinstance(refusal := self._refusal(step, problem), Unavailable):
                    raise refusal from None
                damaged[step] = str(problem)
                continue
            self._set_aside(damaged)
            if damaged:
                processes.wait_for_all("damaged checkpoints set aside")
                self._manager.reload()
            return found
        self._refuse(damaged)
        return None

    def _refuse(self, damaged: dict[int, str]) -> None:
        """Raise UserError where there is any, which are all that there are."""
        if damaged:
            reasons = "; ".join(f"step {step}: {problem}" for step, problem in damaged.items())
            raise UserError(
                f"{self._path}: none of the checkpoints can be read ({reasons}): put a copy back, or begin "
                "again in a new folder"
            )

    def _read(self, shapes: TrainState, mesh: Mesh, step: int) -> tuple[TrainState, Notes]:
        """Return state and notes. Raises Problem, the same in all processes, where they cannot be used."""
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, mesh),
        )
        args = ocp.args.PyTreeRestore(target, ocp.checkpoint_utils.construct_restore_args(target))
        return self._try_until_done(args, step)

    def _try_until_done(self, args: ocp.args.PyTreeRestore, step: int) -> tuple[Any, Notes]:
        """Read a checkpoint, again where a bucket is away: it must not pass for damaged. Raises Problem."""
        return bucket.until_done(self._path / str(step), functools.partial(self._try_to_read, args, step))

    def _try_to_read(self, args: ocp.args.PyTreeRestore, step: int) -> tuple[Any, Notes]:
        state, notes, problem = None, Notes(), ""
        try:
            restored: Any = self._manager.restore(
                step, args=ocp.args.Composite(state=args, meta=ocp.args.JsonRestore())
            )
            state = restored["state"]
            meta = parse_json(json.dumps(restored["meta"]), _Meta, "meta", "it was damaged", is_ours=False)
            notes = parse_json(json.dumps(meta.notes), self._notes, "notes", "they were damaged", is_ours=False)
            if meta.fingerprint is not None and not is_whole(state, meta.fingerprint):
                problem = "its contents do not match their checksum"
        except UserError as error:
            problem = str(error)
        except Exception as error:  # Orbax and TensorStore raise whatever they meet
            problem = reason(error)
        processes.raise_first(problem)
        return state, notes

    def _set_aside(self, damaged: dict[int, str]) -> None:
        for step, problem in damaged.items():
            target = self._path.parent / "damaged" / f"{step}-{time.time():.0f}"
            log.warning(
                "checkpoint of step %d is damaged (%s): moved to %s; an older one is used", step, problem, target
            )
            if processes.is_main():
                _move(self._path / str(step), target)

    def close(self) -> None:
        """Close Orbax's manager, after `finish`, which has told what failed."""
        with contextlib.suppress(Exception):  # a part of a save that was given up may fail once more, later
            self._manager.close()


def _check_files(folder: epath.Path) -> None:
    """Raise UserError for what is neither file nor folder: reading it might never end."""
    for path in () if is_remote(str(folder)) else Path(folder).rglob("*"):
        if stat.S_IFMT(path.stat().st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise UserError(f"{path.relative_to(folder)}: no regular file")


def _array_handlers() -> Any:
    """Return handlers that split no small array among its replicas: each part would be a program of its own."""
    handlers = ocp.type_handlers
    return handlers.create_type_handler_registry(
        (jax.Array, handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)),
        (np.ndarray, handlers.NumpyHandler()),
    )


def _move(folder: epath.Path, target: epath.Path) -> None:
    if bucket.is_remote(folder):
        bucket.move(str(folder), str(target))
    else:
        target.parent.mkdir(exist_ok=True)
        folder.rename(target)


def _kept(config: CheckpointConfig) -> Any:
    kept: list[Any] = [policies.LatestN(config.max_to_keep)]
    if config.keep_every_steps:
        kept.append(policies.EveryNSteps(config.keep_every_steps))
    if config.keep_best:
        best = policies.BestN(
            get_metric_fn=_loss, reverse=True, n=config.keep_best, keep_checkpoints_without_metrics=False
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]
