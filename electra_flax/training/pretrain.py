"""The training loop, read from top to bottom."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from electra_flax.config.loading import config_fields
from electra_flax.config.schema import Config, Phase
from electra_flax.data.pipeline import training_batches
from electra_flax.data.tokenizer import save_tokenizer
from electra_flax.data.verify import verify_shards
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import Preempted, Refusals, RunError, Unavailable, UserError
from electra_flax.files import write_whole
from electra_flax.model.attention import Attend
from electra_flax.model.attention_choice import choose_attention
from electra_flax.model.sharding import batch_sharding, coverage_report, make_mesh
from electra_flax.runtime import processes, status, tpus
from electra_flax.runtime.compiler import compile_step, set_up_compiler
from electra_flax.runtime.interruption import Interruption, Watchdog
from electra_flax.storage import guard
from electra_flax.storage.workdir import Events, Workdir
from electra_flax.training import identity, losses
from electra_flax.training.agreement import Agreement, Wishes
from electra_flax.training.checkpoint import Checkpoints
from electra_flax.training.evaluate import held_out_metrics
from electra_flax.training.faults import SaveClock, SkippedSteps
from electra_flax.training.flops import step_flops
from electra_flax.training.inputs import FirstWeights, Input, identity_of, open_all
from electra_flax.training.metrics import MetricWriter, Progress, RunNotes, Window
from electra_flax.training.step import (
    TrainState,
    abstract_batch,
    abstract_state,
    init_state,
    make_eval_step,
    make_norms,
    make_train_step,
)

log = logging.getLogger("electra_flax")


def pretrain(
    config: Config,
    data_paths: Sequence[str],
    workdir_name: str,
    interruption: Interruption,
    begin_with: FirstWeights | None = None,
) -> None:
    """Trains, or continues, the run in the workdir until config.training.num_steps.

    `data_paths` are the shards of each phase, `begin_with` names weights that a new run starts from. `interruption`,
    entered before, says when to stop.
    Raises UserError for what the user can fix, Unavailable for what is away for now, RunError when the run itself
    fails, Preempted when it was asked to stop and has saved; of anything else the traceback is kept in the workdir.
    """
    work = Workdir(workdir_name)
    report = work.folder / f"hang-{jax.process_index()}.txt"
    with (
        guard.traceback_kept(work),
        guard.only_here(work),
        Watchdog(config.training.hang_minutes, report) as watchdog,
    ):
        set_up_compiler(config.training.compilation_cache)
        # Everything that can be refused is refused before anything is compiled.
        inputs = _open_all(config, data_paths, work, begin_with, watchdog)
        watchdog.alive("checking the attention of all phases")
        mesh = make_mesh(config.mesh)
        attends = [
            choose_attention(config.architecture, phase.config.data.max_seq_length, mesh) for phase in config.phases
        ]
        processes.end_if_asked(interruption.requested, "before the first step of this start")
        for phase, phase_input, attend in zip(config.phases, inputs, attends, strict=True):
            _train(phase, phase_input, attend, work, begin_with, interruption, watchdog)
        if processes.is_main():
            write_whole(work.folder / "DONE", json.dumps({"step": config.training.num_steps}) + "\n")
            log.info("all %d steps are done; models: electra-flax export --workdir %s", config.training.num_steps, work)
        if problem := guard.push(work):
            raise RunError(f"all steps are done, but {problem}; the same command writes what is missing")


def _train(
    phase: Phase,
    phase_input: Input,
    attend: Attend,
    work: Workdir,
    begin_with: FirstWeights | None,
    interruption: Interruption,
    watchdog: Watchdog,
) -> None:
    """From the newest checkpoint to the end of the phase; nothing where that is reached."""
    begin = time.perf_counter()
    is_main = processes.is_main()
    config, (_, vocabulary, examples, held_out) = phase.config, phase_input
    mesh = make_mesh(config.mesh)
    watchdog.alive("reading the checkpoint")

    # -------------------------------------------------------------------------- state: newest checkpoint, or fresh
    checkpoints = Checkpoints(work.checkpoints, config.checkpoint, RunNotes)
    restored = checkpoints.restore_newest(abstract_state(config), mesh)
    state, notes = restored or (_fresh(config, begin_with, vocabulary, mesh), {})
    if restored is None:
        with processes.together():
            if is_main and (work.folder / "DONE").exists():  # else the numbers of a finished run would be taken back
                raise UserError(f"{work}: DONE is there, but no checkpoint: bring checkpoints/ back, or name another")
        log.info("fresh start; sharding rules: pattern, axes, arrays and numbers of each")
        for line in coverage_report(state.params).split("\n"):
            log.info("%s", line)
    start, num_steps, total = int(state.step), phase.end, config.training.num_steps
    if start >= phase.end and phase.end < config.training.num_steps:  # that of the next phase
        checkpoints.close()
        return
    if is_main:
        status.tell(state="compiling", began=start, step=start, of=total)
    place = "before the first step" if restored is None else f"at step {start} of {total}, which is saved"
    processes.end_if_asked(interruption.requested, place)
    if restored is not None:
        log.info("continuing from step %d%s", start, "; its first weights are there" if begin_with else "")
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    log.info(
        "mesh %s, %d processes; %s parameters; %s training and %s held-out examples",
        dict(mesh.shape), jax.process_count(), f"{num_parameters:,}", f"{len(examples):,}", f"{len(held_out):,}",
    )  # fmt: skip

    watchdog.alive("compiling")
    train_step = make_train_step(config, vocabulary.special, mesh, attend)
    train_step = compile_step("train step", train_step, state, abstract_batch(config, batch_sharding(mesh)))
    eval_step = make_eval_step(config, vocabulary.special, mesh, attend)
    peak = tpus.peak_flops(jax.devices()[0].device_kind)
    least_seconds = step_flops(config) / (peak * jax.device_count()) if peak else None

    processes.end_if_asked(interruption.requested, place)
    interruption.saves = True
    batches = training_batches(config, examples, mesh, start - phase.start)
    agreement, clock, faults = (
        Agreement(mesh),
        SaveClock(config.checkpoint.every_minutes),
        SkippedSteps(config.training.max_skipped_steps),
    )
    writer = MetricWriter(work.folder, config, start, notes.get("evaluated", False), enabled=is_main)
    events = Events(work.folder, enabled=is_main)
    events.add(
        "start", start, devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}", processes=jax.process_count(),
        **({"init_from": begin_with.source} if begin_with and restored is None else {}),
    )  # fmt: skip
    window = Window(notes.get("window"))
    pending: tuple[int, losses.Sums, Any] | None = None
    last: tuple[dict[str, Any], float | None] = {}, None  # what was saved beside the state

    # -------------------------------------------------------------------------------------------------------- loop
    with Progress(num_steps, start, enabled=is_main) as progress:

        def evaluate_now(step: int) -> float | None:
            """The held-out loss, written down."""
            if not len(held_out):
                return None
            watchdog.alive(f"the evaluation of step {step}")
            with window.evaluating():
                metrics = held_out_metrics(config, eval_step, state.params, held_out, mesh)
            writer.write(step, "validation", metrics)
            progress.print(f"step {step} validation: {_line(metrics)}")
            return metrics["loss"]

        def record(step: int, sums: losses.Sums, sent: Any) -> Wishes:
            """Takes the numbers of a step, which is done when they are here."""
            nonlocal window
            faults.add(step, not window.add(jax.tree.map(np.asarray, sums)))
            watchdog.alive(f"step {step + 1}")
            if step % config.logging.every_steps == 0 or step == num_steps:
                metrics = window.metrics(config, least_seconds)
                writer.write(step, "train", metrics)
                progress.print(f"step {step} train: {_line(metrics)}")
                progress.note(f"loss {metrics.get('loss', np.nan):.3f}, {metrics['tokens_per_sec']:,.0f} tokens/s")
                window = Window()
                if problem := checkpoints.failure():
                    warn_of_save(step, problem)
            return agreement.receive(sent)

        def save_now(step: int, is_evaluated: bool, held_out_loss: float | None) -> None:
            nonlocal last
            watchdog.alive(f"saving step {step}")
            last = {"window": window.notes(), "evaluated": is_evaluated}, held_out_loss
            with window.saving():
                problem = processes.first_problem(guard.push(work)) or checkpoints.save(state, *last)
            if problem:
                warn_of_save(step, problem)
            else:
                clock.saved()
                events.add("save", step)

        def warn_of_save(step: int, problem: str) -> None:
            """At the step at which it is known, which the loop may have passed."""
            clock.failed()
            events.add("save failed", step, reason=problem)
            kept = ", ".join(map(str, checkpoints.steps)) or "none yet"
            progress.print(
                f"WARNING: a checkpoint could not be written ({problem}); those of steps: {kept} are intact; training "
                "goes on and tries again"
            )

        if start % config.evaluation.every_steps == 0 and not notes.get("evaluated"):
            evaluate_now(start)
        step = start
        while step < num_steps:
            step += 1
            try:
                with window.waiting_for_input():
                    batch = next(batches)
            except Unavailable:
                raise
            except UserError as error:  # the shards were sound at the start
                raise RunError(f"{error} (at step {step}; run the same command to continue)") from None
            state, sums = train_step(state, batch)
            sent = agreement.send(Wishes(save=is_main and clock.is_due(), stop=interruption.requested))
            if step == start + 1:
                jax.block_until_ready(sums)
                progress.print(f"first step done {time.perf_counter() - begin:.0f} s after the start")
            # Step k's numbers are read after step k + 1 is dispatched: the devices never wait for the host.
            wishes = record(*pending) if pending else Wishes(save=False, stop=False)
            pending = (step, sums, sent)
            progress.update()
            evaluates = step % config.evaluation.every_steps == 0 or step == num_steps
            saves = step % config.checkpoint.every_steps == 0 or step == num_steps or wishes.save or wishes.stop
            if saves or evaluates:
                record(*pending)
                pending = None
            if faults.too_many:
                end = step
                if not faults.go_back(end):
                    raise RunError(_not_finite(config, vocabulary, work, faults.first, end, state, batch))
                checkpoints.wait()
                state, notes = checkpoints.restore_newest(abstract_state(config), mesh) or (
                    _fresh(config, begin_with, vocabulary, mesh),
                    {},
                )
                step, pending, window = int(state.step), None, Window(notes.get("window"))
                if step < phase.start:  # only where the newest checkpoints are damaged
                    raise RunError(f"no finite step from {faults.first} to {end}; the same command goes on from {step}")
                batches = training_batches(config, examples, mesh, step - phase.start)
                writer.go_back(step, notes.get("evaluated", False))
                progress.go_back(step)
                events.add("back", end, to=step, reason=f"no finite step from {faults.first}")
                progress.print(f"WARNING: no finite step from {faults.first} to {end}; going back to step {step}")
                continue
            is_evaluated = evaluates and (not wishes.stop or step == num_steps)
            held_out_loss = evaluate_now(step) if is_evaluated else None
            if saves and (not faults.in_a_row or wishes.stop or step == num_steps):
                save_now(step, is_evaluated, held_out_loss)
            if wishes.stop:
                break

    # ---------------------------------------------------------------------------------------------------- the end
    watchdog.alive("the last save")
    problem = checkpoints.finish(state, *last)
    saved = checkpoints.steps
    checkpoints.close()
    writer.close()
    if problem:
        raise RunError(
            f"the checkpoint of step {step} could not be written ({problem}): make room, then the same command "
            f"continues from step {saved[-1] if saved else 0}"
        )
    interruption.saves = False
    events.add("stop" if step < total else "done", step)
    if step < num_steps:
        raise Preempted(f"asked to stop: saved at step {step} of {total}; the same command continues")


def _open_all(
    config: Config, data_paths: Sequence[str], work: Workdir, begin_with: FirstWeights | None, watchdog: Watchdog
) -> list[Input]:
    """What each phase reads, checked; the workdir, prepared. The same answer in all processes."""
    with processes.together():
        inputs = open_all(config, data_paths, work, begin_with, Refusals(), watchdog.alive)
    shards = identity_of(inputs)
    processes.require_agreement(
        {
            "shards": shards,
            "first weights": str(begin_with),
            **{name: str(value) for name, value in config_fields(config).items()},
        }
    )
    with processes.together():
        if processes.is_main():
            for note in identity.prepare(work, config, data_paths, shards):
                log.info("changed since the last start: %s", note)
            data, vocabulary = inputs[0].data, inputs[0].vocabulary
            casing = identity.casing(data, vocabulary)
            save_tokenizer(vocabulary, casing, work.folder / "tokenizer", config.model.max_position_embeddings)
            if data.manifest is not None:
                data.manifest.write(work.folder)  # what the model card says of the data
        memory = work.folder / f"verified_shards-{jax.process_index()}.json"
        verify_shards([shard for found in inputs for shard in found.shards], memory)
    return inputs


def _fresh(config: Config, begin_with: FirstWeights | None, vocabulary: Vocabulary, mesh: Mesh) -> TrainState:
    """Step 0, or the step that other weights are at."""
    state = init_state(config, mesh)
    return begin_with.apply(config, vocabulary, mesh, state) if begin_with else state


def _not_finite(
    config: Config, vocabulary: Vocabulary, work: Workdir, first: int, last: int, state: Any, batch: Any
) -> str:
    """What is said when going back did not help; the norms of every layer are written to a file."""
    norms = jax.device_get(make_norms(config, vocabulary.special)(state, batch))
    if processes.is_main():
        path = work.folder / "not_finite.json"
        text = json.dumps({"first_step": first, "last_step": last, **norms}, indent=1, default=float) + "\n"
        with suppress(UserError):  # a full disk must not hide what is said here
            write_whole(path, text)
    bad = [name for name, norm in norms["gradient_norms"].items() if not np.isfinite(norm)]
    shown = f"; gradients that are not finite: {len(bad)}, the first {bad[0]}" if bad else ""
    return (
        f"no finite step from {first} to {last}, twice{shown}; all norms are in {work}/not_finite.json; lower "
        "optimizer.learning_rate or look at the data of these steps; the checkpoints are intact"
    )


def _line(metrics: dict[str, float]) -> str:
    shown = ("loss", "generator_loss", "generator_accuracy", "discriminator_loss", "discriminator_auc",
             "discriminator_precision", "discriminator_recall", "tokens_per_sec", "mfu")  # fmt: skip
    return ", ".join(f"{name} {metrics[name]:,.4g}" for name in shown if name in metrics)
