"""What a published model's card says of a run, and what it refuses to say."""

import dataclasses

import pytest
from weights_tools import random_weights

from electra_flax.errors import UserError
from electra_flax.model_card import Publication, model_card
from electra_flax.records import Manifest, ShardInfo
from electra_flax.workdir import Workdir

CLEANING = {
    "recipe": "koelectra-v3", "steps": ["nfc", "sentences", "short"], "splitter": "kiwi", "min_characters": 12,
    "near_similarity": 0.8, "changed_or_dropped": {"nfc": 3, "short": 1234},
}  # fmt: skip


def card(folder, size, cleaning):
    """README.md of a run whose data had `size` bytes."""
    weights = random_weights(folder / "tokenizer")
    shards = {"train": [ShardInfo("a", 10, 1000, 5000)], "validation": []}
    sources = [{"path": "corpus.txt", "bytes": size, "documents": 12}]
    Manifest(32, "0", 300, False, False, "ours", 0, 0.01, 0, sources, shards, cleaning).write(folder)
    weights = dataclasses.replace(weights, run=Workdir(folder))
    return model_card(weights, "discriminator", weights.config.model, Publication("mit", "ko"))["README.md"]


def test_a_card_says_how_the_data_was_cleaned(tmp_path):
    text = card(tmp_path, 60_600, CLEANING)
    steps = "nfc (3 texts), sentences (splitter kiwi), short (min_characters 12, 1,234 texts)"
    assert f"Cleaning, recipe koelectra-v3: {steps}." in text
    assert "12 documents in 1 files (60.6 KB), of which 10 sequences" in text
    assert "license: mit\nlanguage: ko\n" in text


@pytest.mark.parametrize(
    ("size", "expected"),
    [(17, "17 bytes"), (999, "999 bytes"), (999_900, "1 MB"), (34_000_000_000, "34 GB"), (5e15, "5e+03 TB")],
)
def test_sizes_are_readable(tmp_path, size, expected):
    text = card(tmp_path, int(size), {"recipe": "none", "steps": []})
    assert f"({expected})" in text and "Cleaning" not in text


@pytest.mark.parametrize(
    ("license", "language", "expected"),
    [
        ("Apache 2.0", "", "--license Apache 2.0: not an identifier that the hub knows (did you mean apache-2.0?)"),
        ("mit\ntags: [x]", "", "not an identifier"),
        ("", "Korean", "--language Korean: not a code of a language"),
        ("", "xx", "--language xx: not a code"),
        ("", "ko\n", "not a code"),
    ],
)
def test_identifiers_that_the_hub_does_not_know_are_refused(license, language, expected):
    with pytest.raises(UserError) as caught:
        Publication(license, language)
    assert expected in str(caught.value)
    assert Publication("other", "kor").language == "kor"
