"""Weights to begin with that others have learned (--init-from), and runs of the original to go on with (--resume-from).

Every tensor is accounted for: what came over as it is, what was resized and how, what is not used, and nothing is
random that the user did not ask for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tokenizers.models import WordPiece

from electra_flax.config.schema import Config
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.errors import UserError
from electra_flax.formats import counted
from electra_flax.model.electra import expected_shapes
from electra_flax.model.sharding import state_shardings
from electra_flax.training.optimizers import OPTIMIZERS
from electra_flax.training.state import TrainState
from electra_flax.trees import flat, nested
from electra_flax.weights.delta import fold, unfold
from electra_flax.weights.hugging_face import HEADS
from electra_flax.weights.sources import find_weights
from electra_flax.weights.weights import Weights

log = logging.getLogger("electra_flax")

_BY_VOCABULARY = re.compile(r"word_embeddings/embedding$|^(generator|cloze)_lm_head/bias$")
_UNUSED_TOKEN = re.compile(r"\[unused\d+\]")


class Start(NamedTuple):
    """What a new run begins with, as the user says it."""

    source: str
    """As `find_weights` takes it."""
    resumes: bool = False
    """The run goes on: moments and step come too."""
    stretch_positions: Literal["", "interpolate", "tile"] = ""
    """How more positions than theirs are made of theirs; "" refuses."""
    warm_start_generator: bool = False
    """A generator that is not there is cut out of the discriminator."""

    def check(self, config: Config, vocabulary: Vocabulary) -> None:
        """Raise UserError where a run cannot begin so; read no weights."""
        weights = _find(self, config)
        _parameters(self, weights, config, vocabulary)
        if not self.resumes:
            return
        if config.optimizer.decoupled:
            raise UserError(
                f"--resume-from {weights.source}: has the moments of one optimizer, and optimizer.decoupled=true "
                "makes two: start a new run from its weights with --init-from"
            )
        if weights.optimizer is None:
            raise UserError(
                f"--resume-from {weights.source}: has no Adam moments to continue with: start a new run from its "
                "weights with --init-from"
            )
        if OPTIMIZERS[config.optimizer.algorithm] != weights.optimizer:
            raise UserError(
                f"--resume-from {weights.source}: its moments are AdamW's, but optimizer.algorithm="
                f"{config.optimizer.algorithm}: set it to adamw"
            )
        if weights.step >= config.training.num_steps:
            raise UserError(
                f"--resume-from {weights.source}: is at step {weights.step:,}, training.num_steps="
                f"{config.training.num_steps:,}: no steps are left; raise it"
            )

    def apply(self, config: Config, vocabulary: Vocabulary, mesh: Mesh, state: TrainState) -> TrainState:
        """Return a fresh state with these weights; every other part is as it was, unless the run goes on.

        Logs the audit.
        """
        weights = _find(self, config)
        parameters = _parameters(self, weights, config, vocabulary)
        for line in audit(weights, parameters).split("\n"):
            log.info("%s", line)
        fresh = flat(state.params)
        shardings = flat(state_shardings(state.params, mesh))

        def place(values: Mapping[str, Callable[[], np.ndarray]]) -> dict[str, jax.Array]:
            placed = {}
            for name, sharding in shardings.items():
                if name not in values:
                    placed[name] = fresh[name]
                    continue
                value = np.asarray(values[name](), np.float32)
                placed[name] = jax.make_array_from_callback(value.shape, sharding, value.__getitem__)
            return nested(placed)

        state = state._replace(params=place({name: parameter.read for name, parameter in parameters.items()}))
        if not self.resumes:
            return state
        optimizer = weights.optimizer
        assert optimizer is not None and optimizer.state is not None  # check
        moments = optimizer.state(**{
            moment: place({name: partial(weights.read_moment, name, moment) for name in shardings})
            for moment in optimizer.slots
        })  # fmt: skip
        opt_state = tuple(moments if isinstance(part, optimizer.state) else part for part in state.opt_state)

        def count(leaf: jax.Array) -> jax.Array:
            # A buffer of its own: the train step is given each to keep, which cannot be done twice.
            return jnp.full_like(leaf, weights.step)

        opt_state = jax.tree.map(lambda leaf: count(leaf) if leaf.dtype == jnp.int32 else leaf, opt_state)
        return TrainState(count(state.step), state.params, opt_state)


class _Parameter(NamedTuple):
    how: str
    """"" for as it is, else what was done."""
    read: Callable[[], np.ndarray]


def audit(weights: Weights, parameters: Mapping[str, _Parameter]) -> str:
    """Return what became of every tensor, in lines for people."""
    kept = [name for name, parameter in parameters.items() if not parameter.how]
    numbers = sum(int(np.prod(weights.shapes[name])) for name in kept)
    lines = [f"weights from {weights.source}", f"  {counted(len(kept), 'tensors')} ({numbers:,} parameters) unchanged"]
    changed: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        if parameter.how:
            changed.setdefault(parameter.how, []).append(name)
    for how, found in changed.items():
        lines.append(f"  {how}: {', '.join(found) if len(found) < 5 else f'{len(found)} tensors, {found[0]} ...'}")
    taken = {name for name in parameters if name in weights.shapes}
    unused = sorted(weights.shapes.keys() - taken) + list(weights.unused)
    lines.append(f"  not used: {', '.join(unused) if unused else 'nothing'}")
    if weights.vocabulary is None:
        lines.append("  vocabulary: not compared (no vocab.txt beside the weights)")
    return "\n".join([*lines, *(f"  {remark}" for remark in weights.remarks)])


# ------------------------------------------------------------------------------------------- tensor by tensor


def _find(start: Start, config: Config) -> Weights:
    """Return the weights, their tables in the form that the run has them in."""
    weights = find_weights(start.source, is_folded=False)
    architecture = config.architecture
    if architecture.has_delta:
        return unfold(weights)
    weights = fold(weights)
    if weights.architecture.has_own_embeddings and architecture.generator and not architecture.has_own_embeddings:
        raise UserError(
            f"{start.source}: the embeddings of the two differ: generator.embedding_sharing=shared has one for both; "
            "set it to gdes, or give hf:DISC alone, with --warm-start-generator to begin with"
        )
    return weights


def _flag(start: Start) -> str:
    return "--resume-from" if start.resumes else "--init-from"


def _parameters(start: Start, weights: Weights, config: Config, vocabulary: Vocabulary) -> dict[str, _Parameter]:
    """Return how each parameter of `config` is had; those of a warm-started generator's new head are left out."""
    expected = expected_shapes(config.architecture)
    flag = _flag(start)
    _check_vocabulary(weights, vocabulary, flag, may_grow=not start.resumes)
    found, missing, different = {}, [], []
    for name, shape in expected.items():
        theirs = weights.shapes.get(name)
        if theirs is None:
            missing.append(name)
        elif theirs == shape and not (_BY_VOCABULARY.search(name) and _grows(weights, vocabulary)):
            found[name] = _Parameter("", partial(weights.read, name))
        elif _BY_VOCABULARY.search(name) and theirs[1:] == shape[1:] and not start.resumes:
            found[name] = _Parameter(
                "embeddings of new tokens are the mean of their pieces",
                partial(_grow, name, weights, vocabulary),
            )
        elif name.endswith("position_embeddings/embedding") and theirs[1] == shape[1] and not start.resumes:
            found[name] = _positions(start, weights, name, theirs[0], shape[0])
        else:
            different.append(f"{name}: {theirs} there, {shape} here")
    generators = _generators_to_make(start, weights, config, missing, different)
    for name in generators:
        if (cut := _cut(weights, name, expected[name])) is not None:
            found[name] = _Parameter("cut out of the discriminator", cut)
    fresh = [name for name in generators if name not in found]
    if fresh:
        log.info("new weights for the generator's head: %s", ", ".join(fresh))
    return found


def _generators_to_make(
    start: Start, weights: Weights, config: Config, missing: Sequence[str], different: Sequence[str]
) -> list[str]:
    """Return which of the `missing` parameters are the generator's, to be cut out of the discriminator or made anew.

    Raises UserError where shapes are `different`, where others are missing, or those and nobody asked for the cut.
    """
    flag = _flag(start)
    if any(name.startswith(HEADS["discriminator"]) for name in missing):
        raise UserError(
            f"{flag} {weights.source}: a generator (hidden size {weights.architecture.model.hidden_size}, here "
            f"{config.model.hidden_size}): give the discriminator first, hf:DISC,GEN"
        )
    if different:
        total = len(expected_shapes(config.architecture))
        raise UserError(
            f"{flag} {weights.source}: {len(different)} of {total} tensors have other shapes, the first "
            f"{different[0]}: set the model and generator sections to its sizes"
        )
    generators = [name for name in missing if name.startswith(("generator", "cloze"))]
    of_training = () if start.resumes else ("corrective", "contrast")  # heads that nobody publishes
    if others := [name for name in missing if name not in generators and not name.startswith(of_training)]:
        raise UserError(
            f"{flag} {weights.source}: {counted(len(others), 'tensors')} missing, the first {others[0]}: give "
            "complete weights"
        )
    if generators and config.has_two_towers:
        raise UserError(
            f"{flag} {weights.source}: has no two towers ({generators[0]} is missing), which this run's generator is: "
            "give a run of ours (orbax:DIR) or a checkpoint of the original (tf1:PREFIX) that has"
        )
    if generators and not start.warm_start_generator:
        remedy = "--warm-start-generator, which cuts one out of the discriminator"
        if weights.architecture.has_generator_head:  # both models are there, as one transformer
            raise UserError(
                f"{flag} {weights.source}: one transformer is both of its models, and this run's are two "
                f"({generators[0]} is missing): add {remedy}"
            )
        raise UserError(
            f"{flag} {weights.source}: has no generator ({generators[0]} is missing): add its folder, hf:DISC,GEN, "
            f"or {remedy}"
        )
    return generators


def _check_vocabulary(weights: Weights, vocabulary: Vocabulary, flag: str, may_grow: bool) -> None:
    theirs = weights.vocabulary
    if theirs is None or theirs.tokens == vocabulary.tokens:
        return
    known = set(vocabulary.tokens)
    lost = [token for token in theirs.tokens if token not in known and not _UNUSED_TOKEN.fullmatch(token)]
    if lost or not may_grow:
        reason = (
            f"{len(lost):,} of its {len(theirs.tokens):,} tokens are not in the shards' vocabulary, the first {lost[0]}"
        )
        raise UserError(
            f"{flag} {weights.source}: trained with another vocabulary: "
            f"{reason if lost else 'it has fewer tokens than the shards'}; make shards with {theirs.path}"
        )


def _grows(weights: Weights, vocabulary: Vocabulary) -> bool:
    return weights.vocabulary is not None and weights.vocabulary.tokens != vocabulary.tokens


def _grow(name: str, weights: Weights, vocabulary: Vocabulary) -> np.ndarray:
    """Return rows in the order of the new vocabulary; a new token has the mean of the pieces it was made of before."""
    rows: np.ndarray = weights.read(name)
    theirs = weights.vocabulary
    assert theirs is not None  # _parameters
    ids = {token: number for number, token in enumerate(theirs.tokens)}
    # WordPiece would read a token that continues a word as if one began. So such tokens get a vocabulary of their own,
    # in which the pieces after ## begin too, and those with ## go on as ever.
    inner = {token: number for token, number in ids.items() if token.startswith("##")}
    within = {token.removeprefix("##"): number for token, number in inner.items()} | inner
    unknown = theirs.tokens[theirs.special.unk]
    models = {
        starts: WordPiece({unknown: theirs.special.unk, **pieces}, unk_token=unknown, max_input_chars_per_word=1000)
        for starts, pieces in ((True, ids), (False, within))
    }

    def row(token: str) -> np.ndarray:
        if token in ids:
            return np.asarray(rows[ids[token]])
        pieces = models[not token.startswith("##")].tokenize(token.removeprefix("##"))
        return np.asarray(rows[[piece.id for piece in pieces]].mean(axis=0))

    return np.stack([row(token) for token in vocabulary.tokens])


def _positions(start: Start, weights: Weights, name: str, theirs: int, ours: int) -> _Parameter:
    """Return position embeddings, float32 [theirs, E] -> [ours, E]."""
    if ours <= theirs:
        return _Parameter(f"the first {ours} of {theirs} positions", lambda: weights.read(name)[:ours])
    if start.stretch_positions == "tile":
        return _Parameter(
            f"{theirs} positions repeated up to {ours}",
            lambda: np.resize(weights.read(name), (ours, weights.shapes[name][1])),
        )
    if start.stretch_positions == "interpolate":
        places = np.linspace(0, theirs - 1, ours)

        def interpolated() -> np.ndarray:
            table = weights.read(name)
            return np.stack([np.interp(places, np.arange(theirs), column) for column in table.T], axis=1)

        return _Parameter(f"{theirs} positions interpolated to {ours}", interpolated)
    raise UserError(
        f"--init-from {weights.source}: has {theirs} positions, model.max_position_embeddings={ours}: add "
        "--stretch-positions interpolate or tile"
    )


def _cut(weights: Weights, name: str, shape: tuple[int, ...]) -> Callable[[], np.ndarray] | None:
    """Return the leading part of the discriminator's tensor of the same place: its first layers, heads and units.

    Where the discriminator has no projection of its embeddings, their leading part is the projection's result. None
    for the head of masked-language modelling, which has no counterpart, and where the discriminator is the smaller one.
    """
    if not name.startswith("generator/"):
        return None
    theirs = name.replace("generator/", "electra/", 1)
    if theirs in weights.shapes:
        if any(ours > there for ours, there in zip(shape, weights.shapes[theirs], strict=True)):
            raise UserError(
                f"--warm-start-generator: {name} {shape} is larger than the discriminator's {weights.shapes[theirs]}"
            )
        return lambda: weights.read(theirs)[tuple(slice(size) for size in shape)]
    # A projection that the discriminator does not have: the identity, cut to the generator's width.
    if name == "generator/embeddings_project/kernel":
        return lambda: np.eye(*shape, dtype=np.float32)
    if name == "generator/embeddings_project/bias":
        return lambda: np.zeros(shape, np.float32)
    raise UserError(f"--warm-start-generator: the discriminator has no {theirs} that {name} could be cut out of")
