"""What is wrong with a run, said with numbers and what to change: rules over its records and configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from electra_flax.config import Config
from electra_flax.history import History
from electra_flax.records import Manifest


class Finding(NamedTuple):
    """One line about what is wrong, one about what to change."""

    problem: str
    advice: str


def diagnose(run: History) -> list[Finding]:
    """Everything found in a run's numbers and configuration; nothing for a healthy run."""
    rules: Sequence[Callable[[History], Iterator[Finding]]] = (
        _first_loss, _generator_stuck, _discriminator_blind, _discriminator_at_chance, _not_finite, _input_bound,
        _checkpoints_too_rare,
    )  # fmt: skip
    return [*diagnose_config(run.config), *(found for rule in rules for found in rule(run))]


def diagnose_config(config: Config, manifest: Manifest | None = None) -> list[Finding]:
    """What shows before the first step."""
    found = list(_configuration(config))
    if manifest is not None and manifest.unk_rate > 0.01:
        found.append(
            Finding(
                f"{manifest.unk_rate:.1%} of the pieces in the shards are [UNK]; below 1 % is usual",
                "clean the corpus (electra-data shard --clean koelectra-v1), or train a vocabulary on it with a larger "
                "--size or --limit-alphabet",
            )
        )
    return found


# What the paper and KoELECTRA pair: (hidden size, batch size, peak learning rate).
_KNOWN_RATES = ((256, 128, 5e-4), (768, 256, 2e-4), (1024, 2048, 2e-4))


def _configuration(config: Config) -> Iterator[Finding]:
    if config.generator.untied_generator_embeddings:
        yield Finding(
            "generator.untied_generator_embeddings=true: the discriminator does not learn from the generator's word "
            "embeddings",
            "leave it false, as every published ELECTRA does (the paper, section 3.2: worse by about 1 GLUE point)",
        )
    if config.optimizer.algorithm == "lamb":  # its rates are of another kind
        return
    width, batch, rate = min(_KNOWN_RATES, key=lambda known: abs(math.log(known[0] / config.model.hidden_size)))
    # Between square root and linear scaling all is plausible.
    factor = config.training.batch_size / batch
    low, high = sorted((rate * factor**0.5, rate * factor))
    ours = config.optimizer.learning_rate
    if not low / 3 <= ours <= high * 3:
        yield Finding(
            f"optimizer.learning_rate={ours:g} for batches of {config.training.batch_size}: published models of about "
            f"this width ({width}) use {rate:g} for {batch}",
            f"try {rate * factor**0.5:.1g} (scaled with the square root of the batch)",
        )


def _first_loss(run: History) -> Iterator[Finding]:
    first = next((record for record in [*run.validation, *run.train] if record["step"] <= 1), None)
    if first is None or "generator_loss" not in first:
        return
    expected = math.log(run.config.model.vocab_size)
    if abs(first["generator_loss"] - expected) > 0.1 * expected:
        yield Finding(
            f"the first generator loss is {first['generator_loss']:.2f}; guessing gives {expected:.2f}, the logarithm "
            f"of {run.config.model.vocab_size:,}",
            "fresh weights start there: look at model.initializer_range and at the vocabulary of the shards",
        )
    if "discriminator_loss" in first and abs(first["discriminator_loss"] - math.log(2)) > 0.1:
        yield Finding(
            f"the first discriminator loss is {first['discriminator_loss']:.2f}; guessing gives ln 2 = 0.69",
            "fresh weights start there: look at model.initializer_range",
        )


def _is_past_warmup(run: History) -> bool:
    return run.step > max(2 * run.config.optimizer.warmup_steps, 1000)


def _generator_stuck(run: History) -> Iterator[Finding]:
    loss = run.recent("generator_loss")
    start = math.log(run.config.model.vocab_size)
    if loss is not None and _is_past_warmup(run) and loss > 0.8 * start:
        yield Finding(
            f"the generator's loss is {loss:.2f} after {run.step:,} steps, near where it started ({start:.2f})",
            "lower optimizer.learning_rate, or warm up longer; look for shuffled or repeated text in the corpus",
        )


def _discriminator_blind(run: History) -> Iterator[Finding]:
    precision, recall = run.recent("discriminator_precision"), run.recent("discriminator_recall")
    if precision is not None and recall is not None and _is_past_warmup(run) and max(precision, recall) < 0.01:
        yield Finding(
            "the discriminator flags nothing (precision and recall are 0): it answers the base rate for every token",
            "lower optimizer.learning_rate (5e-4 for small models), or make the generator smaller; early in a run it "
            "is normal",
        )


def _discriminator_at_chance(run: History) -> Iterator[Finding]:
    auc = run.recent("discriminator_auc")
    if auc is not None and _is_past_warmup(run) and auc < 0.55:
        yield Finding(
            f"the discriminator's AUC is {auc:.2f} after {run.step:,} steps; 0.5 is chance",
            "lower optimizer.learning_rate; check objective.discriminator_weight (the paper: 50)",
        )


def _not_finite(run: History) -> Iterator[Finding]:
    skipped = sum(record.get("skipped_steps", 0) for record in run.train)
    if skipped:
        yield Finding(
            f"{skipped:,} of {run.step:,} steps were not finite and skipped",
            "lower optimizer.learning_rate; a few in a long run do no harm",
        )


def _input_bound(run: History) -> Iterator[Finding]:
    wait = run.recent("input_wait")
    if wait is not None and wait > 0.05:
        yield Finding(
            f"the devices wait for input {wait:.0%} of the time; under 1 % is good",
            f"raise data.read_threads ({run.config.data.read_threads}), or put the shards on a faster disk",
        )


def _checkpoints_too_rare(run: History) -> Iterator[Finding]:
    minutes = run.config.checkpoint.every_minutes
    rate = run.recent("steps_per_sec")
    if rate is None:
        return
    minutes = min(minutes, run.config.checkpoint.every_steps / rate / 60)
    if minutes > 20:
        yield Finding(
            f"{minutes:.0f} minutes of work are lost when a machine is taken away without notice, as spot machines are",
            "lower checkpoint.every_minutes to 10",
        )
