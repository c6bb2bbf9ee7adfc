"""What a published model's card says of a run, and what it refuses to say."""

import dataclasses

import pytest
import yaml
from golden_tools import config_for
from weights_tools import random_weights

from electra_flax.config.architecture import GeneratorConfig
from electra_flax.config.loading import config_to_yaml
from electra_flax.config.masking import MaskingConfig
from electra_flax.config.schema import LongPhaseConfig
from electra_flax.data.manifest import Manifest, ShardInfo
from electra_flax.errors import UserError
from electra_flax.storage.workdir import Workdir
from electra_flax.weights.model_card import Publication, model_card

CLEANING = {
    "recipe": "koelectra-v3", "steps": ["nfc", "sentences", "short"], "splitter": "kiwi", "min_characters": 12,
    "near_similarity": 0.8, "changed_or_dropped": {"nfc": 3, "short": 1234},
}  # fmt: skip


def card(folder, size, cleaning, **changes):
    """README.md of a run whose data had `size` bytes."""
    weights = random_weights(folder / "tokenizer")
    shards = {"train": [ShardInfo("a", 10, 1000, 5000)], "validation": []}
    sources = [{"path": "corpus.txt", "bytes": size, "documents": 12}]
    Manifest(32, "0", 300, False, False, "ours", 0, 0.01, 0, sources, shards, cleaning).write(folder)
    (folder / "config.yaml").write_text(
        config_to_yaml(dataclasses.replace(config_for(weights.architecture), **changes))
    )
    weights = dataclasses.replace(weights, run=Workdir(folder))
    return model_card(weights, "discriminator", weights.architecture.model, Publication("mit", "ko"))["README.md"]


def test_a_card_says_how_the_data_was_cleaned(tmp_path):
    text = card(tmp_path, 60_600, CLEANING)
    steps = "nfc (3 texts), sentences (splitter kiwi), short (min_characters 12, 1,234 texts)"
    assert f"Cleaning, recipe koelectra-v3: {steps}." in text
    assert "12 documents in 1 file (60.6 kB), of which 10 sequences" in text
    assert "license: mit\nlanguage: ko\n" in text


def test_a_card_says_that_no_generator_replaced(tmp_path):
    uniform = GeneratorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64,
                              uniform_generator=True)  # fmt: skip
    text = card(tmp_path, 60_600, {"recipe": "none", "steps": []}, generator=uniform)
    assert "| replacements | drawn uniformly from the vocabulary |" in text and "generator (layers" not in text


def test_a_card_says_what_was_masked(tmp_path):
    none, masking = {"recipe": "none", "steps": []}, MaskingConfig(mask_prob=0.3, final_mask_prob=0.15, unit="span")
    assert "| masked tokens | 30% to 15% at the last step, spans of whole words |" in card(
        tmp_path, 17, none, masking=masking
    )
    long = LongPhaseConfig(steps=5, batch_size=8, max_seq_length=32, mask_prob=0.2)
    text = card(tmp_path, 17, none, masking=MaskingConfig(unit="word"), long_phase=long)
    assert "| masked tokens | 15%, whole words |" in text and "8 sequences of 32 tokens, 20% masked |" in text


@pytest.mark.parametrize(
    ("size", "expected"),
    [(17, "17 B"), (999, "999 B"), (999_900, "1 MB"), (34_000_000_000, "34 GB"), (5e15, "5,000 TB")],
)
def test_sizes_are_readable(tmp_path, size, expected):
    text = card(tmp_path, int(size), {"recipe": "none", "steps": []})
    assert f"({expected})" in text and "Cleaning" not in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"license": "Apache 2.0"}, "Apache 2.0: not a licence identifier of the hub (did you mean apache-2.0?)"),
        ({"license": "MIT"}, "(did you mean mit?); expected one such as apache-2.0, mit or cc-by-sa-4.0; for any "
         "other licence, --license other --license-name NAME"),
        ({"license": "mit\ntags: [x]"}, "not a licence identifier"),
        ({"license": "mit", "license_name": "Ours"}, "--license-name and --license-link need --license other"),
        ({"license_link": "https://a.b"}, "need --license other"),
        ({"language": "Korean"}, "--language Korean: not a language code"),
        ({"language": "ko-KR"}, "two or three lower-case letters (ISO 639) such as ko or en, without a region"),
        ({"language": "ko\n"}, "not a language code"),
    ],
)  # fmt: skip
def test_what_is_no_identifier_is_refused(given, expected):
    with pytest.raises(UserError) as caught:
        Publication(**given)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("given", "header", "remarks"),
    [
        ({}, [], 0),
        ({"license": "cc-by-nc-sa-4.0", "language": "multilingual"},
         ["license: cc-by-nc-sa-4.0", "language: multilingual"], 0),
        ({"license": "llama9.1", "language": "jje"}, ["license: llama9.1", "language: jje"], 1),
        ({"language": "no"}, ["language: 'no'"], 0),  # Norwegian, not YAML's false
        ({"license": "other", "license_name": "우리: 것", "license_link": "https://a.b/L"},
         ["license: other", "license_name: '우리: 것'", "license_link: https://a.b/L"], 0),
    ],
)  # fmt: skip
def test_what_the_hub_may_know_is_passed_on(given, header, remarks):
    publication = Publication(**given)
    head = publication.head(["electra"])
    assert set(header) <= set(head.split("\n")) and len(publication.remarks) == remarks
    assert yaml.safe_load(head) == {"library_name": "transformers", "tags": ["electra"], **given}
