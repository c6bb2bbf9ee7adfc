"""What is wrong with a run, said with numbers and what to change: rules over its records and configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from electra_flax import formats
from electra_flax.config.schema import Config
from electra_flax.data.manifest import Manifest
from electra_flax.formats import counted
from electra_flax.training.history import History
from electra_flax.training.objectives.metrics import Metric, metrics_of
from electra_flax.training.optimizers import OPTIMIZERS


class Finding(NamedTuple):
    """One line about what is wrong, one about what to change."""

    problem: str
    advice: str


def diagnose(run: History) -> list[Finding]:
    """Return everything found in a run's numbers and configuration; nothing for a healthy run."""
    if run.config is None:
        return [*_not_finite(run), *_lines_left_out(run)]
    config = run.config
    rules = (_first_loss, _stuck, _probe_at_base_rate, _input_bound, _checkpoints_too_rare)
    return [
        *_states_alike(run, config),
        *_discriminator(run, config),
        *diagnose_config(config),
        *(found for rule in rules for found in rule(run, config)),
        *_not_finite(run),
        *_lines_left_out(run),
    ]


def diagnose_config(config: Config, manifest: Manifest | None = None) -> list[Finding]:
    """Return what shows before the first step."""
    found = list(_configuration(config))
    if manifest is not None and manifest.unk_rate > 0.01:
        found.append(
            Finding(
                f"{manifest.unk_rate:.1%} of the pieces in the shards are [UNK]; below 1% is usual",
                "clean the corpus (electra-data shard --clean koelectra-v1), or train a vocabulary on it with a larger "
                "--size or --limit-alphabet",
            )
        )
    if manifest is not None and not config.is_packed:
        found += _padding(manifest)
    if manifest is not None and not manifest.examples("validation"):
        found.append(
            Finding(
                "the shards have no validation split: nothing can be evaluated",
                "run electra-data shard with a larger --validation-fraction",
            )
        )
    return found


_PADDING = 0.2
"""Of the rows, from which on packing them is worth while."""


def _padding(manifest: Manifest) -> Iterator[Finding]:
    places = manifest.examples("train") * manifest.max_seq_length
    padding = 1 - manifest.tokens("train") / places if places else 0.0
    if padding > _PADDING:
        yield Finding(
            f"{padding:.0%} of the rows of the shards is padding, which takes as long as tokens do",
            "where electra-data inspect says that it saves rows, --data.packing best_fit puts several examples in one "
            "and changes nothing else (docs/training.md)",
        )


def diagnose_refusals(refused: Sequence[str]) -> list[Finding]:
    """Return what pretrain would say, one at a time."""
    return [Finding(problem, "electra-flax pretrain will not start with this") for problem in refused]


# What the paper and KoELECTRA pair: (hidden size, batch size, peak learning rate).
_KNOWN_RATES = ((256, 128, 5e-4), (768, 256, 2e-4), (1024, 2048, 2e-4))


def _configuration(config: Config) -> Iterator[Finding]:
    if config.generator.embedding_sharing == "separate":
        yield Finding(
            "generator.embedding_sharing=separate: the discriminator does not learn from the generator's word "
            "embeddings",
            "set it to shared, as every published ELECTRA does (the paper, section 3.2: about 1 GLUE point better)",
        )
    weight = config.objective.discriminator_weight
    if config.optimizer.decoupled and weight != 1:
        yield Finding(
            f"objective.discriminator_weight={formats.number(weight)} weighs nothing with optimizer.decoupled=true: "
            "the discriminator's optimizer divides it out again, but for clipping and epsilon",
            "set it to 1, so that optimizer.max_grad_norm means the same for both models",
        )
    if not OPTIMIZERS[config.optimizer.algorithm].has_adams_rates:
        return
    ours = config.model.hidden_size
    width, batch, published = min(_KNOWN_RATES, key=lambda known: abs(math.log(known[0] / ours)))
    rate = published * width / ours  # as Adam's rate goes with the width (Yang et al. 2022, Tensor Programs V)
    # Between square root and linear scaling all is plausible.
    factor = config.training.batch_size / batch
    low, high = sorted((rate * factor**0.5, rate * factor))
    given = config.optimizer.learning_rate
    if not low / 3 <= given <= high * 3:
        like = "" if width == ours else f", or {rate:.2g} at this width"
        yield Finding(
            f"optimizer.learning_rate={formats.number(given)} is unusual for hidden size {ours:,} and batch size "
            f"{config.training.batch_size:,}: published models of hidden size {width:,} use {published:g} with batch "
            f"size {batch:,}{like}",
            f"try {rate * factor**0.5:.1g} (scaled with the square root of the batch size)",
        )


def _losses(config: Config) -> Iterator[tuple[str, Metric, float]]:
    """Yield name, metric and the value of guessing, of each loss of which the objective knows that."""
    for metric in metrics_of(config):
        if (guessed := metric.guessed(config)) is not None:
            yield metric.title.lower(), metric, guessed


def _first_loss(run: History, config: Config) -> Iterator[Finding]:
    if any("init_from" in start for start in run.starts):  # weights that have learned begin below
        return
    first = next((record for record in [*run.validation, *run.train] if record["step"] <= 1), {})
    knows_frequencies = config.training.first_values == "neighbours"
    for name, metric, guessed in _losses(config):
        excess = first.get(metric.name, guessed) - guessed
        if (excess if knows_frequencies else abs(excess)) > 0.1 * max(guessed, 1.0):
            yield Finding(
                f"the first {name} is {first[metric.name]:.2f}; random guessing gives {guessed:.2f}",
                "new weights should start there: check model.initializer_range and the vocabulary of the shards",
            )


def _is_past_warmup(run: History, config: Config) -> bool:
    return run.step > max(2 * config.optimizer.warmup_steps, 1000)


def _stuck(run: History, config: Config) -> Iterator[Finding]:
    for name, metric, guessed in _losses(config):
        loss = run.recent(metric.name)
        if loss is not None and _is_past_warmup(run, config) and loss > 0.8 * guessed:
            yield Finding(
                f"the {name} is {loss:.2f} after {run.step:,} steps, close to random guessing ({guessed:.2f})",
                "lower optimizer.learning_rate, or warm up longer; check the corpus for shuffled or repeated text",
            )


def _discriminator(run: History, config: Config) -> Iterator[Finding]:
    if config.objective.kind != "electric":  # which is told how likely each token was: nobody knows a healthy one's
        yield from list(_discriminator_at_base_rate(run, config)) or _discriminator_knows_little(run, config)


def _discriminator_at_base_rate(run: History, config: Config) -> Iterator[Finding]:
    """Yield what the held-out numbers show, or the last steps where there are none."""
    held_out: dict[str, float] = next((r for r in reversed(run.validation) if "discriminator_auc" in r), {})
    names = ("discriminator_auc", "discriminator_recall", "discriminator_accuracy", "replaced_rate")
    auc, recall, accuracy, replaced = (held_out.get(name, run.recent(name)) for name in names)
    if auc is None or recall is None:
        return
    if auc < 0.55 and run.step > config.optimizer.warmup_steps:
        problem = "is at the base rate: it finds replaced tokens no better than chance"
    elif recall < 0.01 and _is_past_warmup(run, config):
        problem = "flags nothing, though it ranks tokens better than chance"
    else:
        return
    shown = f"AUC {auc:.2f} (0.5 is chance), recall {recall:.3f}"
    if accuracy is not None and replaced is not None:
        shown += f", accuracy {accuracy:.3f} (the share of original tokens is {1 - replaced:.3f})"
    yield Finding(
        f"the discriminator {problem}: {shown}, after {run.step:,} steps",
        "normal early in a run; later, lower optimizer.learning_rate, check objective.discriminator_weight (50 in the "
        "paper), or train longer or on more text",
    )


class _Sign(NamedTuple):
    """A held-out number and the bound within which a healthy run keeps it."""

    metric: str
    shown: str
    """With its value as the field 0."""
    bound: float
    is_least: bool = True
    """Whether a healthy run has the bound or more; otherwise the bound or less."""

    def is_healthy(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound  # NaN is neither


_GAIN = _Sign("discriminator_gain", "it gains {:.3f} nats/token over the base rate", 0.03)
_KNOWS_LITTLE = (
    _GAIN,
    _Sign("discriminator_auc", "AUC {:.2f}", 0.7),
    _Sign("discriminator_average_precision_over_rate", "average precision {:.1f} times the rate of replaced tokens", 2),
)
_ALIKE = (
    _Sign("state_spread", "the standard deviation of token states is {:.2g}", 0.1),
    _Sign("sequence_cosine", "the mean cosine of two texts is {:.4f}", 0.9995, is_least=False),
)
_LATE = 0.5
"""Of a run's steps, after which a discriminator should know something."""
_PROBE_NOISE = 0.02
"""Of an accuracy over a thousand texts."""


def _held_out(run: History, metric: str) -> float | None:
    """Return the metric of the last evaluation that has it."""
    return next((record[metric] for record in reversed(run.validation) if metric in record), None)


def _beyond(run: History, signs: Sequence[_Sign]) -> str:
    """Return those of the signs that the last evaluation shows, each with what is healthy."""
    found = []
    for sign in signs:
        if (value := _held_out(run, sign.metric)) is not None and not sign.is_healthy(value):
            healthy = f"{sign.bound:g} or {'more' if sign.is_least else 'less'} is healthy"
            found.append(f"{sign.shown.format(value)} ({healthy})")
    return ", ".join(found)


def _states_alike(run: History, config: Config) -> Iterator[Finding]:
    """Yield nothing where the discriminator gains enough: then what is small still tells tokens apart."""
    gain = _held_out(run, _GAIN.metric)
    if (gain is None or not _GAIN.is_healthy(gain)) and (shown := _beyond(run, _ALIKE)):
        yield Finding(
            f"the hidden states of all texts are nearly the same: {shown}, after {run.step:,} steps",
            "such runs do not recover: start again with a lower optimizer.learning_rate, or a longer warmup",
        )


def _is_late(run: History, config: Config) -> bool:
    return _is_past_warmup(run, config) and run.step >= _LATE * config.training.num_steps


def _discriminator_knows_little(run: History, config: Config) -> Iterator[Finding]:
    if _is_late(run, config) and (shown := _beyond(run, _KNOWS_LITTLE)):
        yield Finding(
            f"the discriminator has learned little: {shown}, after {run.step:,} of {config.training.num_steps:,} steps",
            "use a smaller generator or a higher objective.discriminator_weight; measure the model on a task with "
            "--probe TASK=DIR",
        )


def _probe_at_base_rate(run: History, config: Config) -> Iterator[Finding]:
    accuracy, base_rate = _held_out(run, "probe_accuracy"), _held_out(run, "probe_base_rate")
    if accuracy is None or base_rate is None or not _is_late(run, config):
        return
    if not accuracy > base_rate + _PROBE_NOISE:
        yield Finding(
            f"the probe is right on {accuracy:.1%} of the texts, always answering the most frequent label on "
            f"{base_rate:.1%}, after {run.step:,} of {config.training.num_steps:,} steps",
            "the hidden states do not help on that task: compare with a run of other settings, or probe another task",
        )


def _not_finite(run: History) -> Iterator[Finding]:
    skipped = sum(record.get("skipped_steps", 0) for record in run.train)
    if skipped:
        yield Finding(
            f"{skipped:,} of {run.step:,} steps were skipped: loss or gradient was not finite",
            "lower optimizer.learning_rate; a few in a long run do no harm",
        )


def _input_bound(run: History, config: Config) -> Iterator[Finding]:
    wait = run.recent("input_wait")
    if wait is not None and wait > 0.05:
        yield Finding(
            f"the devices wait for input {wait:.0%} of the time; below 1% is usual",
            f"raise data.read_threads (now {config.data.read_threads}), or put the shards on a faster disk",
        )


def _checkpoints_too_rare(run: History, config: Config) -> Iterator[Finding]:
    minutes = config.checkpoint.every_minutes
    rate = run.recent("steps_per_sec")
    if rate is None:
        return
    minutes = min(minutes, config.checkpoint.every_steps / rate / 60)
    if minutes > 20:
        yield Finding(
            f"up to {minutes:.0f} minutes of work are lost if the host is preempted without notice, as spot hosts are",
            "lower checkpoint.every_minutes to 10",
        )


def _lines_left_out(run: History) -> Iterator[Finding]:
    for name, count in run.unreadable.items():
        yield Finding(
            f"{name}: {counted(count, 'lines')} cannot be read and were skipped",
            "another program wrote there, or the disk is failing: check the file and the disk",
        )
