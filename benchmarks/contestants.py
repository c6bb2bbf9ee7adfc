"""The contestants of step_speed: each builds a model and returns a function that takes one whole training step.

All do the same work: mask, generator with logits at the masked positions alone, sample, discriminator, both losses,
gradients, clipping, AdamW, dropout on. Embeddings are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import SpecialTokens

Step = Callable[[], None]
SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


def _batch(config: Config) -> dict[str, np.ndarray]:
    shape = (config.training.batch_size, config.data.max_seq_length)
    ids = np.random.default_rng(0).integers(5, config.model.vocab_size, size=shape, dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def ours(config: Config) -> Step:
    """Return electra-flax's own train step on one device."""
    import jax

    from electra_flax.model.attention_choice import choose_attention
    from electra_flax.model.sharding import batch_sharding, make_mesh
    from electra_flax.runtime.compiler import compile_step
    from electra_flax.training.initial_state import init_state
    from electra_flax.training.objectives import make_objective
    from electra_flax.training.step import make_train_step

    mesh = make_mesh(config.mesh, jax.devices()[:1])
    state: Any = init_state(config, mesh)
    batch = jax.device_put(_batch(config), batch_sharding(mesh))
    attend = choose_attention(config.architecture, config.data.max_seq_length, mesh)
    train_step = make_train_step(config, make_objective(config, SPECIAL), mesh, attend)
    train_step = compile_step("train step", train_step, state, batch)

    def step() -> None:
        nonlocal state
        state, sums = train_step(state, batch)
        jax.block_until_ready((state, sums))

    return step


def _hf_configs(config: Config) -> tuple[Any, Any]:
    from transformers import ElectraConfig

    def convert(part: Any) -> Any:
        return ElectraConfig(**{name: getattr(part, name) for name in (
            "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "hidden_dropout_prob", "attention_probs_dropout_prob",
        )})  # fmt: skip

    return convert(config.architecture.generator_sizes), convert(config.model)


def pytorch(config: Config) -> Step:
    """Return transformers' PyTorch models as a good user would join them. Gathered positions, fused AdamW, compiled."""
    import torch
    from transformers import ElectraForMaskedLM, ElectraForPreTraining

    batch_size, dtype = config.training.batch_size, config.training.compute_dtype
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    generator_config, discriminator_config = _hf_configs(config)
    generator, discriminator = ElectraForMaskedLM(generator_config), ElectraForPreTraining(discriminator_config)
    generator.electra.embeddings = discriminator.electra.embeddings
    generator.generator_lm_head.weight = discriminator.electra.embeddings.word_embeddings.weight
    both = torch.nn.ModuleList([generator, discriminator]).to(device).train()
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    batch = {name: torch.from_numpy(array).long().to(device) for name, array in _batch(config).items()}
    rows = torch.arange(batch_size, device=device)[:, None]
    masked_per_row, tokens = config.max_predictions_per_seq, config.data.max_seq_length

    def loss() -> torch.Tensor:
        ids, mask, types = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        positions = torch.rand(batch_size, tokens, device=device).topk(masked_per_row).indices
        targets = ids.gather(1, positions)
        masked = ids.index_put((rows, positions), torch.tensor(SPECIAL.mask, device=device))
        hidden = generator.electra(masked, mask, types).last_hidden_state[rows, positions]
        logits = generator.generator_lm_head(generator.generator_predictions(hidden)).float()
        generator_loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        with torch.no_grad():
            sampled = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
        corrupted = ids.index_put((rows, positions), sampled)
        labels = (corrupted != ids).float()
        found = discriminator(corrupted, mask, types).logits.float()
        return generator_loss + 50 * torch.nn.functional.binary_cross_entropy_with_logits(found, labels)

    compiled = torch.compile(loss) if _compiler_works() else loss

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            value = compiled()
        value.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def _compiler_works() -> bool:
    """Return whether torch.compile works: it needs a C++ compiler on a CPU and Triton on a GPU."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:  # whatever inductor raises
        print(f"torch.compile does not work here, eager mode is timed: {type(error).__name__}", flush=True)
        return False
    return True


def pytorch_eager(config: Config) -> Step:
    """Return the same without torch.compile."""
    globals()["_compiler_works"] = lambda: False
    return pytorch(config)


def hf_flax(config: Config) -> Step:
    """Return transformers 4.57's Flax modules joined, with optax's AdamW."""
    import jax
    import jax.numpy as jnp
    import optax
    from transformers import FlaxElectraForMaskedLM, FlaxElectraForPreTraining

    generator_config, discriminator_config = _hf_configs(config)
    kind = jnp.dtype(config.training.compute_dtype)
    generator = FlaxElectraForMaskedLM(generator_config, dtype=kind, input_shape=(1, 8))
    discriminator = FlaxElectraForPreTraining(discriminator_config, dtype=kind, input_shape=(1, 8))
    params = {"generator": generator.params, "discriminator": discriminator.params}
    params["generator"]["electra"].pop("embeddings")
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.01))
    batch = {name: jnp.asarray(array) for name, array in _batch(config).items()}
    rows = jnp.arange(config.training.batch_size)[:, None]

    def loss(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        ids, mask, types = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
        keys = jax.random.split(key, 4)
        positions = jax.lax.top_k(jax.random.uniform(keys[0], ids.shape), config.max_predictions_per_seq)[1]
        targets = jnp.take_along_axis(ids, positions, axis=1)
        masked = ids.at[rows, positions].set(SPECIAL.mask)
        embeddings = params["discriminator"]["electra"]["embeddings"]
        tree = {**params["generator"], "electra": {**params["generator"]["electra"], "embeddings": embeddings}}
        # The module computes the head everywhere; a good user gathers before it.
        hidden = generator.module.apply(
            {"params": tree}, masked, mask, types, jnp.arange(ids.shape[1])[None] + 0 * ids, None, deterministic=False,
            rngs={"dropout": keys[1]}, method=lambda m, *a, **k: m.electra(*a, **k)[0],
        )  # fmt: skip
        logits = generator.module.apply(
            {"params": tree}, jnp.take_along_axis(hidden, positions[..., None], axis=1),
            embeddings["word_embeddings"]["embedding"],
            method=lambda m, hidden, table: m.generator_lm_head(m.generator_predictions(hidden), table.T),
        ).astype(jnp.float32)  # fmt: skip
        generator_loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        sampled = jax.random.categorical(keys[2], jax.lax.stop_gradient(logits))
        corrupted = ids.at[rows, positions].set(sampled)
        found = discriminator(
            corrupted, mask, types, params=params["discriminator"], dropout_rng=keys[3], train=True
        ).logits.astype(jnp.float32)
        return generator_loss + 50 * optax.sigmoid_binary_cross_entropy(found, (corrupted != ids) * 1.0).mean()

    def train_step(params: Any, state: Any, key: jax.Array) -> Any:
        grads = jax.grad(loss)(params, batch, key)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, jax.random.split(key)[0]

    jitted = jax.jit(train_step, donate_argnums=(0, 1))
    carried: Any = (params, jax.jit(optimizer.init)(params), jax.random.key(0))

    def step() -> None:
        nonlocal carried
        carried = jax.block_until_ready(jitted(*carried))

    return step


CONTESTANTS: dict[str, Callable[[Config], Step]] = {
    "electra-flax": ours,
    "pytorch": pytorch,
    "pytorch-eager": pytorch_eager,
    "flax-modules": hf_flax,
}
