"""A run of pretraining: what it reads is checked, then its phases go through the loop."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from electra_flax.config.loading import config_fields
from electra_flax.config.schema import Config, Phase
from electra_flax.data.corrupted import More, no_more
from electra_flax.data.pipeline import packed_batches, training_batches
from electra_flax.data.shards import verify_shards
from electra_flax.data.tokenizer import save_tokenizer
from electra_flax.errors import Refusals, RunError, UserError
from electra_flax.files import write_whole
from electra_flax.formats import counted
from electra_flax.model.attention import Attend
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.sharding import batch_sharding, coverage_report, make_mesh
from electra_flax.runtime import processes, tpus
from electra_flax.runtime.compiler import compile_step, set_up_compiler
from electra_flax.runtime.interruption import Interruption, Watchdog
from electra_flax.storage import guard
from electra_flax.storage.bucket import patiently
from electra_flax.storage.workdir import Workdir
from electra_flax.training import identity
from electra_flax.training.callbacks import Callbacks
from electra_flax.training.evaluate import HeldOut
from electra_flax.training.first_values import look_at_neighbours, token_frequency
from electra_flax.training.flops import step_flops
from electra_flax.training.frozen import Frozen, ReadFrozen
from electra_flax.training.initial_state import abstract_batch, abstract_state, init_state
from electra_flax.training.inputs import FirstWeights, Input, identity_of, open_all, packed_rows_of, verify_samples
from electra_flax.training.loop import Evaluation, Loop, Places, Rhythm, on_one_line
from electra_flax.training.losses import Sums, Totals
from electra_flax.training.metrics import RunNotes, last_held_out
from electra_flax.training.objectives import make_objective
from electra_flax.training.objectives.metrics import HEALTH_METRICS, metrics_of
from electra_flax.training.objectives.objective import Objective
from electra_flax.training.probe import Probe
from electra_flax.training.state import TrainState
from electra_flax.training.step import make_norms, make_train_step
from electra_flax.trees import Batch, Params

log = logging.getLogger("electra_flax")

_EARLY = (1, 2)
"""Percent of a run after which it is evaluated too."""
_LONG = 1000
"""Steps of a run of which so little says anything."""


@dataclass(frozen=True)
class Pretrained:
    """A run that is done."""

    workdir: str
    step: int
    """Its last."""
    held_out: dict[str, float]
    """What was measured last on held-out examples; empty where there are none, and in processes but 0."""


def pretrain(
    config: Config,
    data_paths: Sequence[str],
    workdir_name: str,
    interruption: Interruption,
    begin_with: FirstWeights | None = None,
    probe: Probe | None = None,
    callbacks: Sequence[Callbacks] = (),
    read_frozen: ReadFrozen = lambda config, vocabulary: None,
) -> Pretrained:
    """Train, or continue, the run in the workdir until config.training.num_steps.

    `data_paths` are the shards of each phase, `begin_with` names weights that a new run starts from, `probe` labelled
    texts that evaluations try the states on. `interruption` says when to stop, `callbacks` hear of all that happens;
    `read_frozen` finds a generator that does not learn.
    Raises UserError for what the user can fix, Unavailable for what is away for now, RunError when the run itself
    fails, Preempted when it was asked to stop and has saved; of anything else the traceback is kept in the workdir.
    """
    work = Workdir(workdir_name)
    report = work.folder / f"hang-{jax.process_index()}.txt"
    with (
        guard.traceback_kept(work),
        guard.only_here(work),
        interruption.watchdog(config.training.hang_minutes, report) as watchdog,
    ):
        set_up_compiler(config.training.compilation_cache)
        # Everything that can be refused is refused before anything is compiled.
        inputs, frozen = _open_all(config, data_paths, work, begin_with, probe, watchdog, read_frozen)
        watchdog.alive("checking the attention of all phases")
        mesh = make_mesh(config.mesh)
        attends = [
            choose_attention(config.architecture, phase.config.data.max_seq_length, mesh, is_packed=config.is_packed)
            for phase in config.phases
        ]
        processes.end_if_asked(interruption.requested, "before the first step")
        places = Places(work.folder, work.checkpoints, functools.partial(guard.push, work))
        for phase, phase_input, attend in zip(config.phases, inputs, attends, strict=True):
            learner = Pretraining(phase, phase_input, attend, work, begin_with, frozen)
            _train(learner, places, interruption, watchdog, callbacks)
        try:
            if processes.is_main():
                write_whole(work.folder / "DONE", json.dumps({"step": config.training.num_steps}) + "\n")
                log.info(
                    "all %s steps are done; next: electra-flax export --workdir %s",
                    f"{config.training.num_steps:,}", work,
                )  # fmt: skip
            guard.push(work)
        except UserError as problem:
            raise RunError(f"all steps are done, but {problem}; the same command writes what is missing") from None
        return Pretrained(str(work), config.training.num_steps, last_held_out(work.folder))


def _train(
    learner: Pretraining,
    places: Places,
    interruption: Interruption,
    watchdog: Watchdog,
    callbacks: Sequence[Callbacks],
) -> None:
    """Run a phase to its end, or not at all where the next one has begun; its state is gone before the next one's."""
    with Loop(learner, places, interruption, watchdog, callbacks) as loop:
        if loop.step < learner.end or learner.end == learner.total:
            begun = {"init_from": learner.begin_with.source} if learner.begin_with and loop.is_fresh else {}
            loop.run(learner.config, **begun, **learner.packed_as())


def _open_frozen(config: Config, first: Input, work: Workdir, read_frozen: ReadFrozen) -> Frozen | None:
    """Return the generator that does not learn, where the run needs its weights.

    Raises UserError where it is not the one whose samples were written.
    """
    # Of samples that are written only the tables may be wanted, to begin with.
    begins = config.generator.initialize_discriminator_embeddings and not patiently(
        work.checkpoints, work.checkpoints.exists
    )
    frozen = read_frozen(config, first.vocabulary) if config.samples_online or begins else None
    if first.samples is None:
        return frozen
    given, named, written = config.data.corrupted, config.generator.frozen, first.samples.folder
    if frozen is not None and frozen.sha256 != written.generator:
        raise UserError(
            f"data.corrupted={given}: written with a generator of sha256 {written.generator[:12]}, "
            f"generator.frozen={named} has {frozen.sha256[:12]}: name the one it was written with"
        )
    if frozen is None and named != written.source and processes.is_main():
        log.warning(
            "data.corrupted=%s: its samples are those of generator.frozen=%s (sha256 %s); %s is not opened",
            given, written.source, written.generator[:12], named,
        )  # fmt: skip
    return frozen


def _open_all(
    config: Config,
    data_paths: Sequence[str],
    work: Workdir,
    begin_with: FirstWeights | None,
    probe: Probe | None,
    watchdog: Watchdog,
    read_frozen: ReadFrozen,
) -> tuple[list[Input], Frozen | None]:
    """Prepare the workdir; return what each phase reads, checked, and the generator that does not learn.

    The same answer in all processes.
    """
    known = np.zeros(2, np.int64)  # rows a step of a run that goes on, which process 0 has the files of
    with processes.together():
        if processes.is_main():
            rows = identity.packed_rows(work)
            known[: len(rows)] = rows
    packed_rows = [int(rows) for rows in processes.as_process_0(known) if rows]
    with processes.together():
        inputs = open_all(config, data_paths, work, begin_with, Refusals(), watchdog.alive, probe, packed_rows)
        frozen = _open_frozen(config, inputs[0], work, read_frozen)
        digest, samples = frozen.sha256 if frozen else "", ""
        if inputs[0].samples:
            digest, samples = inputs[0].samples.folder.generator, inputs[0].samples.folder.digest
    packed_rows = packed_rows_of(inputs)
    shards = identity_of(inputs)
    processes.require_agreement(
        {
            "shards": shards,
            "packed rows": str(packed_rows),
            "first weights": str(begin_with),
            "frozen generator": digest or "none",
            "data.corrupted": samples or "none",
            "--probe": "; ".join(found.probe_rows.digest for found in inputs if found.probe_rows) or "none",
            **{name: str(value) for name, value in config_fields(config).items()},
        }
    )
    with processes.together():
        if processes.is_main():
            for note in identity.prepare(work, config, data_paths, shards, packed_rows, digest, samples):
                log.info("changed since the last start: %s", note)
            data, vocabulary = inputs[0].data, inputs[0].vocabulary
            casing = identity.casing(data, vocabulary)
            save_tokenizer(vocabulary, casing, work.folder / "tokenizer", config.model.max_position_embeddings)
            if data.manifest is not None:
                data.manifest.write(work.folder)  # what the model card says of the data
        process = jax.process_index()
        shards_read = [shard for found in inputs for shard in found.shards]
        verify_shards(shards_read, work.folder / f"verified_shards-{process}.json")
        verify_samples(inputs, work.folder / f"verified_samples-{process}.json")
    return inputs, frozen


class Pretraining:
    """A phase of a run, as the loop learns it."""

    notes_type = RunNotes

    def __init__(
        self,
        phase: Phase,
        phase_input: Input,
        attend: Attend,
        work: Workdir,
        begin_with: FirstWeights | None,
        frozen: Frozen | None,
    ) -> None:
        config = phase.config
        _, vocabulary, self._examples, held_out, probe_rows, self._packed, self._samples = phase_input
        self.config, self._vocabulary = config, vocabulary
        self._work, self.begin_with = work, begin_with
        self.start, self.end, self.total = phase.start, phase.end, config.training.num_steps
        self.rhythm = Rhythm(config.checkpoint, config.training.max_skipped_steps)
        self.mesh, self.shapes = make_mesh(config.mesh), abstract_state(config)
        self.objective = make_objective(config, vocabulary.special, vocabulary.continuations)
        on_console = [metric.name for metric in (*metrics_of(config), *HEALTH_METRICS) if metric.is_on_console]
        self.shown = ("loss", *on_console, "tokens_per_sec", "mfu")
        self._frozen = frozen
        self._given = (frozen.place(config, self.mesh),) if frozen and config.samples_online else ()
        samples = self._samples
        self._more: More = samples.folder.ids_of(samples.train) if samples else no_more
        self._held_out = HeldOut(
            config, self.objective, held_out, self.mesh, attend, probe_rows, *self._given,
            more=samples.folder.ids_of(samples.held_out) if samples else no_more,
        )  # fmt: skip
        self._parts = phase.parts
        self._steps = [
            make_train_step(part.config, self._objective_of(part), self.mesh, attend) for part in self._parts
        ]

    def advance(self, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        return self._steps[self._part_of(step + 1)](state, batch, *self._given)

    def _part_of(self, step: int) -> int:
        """Return by which of its programs a step is made."""
        return next(number for number, part in enumerate(self._parts) if step <= part.end)

    def _objective_of(self, part: Phase) -> Objective:
        return make_objective(part.config, self._vocabulary.special, self._vocabulary.continuations)

    def least_seconds(self, step: int) -> float | None:
        return self._least_seconds[self._part_of(step)]

    def fresh(self) -> TrainState:
        """Return step 0, or the step that other weights are at."""
        with processes.together():
            if processes.is_main() and (self._work.folder / "DONE").exists():  # its numbers would be taken back
                raise UserError(
                    f"{self._work}: the run is marked DONE but has no checkpoint: restore checkpoints/, or use "
                    "another --workdir"
                )
        state = init_state(self.config, self.mesh, self._first_values())
        if self._frozen and self.config.generator.initialize_discriminator_embeddings:
            state = self._frozen.initialize(state, self.mesh)
        if self.begin_with is not None:
            state = self.begin_with.apply(self.config, self._vocabulary, self.mesh, state)
        return state

    def _first_values(self) -> Callable[[Params], Params] | None:
        if self.config.training.first_values == "original":
            return None
        with processes.together():
            frequency_V = token_frequency(self._examples, self.config.model.vocab_size, self._vocabulary.special)
        return functools.partial(look_at_neighbours, self.config.architecture, frequency_V)

    def prepare(self, state: TrainState, is_fresh: bool) -> None:
        """Say what begins, and compile its step."""
        if self._samples and self.start <= (step := int(state.step)) < self.end:
            self._samples.check(self.config, self.objective, next(self.batches(step)), self.start, step)
        if is_fresh:
            log.info("new run")
            if self.mesh.shape["fsdp"] * self.mesh.shape["tensor"] > 1:  # else every device holds all of them
                log.info("sharding rules: parameter names, mesh axes, arrays, parameters")
                for line in coverage_report(state.params).split("\n"):
                    log.info("%s", line)
        else:
            ignored = "; --init-from or --resume-from was applied when the run began" if self.begin_with else ""
            log.info("continuing from step %s%s", f"{int(state.step):,}", ignored)
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        axes = ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        log.info(
            "mesh: %s%s; %s parameters; %s training and %s held-out examples",
            axes, f"; {jax.process_count()} processes" if jax.process_count() > 1 else "", f"{num_parameters:,}",
            f"{len(self._examples):,}", f"{len(self._held_out):,}",
        )  # fmt: skip
        if packed := self._packed:
            log.info(
                "packed: %d rows a step, %.1f%% full, of examples that would fill %.1f%% of rows of their own",
                packed.rows, 100 * packed.fill, 100 * packed.fill * packed.share,
            )  # fmt: skip
        configs = [part.config.of_rows(packed.rows) if packed else part.config for part in self._parts]
        batch = abstract_batch(configs[0], batch_sharding(self.mesh))
        self._steps = [compile_step("train step", step, state, batch, *self._given) for step in self._steps]
        peak = tpus.peak_flops(jax.devices()[0].device_kind)
        self._least_seconds = [step_flops(config) / (peak * jax.device_count()) if peak else None for config in configs]

    def packed_as(self) -> dict[str, float]:
        """Return what the start event says of packed rows; nothing where each example has its own."""
        if self._packed is None:
            return {}
        return {"packed_rows": self._packed.rows, "packed_fill": self._packed.fill}

    def batches(self, step: int) -> Iterator[Batch]:
        if self._packed:
            return packed_batches(self.config, self._packed, self.mesh, step - self.start, self._more)
        return training_batches(self.config, self._examples, self.mesh, step - self.start, self._more)

    def add(self, step: int, sums: dict[str, np.ndarray]) -> None:
        """Add nothing: the loop's own sums are all."""

    def summarize(self, totals: Totals) -> dict[str, float]:
        return self.objective.summarize(totals)

    def records(self, step: int) -> bool:
        return step % self.config.logging.every_steps == 0

    def evaluates(self, step: int) -> bool:
        """Also early in a long run, where a collapse shows first (docs/training.md)."""
        early = _EARLY if self.total >= _LONG else ()
        return step % self.config.evaluation.every_steps == 0 or step in [self.total * part // 100 for part in early]

    def saves(self, step: int) -> bool:
        return step % self.config.checkpoint.every_steps == 0

    def evaluate(self, step: int, params: Params) -> Evaluation | None:
        if not len(self._held_out):
            return None
        metrics = self._held_out.metrics(params)
        return Evaluation(metrics, on_one_line(metrics, self.shown), metrics["loss"])

    def was_evaluated(self, step: int) -> bool:
        return False

    def is_enough(self) -> bool:
        return False

    def notes(self) -> dict[str, Any]:
        return {}

    def restore(self, notes: dict[str, Any]) -> None:
        """Restore nothing: a run of pretraining keeps no notes of its own."""

    def explain_not_finite(self, first: int, last: int, state: TrainState, batch: Batch) -> str:
        """Write the norms of every layer to a file; return what there is to say."""
        objective = self._objective_of(self._parts[self._part_of(last)])
        norms = jax.device_get(make_norms(objective, self.config.training)(state, batch, *self._given))
        if processes.is_main():
            path = self._work.folder / "not_finite.json"
            text = json.dumps({"first_step": first, "last_step": last, **norms}, indent=1, default=float) + "\n"
            with suppress(UserError):  # a full disk must not hide what is said here
                write_whole(path, text)
        bad = [name for name, norm in norms["gradient_norms"].items() if not np.isfinite(norm)]
        shown = f"; {counted(len(bad), 'gradients')} not finite, the first {bad[0]}" if bad else ""
        return (
            f"no finite step from {first:,} to {last:,}, twice{shown}; all norms are in {self._work}/not_finite.json; "
            "lower optimizer.learning_rate or look at the data of these steps; the checkpoints are intact"
        )
