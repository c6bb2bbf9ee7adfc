"""The table of names: complete in both directions, against the original's own list of variables."""

import dataclasses

import pytest
from golden_tools import RECORDED, read_json, tiny_config

from electra_flax.config.architecture import ModelConfig
from electra_flax.model.electra import expected_shapes
from electra_flax.weights import names
from electra_flax.weights.shapes import architecture_of, own_generator, sizes_of


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"generator": {"embedding_sharing": "separate"}},
        {"generator": {"embedding_sharing": "gdes"}},
        {"generator": {"uniform_generator": True}},
        {"generator": {"two_towers": True}},
        {"generator": {"embedding_sharing": "separate"}, "objective": {"kind": "electric"}},
        {"objective": {"kind": "masked_tokens"}},
    ],
)
def test_every_name_comes_back(changes):
    architecture = tiny_config(**changes).architecture
    ours = list(expected_shapes(architecture))
    found = architecture_of(dict.fromkeys(ours), architecture.model, architecture.generator)
    assert dataclasses.replace(found, logit=architecture.logit) == architecture  # what a logit is says no name
    assert [names.from_torch(names.to_torch(name)) for name in ours] == ours
    assert [names.from_tf1(names.to_tf1(name)) for name in ours] == ours
    assert all(names.is_tf1_parameter(names.to_tf1(name)) for name in ours)
    assert not any(names.is_tf1_parameter(names.tf1_slot(name, "adam_m")) for name in ours)


def test_names_and_shapes_are_the_originals():
    options = read_json(RECORDED / "variables_by_option.json.gz")
    compared = 0
    for option, values in options.items():
        found = {names.from_tf1(each["name"]): tuple(each["shape"]) for each in values["variables"]}
        assert {names.to_tf1(name) for name in found} == {each["name"] for each in values["variables"]}
        sizes = values["disc_config"]
        embedding_size = values["embedding_size"] or sizes["hidden_size"]
        assert sizes_of(found).items() <= (sizes | {"embedding_size": embedding_size}).items()
        electra = ModelConfig(**sizes_of(found), num_attention_heads=sizes["num_attention_heads"])
        generator = None
        if own := own_generator(found):
            table = own if f"{own}/embeddings/word_embeddings/embedding" in found else "electra"
            generator = ModelConfig(**sizes_of(found, own, table), num_attention_heads=1)
            for size in ("hidden_size", "num_hidden_layers", "intermediate_size"):
                assert getattr(generator, size) == values["gen_config"][size]
        assert expected_shapes(architecture_of(found, electra, generator)) == found, option
        compared += len(found)
    assert compared > 2000
