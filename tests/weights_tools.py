"""Models with random weights, in each form that models have on disk."""

import json

import jax
import numpy as np
import pytest
from golden_tools import tiny_config
from once import copied_once

from electra_flax.data.tokenizer import SPECIAL_TOKENS, Casing
from electra_flax.data.vocabulary import Vocabulary
from electra_flax.model.electra import expected_shapes
from electra_flax.training.optimizers.adamw import ADAMW
from electra_flax.weights import parity
from electra_flax.weights.export import export_to_hugging_face, export_to_tf1
from electra_flax.weights.model_card import Publication
from electra_flax.weights.parity import TEXTS
from electra_flax.weights.tf1_checkpoint import write_tf1_checkpoint
from electra_flax.weights.weights import Weights

CASED = Casing(do_lower_case=False, strip_accents=False)
_OWN = {"intermediate_size": 64}  # 4 x its width, as the original has it
# The configurations under which the two models share other things.
SHARING: dict[str, dict] = {
    "embeddings": {"generator": _OWN},
    "nothing": {"generator": _OWN | {"embedding_sharing": "separate"}},
    "everything": {
        "generator": {
            "untied_generator": False,
            "num_hidden_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        },
    },
    "two towers": {"generator": _OWN | {"two_towers": True}},
    "Electric": {"generator": _OWN, "objective": {"kind": "electric"}},
    "a difference": {"generator": _OWN | {"embedding_sharing": "gdes"}},
    "no generator": {"generator": _OWN | {"uniform_generator": True}},
    "no discriminator": {"generator": _OWN, "objective": {"kind": "masked_tokens"}},
}


def write_vocabulary(path, size=300):
    """The characters of parity.TEXTS, at the beginning of words and within, and spare lines."""
    characters = sorted(set("".join(TEXTS)) - {" "})
    tokens = [*SPECIAL_TOKENS.values(), *characters, *(f"##{character}" for character in characters)]
    tokens += [f"[unused{number}]" for number in range(size - len(tokens))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(tokens) + "\n")
    return Vocabulary.read(path)


def random_weights(folder, sharing="embeddings", seed=0, **changes):
    """Weights as if they were found, with moments; no two tensors are equal."""
    config = tiny_config(**SHARING[sharing], **changes)
    shapes = expected_shapes(config.architecture)

    def read(name, moment=""):
        # numpy's: jax compiles a program for each shape.
        rng = np.random.default_rng([seed, sorted(shapes).index(name), "_mv".index(moment or "_")])
        centre = float(name.endswith("LayerNorm/scale"))  # else hardly anything would come through
        return (centre + 0.1 * rng.standard_normal(shapes[name])).astype(np.float32)

    vocabulary = write_vocabulary(folder / "vocab.txt", config.model.vocab_size)
    return Weights(
        "random", config.architecture, shapes, read, 7, vocabulary, CASED, optimizer=ADAMW, read_moment=read,
        max_seq_length=config.data.max_seq_length,
    )  # fmt: skip


def export(weights, out, is_compared=True):
    """`out`, with both models; compared with transformers', which takes seconds, or not."""
    with pytest.MonkeyPatch.context() as patch, jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        if not is_compared:
            patch.setattr(parity, "compare", lambda *given: {})
        export_to_hugging_face(weights, out, "float32", Publication())
    return out


def export_both(root):
    """`root`, with `export`, of both models, and the checkpoint of the original `original`, same weights."""
    return copied_once(root, "exports", _export_both)


def _export_both(root):
    weights = random_weights(root)
    export(weights, root / "export")
    export_to_tf1(weights, root / "original")


def write_original(prefix, weights, hparams, step=0, slots=None):
    """A checkpoint of the original from {its name: array}; without `slots`, moments are those of a first step."""
    slots = slots or {f"{name}/adam_{moment}": np.zeros_like(weights[name]) for name in weights for moment in "mv"}
    tensors = {**weights, **slots, "global_step": np.asarray(step, np.int64)}
    prefix.parent.mkdir(parents=True, exist_ok=True)
    write_tf1_checkpoint(prefix, {name: value.shape for name, value in tensors.items()}, tensors.__getitem__)
    (prefix.parent / "hparams.json").write_text(json.dumps(hparams))


def assert_equal(ours, theirs):
    """Bit by bit."""
    assert ours.shapes == theirs.shapes
    for name in ours.shapes:
        np.testing.assert_array_equal(ours.read(name), theirs.read(name), err_msg=name)
