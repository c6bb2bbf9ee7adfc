"""What lies on the encoder for each kind of task: parameters, loss and predictions.

Two forms: Hugging Face's, which ElectraForSequenceClassification and its kin load, and the original's
(docs/semantics.md, section 13). Array names: B batch, T tokens, D hidden, N labels, K beams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform, normal

from electra_flax.config.architecture import ModelConfig
from electra_flax.finetune.encoding import IGNORED
from electra_flax.finetune.task import Task
from electra_flax.model import randomness
from electra_flax.model.electra import Params

Batch = Mapping[str, Any]
"""Arrays of collate (batches.py), on the host or traced."""
Outputs = dict[str, jax.Array]

_BEAMS = 20
_QA_HIDDEN = 512
_ANSWERABLE_WEIGHT = 0.5
_OUTSIDE = -1000.0  # added to the logit of a token that cannot be of an answer


class Head(NamedTuple):
    """One head."""

    init: Callable[[jax.Array], Params]
    """key -> float32 parameters."""
    loss: Callable[[Params, jax.Array, Batch, jax.Array | None], jax.Array]
    """(parameters, hidden_BTD, batch, seeds_B) -> loss_B, of a tagging the sum over a row's tags."""
    predict: Callable[[Params, jax.Array, Batch], Outputs]
    """(parameters, hidden_BTD, batch) -> outputs, [B, ...]."""


def make_head(task: Task, form: str, sizes: ModelConfig, num_labels: int, dropout: float) -> Head:
    """`form` is training.head."""
    width = sizes.hidden_size
    if task.kind == "answers":
        return _original_answers(width) if form == "original" else _answers(width, sizes.initializer_range)
    outputs = 1 if task.kind == "regression" else num_labels
    tensors: dict[str, tuple[int, int]] = {"classifier": (width, outputs)}
    if form == "original":
        tensors = {"task_specific/dense": (width, outputs)}
    elif task.kind != "tagging":
        tensors = {"classifier/dense": (width, width), "classifier/out_proj": (width, outputs)}
    initializer = glorot_uniform() if form == "original" else normal(sizes.initializer_range)

    def logits(params: Params, hidden: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        """[B, D] -> [B, N], or [B, T, D] -> [B, T, N]."""
        *before, last = tensors
        x = randomness.dropout(hidden.astype(jnp.float32), dropout, seeds_B)
        for name in before:
            again = None if seeds_B is None else randomness.fold_in(seeds_B, 1)
            x = randomness.dropout(jax.nn.gelu(_dense(params, name, x), approximate=False), dropout, again)
        return _dense(params, last, x)

    if task.kind == "tagging":
        return _tagging(tensors, initializer, logits)
    if task.kind == "regression":
        scale = 1.0 if form == "original" else task.largest_score
        return _regression(tensors, initializer, logits, scale, task.largest_score)
    return _classification(tensors, initializer, logits)


Logits = Callable[[Params, jax.Array, jax.Array | None], jax.Array]


def _classification(tensors: dict[str, tuple[int, int]], initializer: Initializer, logits: Logits) -> Head:
    def loss(params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None) -> jax.Array:
        return _cross_entropy(logits(params, hidden_BTD[:, 0], seeds_B), batch["target"])

    def predict(params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
        del batch
        return {"logits": logits(params, hidden_BTD[:, 0], None)}

    return Head(_initializer(tensors, initializer), loss, predict)


def _regression(
    tensors: dict[str, tuple[int, int]], initializer: Initializer, logits: Logits, scale: float, largest: float
) -> Head:
    """The logit is a score from 0 to `scale`."""

    def loss(params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None) -> jax.Array:
        score_B = logits(params, hidden_BTD[:, 0], seeds_B)[:, 0]
        return jnp.square(score_B - scale * batch["target"])

    def predict(params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
        del batch
        return {"logits": logits(params, hidden_BTD[:, 0], None)[:, 0] * (largest / scale)}

    return Head(_initializer(tensors, initializer), loss, predict)


def _tagging(tensors: dict[str, tuple[int, int]], initializer: Initializer, logits: Logits) -> Head:
    def loss(params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None) -> jax.Array:
        target_BT = batch["target"]
        loss_BT = _cross_entropy(logits(params, hidden_BTD, seeds_B), jnp.maximum(target_BT, 0))
        return jnp.where(target_BT == IGNORED, 0.0, loss_BT).sum(axis=1)

    def predict(params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
        del batch
        return {"logits": logits(params, hidden_BTD, None)}

    return Head(_initializer(tensors, initializer), loss, predict)


def _answers(width: int, deviation: float) -> Head:
    """First and last token by themselves; a window without the answer has both at [CLS]."""
    init = _initializer({"qa_outputs": (width, 2)}, normal(deviation))

    def logits(params: Params, hidden_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        both_BT2 = _dense(params, "qa_outputs", hidden_BTD.astype(jnp.float32))
        return both_BT2[..., 0], both_BT2[..., 1]

    def loss(params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None) -> jax.Array:
        del seeds_B
        # Padding takes part, as in transformers' own classes.
        start_BT, end_BT = logits(params, hidden_BTD)
        target_B3 = batch["target"]
        return (_cross_entropy(start_BT, target_B3[:, 0]) + _cross_entropy(end_BT, target_B3[:, 1])) / 2

    def predict(params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
        del batch
        start_BT, end_BT = logits(params, hidden_BTD)
        return {"start": start_BT, "end": end_BT}

    return Head(init, loss, predict)


def _original_answers(width: int) -> Head:
    """The last token given the first one, and whether there is an answer at all."""
    tensors = {
        "task_specific/dense": (width, 1), "task_specific/qa_hidden": (2 * width, _QA_HIDDEN),
        "task_specific/dense_1": (_QA_HIDDEN, 1), "task_specific/dense_2": (2 * width, _QA_HIDDEN),
        "task_specific/dense_3": (_QA_HIDDEN, 1),
    }  # fmt: skip

    def hidden_layer(params: Params, name: str, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(_dense(params, f"task_specific/{name}", x), approximate=False)

    def outside(batch: Batch) -> jax.Array:
        inside_BT = (batch["token_type_ids"] * batch["attention_mask"]).at[:, 0].add(1)
        return _OUTSIDE * (1.0 - inside_BT)

    def start(params: Params, hidden_BTD: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Logits of the first token [B, T], and that there is no answer [B]."""
        start_BT = _dense(params, "task_specific/dense", hidden_BTD)[..., 0] + outside(batch)
        mean_BD = jnp.einsum("BT,BTD->BD", jax.nn.softmax(start_BT), hidden_BTD)
        whole = hidden_layer(params, "dense_2", jnp.concatenate([hidden_BTD[:, 0], mean_BD], axis=-1))
        return start_BT, _dense(params, "task_specific/dense_3", whole)[..., 0]

    def end(params: Params, first: jax.Array, hidden: jax.Array) -> jax.Array:
        """Logits of the last token [..., T] for a first one [..., D]."""
        first = jnp.broadcast_to(first[..., None, :], hidden.shape)
        both = jnp.concatenate([first, hidden], axis=-1)
        return _dense(params, "task_specific/dense_1", hidden_layer(params, "qa_hidden", both))[..., 0]

    def loss(params: Params, hidden_BTD: jax.Array, batch: Batch, seeds_B: jax.Array | None) -> jax.Array:
        del seeds_B
        hidden_BTD = hidden_BTD.astype(jnp.float32)
        start_BT, impossible_B = start(params, hidden_BTD, batch)
        first_B, last_B, is_impossible_B = batch["target"].T
        first_BD = jnp.take_along_axis(hidden_BTD, first_B[:, None, None], axis=1)[:, 0]
        end_BT = end(params, first_BD, hidden_BTD) + outside(batch)
        loss_B = (_cross_entropy(start_BT, first_B) + _cross_entropy(end_BT, last_B)) / 2
        answerable_B = jax.nn.softplus(impossible_B) - impossible_B * is_impossible_B
        return loss_B + _ANSWERABLE_WEIGHT * answerable_B

    def predict(params: Params, hidden_BTD: jax.Array, batch: Batch) -> Outputs:
        hidden_BTD = hidden_BTD.astype(jnp.float32)
        start_BT, impossible_B = start(params, hidden_BTD, batch)
        beams = min(_BEAMS, start_BT.shape[1])
        start_BK, first_BK = jax.lax.top_k(jax.nn.log_softmax(start_BT), beams)
        first_BKD = jnp.take_along_axis(hidden_BTD, first_BK[..., None], axis=1)
        hidden_BKTD = jnp.broadcast_to(hidden_BTD[:, None], (*first_BK.shape, *hidden_BTD.shape[1:]))
        end_BKT = end(params, first_BKD, hidden_BKTD) + outside(batch)[:, None]
        end_BKK, last_BKK = jax.lax.top_k(jax.nn.log_softmax(end_BKT), beams)
        return {
            "start_top_log_probs": start_BK, "start_top_index": first_BK, "end_top_log_probs": end_BKK,
            "end_top_index": last_BKK, "impossible": impossible_B,
        }  # fmt: skip

    return Head(_initializer(tensors, glorot_uniform()), loss, predict)


def _initializer(tensors: dict[str, tuple[int, int]], initializer: Initializer) -> Callable[[jax.Array], Params]:
    def init(key: jax.Array) -> Params:
        params: Params = {}
        for number, (name, shape) in enumerate(tensors.items()):
            kernel = initializer(jax.random.fold_in(key, number), shape, jnp.float32)
            layer = {"kernel": kernel, "bias": jnp.zeros(shape[1:], jnp.float32)}
            top, _, below = name.partition("/")
            if below:
                params.setdefault(top, {})[below] = layer
            else:
                params[top] = layer
        return params

    return init


def _dense(params: Params, name: str, x: jax.Array) -> jax.Array:
    for part in name.split("/"):
        params = params[part]
    return x @ params["kernel"] + jnp.expand_dims(params["bias"], tuple(range(x.ndim - 1)))


def _cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """[..., N] and int32 [...] -> [...]."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
    return -chosen[..., 0]
