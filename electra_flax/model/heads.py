"""What lies on the encoder for a task, as Linen modules whose parameters are named as other code names them.

Two forms: Hugging Face's, which ElectraForSequenceClassification and its kin load, and the original's, all of it below
`task_specific` (docs/semantics.md, section 13). Parameters and arithmetic are float32; dropout is on where `seeds_B` is
given. Array names: B batch, T tokens, D hidden, N outputs, K beams.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform, normal

from electra_flax.model import randomness
from electra_flax.model.layers import fold_in
from electra_flax.trees import Params

_BEAMS = 20
_QA_HIDDEN = 512
_OUTSIDE = -1000.0  # added to the logit of a token that cannot be of an answer


def init_head(head: nn.Module, width: int, key: jax.Array) -> Params:
    """Return fresh float32 parameters of a head over hidden states of this width."""
    hidden_BTD, ones_BT = jnp.zeros((1, 2, width), jnp.float32), jnp.ones((1, 2), jnp.int32)
    params: Params = head.init(key, hidden_BTD, {"token_type_ids": ones_BT, "attention_mask": ones_BT})["params"]
    return params


def apply_head(head: nn.Module, params: Params, *inputs: Any, method: str = "__call__") -> Any:
    """Return what a method of the head gives; `params` may hold the encoder's too."""
    return head.apply({"params": params}, *inputs, method=method)


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


class Classifier(nn.Module):
    """Logits of a sentence [B, N], read at [CLS], or of each token [B, T, N]."""

    num_outputs: int
    is_original: bool
    is_tagging: bool
    dropout: float
    deviation: float
    """Standard deviation of fresh kernels in Hugging Face's form."""

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, batch: Any, seeds_B: jax.Array | None = None) -> jax.Array:
        del batch
        x = hidden_BTD if self.is_tagging else hidden_BTD[:, 0]
        x = randomness.dropout(x.astype(jnp.float32), self.dropout, seeds_B)
        if self.is_original:
            return _TaskSpecific(self.num_outputs, name="task_specific")(x)
        if self.is_tagging:
            return nn.Dense(self.num_outputs, kernel_init=normal(self.deviation), name="classifier")(x)
        return _ClassificationHead(self.num_outputs, self.dropout, self.deviation, name="classifier")(x, seeds_B)


class _TaskSpecific(nn.Module):
    """Exists for its name: the original's `task_specific/dense`."""

    num_outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.num_outputs, kernel_init=glorot_uniform(), name="dense")(x)


class _ClassificationHead(nn.Module):
    """Hugging Face's ElectraClassificationHead after its first dropout."""

    num_outputs: int
    dropout: float
    deviation: float

    @nn.compact
    def __call__(self, x_BD: jax.Array, seeds_B: jax.Array | None) -> jax.Array:
        x_BD = _gelu(nn.Dense(x_BD.shape[-1], kernel_init=normal(self.deviation), name="dense")(x_BD))
        x_BD = randomness.dropout(x_BD, self.dropout, fold_in(seeds_B, 1))
        return nn.Dense(self.num_outputs, kernel_init=normal(self.deviation), name="out_proj")(x_BD)


class Answers(nn.Module):
    """Logits of the first and of the last token of an answer, [B, T] each, by themselves."""

    deviation: float

    @nn.compact
    def __call__(self, hidden_BTD: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
        del batch
        both_BT2 = nn.Dense(2, kernel_init=normal(self.deviation), name="qa_outputs")(hidden_BTD.astype(jnp.float32))
        return both_BT2[..., 0], both_BT2[..., 1]


class OriginalAnswers(nn.Module):
    """The last token given the first one, and whether there is an answer at all."""

    def setup(self) -> None:
        self.task_specific = _AnswerLayers()

    def __call__(self, hidden_BTD: jax.Array, batch: Any) -> Any:
        """Touch every parameter, for init."""
        return self.start(hidden_BTD, batch), self.end(hidden_BTD[:, 0], hidden_BTD, batch)

    def start(self, hidden_BTD: jax.Array, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return logits of the first token [B, T], and that there is no answer [B]."""
        hidden_BTD = hidden_BTD.astype(jnp.float32)
        start_BT = self.task_specific.dense(hidden_BTD)[..., 0] + _outside(batch)
        # Whether there is an answer is read from [CLS] and from where one might begin (docs/semantics.md, section 13).
        mean_BD = jnp.einsum("BT,BTD->BD", jax.nn.softmax(start_BT), hidden_BTD)
        whole_BD = jnp.concatenate([hidden_BTD[:, 0], mean_BD], axis=-1)
        return start_BT, self.task_specific.dense_3(_gelu(self.task_specific.dense_2(whole_BD)))[..., 0]

    def end(self, first_BD: jax.Array, hidden_BTD: jax.Array, batch: Any) -> jax.Array:
        """Return logits of the last token [B, T] for the hidden state of a first one."""
        return self._last(first_BD, hidden_BTD.astype(jnp.float32)) + _outside(batch)

    def beams(self, hidden_BTD: jax.Array, batch: Any) -> dict[str, jax.Array]:
        """Return the likeliest first tokens, and the likeliest last tokens of each, with their log-probabilities."""
        hidden_BTD = hidden_BTD.astype(jnp.float32)
        start_BT, impossible_B = self.start(hidden_BTD, batch)
        beams = min(_BEAMS, start_BT.shape[1])
        start_BK, first_BK = jax.lax.top_k(jax.nn.log_softmax(start_BT), beams)
        first_BKD = jnp.take_along_axis(hidden_BTD, first_BK[..., None], axis=1)
        hidden_BKTD = jnp.broadcast_to(hidden_BTD[:, None], (*first_BK.shape, *hidden_BTD.shape[1:]))
        end_BKT = self._last(first_BKD, hidden_BKTD) + _outside(batch)[:, None]
        end_BKK, last_BKK = jax.lax.top_k(jax.nn.log_softmax(end_BKT), beams)
        return {
            "start_top_log_probs": start_BK, "start_top_index": first_BK, "end_top_log_probs": end_BKK,
            "end_top_index": last_BKK, "impossible": impossible_B,
        }  # fmt: skip

    def _last(self, first: jax.Array, hidden: jax.Array) -> jax.Array:
        """Return logits [..., T] of the last token, from states of the first [..., D] and of all [..., T, D]."""
        first = jnp.broadcast_to(first[..., None, :], hidden.shape)
        x = _gelu(self.task_specific.qa_hidden(jnp.concatenate([first, hidden], axis=-1)))
        return self.task_specific.dense_1(x)[..., 0]


class _AnswerLayers(nn.Module):
    """Exists for its names: those of the original."""

    def setup(self) -> None:
        def dense(features: int) -> nn.Dense:
            return nn.Dense(features, kernel_init=glorot_uniform())

        self.dense, self.qa_hidden, self.dense_1 = dense(1), dense(_QA_HIDDEN), dense(1)
        self.dense_2, self.dense_3 = dense(_QA_HIDDEN), dense(1)


def _outside(batch: Any) -> jax.Array:
    """Return what is added to logits [B, T]: an answer lies in the context, or at [CLS] where there is none."""
    inside_BT: jax.Array = (batch["token_type_ids"] * batch["attention_mask"]).at[:, 0].add(1)
    return _OUTSIDE * (1.0 - inside_BT)
