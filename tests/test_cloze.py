"""The loss of guessing every token, in parts: what it would be in one piece, without the logits of all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from electra_flax.model.cloze import cloze_nll, logits_of

ROWS, TOKENS, WIDTH, VOCABULARY = 4, 30, 16, 1000  # the last of eight parts is half empty


def in_one_piece(x_BTE, table_VE, bias_V, ids_BT, weights_BT):
    log_q_BTV = jax.nn.log_softmax(logits_of(x_BTE, table_VE, bias_V))
    log_q_BT = jnp.take_along_axis(log_q_BTV, ids_BT[..., None], axis=2)[..., 0]
    return -(log_q_BT * weights_BT).sum(), log_q_BT


def make_inputs(dtype=jnp.float32, tokens=TOKENS):
    random = np.random.default_rng(0)
    x, table = (jnp.asarray(random.normal(size=size), jnp.float32) for size in
                ((ROWS, tokens, WIDTH), (VOCABULARY, WIDTH)))  # fmt: skip
    ids = jnp.asarray(random.integers(0, VOCABULARY, (ROWS, tokens)), jnp.int32)
    weights = jnp.asarray(random.random((ROWS, tokens)) < 0.8, jnp.float32)
    return x.astype(dtype), table, jnp.asarray(random.normal(size=VOCABULARY), jnp.float32), ids, weights


def gradients(head):
    def loss(x, table, bias, ids, weights):
        nll, log_q = head(x, table, bias, ids, weights)
        return 3.0 * nll / weights.sum(), (nll, log_q)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


@pytest.mark.parametrize("tokens", [1, 5, 8, TOKENS])
def test_parts_make_the_whole(tokens):
    inputs = make_inputs(tokens=tokens)
    (ours, (nll, log_q)), (theirs, (whole_nll, whole_log_q)) = (
        gradients(head)(*inputs) for head in (cloze_nll, in_one_piece)
    )
    for value, expected in zip((*ours, nll, log_q), (*theirs, whole_nll, whole_log_q), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    evaluated = jax.jit(cloze_nll)(*inputs)  # without gradients it is another program
    np.testing.assert_allclose(evaluated[0], whole_nll, rtol=1e-6)
    np.testing.assert_allclose(evaluated[1], whole_log_q, rtol=1e-5, atol=1e-5)


def test_bfloat16_products_add_up_in_float32():
    inputs = make_inputs(jnp.bfloat16)
    ours, theirs = (gradients(head)(*inputs)[0] for head in (cloze_nll, in_one_piece))
    assert [grad.dtype for grad in ours] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for value, expected in zip(ours, theirs, strict=True):
        largest = float(jnp.abs(expected).max())
        np.testing.assert_allclose(value.astype(jnp.float32), expected.astype(jnp.float32), atol=0.02 * largest, rtol=0)


@pytest.mark.parametrize("is_training", [True, False])
def test_no_array_has_the_logits_of_all_tokens(is_training):
    inputs = make_inputs(tokens=128)
    logits = 4 * ROWS * 128 * VOCABULARY

    def temporaries(head):
        function = gradients(head) if is_training else jax.jit(head)
        return function.lower(*inputs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(in_one_piece) >= logits
    assert temporaries(cloze_nll) < logits / 2
