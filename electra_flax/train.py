"""The training loop, read from top to bottom."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from electra_flax import __version__, losses, processes, tpus, workdir
from electra_flax.attention_choice import choose_attention
from electra_flax.checkpoint import Checkpoints
from electra_flax.config import Config, Preempted, RunError, UserError
from electra_flax.config_io import config_fields
from electra_flax.evaluate import held_out_metrics
from electra_flax.faults import SaveClock, SkippedSteps
from electra_flax.flops import step_flops
from electra_flax.input_pipeline import open_split, read_vocabulary, training_batches
from electra_flax.interruption import Interruption, Watchdog, metadata_host
from electra_flax.metrics import MetricWriter, Progress, Window
from electra_flax.processes import Agreement, Wishes
from electra_flax.records import DataFolder, ShardedExamples, Vocabulary
from electra_flax.sharding import batch_sharding, check_batch, coverage_report, make_mesh
from electra_flax.startup import compile_step, use_compilation_cache
from electra_flax.step import abstract_batch, init_state, make_eval_step, make_norms, make_train_step
from electra_flax.verify_data import verify_shards

log = logging.getLogger("electra_flax")


def pretrain(config: Config, data_path: Path, work: Path) -> None:
    """Trains, or continues, the run in `work` until config.training.num_steps.

    Raises UserError for what the user can fix, RunError when the run itself fails, Preempted when it was asked to stop
    and has saved.
    """
    report = work / f"hang-{jax.process_index()}.txt"
    with (
        _only_here(work),
        Interruption(metadata_host()) as interruption,
        Watchdog(config.training.hang_minutes, report) as watchdog,
    ):
        _pretrain(config, data_path, work, interruption, watchdog)


def _pretrain(config: Config, data_path: Path, work: Path, interruption: Interruption, watchdog: Watchdog) -> None:
    begin = time.perf_counter()
    use_compilation_cache(config.training.compilation_cache)
    is_main = jax.process_index() == 0

    # -------------------------------------------------- everything that can be refused is refused before compiling
    mesh = make_mesh(config.mesh)
    check_batch(config.training.batch_size, config.training.gradient_accumulation_steps, mesh)
    vocabulary, examples, held_out = _open_all(config, data_path, work)
    watchdog.alive("reading the checkpoint")

    # -------------------------------------------------------------------------- state: newest checkpoint, or fresh
    checkpoints = Checkpoints(work, config.checkpoint)
    restored = checkpoints.restore_newest(config, mesh)
    state, notes = restored or (init_state(config, mesh), {})
    start, num_steps = int(state.step), config.training.num_steps
    if restored is None:
        log.info("fresh start; which sharding rule took what:\n%s", coverage_report(state.params))
    else:
        log.info("continuing from step %d", start)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    log.info(
        "mesh %s, %d processes; %s parameters; %s training and %s held-out examples",
        dict(mesh.shape), jax.process_count(), f"{num_parameters:,}", f"{len(examples):,}", f"{len(held_out):,}",
    )  # fmt: skip

    watchdog.alive("compiling")
    attend = choose_attention(config, mesh)
    train_step = make_train_step(config, vocabulary.special, mesh, attend)
    train_step = compile_step("train step", train_step, state, abstract_batch(config, batch_sharding(mesh)))
    eval_step = make_eval_step(config, vocabulary.special, mesh, attend)
    peak = tpus.peak_flops(jax.devices()[0].device_kind)
    least_seconds = step_flops(config) / (peak * jax.device_count()) if peak else None

    batches = training_batches(config, examples, mesh, start)
    agreement, clock, faults = (
        Agreement(mesh),
        SaveClock(config.checkpoint.every_minutes),
        SkippedSteps(config.training.max_skipped_steps),
    )
    writer = MetricWriter(work, config, start, notes.get("evaluated", False), enabled=is_main)
    events = workdir.Events(work, enabled=is_main)
    events.add(
        "start", start, devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}", processes=jax.process_count()
    )
    window = Window(notes.get("window"))
    pending: tuple[int, losses.Sums, Any] | None = None

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
                progress.show(f"loss {metrics.get('loss', np.nan):.3f}, {metrics['tokens_per_sec']:,.0f} tokens/s")
                window = Window()
                if problem := checkpoints.failure():
                    warn_of_save(problem)
            return agreement.receive(sent)

        def save_now(step: int, is_evaluated: bool, held_out_loss: float | None) -> None:
            watchdog.alive(f"saving step {step}")
            notes = {"window": window.notes(), "evaluated": is_evaluated}
            with window.saving():
                problem = checkpoints.save(state, notes, held_out_loss)
            if problem:
                warn_of_save(problem)
            else:
                clock.saved()
                events.add("save", step)

        def warn_of_save(problem: str) -> None:
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
            progress.advance()
            evaluates = step % config.evaluation.every_steps == 0 or step == num_steps
            saves = step % config.checkpoint.every_steps == 0 or step == num_steps or wishes.save or wishes.stop
            if saves or evaluates:
                record(*pending)
                pending = None
            if faults.too_many:
                last = step
                if not faults.go_back(last):
                    raise RunError(_not_finite(config, vocabulary, work, faults.first, last, state, batch))
                checkpoints.wait()
                state, notes = checkpoints.restore_newest(config, mesh) or (init_state(config, mesh), {})
                step, pending, window = int(state.step), None, Window(notes.get("window"))
                batches = training_batches(config, examples, mesh, step)
                writer.go_back(step, notes.get("evaluated", False))
                progress.go_back(step)
                events.add("back", last, to=step, reason=f"no finite step from {faults.first}")
                progress.print(f"WARNING: no finite step from {faults.first} to {last}; going back to step {step}")
                continue
            is_evaluated = evaluates and (not wishes.stop or step == num_steps)
            held_out_loss = evaluate_now(step) if is_evaluated else None
            if saves and (not faults.in_a_row or wishes.stop or step == num_steps):
                save_now(step, is_evaluated, held_out_loss)
            if wishes.stop:
                break

    # ---------------------------------------------------------------------------------------------------- the end
    watchdog.alive("the last save")
    problem = checkpoints.wait()
    saved = checkpoints.steps
    checkpoints.close()
    writer.close()
    if step not in saved:
        raise RunError(
            f"the checkpoint of step {step} could not be written ({problem}): make room, then the same command "
            f"continues from step {saved[-1] if saved else 0}"
        )
    events.add("stop" if step < num_steps else "done", step)
    if step < num_steps:
        raise Preempted(f"asked to stop: saved at step {step} of {num_steps}; the same command continues")
    if is_main:
        (work / "DONE").write_text(json.dumps({"step": num_steps}) + "\n")


@contextmanager
def _only_here(work: Path) -> Iterator[None]:
    """Keeps the workdir to this run. Raises UserError, in all processes, where another one has it."""
    problem, lock = "", None
    try:
        lock = workdir.lock(work) if processes.is_main() else None
    except UserError as error:
        problem = str(error)
    if problem := processes.first_problem(problem):
        raise UserError(problem)
    with lock or nullcontext():
        yield


def _open_all(config: Config, data_path: Path, work: Path) -> tuple[Vocabulary, ShardedExamples, ShardedExamples]:
    """Vocabulary, training and held-out examples, checked; the workdir, prepared. The same answer in all processes."""
    problem, opened, values = "", None, {}
    try:
        if config.logging.wandb_project and importlib.util.find_spec("wandb") is None:
            raise UserError(
                f"logging.wandb_project={config.logging.wandb_project} needs wandb: pip install 'electra-flax[wandb]'"
            )
        data = DataFolder.open(data_path)
        vocabulary = read_vocabulary(config, data)
        examples, held_out = open_split(config, data, "train"), open_split(config, data, "validation")
        if not len(examples):
            raise UserError(f"{data_path}: the train split has no examples; make shards from a larger corpus")
        opened = vocabulary, examples, held_out
        values = {"shards": workdir.data_identity(data, vocabulary)}
    except UserError as error:
        problem = str(error)
    if problem := processes.first_problem(problem):
        raise UserError(problem)
    processes.require_agreement(
        values
        | {
            "release": f"electra-flax {__version__}, jax {jax.__version__}",
            "number of devices": str(jax.local_device_count()),
            **{name: str(value) for name, value in config_fields(config).items()},
        }
    )
    assert opened is not None
    try:
        if jax.process_index() == 0:
            for note in workdir.prepare(work, config, data, vocabulary):
                log.info("changed since the last start: %s", note)
        verify_shards([*examples.shards, *held_out.shards], work / f"verified_shards-{jax.process_index()}.json")
    except UserError as error:
        problem = str(error)
    if problem := processes.first_problem(problem):
        raise UserError(problem)
    return opened


def _not_finite(
    config: Config, vocabulary: Vocabulary, work: Path, first: int, last: int, state: Any, batch: Any
) -> str:
    """What is said when going back did not help; the norms of every layer are written to a file."""
    norms = jax.device_get(make_norms(config, vocabulary.special)(state, batch))
    path = work / "not_finite.json"
    if jax.process_index() == 0:
        path.write_text(json.dumps({"first_step": first, "last_step": last, **norms}, indent=1, default=float) + "\n")
    bad = [name for name, norm in norms["gradient_norms"].items() if not np.isfinite(norm)]
    shown = f"; gradients that are not finite: {len(bad)}, the first {bad[0]}" if bad else ""
    return (
        f"no finite step from {first} to {last}, twice{shown}; all norms are in {path}; lower optimizer.learning_rate "
        "or look at the data of these steps; the checkpoints are intact"
    )


def _line(metrics: dict[str, float]) -> str:
    shown = ("loss", "generator_loss", "generator_accuracy", "discriminator_loss", "discriminator_auc",
             "discriminator_precision", "discriminator_recall", "tokens_per_sec", "mfu")  # fmt: skip
    return ", ".join(f"{name} {metrics[name]:,.4g}" for name in shown if name in metrics)
