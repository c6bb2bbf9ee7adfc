"""The training loop, read from top to bottom."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import jax
import numpy as np

from electra_flax import losses, workdir
from electra_flax.attention_choice import choose_attention
from electra_flax.checkpoint import Checkpoints
from electra_flax.config import Config, RunError, UserError
from electra_flax.evaluate import held_out_metrics
from electra_flax.input_pipeline import open_split, read_vocabulary, training_batches
from electra_flax.metrics import MetricSums, MetricWriter, Progress
from electra_flax.records import DataFolder
from electra_flax.sharding import batch_sharding, check_batch, coverage_report, make_mesh
from electra_flax.startup import compile_step, use_compilation_cache
from electra_flax.step import abstract_batch, init_state, make_eval_step, make_train_step
from electra_flax.verify_data import verify_shards

log = logging.getLogger("electra_flax")


def pretrain(config: Config, data_path: Path, work: Path) -> None:
    """Trains, or continues, the run in `work` until config.training.num_steps.

    Raises UserError for what the user can fix, RunError when the run itself fails.
    """
    begin = time.perf_counter()
    use_compilation_cache(config.training.compilation_cache)
    is_main = jax.process_index() == 0

    # -------------------------------------------------- everything that can be refused is refused before compiling
    mesh = make_mesh(config.mesh)
    check_batch(config.training.batch_size, config.training.gradient_accumulation_steps, mesh)
    data = DataFolder.open(data_path)
    vocabulary = read_vocabulary(config, data)
    examples = open_split(config, data, "train")
    held_out = open_split(config, data, "validation")
    if not len(examples):
        raise UserError(f"{data_path}: the train split has no examples; make shards from a larger corpus")
    for note in workdir.prepare(work, config, data, vocabulary):
        log.info("changed since the last start: %s", note)
    verify_shards([*examples.shards, *held_out.shards], work / "verified_shards.json")

    # -------------------------------------------------------------------------- state: newest checkpoint, or fresh
    checkpoints = Checkpoints(work, config.checkpoint)
    if checkpoints.latest_step is None:
        state = init_state(config, mesh)
        log.info("fresh start; which sharding rule took what:\n%s", coverage_report(state.params))
    else:
        state = checkpoints.restore(config, mesh)
        log.info("continuing from step %d", int(state.step))
    start, num_steps = int(state.step), config.training.num_steps
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    log.info(
        "mesh %s; %s parameters; %s training and %s held-out examples",
        dict(mesh.shape), f"{num_parameters:,}", f"{len(examples):,}", f"{len(held_out):,}",
    )  # fmt: skip

    attend = choose_attention(config, mesh)
    train_step = make_train_step(config, vocabulary.special, mesh, attend)
    train_step = compile_step("train step", train_step, state, abstract_batch(config, batch_sharding(mesh)))
    eval_step = make_eval_step(config, vocabulary.special, mesh, attend)
    batches = training_batches(config, examples, mesh, start)
    writer = MetricWriter(work, enabled=is_main)
    averages, since = MetricSums(), time.perf_counter()
    pending: losses.Sums | None = None

    # -------------------------------------------------------------------------------------------------------- loop
    with Progress(num_steps, start, enabled=is_main) as progress:

        def evaluate_now(step: int) -> None:
            if not len(held_out):
                return
            metrics = held_out_metrics(config, eval_step, state.params, held_out, mesh)
            writer.write(step, "validation", metrics)
            progress.print(f"step {step} validation: {_line(metrics)}")

        def record(step: int, sums: losses.Sums) -> None:
            nonlocal averages, since
            averages.add(jax.tree.map(np.asarray, sums))
            if step % config.logging.every_steps and step != num_steps:
                return
            now = time.perf_counter()
            metrics = _averaged(averages, config)
            metrics["tokens_per_sec"] = float(averages.sums["tokens"]) / (now - since)
            metrics["steps_per_sec"] = averages.steps / (now - since)
            if not np.isfinite(metrics["loss"]):
                window = f"steps {step - averages.steps + 1} to {step}"
                raise RunError(
                    f"the loss became {metrics['loss']} within {window}: lower optimizer.learning_rate; "
                    f"checkpoints up to step {checkpoints.latest_step} are intact"
                )
            writer.write(step, "train", metrics)
            progress.print(f"step {step} train: {_line(metrics)}")
            progress.show(f"loss {metrics['loss']:.3f}, {metrics['tokens_per_sec']:,.0f} tokens/s")
            averages, since = MetricSums(), now

        if start == 0:
            evaluate_now(0)
            since = time.perf_counter()
        for step in range(start + 1, num_steps + 1):
            try:
                batch = next(batches)
            except UserError as error:  # the shards were sound at the start
                raise RunError(f"{error} (at step {step}; run the same command to continue)") from None
            state, sums = train_step(state, batch)
            if step == start + 1:
                jax.block_until_ready(sums)
                progress.print(f"first step done {time.perf_counter() - begin:.0f} s after the start")
            # Step k's numbers are read after step k + 1 is dispatched: the devices never wait for the host.
            if pending is not None:
                record(step - 1, pending)
            pending = sums
            progress.advance()
            if step == num_steps:
                record(step, sums)
            evaluates = step % config.evaluation.every_steps == 0 or step == num_steps
            if step % config.checkpoint.every_steps == 0 or step == num_steps:
                checkpoints.save(state)
            if evaluates:
                evaluate_now(step)

    # ---------------------------------------------------------------------------------------------------- the end
    checkpoints.close()
    writer.close()
    if is_main:
        (work / "DONE").write_text(json.dumps({"step": num_steps}) + "\n")


def _averaged(averages: MetricSums, config: Config) -> dict[str, float]:
    objective = config.objective
    metrics = losses.summarize(averages.sums, objective.generator_weight, objective.discriminator_weight)
    for name in ("grad_norm", "learning_rate"):
        metrics[name] = float(averages.sums[name]) / averages.steps
    return metrics


def _line(metrics: dict[str, float]) -> str:
    shown = ("loss", "generator_loss", "generator_accuracy", "discriminator_loss", "discriminator_auc",
             "discriminator_precision", "discriminator_recall", "tokens_per_sec")  # fmt: skip
    return ", ".join(f"{name} {metrics[name]:,.4g}" for name in shown if name in metrics)
