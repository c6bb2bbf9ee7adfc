"""Reads the golden values into our structures, and trains as the original did.

Array names: B batch, T tokens, M masked positions, V vocabulary.
"""

import dataclasses
import functools
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from electra_flax.config.architecture import Architecture, GeneratorConfig, ModelConfig
from electra_flax.config.masking import MaskingConfig
from electra_flax.config.optimizer import OptimizerConfig
from electra_flax.config.schema import (
    Config,
    DataConfig,
    ObjectiveConfig,
    TrainingConfig,
)
from electra_flax.data.vocabulary import SpecialTokens
from electra_flax.model import electra
from electra_flax.training import losses, masking
from electra_flax.training.masking import CorruptedInputs, MaskedInputs
from electra_flax.training.objectives import make_objective, masked_tokens
from electra_flax.training.objectives.replaced_tokens import Guess
from electra_flax.training.optimizers import learning_rate, make_optimizer
from electra_flax.trees import Params, tree_names
from electra_flax.weights import names

RECORDED = Path(__file__).parent / "golden"  # values of the original that may live here (README there)
SPECIAL = SpecialTokens(pad=0, unk=1, cls=2, sep=3, mask=4)


def init_params(architecture: Architecture) -> Params:
    """A model's first values, by one program: operation by operation they take seconds to compile."""
    return jax.jit(electra.init, static_argnums=0)(architecture, jax.random.key(0))


def tiny_config(**changes: dict) -> Config:
    """A model small enough to compile in seconds; `changes` replace fields, section by section."""
    config = Config(
        model=ModelConfig(
            vocab_size=300,
            embedding_size=16,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        generator=GeneratorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32),
        data=DataConfig(max_seq_length=32),
        training=TrainingConfig(batch_size=16, num_steps=20, compute_dtype="float32"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4),
    )
    for section, fields in changes.items():
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
    return config


def sharing_of(architecture: Architecture) -> str:
    """The generator.embedding_sharing of such models."""
    return "gdes" if architecture.has_delta else "separate" if architecture.has_own_embeddings else "shared"


def config_for(architecture: Architecture) -> Config:
    """A run that would train such models."""
    model, generator = architecture.model, architecture.generator_sizes
    kind = "replaced_tokens" if architecture.has_discriminator_head else "masked_tokens"
    kind = "electric" if architecture.logit == "energy" else kind
    own = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dataclasses.replace(
        tiny_config(),
        model=model,
        generator=GeneratorConfig(
            **{name: getattr(generator, name) for name in own},
            untied_generator=architecture.generator is not None,
            embedding_sharing=sharing_of(architecture),
            uniform_generator=not architecture.has_generator_head,
            two_towers=architecture.has_two_towers,
        ),
        objective=ObjectiveConfig(kind=kind),
        data=DataConfig(max_seq_length=min(32, model.max_position_embeddings)),
    )


def golden_config(hparams: dict, *, batch_size: int = 8, num_steps: int = 20, warmup_steps: int = 5) -> Config:
    """The original's hyperparameters as our configuration, dropout off.

    The run's length may be another one than theirs: values were recorded over the first steps of a longer one, or with
    a schedule of their own.
    """
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    sizes = hparams["model_hparam_overrides"] | off
    untied = hparams.get("untied_generator", True)
    kind = "replaced_tokens" if hparams.get("electra_objective", True) else "masked_tokens"
    kind = "electric" if hparams.get("electric_objective", False) else kind
    width = int(round(sizes["hidden_size"] * hparams["generator_hidden_size"])) if untied else sizes["hidden_size"]
    return Config(
        model=ModelConfig(
            vocab_size=hparams["vocab_size"],
            embedding_size=hparams["embedding_size"],
            **sizes,
        ),
        generator=GeneratorConfig(
            hidden_size=width,
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=max(1, width // 64) if untied else sizes["num_attention_heads"],
            intermediate_size=4 * width if untied else sizes["intermediate_size"],
            untied_generator=untied,
            embedding_sharing="separate" if hparams.get("untied_generator_embeddings", False) else "shared",
            uniform_generator=hparams.get("uniform_generator", False),
            two_towers=hparams.get("two_tower_generator", False),
        ),
        masking=MaskingConfig(mask_prob=hparams.get("mask_prob", 0.15)),
        data=DataConfig(max_seq_length=hparams["max_seq_length"]),
        training=TrainingConfig(batch_size=batch_size, num_steps=num_steps, compute_dtype="float32"),
        optimizer=OptimizerConfig(learning_rate=hparams["learning_rate"], warmup_steps=warmup_steps),
        objective=ObjectiveConfig(
            kind=kind,
            generator_weight=hparams.get("gen_weight", 1.0),
            discriminator_weight=hparams.get("disc_weight", 50.0),
            temperature=hparams.get("temperature", 1.0),
            disallow_correct=hparams.get("disallow_correct", False),
        ),
    )


def golden_params(config: Config, weights: dict[str, np.ndarray]) -> Params:
    """TF1 weights in our tree; every one of our parameters must be there, with our shape."""
    shapes = jax.eval_shape(lambda: electra.init(config.architecture, jax.random.key(0)))

    def load(name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = weights[names.to_tf1(name)]
        assert value.shape == leaf.shape, name
        return jnp.asarray(value)

    return jax.tree.map(load, tree_names(shapes), shapes)


def read_json(path: Path) -> dict:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(text)


def below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with "prefix/", without it."""
    return {name.removeprefix(f"{prefix}/"): arrays[name] for name in arrays if name.startswith(f"{prefix}/")}


class Draws(NamedTuple):
    """A batch with all that the original drew for it."""

    ids_BT: jax.Array
    mask_BT: jax.Array
    types_BT: jax.Array
    masked: MaskedInputs
    corrupted: CorruptedInputs
    sampled_BM: jax.Array | None = None

    @classmethod
    def read(cls, case: Mapping[str, np.ndarray]) -> "Draws":
        """What the original made of its draws."""
        masked = (case[f"masked_{name}"] for name in ("input_ids", "lm_positions", "lm_ids", "lm_weights"))
        corrupted = CorruptedInputs(jnp.asarray(case["corrupted_input_ids"]), jnp.asarray(case["is_fake_labels"]))
        return cls(*_inputs(case), MaskedInputs(*map(jnp.asarray, masked)), corrupted)

    @classmethod
    def replay(cls, config: Config, case: Mapping[str, np.ndarray]) -> "Draws":
        """What our functions make of the original's draws."""
        ids_BT, mask_BT, types_BT = _inputs(case)
        drawn_BM = jnp.asarray(case["position_draws"])
        # The first draw has the highest score, so that the candidates with the highest ones are the draws in order.
        place_M = jnp.arange(drawn_BM.shape[1], 0, -1, jnp.float32)
        score_BT = jax.vmap(lambda drawn_M: jnp.zeros(ids_BT.shape[1]).at[drawn_M].set(place_M))(drawn_BM)
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
        share, width = config.masking.mask_prob, config.max_predictions_per_seq
        positions_BM, weights_BM = masking.choose_positions(score_BT, batch, share, SPECIAL, width)
        becomes_mask_BM = jnp.asarray(case["u_replace"]) < config.masking.mask_token_prob
        masked = masking.hide(ids_BT, positions_BM, weights_BM, becomes_mask_BM, SPECIAL.mask)
        sampled_BM = jnp.asarray(case["sampled_ids"])
        corrupted = masking.corrupt(ids_BT, masked, sampled_BM)
        return cls(ids_BT, mask_BT, types_BT, masked, corrupted, sampled_BM)

    @property
    def batch(self) -> dict[str, jax.Array]:
        return {"input_ids": self.ids_BT, "attention_mask": self.mask_BT, "token_type_ids": self.types_BT}


def _inputs(case: Mapping[str, np.ndarray]) -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(jnp.asarray(case[name]) for name in ("input_ids", "input_mask", "segment_ids"))


class Outcome(NamedTuple):
    """What the objective makes of a batch."""

    means: dict[str, jax.Array]
    generator_BMV: jax.Array
    discriminator_BT: jax.Array | None
    """Logits; None without a discriminator."""
    labels_BT: jax.Array | None
    cloze_BTV: jax.Array | None
    """Of two towers, at all positions."""


def _means(sums: dict[str, jax.Array], counts: dict[str, jax.Array]) -> dict[str, jax.Array]:
    terms = {"generator": ("generator_nll", "masked"), "cloze": ("cloze_nll", "guessed"),
             "discriminator": ("discriminator_nll", "tokens")}  # fmt: skip
    return {
        f"{name}_loss": losses.mean(sums[total], counts[count])
        for name, (total, count) in terms.items()
        if total in sums
    }


def _read_both_ways(config: Config, params: Params, draws: Draws) -> tuple[electra.Cloze, jax.Array]:
    """What two towers make of a batch, with logits at the drawn positions; and logits at all of them."""
    ids_BT, tokens = draws.ids_BT, draws.ids_BT.shape[1]
    every_BT = jnp.broadcast_to(jnp.arange(tokens)[None, :], ids_BT.shape)
    cloze = electra.apply_towers(
        config.architecture, params, ids_BT, draws.mask_BT, draws.types_BT,
        masking.is_candidate(draws.batch, SPECIAL).astype(jnp.float32),
        jnp.concatenate([every_BT, draws.masked.positions_BM], axis=1),
    )  # fmt: skip
    return cloze._replace(logits_BMV=cloze.logits_BMV[:, tokens:]), cloze.logits_BMV[:, :tokens]


def losses_with_given_draws(config: Config, params: Params, draws: Draws) -> tuple[jax.Array, Outcome]:
    """The total loss where masks, samples and labels are given, not drawn by us."""
    masked, mask_BT, types_BT = draws.masked, draws.mask_BT, draws.types_BT
    objective, cloze, cloze_BTV = make_objective(config, SPECIAL), None, None
    if config.has_two_towers:
        cloze, cloze_BTV = _read_both_ways(config, params, draws)
        generator_BMV = cloze.logits_BMV
    else:
        generator_BMV = electra.apply_generator(
            config.architecture, params, masked.masked_ids_BT, mask_BT, types_BT, masked.positions_BM, None
        )
    sums = losses.masked_lm_sums(generator_BMV, masked.targets_BM, masked.weights_BM, masked.targets_BM)
    discriminator_BT = labels_BT = None
    if config.objective.kind != "masked_tokens":
        discriminator_BT = electra.apply_discriminator(
            config.architecture, params, draws.corrupted.corrupted_ids_BT, mask_BT, types_BT, None
        )
        labels_BT = draws.corrupted.is_replaced_BT
        if cloze is not None:
            sums["cloze_nll"] = cloze.nll
            guess = Guess(sums, draws.sampled_BM, cloze)
            discriminator_BT, labels_BT = objective.told(
                discriminator_BT, draws.corrupted, masked_tokens.Draws(masked, None, None), guess
            )
        sums |= losses.replaced_token_sums(discriminator_BT, labels_BT, mask_BT)
    counts = objective.count(draws.batch, masked_tokens.Draws(masked, None, None))
    outcome = Outcome(_means(sums, counts), generator_BMV, discriminator_BT, labels_BT, cloze_BTV)
    return objective.loss(sums, counts), outcome


class _Count(NamedTuple):
    count: jax.Array


def clip_by_recorded_norms(norms: jax.Array) -> optax.GradientTransformation:
    """The original on CPU takes the norm of a lookup's gradient over its rows, before those of one token are summed
    (docs/semantics.md, section 10); on TPU it is the true norm, which is ours."""

    def update(grads, state, params=None):
        return jax.tree.map(lambda g: g / jnp.maximum(1.0, norms[state.count]), grads), _Count(state.count + 1)

    return optax.GradientTransformation(lambda params: _Count(jnp.zeros((), jnp.int32)), update)


class Updated(NamedTuple):
    """A step's results."""

    params: Params
    opt_state: optax.OptState
    total: jax.Array
    outcome: Outcome
    grads: Params
    """Before clipping."""
    norm: jax.Array


class GivenTraining:
    """Steps on batches with the original's draws.

    `clip_norms`: those that the original clipped by, a step each; without them gradients are clipped by their own.
    """

    def __init__(self, config: Config, clip_norms: np.ndarray | None = None):
        self.config = config
        optimizer = config.optimizer
        if clip_norms is not None:
            optimizer = dataclasses.replace(optimizer, max_grad_norm=1e30)
        self.optimizer = make_optimizer(optimizer, config.training.num_steps)
        if clip_norms is not None:
            self.optimizer = optax.chain(clip_by_recorded_norms(jnp.asarray(clip_norms)), self.optimizer)

    @functools.cached_property
    def update(self):
        """(params, opt_state, draws) -> Updated, compiled."""

        @jax.jit
        def update(params, opt_state, draws):
            gradient = jax.value_and_grad(functools.partial(losses_with_given_draws, self.config), has_aux=True)
            (total, outcome), grads = gradient(params, draws)
            updates, opt_state = self.optimizer.update(grads, opt_state, params)
            norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
            return Updated(optax.apply_updates(params, updates), opt_state, total, outcome, grads, norm)

        return update

    def assert_step(self, number: int, updated: Updated, loss: float, norm: float, rate: float) -> None:
        """The step's loss, norm before clipping and learning rate are the original's."""
        np.testing.assert_allclose(updated.total, loss, atol=1e-4, rtol=0)
        np.testing.assert_allclose(updated.norm, norm, rtol=1e-4)
        ours = learning_rate(number, self.config.optimizer, self.config.training.num_steps)
        np.testing.assert_allclose(ours, rate, rtol=1e-6, atol=1e-10)


def assert_tree(ours: Params, theirs: Mapping[str, np.ndarray], atol: float, suffix: str = "") -> None:
    """Every array is the original's, which has its name with `suffix`."""
    for name, value in zip(jax.tree.leaves(tree_names(ours)), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(value, theirs[names.to_tf1(name) + suffix], atol=atol, rtol=0, err_msg=name)
