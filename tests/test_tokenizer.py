"""Our run-time tokenizer and ElectraTokenizerFast from our folder against the original's FullTokenizer, and against
the plain Python of the same rules in transformers."""

import json
import unicodedata
from collections import Counter

import pytest
from transformers import ElectraTokenizerFast
from transformers.models.bert.tokenization_bert import BasicTokenizer, WordpieceTokenizer

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


# Composed text alone: the library composes what it is given, the original does not. No character is younger than
# Unicode 11 but those that no version has.
ODD_LINES = [
    "가\u0000나\ufffd다\u0007라\u200b마\u200d바\u00ad사\ufeff아\u0378자\ue000차",  # they vanish
    "가\t나\u00a0다\u3000라\u2028마\u2029바\u1680사",  # they separate
    "한국어漢字と日本語カナ\u3400\U00020000가",  # ideographs stand alone, Kana does not
    "가,나。다、라…마『바』사—아·자_차^카`타~파|하$①½",
    "₩1,000 €5 ★ → 😀 가😀나",  # category S is no punctuation
    "[MASK] [CLS]가[SEP] [unused0] ##가",  # text, where they stand in a text
    "가" * 200 + " " + "가" * 201,  # the longest word, and one that is too long
    "DON'T Can't naïve ÀÉÎ İstanbul ǅ ß Ελλάς",
    "\u1100 \u1161 ㄱㅏ ﾡ",  # jamo
    "",
    "  ",
]


def characters_as_vocabulary(text: str) -> list[str]:
    """Every character of the text, alone and within a word, and its most common words."""
    characters = sorted(set("".join(text.split())))
    words = [word for word, _ in Counter(text.split()).most_common(300) if len(word) > 1 and word.isalnum()]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return [*special, *characters, *(f"##{character}" for character in characters), *words]


@pytest.mark.parametrize("casing", [CASED, Casing(True, False), Casing(True, True)], ids=str)
def test_pieces_are_those_of_plain_python(sample_corpus, casing):
    text = (sample_corpus / "korean.txt").read_text(encoding="utf-8")
    lines = [*text.splitlines(), *ODD_LINES]
    assert all(unicodedata.is_normalized("NFC", line) for line in lines)
    tokens = characters_as_vocabulary("\n".join([text, text.lower(), *ODD_LINES[1:]]))
    words = BasicTokenizer(casing.do_lower_case, strip_accents=casing.strip_accents)
    pieces = WordpieceTokenizer(dict.fromkeys(tokens), "[UNK]", max_input_chars_per_word=200)
    ours = build_tokenizer(tokens, casing)
    for line in lines:
        expected = [piece for word in words.tokenize(line) for piece in pieces.tokenize(word)]
        assert ours.encode(line, add_special_tokens=False).tokens == expected, line


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
