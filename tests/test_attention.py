"""The attention kernel in Pallas's interpreter, and its check of itself."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tools import tiny_config

from electra_flax.model import attention_choice, attention_kernel, gelu, randomness
from electra_flax.model.attention import xla_attention
from electra_flax.model.attention_kernel import Spec, kernel_attention, supports
from electra_flax.model.sharding import make_mesh

SHAPES = ((128, 2, 64), (256, 4, 16), (128, 3, 32))  # tokens, heads, head size


def _inputs(tokens, heads, head_size, rows=8):
    random = np.random.default_rng(tokens + heads)
    shape = (rows, tokens, heads * head_size)
    query, key, value, grad = (jnp.asarray(random.normal(size=shape), jnp.float32) for _ in range(4))
    mask = (np.arange(tokens)[None, :] < random.integers(1, tokens + 1, size=(rows, 1))).astype(np.int32)
    return (query, key, value), jnp.asarray(mask), grad


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("tokens", "heads", "head_size"), SHAPES)
def test_kernel_equals_plain_attention_with_the_same_bits(tokens, heads, head_size, rate):
    inputs, mask, grad = _inputs(tokens, heads, head_size)
    seeds = randomness.row_seeds(jax.random.key(0), len(mask))
    tensor = 2 if heads % 2 == 0 else 1
    config = dataclasses.replace(tiny_config().mesh, data=-1, tensor=tensor)
    kernel = kernel_attention(make_mesh(config), jnp.float32, interpret=True)

    @jax.jit
    def both(inputs):
        results = []
        for attend in (kernel, xla_attention):
            out, vjp = jax.vjp(
                lambda *qkv, attend=attend: attend(*qkv, mask, seeds, num_heads=heads, rate=rate), *inputs
            )
            results.append((out, *vjp(grad)))
        return results

    for ours, theirs in zip(*both(inputs), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("sight", ["left", "right"])
def test_kernel_and_plain_attention_see_one_side(sight, is_packed):
    inputs, mask, grad = _inputs(128, 2, 64)
    mask = _segments(128) if is_packed else mask
    is_token = (mask > 0)[..., None]
    grad = jnp.where(is_token, grad, 0.0)
    seeds = randomness.row_seeds(jax.random.key(0), len(mask))
    kernel = kernel_attention(make_mesh(tiny_config().mesh), jnp.float32, interpret=True)

    @jax.jit
    def both(inputs):
        results = []
        for attend in (kernel, xla_attention):
            attend = functools.partial(attend, num_heads=2, rate=0.1, is_packed=is_packed, sight=sight)
            out, vjp = jax.vjp(lambda *qkv, attend=attend: attend(*qkv, mask, seeds), *inputs)
            results.append((jnp.where(is_token, out, 0.0), *vjp(grad)))
        return results

    ours, plain = both(inputs)
    for value, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(value, expected, atol=2e-5, rtol=0)
    # What lies on the other side changes no bit.
    half = slice(64, None) if sight == "left" else slice(None, 64)
    seen = slice(None, 64) if sight == "left" else slice(64, None)
    for before, after in zip(both(inputs), both(tuple(x.at[:, half].set(9.0) for x in inputs)), strict=True):
        np.testing.assert_array_equal(before[0][:, seen], after[0][:, seen])


@pytest.mark.parametrize("sight", ["left", "right"])
def test_a_padding_token_that_sees_no_other_attends_as_if_nothing_were_masked(sight):
    """As the original's does, whose state stands for the neighbour of a row's first and last tokens."""
    (query, key, value), _, _ = _inputs(128, 2, 64)
    padding = slice(None, 64) if sight == "left" else slice(64, None)  # all tokens lie on the other side of it
    mask = jnp.ones((8, 128), jnp.int32).at[:, padding].set(0)
    kernel = kernel_attention(make_mesh(tiny_config().mesh), jnp.float32, interpret=True)
    for attend in (kernel, xla_attention):
        out, whole = (
            attend(query, key, value, given, None, num_heads=2, rate=0.0, sight=side)[:, padding]
            for given, side in ((mask, sight), (jnp.ones_like(mask), "all"))
        )
        np.testing.assert_allclose(out, whole, atol=5e-3)  # scores near -10,000 have three digits after the point
        assert np.abs(out - value.mean(axis=1, keepdims=True)).max() > 0.1


def _segments(tokens, rows=8, most=8):
    """Rows of several examples, of which the first has as many as a row may have and no padding."""
    random = np.random.default_rng(tokens)
    segments = np.zeros((rows, tokens), np.int32)
    for row in range(rows):
        number = most if row == 0 else random.integers(1, most + 1)
        ends = np.sort(random.choice(np.arange(1, tokens), number, replace=False))
        ends[-1] = tokens if row == 0 else ends[-1]
        segments[row] = np.searchsorted(ends, np.arange(tokens), side="right") + 1
        segments[row, ends[-1] :] = 0
    return jnp.asarray(segments)


@pytest.mark.parametrize(
    ("tokens", "heads", "head_size", "rate"),
    [(128, 2, 64, 0.1), pytest.param(512, 2, 32, 0.0, marks=pytest.mark.slow)],
)
def test_the_kernel_keeps_the_examples_of_a_row_apart(tokens, heads, head_size, rate):
    inputs, _, grad = _inputs(tokens, heads, head_size)
    segments = _segments(tokens)
    assert segments.max() == 8 and (segments[0] > 0).all() and (segments == 0).any()
    grad = grad * (segments > 0)[..., None]  # nobody reads padding
    seeds = randomness.row_seeds(jax.random.key(0), len(segments))
    kernel = kernel_attention(make_mesh(tiny_config().mesh), jnp.float32, interpret=True)

    @jax.jit
    def both(inputs, grad):
        results = []
        for attend in (kernel, xla_attention):
            out, vjp = jax.vjp(
                lambda *qkv, attend=attend: attend(
                    *qkv, segments, seeds, num_heads=heads, rate=rate, is_packed=True
                ), *inputs
            )  # fmt: skip
            results.append((out, *vjp(grad)))
        return results

    for ours, theirs in zip(*both(inputs, grad), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
    # What lies in another example changes no bit.
    ours, _ = both(inputs, grad)
    is_second = (segments == 2)[..., None]
    changed, _ = both(tuple(jnp.where(is_second, 9.0, x) for x in inputs), jnp.where(is_second, 9.0, grad))
    is_other = np.asarray((segments > 0) & (segments != 2))
    for before, after in zip(ours, changed, strict=True):
        np.testing.assert_array_equal(np.asarray(before)[is_other], np.asarray(after)[is_other])


def test_a_row_of_one_example_is_what_it_is_without_packing():
    inputs, mask, _ = _inputs(128, 2, 64)
    kernel = kernel_attention(make_mesh(tiny_config().mesh), jnp.float32, interpret=True)
    for attend in (kernel, xla_attention):
        plain, packed = (
            np.asarray(attend(*inputs, mask, None, num_heads=2, rate=0.0, is_packed=is_packed))[mask == 1]
            for is_packed in (False, True)
        )
        np.testing.assert_array_equal(plain, packed)


def test_kernel_without_seeds_drops_nothing():
    inputs, mask, _ = _inputs(128, 2, 64)
    kernel = kernel_attention(make_mesh(tiny_config().mesh), jnp.float32, interpret=True)
    ours = kernel(*inputs, mask, None, num_heads=2, rate=0.5)
    np.testing.assert_allclose(ours, xla_attention(*inputs, mask, None, num_heads=2, rate=0.5), atol=2e-5, rtol=0)


def test_shapes_that_the_kernel_does_not_take():
    assert supports(512, 64) and supports(128, 16)
    assert not supports(1024, 64)  # one head's scores overflow the core's memory
    assert not supports(100, 64) and not supports(128, 12)


SPEC = Spec(num_heads=2, head_size=64, tokens=128, rate=0.1, matmul_dtype=jnp.float32, interpret=True)


@pytest.mark.parametrize(
    ("rate", "dtype", "is_packed", "sight"),
    [
        (0.1, "bfloat16", False, "all"), (0.0, "float32", False, "all"), (0.1, "bfloat16", True, "all"),
        (0.1, "bfloat16", False, "left"), (0.1, "bfloat16", False, "right"),
    ],
)  # fmt: skip
def test_self_check_accepts_the_kernel(rate, dtype, is_packed, sight):
    spec = dataclasses.replace(SPEC, rate=rate, matmul_dtype=jnp.dtype(dtype), is_packed=is_packed, sight=sight)
    assert attention_choice.find_problem(spec, dtype, num_heads=4) is None


@pytest.mark.parametrize(
    ("name", "broken", "complaint"),
    [
        ("_scores", lambda good: lambda *args: good(*args) * 1.1, "values differ"),
        ("_keep", lambda good: lambda *args: good(*args) | True, "dropout zeroes a share"),
        ("_keep", lambda good: lambda spec, seeds, first, head: good(spec, seeds, [0], head), "same weights in two"),
        ("_NT", lambda good: ((0,), (1,)), "gradients of|Error"),
        ("_dot", lambda good: None, "TypeError"),
    ],
)
def test_self_check_finds_a_broken_kernel(monkeypatch, name, broken, complaint):
    monkeypatch.setattr(attention_kernel, name, broken(getattr(attention_kernel, name)))
    problem = attention_choice.find_problem(SPEC, "float32", num_heads=4)
    assert problem is not None
    assert re.search(complaint, problem), problem


def test_self_check_finds_a_kernel_that_mixes_examples(monkeypatch):
    good = attention_kernel._bias_rows
    monkeypatch.setattr(attention_kernel, "_bias_rows", lambda spec, mask: good(spec, jnp.minimum(mask, 7)))
    problem = attention_choice.find_problem(dataclasses.replace(SPEC, is_packed=True), "float32", num_heads=4)
    assert problem is not None and "values differ" in problem


def test_self_check_finds_a_kernel_that_looks_the_other_way(monkeypatch):
    good = attention_kernel._sight_bias
    other = dataclasses.replace(SPEC, sight="left")
    monkeypatch.setattr(attention_kernel, "_sight_bias", lambda spec, bias: good(other, bias))
    problem = attention_choice.find_problem(dataclasses.replace(SPEC, sight="right"), "float32", num_heads=4)
    assert problem is not None and "values differ" in problem


def test_two_towers_have_kernels_of_their_own():
    specs = attention_choice.kernel_specs(
        tiny_config(objective={"kind": "electric"}).architecture, 128, make_mesh(tiny_config().mesh)
    )
    assert [spec.sight for spec in specs] == ["all", "left", "right"]
    assert len({name for spec in specs for name in spec.names}) == 6


def test_a_run_checks_every_form_of_the_kernel_that_it_uses(monkeypatch, caplog):
    """Both models, the lengths of all phases, dropout and none, in the compute dtype; one that fails is told."""
    asked, packed, fails = [], [], lambda spec: False

    def find_problem(spec, dtype, num_heads):
        asked.append((spec.num_heads, num_heads, spec.tokens, spec.rate, dtype))
        packed.append((spec.rate, spec.is_packed))
        return "it is wrong" if fails(spec) else None

    monkeypatch.setattr(attention_choice, "find_problem", find_problem)
    config = tiny_config(
        model={"attention_probs_dropout_prob": 0.1, "num_attention_heads": 4, "hidden_size": 64,
               "max_position_embeddings": 256},
        generator={"num_attention_heads": 2, "hidden_size": 32}, training={"compute_dtype": "bfloat16"},
        data={"max_seq_length": 128}, long_phase={"steps": 2, "max_seq_length": 256, "batch_size": 8},
    )  # fmt: skip
    mesh = make_mesh(dataclasses.replace(config.mesh, data=-1, tensor=2))
    lengths = [phase.config.data.max_seq_length for phase in config.phases]
    choose = lambda: [attention_choice.choose_attention(config.architecture, n, mesh) for n in lengths]  # noqa: E731
    assert choose() == [xla_attention] * 2 and not asked, "no TPU"
    monkeypatch.setattr(attention_choice, "_has_kernel", lambda *unused: True)
    assert xla_attention not in choose() and not caplog.messages
    assert sorted(asked) == [
        (heads, 2 * heads, tokens, rate, "bfloat16") for heads in (1, 2) for tokens in (128, 256) for rate in (0.0, 0.1)
    ]
    assert not any(is_packed for _, is_packed in packed)
    packed.clear()
    attention_choice.choose_attention(config.architecture, 128, mesh, is_packed=True)
    assert set(packed) == {(0.1, True), (0.0, False)}, "evaluation has a row for each example"
    fails = lambda spec: (spec.num_heads, spec.tokens, spec.rate) == (1, 256, 0.0)  # noqa: E731
    short, long = choose()
    assert short is not xla_attention and long is xla_attention
    (line,) = caplog.messages
    assert "with 2 heads of 16, 256 tokens and dropout 0 in bfloat16, it is wrong; using plain attention" in line


def test_bits_are_even_and_streams_differ():
    position = jnp.arange(1 << 18, dtype=jnp.int32)
    seeds = (0, 1, 2, -7, 123456789)
    streams = [np.asarray(randomness.random_bits(position, jnp.int32(seed))).view(np.uint32) for seed in seeds]
    allowed = 5 / np.sqrt(len(position))  # five deviations
    for stream in streams:
        for bit in range(32):
            assert abs(((stream >> bit) & 1).mean() - 0.5) < 0.5 * allowed
        kept = stream < 0.9 * 2**32
        for lag in (1, 2, 3, 4, 8, 16, 64, 128, 256, 512, 768, 1024):
            for numbers in (stream, kept):
                assert abs(np.corrcoef(numbers[:-lag], numbers[lag:])[0, 1]) < allowed, lag
    for one, other in itertools.combinations(streams, 2):
        assert abs(np.corrcoef(one, other)[0, 1]) < allowed
        # Not one stream read from two places, either.
        assert len(np.intersect1d(one[:1000], other[:1001])) == 0


def test_dropout_rate_and_scale():
    seeds = randomness.row_seeds(jax.random.key(1), 16)
    x = jnp.ones((16, 64, 256))
    dropped = np.asarray(randomness.dropout(x, 0.1, seeds))
    assert abs((dropped == 0).mean() - 0.1) < 5 * np.sqrt(0.09 / dropped.size)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=1e-6)
    other = np.asarray(randomness.dropout(x, 0.1, randomness.fold_in(seeds, 1)))
    agreement = ((dropped == 0) & (other == 0)).mean()
    assert abs(agreement - 0.01) < 5 * np.sqrt(0.01 / dropped.size)


def test_gelu_of_every_bfloat16_number():
    numbers = np.arange(1 << 16, dtype=np.uint16).view(jnp.bfloat16)
    numbers = numbers[np.isfinite(numbers.astype(np.float32))]
    wide = numbers.astype(np.float64)
    phi = 0.5 * np.vectorize(math.erfc)(-wide / math.sqrt(2))
    density = np.exp(-0.5 * np.square(np.clip(wide, -40, 40))) / math.sqrt(2 * math.pi)
    # As it is compiled for users: with conftest.py's options tanh(-9) is not quite -1.
    gelu_and_slope = jax.jit(gelu._gelu_and_slope, compiler_options={"xla_backend_optimization_level": 3})
    value, slope = gelu_and_slope(jnp.asarray(numbers))
    step = 2.0**-7  # of a bfloat16 next to 1
    np.testing.assert_allclose(np.asarray(value, np.float64), wide * phi, rtol=step, atol=1e-6)
    np.testing.assert_allclose(
        np.asarray(slope, np.float64), phi + np.clip(wide, -40, 40) * density, rtol=step, atol=step / 2
    )


def test_gelu_in_float32_and_its_gradient():
    x = jnp.linspace(-8.0, 8.0, 4001)
    exact = lambda x: x * 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))  # noqa: E731
    np.testing.assert_allclose(gelu.gelu(x), exact(x), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu.gelu))(x), jax.vmap(jax.grad(exact))(x), atol=1e-6)


def test_product_of_gelu_is_the_plain_one_with_its_gradients():
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel = 3 * jax.random.normal(keys[0], (2, 5, 24)), jax.random.normal(keys[1], (24, 8))
    weights = jax.random.normal(keys[2], (2, 5, 8))

    def loss(product, x, kernel):
        return (product(x, kernel) * weights).sum()

    ours = jax.value_and_grad(loss, argnums=(1, 2))(gelu.dot_gelu_rows, x, kernel)
    plain = jax.value_and_grad(loss, argnums=(1, 2))(lambda x, k: jax.nn.gelu(x, approximate=False) @ k, x, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), ours, plain)


def test_product_of_gelu_keeps_one_array_for_the_gradient():
    """The compiler must not keep what the backward pass is to compute again: three arrays a layer in the plain form."""
    rows, narrow, wide, num_layers = 512, 8, 1024, 8

    def temporary_bytes(product):
        def loss(kernels, x):
            for up, down in kernels:
                x = x + product(x @ up, down)
            return jnp.square(x).sum()

        shapes = ((narrow, wide), (wide, narrow))
        kernels = [tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)] * num_layers
        lowered = jax.jit(jax.grad(loss)).lower(kernels, jax.ShapeDtypeStruct((rows, narrow), jnp.float32))
        compiled = lowered.compile({"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False})
        return compiled.memory_analysis().temp_size_in_bytes

    kept = temporary_bytes(gelu.dot_gelu_rows)
    plain = temporary_bytes(lambda x, kernel: gelu.gelu(x) @ kernel)
    array = rows * wide * 4
    assert kept < (num_layers + 4) * array
    assert plain > (2 * num_layers) * array
