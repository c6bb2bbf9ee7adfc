"""Our run-time tokenizer and ElectraTokenizerFast from our folder against the original's FullTokenizer."""

import json

import pytest
from transformers import ElectraTokenizerFast

from electra_flax.data.tokenizer import Casing, build_tokenizer, save_tokenizer
from electra_flax.data.vocabulary import Vocabulary

CASED = Casing(do_lower_case=False, strip_accents=False)
# These lines hold characters that Unicode 11, the original's, does not have; the original deletes them as
# unassigned. 21 are those that the original itself tokenizes differently under newer Pythons
# (docs/semantics.md, section 1); the other two have characters of Unicode 16, which the tokenizers library knows.
ASSIGNED_BY_UNICODE_14 = 21
ASSIGNED_BY_UNICODE_16 = {400, 401}


@pytest.fixture(scope="module")
def tokenizers(golden, tmp_path_factory):
    vocabulary = Vocabulary.read(golden / "vocab_koelectra_v1.txt")
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(vocabulary, CASED, folder, 512)
    return build_tokenizer(vocabulary.tokens, CASED), ElectraTokenizerFast.from_pretrained(folder)


def test_pieces_are_the_originals(golden, tokenizers):
    ours, hugging_face = tokenizers
    lines = [json.loads(line) for line in (golden / "tokenization/tokenization.jsonl").open()]
    assert len(lines) == 572
    different, newer_unicode = set(), set()
    for line in lines:
        pieces = ours.encode(line["text"], add_special_tokens=False).tokens
        # The original does not protect "[MASK]" in raw text; split_special_tokens says so to Hugging Face.
        ids = hugging_face(line["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert hugging_face.convert_ids_to_tokens(ids) == pieces
        if any(key.startswith("differs_py") for key in line):
            newer_unicode.add(line["id"])
        if pieces != line["tokens"]:
            different.add(line["id"])
    assert len(newer_unicode) == ASSIGNED_BY_UNICODE_14
    assert different <= newer_unicode | ASSIGNED_BY_UNICODE_16


def test_published_example_of_koelectra_v3(tmp_path):
    pieces = "[CLS] 한국어 EL ##EC ##TRA ##를 공유 ##합니다 . [SEP]".split()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces[1:-1]]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    save_tokenizer(Vocabulary.read(tmp_path / "vocab.txt"), CASED, tmp_path / "out", 512)
    tokenizer = ElectraTokenizerFast.from_pretrained(tmp_path / "out")
    encoded = tokenizer("한국어 ELECTRA를 공유합니다.")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(encoded) == pieces
    assert tokenizer.tokenize("[CLS] 한국어 ELECTRA를 공유합니다. [SEP]") == pieces
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is False and settings["strip_accents"] is False
