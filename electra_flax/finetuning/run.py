"""A task, a model, several seeds: from the files to a published result."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from electra_flax.config.architecture import Architecture
from electra_flax.config.loading import flatten
from electra_flax.config.ranges import MOST_INT32
from electra_flax.config.schema import COMPILATION_CACHE, MeshConfig
from electra_flax.data.tokenizer import Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import RunError, UserError
from electra_flax.files import read_json, write_whole
from electra_flax.finetuning import publish
from electra_flax.finetuning.attention import choose_by_length
from electra_flax.finetuning.data import TaskData, read_task_data
from electra_flax.finetuning.heads import make_head
from electra_flax.finetuning.publish import to_json
from electra_flax.finetuning.result import RESULTS, Finetuned, SeedResult, SeedScores, Statistics, seed_folder
from electra_flax.finetuning.seed import Shared, finetune_seed
from electra_flax.finetuning.step import Network, make_steps
from electra_flax.finetuning.task import Task, Training
from electra_flax.finetuning.task_files import load_task, load_training
from electra_flax.formats import counted
from electra_flax.model import electra
from electra_flax.model.sharding import check_batch, make_mesh
from electra_flax.runtime import processes
from electra_flax.runtime.compiler import set_up_compiler
from electra_flax.runtime.interruption import Interruption
from electra_flax.storage import guard
from electra_flax.storage.bucket import patiently
from electra_flax.storage.workdir import Workdir
from electra_flax.trees import Params, nested
from electra_flax.weights.hugging_face import HEADS
from electra_flax.weights.sources import find_part
from electra_flax.weights.weights import Weights

log = logging.getLogger("electra_flax")

_FEW_STEPS = 50  # a tenth of them are warmup: a few hundred rows at the usual batch and epochs stay at chance


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    task: str
    """Name of a task, or a YAML file."""
    model: str
    data: Path
    out: str | Path
    """A folder, or gs://BUCKET/FOLDER."""
    preset: str = ""
    overrides: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    published_protocol: bool = False
    """The best checkpoint is that with the best score on the very examples that give the result."""
    random_weights: bool = False
    """The model's architecture, from fresh weights: what pretraining is worth."""


def finetune(request: Request, interruption: Interruption) -> Finetuned:
    """Fine-tune with each seed and write `out`; return what results.json holds.

    A model folder (the seed that was best on dev), predictions, results.json, and seeds/N with each seed's own.

    The same call continues an interrupted one; `interruption` says when to stop. Raises UserError for
    what the user can fix, RunError and Preempted as pretraining does.
    """
    with processes.together():
        run = _read(request)
    set_up_compiler(COMPILATION_CACHE)
    task, data = run.task, run.data
    processes.require_agreement(
        {
            "number of rows": f"{len(data.train.rows)} to learn from, {len(data.scored.rows)} scored",
            "--seeds": str(request.seeds),
            **{name: str(value) for name, value in flatten(_identity(request, run))},
        }
    )
    _announce(run)
    shared = _build(run)
    work = Workdir(request.out)
    with (
        guard.traceback_kept(work),
        guard.only_here(work),
        interruption.watchdog(run.training.hang_minutes, work.folder / f"hang-{jax.process_index()}.txt") as watchdog,
    ):
        with processes.together():
            if processes.is_main():
                _claim_out(work, request, run)
        there = np.asarray([(seed_folder(work, seed) / RESULTS).exists() for seed in request.seeds])
        for seed, is_done in zip(request.seeds, processes.as_process_0(there), strict=True):
            processes.end_if_asked(interruption.requested, f"before seed {seed}; finished seeds are kept")
            if is_done:
                log.info("seed %d: already done", seed)
                continue
            checkpoints = work.checkpoints / str(seed)
            begin = _first_weights(request, run, seed)
            result = finetune_seed(shared, begin, seed, work, interruption, watchdog)
            watchdog.alive(f"writing the results of seed {seed}")
            with processes.together():
                if processes.is_main():
                    # The checkpoints go last: killed before that, the next start finds the results and makes none anew.
                    _write_seed(seed_folder(work, seed), run, seed, result)
                    work.push()
                    patiently(checkpoints, checkpoints.rmtree)
        results = _results(request, task, data, [])
        if processes.is_main():
            results = _finish(work, request, task, data)
            patiently(work.checkpoints, functools.partial(work.checkpoints.rmtree, missing_ok=True))
        try:
            guard.push(work)
        except UserError as problem:
            raise RunError(f"all seeds are done, but {problem}; the same command writes what is missing") from None
    return results


def _announce(run: _Run) -> None:
    """Say what is learned from, chosen on and scored, and warn of a training too short to teach."""
    task, training, data = run.task, run.training, run.data
    log.info(
        "%s: %s training examples; best checkpoint chosen on %s (%s examples), scored on %s (%s examples)",
        task.title, f"{len(data.train.examples):,}", data.choice.name, f"{len(data.choice.examples):,}",
        data.scored.name, f"{len(data.scored.examples):,}",
    )  # fmt: skip
    if (num_steps := training.num_steps(len(data.train.rows))) < _FEW_STEPS and processes.is_main():
        log.warning(
            "only %s of training; fewer than %s are rarely enough: raise --epochs, or lower --batch_size (now %s)",
            counted(num_steps, "steps"), _FEW_STEPS, training.batch_size,
        )  # fmt: skip


def _build(run: _Run) -> Shared:
    """Return the encoder with its head, and its steps, which all seeds share."""
    training, architecture = run.training, run.architecture
    head = make_head(run.task, training.head, architecture.model, len(run.data.labels), training.dropout)
    attend = choose_by_length(architecture, run.mesh, training.max_seq_length)
    is_tagging = run.task.kind == "tagging"
    network = Network(architecture, head, run.mesh, run.vocabulary.special.pad, is_tagging, attend)
    encoder = jax.eval_shape(lambda: electra.init(architecture, jax.random.key(0)))["electra"]
    shapes = {"electra": encoder, **jax.eval_shape(head.init, jax.random.key(0))}
    steps = make_steps(network, training, training.num_steps(len(run.data.train.rows)), shapes)
    return Shared(run.task, training, run.data, network, steps)


class _Run(NamedTuple):
    """What a request names, read and checked."""

    task: Task
    training: Training
    weights: Weights
    architecture: Architecture
    vocabulary: Vocabulary
    casing: Casing
    mesh: Mesh
    data: TaskData


def _read(request: Request) -> _Run:
    task = load_task(request.task)
    weights = find_encoder(request.model)
    training = load_training(request.task, task, request.preset, weights.architecture.model, request.overrides)
    architecture = encoder_architecture(weights, training)
    vocabulary, casing = weights.vocabulary, weights.casing
    if vocabulary is None or casing is None:
        raise UserError(f"--model {request.model}: no vocabulary beside its weights: export it first")
    mesh = make_mesh(MeshConfig())
    check_batch(training.batch_size, training.gradient_accumulation_steps, mesh)
    if len(set(request.seeds)) < len(request.seeds):
        raise UserError(f"--seeds {' '.join(map(str, request.seeds))}: expected different seeds")
    data = read_task_data(task, request.data, training, vocabulary, casing, request.published_protocol)
    if (num_steps := training.num_steps(len(data.train.rows))) > MOST_INT32:
        raise UserError(
            f"epochs={training.epochs} of {len(data.train.rows):,} rows, batch_size={training.batch_size}: "
            f"{num_steps:,} steps, expected at most {MOST_INT32:,}: lower epochs or raise batch_size"
        )
    return _Run(task, training, weights, architecture, vocabulary, casing, mesh, data)


def find_encoder(place: str) -> Weights:
    """Return a discriminator or an encoder alone, also that of a fine-tuned model. Raises UserError for a generator.

    `place` is as find_part takes it.
    """
    weights = find_part(place, "discriminator", needs_head=False)
    if not any(name.startswith(HEADS["discriminator"]) for name in weights.shapes):
        names = ", ".join(name.rpartition(": ")[2] for name in weights.unused)
        others = f"; left out: {names}" if names else ""
        log.info("%s: an encoder without a discriminator head%s", place, others)
    return weights


def encoder_architecture(weights: Weights, training: Training) -> Architecture:
    """Return the encoder's architecture. Raises UserError where the model has too few positions."""
    sizes = weights.architecture.model
    if training.max_seq_length > sizes.max_position_embeddings:
        raise UserError(
            f"max_seq_length={training.max_seq_length}: the model has only {sizes.max_position_embeddings} "
            f"positions: add --max_seq_length {sizes.max_position_embeddings}"
        )
    without_generator = dataclasses.replace(
        weights.architecture, generator=None, has_generator_head=False, has_two_towers=False
    )
    return dataclasses.replace(
        without_generator,
        model=dataclasses.replace(
            sizes, hidden_dropout_prob=training.dropout, attention_probs_dropout_prob=training.dropout
        ),
        compute_dtype=training.compute_dtype,
    )


def _first_weights(request: Request, run: _Run, seed: int) -> Params:
    if request.random_weights:
        params = jax.jit(electra.init, static_argnums=0)(run.architecture, jax.random.key(seed))
        return {"electra": jax.device_get(params["electra"])}
    names = [name for name in run.weights.shapes if name.startswith("electra/")]
    return nested({name: run.weights.read(name) for name in names})


def _identity(request: Request, run: _Run) -> dict[str, Any]:
    """Return model, task and way of training."""
    training = dataclasses.asdict(run.training)
    del training["hang_minutes"]  # changes no result
    return {
        "model": request.model, "data": str(request.data), "random_weights": request.random_weights,
        "published_protocol": request.published_protocol, "task": dataclasses.asdict(run.task), "training": training,
    }  # fmt: skip


def _claim_out(work: Workdir, request: Request, run: _Run) -> None:
    """Make the output folder this fine-tuning's own. Raises UserError where it belongs to another."""
    now = _identity(request, run)
    path = work.folder / "run.json"
    for done in (seed_folder(work, seed) / RESULTS for seed in request.seeds):
        if done.exists():  # what is damaged is seen before the other seeds take their hours
            _read_seed(done, run.task)
    # A fine-tuning has a config.json of its own.
    for name in (*(() if path.exists() else ("config.json",)), "config.yaml", "manifest.json"):
        if (work.folder / name).exists():  # the files of a model would be replaced by those of another
            raise UserError(f"--out {work}: already has a {name}, of a model, a run or shards: choose another folder")
    if path.exists():
        before = dict(flatten(read_json(path, dict[str, Any], "choose another --out")))
        after = dict(flatten(json.loads(to_json(now))))
        changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
        if changed:
            shown = f"{changed[0]}: {before.get(changed[0])} -> {after.get(changed[0])}"
            raise UserError(f"--out {work}: has another fine-tuning ({shown}): choose another folder")
        return
    write_whole(path, to_json(now))


def _write_seed(folder: Path, run: _Run, seed: int, result: SeedResult) -> None:
    """Write all that is kept of a seed; results.json at last, which says that it is done."""
    task, training, data = run.task, run.training, run.data
    threshold = result.null_threshold if np.isfinite(result.null_threshold) else None
    recipe = publish.Recipe(task, training, data.labels, threshold)
    publish.write_model(
        folder, task, training, run.architecture.model, run.vocabulary, run.casing, data.labels, result, recipe
    )
    name, text = publish.predictions_file(task, data.scored.examples, result.predictions, result.null_threshold)
    write_whole(folder / name, text)
    write_whole(folder / "confusion.png", publish.confusion_picture(task, data, result))
    write_whole(folder / RESULTS, to_json(dataclasses.asdict(_result(seed, task, result))))


def _result(seed: int, task: Task, result: SeedResult) -> SeedScores:
    best = next(found for found in result.history if found["step"] == result.step)
    return SeedScores(
        seed,
        publish.finite(result.scores),
        result.step,
        publish.finite({name: best[name] for name in task.metrics}),
        round(result.seconds, 1),
        [publish.finite(found) for found in result.history],
    )


def _read_seed(path: Path, task: Task) -> SeedScores:
    fix = f"remove {path.parent} and run the same command again"
    found = read_json(path, SeedScores, fix)
    for name, values in {"scores": found.scores, "chosen_by": found.chosen_by}.items():
        if missing := [metric for metric in task.metrics if metric not in values]:
            raise UserError(f"{path}: {name}: lacks {missing[0]}, a metric of {task.title}: {fix}")
    return found


def _finish(work: Workdir, request: Request, task: Task, data: TaskData) -> Finetuned:
    """Write results.json over all seeds, and the best one's folder as `out` itself."""
    folders = [seed_folder(work, seed) for seed in request.seeds]
    results = _results(request, task, data, [_read_seed(folder / RESULTS, task) for folder in folders])
    write_whole(work.folder / RESULTS, to_json(dataclasses.asdict(results)))
    for path in seed_folder(work, results.best_seed or 0).iterdir():
        if path.is_file() and path.name != RESULTS:
            _link(path, work.folder / path.name)
    return results


def _results(request: Request, task: Task, data: TaskData, seeds: list[SeedScores]) -> Finetuned:
    def value(found: SeedScores) -> float:
        score = found.chosen_by[task.metrics[0]]
        return -1.0 if score is None else score

    return Finetuned(
        task=task.title,
        metrics={name: _statistics([found.scores[name] for found in seeds]) for name in task.metrics if seeds},
        model=request.model,
        random_weights=request.random_weights,
        scored=f"{len(data.scored.examples)} examples of {data.scored.name}",
        chosen_by=data.choice.name,
        published_protocol=request.published_protocol,
        best_seed=max(seeds, key=value).seed if seeds else None,
        seeds=seeds,
    )


def _statistics(values: list[float | None]) -> Statistics:
    """Return the mean and sample standard deviation over the seeds; None where a seed has no value."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Statistics(None, None, values)
    return Statistics(float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None, values)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
