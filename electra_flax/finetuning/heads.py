"""Loss and predictions of each kind of task, over a head of the model (model/heads.py).

Array names: B batch, T tokens, D hidden, N labels.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from electra_flax.config.architecture import ModelConfig
from electra_flax.finetuning.encoding import IGNORED
from electra_flax.finetuning.task import Task
from electra_flax.model.heads import Answers, Classifier, OriginalAnswers, apply_head, init_head
from electra_flax.trees import Params

Batch = Mapping[str, Any]
"""Arrays of collate (batches.py), on the host or traced."""
Outputs = dict[str, jax.Array]

_ANSWERABLE_WEIGHT = 0.5


class Head(NamedTuple):
    """One head."""

    init: Callable[[jax.Array], Params]
    """key -> float32 parameters."""
    loss: Callable[[Params, jax.Array, Batch, jax.Array | None], jax.Array]
    """(parameters, hidden_BTD, batch, seeds_B) -> loss_B, of a tagging the sum over a row's tags."""
    predict: Callable[[Params, jax.Array, Batch], Outputs]
    """(parameters, hidden_BTD, batch) -> outputs, [B, ...]."""


def make_head(task: Task, form: str, sizes: ModelConfig, num_labels: int, dropout: float) -> Head:
    """Return the head of a task; `form` is training.head."""
    width, deviation = sizes.hidden_size, sizes.initializer_range
    if task.kind == "answers":
        if form == "original":
            head = OriginalAnswers()
            loss = partial(_original_answers_loss, head)
            return Head(partial(init_head, head, width), loss, partial(_original_answers, head))
        plain = Answers(deviation)
        return Head(partial(init_head, plain, width), partial(_answers_loss, plain), partial(_answers, plain))
    num_outputs = 1 if task.kind == "regression" else num_labels
    classifier = Classifier(num_outputs, form == "original", task.kind == "tagging", dropout, deviation)
    init = partial(init_head, classifier, width)
    if task.kind == "regression":
        scale = 1.0 if form == "original" else task.largest_score
        return Head(
            init, partial(_score_loss, classifier, scale), partial(_score, classifier, scale, task.largest_score)
        )
    if task.kind == "tagging":
        return Head(init, partial(_tags_loss, classifier), partial(_logits, classifier))
    return Head(init, partial(_label_loss, classifier), partial(_logits, classifier))


def _logits(head: Classifier, params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
    return {"logits": apply_head(head, params, hidden_BTD, batch)}


def _label_loss(
    head: Classifier, params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None
) -> jax.Array:
    return _cross_entropy(apply_head(head, params, hidden_BTD, batch, seeds_B), batch["target"])


def _tags_loss(
    head: Classifier, params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None
) -> jax.Array:
    target_BT = batch["target"]
    loss_BT = _cross_entropy(apply_head(head, params, hidden_BTD, batch, seeds_B), jnp.maximum(target_BT, 0))
    return jnp.where(target_BT == IGNORED, 0.0, loss_BT).sum(axis=1)


def _score_loss(
    head: Classifier, scale: float, params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None
) -> jax.Array:
    """Return the loss of a logit that is a score from 0 to `scale`."""
    score_B = apply_head(head, params, hidden_BTD, batch, seeds_B)[:, 0]
    return jnp.square(score_B - scale * batch["target"])


def _score(
    head: Classifier, scale: float, largest: float, params: Params, hidden_BTD: jax.Array, batch: Batch
) -> Outputs:
    return {"logits": apply_head(head, params, hidden_BTD, batch)[:, 0] * (largest / scale)}


def _answers(head: Answers, params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
    start_BT, end_BT = apply_head(head, params, hidden_BTD, batch)
    return {"start": start_BT, "end": end_BT}


def _answers_loss(
    head: Answers, params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None
) -> jax.Array:
    """Return the loss of both ends, at [CLS] in a window without the answer.

    Padding takes part, as in transformers' own classes.
    """
    del seeds_B
    start_BT, end_BT = apply_head(head, params, hidden_BTD, batch)
    target_B3 = batch["target"]
    return (_cross_entropy(start_BT, target_B3[:, 0]) + _cross_entropy(end_BT, target_B3[:, 1])) / 2


def _original_answers(head: OriginalAnswers, params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
    beams: Outputs = apply_head(head, params, hidden_BTD, batch, method="beams")
    return beams


def _original_answers_loss(
    head: OriginalAnswers, params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None
) -> jax.Array:
    del seeds_B
    start_BT, impossible_B = apply_head(head, params, hidden_BTD, batch, method="start")
    first_B, last_B, is_impossible_B = batch["target"].T
    first_BD = jnp.take_along_axis(hidden_BTD, first_B[:, None, None], axis=1)[:, 0].astype(jnp.float32)
    end_BT = apply_head(head, params, first_BD, hidden_BTD, batch, method="end")
    loss_B = (_cross_entropy(start_BT, first_B) + _cross_entropy(end_BT, last_B)) / 2
    answerable_B = jax.nn.softplus(impossible_B) - impossible_B * is_impossible_B
    total_B: jax.Array = loss_B + _ANSWERABLE_WEIGHT * answerable_B
    return total_B


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Return [...] of [..., N] and int32 [...]."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
    return -chosen[..., 0]
