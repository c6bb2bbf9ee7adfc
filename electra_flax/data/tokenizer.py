"""The WordPiece tokenizer of a vocabulary, and the files that Hugging Face's ElectraTokenizer loads.

Shared by data preparation (which tokenizes with it) and export (which publishes it). Needs no JAX.
Source of the rules: docs/semantics.md, section 1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from electra_flax.data.vocabulary import MAX_WORD_CHARACTERS, Vocabulary
from electra_flax.errors import UserError
from electra_flax.files import read_json, write_all

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


class Casing(NamedTuple):
    """What is done to letters before the pieces are looked up; both are always written out.

    Left unset, Hugging Face strips accents whenever it lower-cases, and stripping decomposes Hangul syllables to
    Jamo that no vocabulary has: most Korean words become [UNK].
    """

    do_lower_case: bool
    strip_accents: bool

    @classmethod
    def read(cls, folder: Path) -> Casing:
        """Return the flags in a tokenizer folder. Raises UserError where they are missing."""
        path = folder / "tokenizer_config.json"
        fix = 'for a cased vocabulary write {"do_lower_case": false, "strip_accents": false} there'
        if not path.exists():
            raise UserError(f"{path}: missing, which says what is done to letters: {fix}")
        values = read_json(path, dict[str, Any], fix)
        lower, strip = values.get("do_lower_case"), values.get("strip_accents")
        if not isinstance(lower, bool):
            raise UserError(f"{path}: do_lower_case={lower!r}: expected true or false: {fix}")
        if not isinstance(strip, bool | None):
            raise UserError(f"{path}: strip_accents={strip!r}: expected true, false or null: {fix}")
        return cls(lower, lower if strip is None else strip)


def build_tokenizer(tokens: list[str], casing: Casing) -> Tokenizer:
    """Return the tokenizer of the original: text -> pieces. Special tokens in the text are ordinary text."""
    ids = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARACTERS))
    bert_normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=casing.strip_accents,
        lowercase=casing.do_lower_case,
    )
    # The library's BERT rules use an old Unicode table and keep unassigned characters; the original deletes those
    # and splits at every punctuation character. Its regular expressions know a newer Unicode.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"[\p{Cn}\p{Cf}\p{Co}]"), ""), bert_normalizer]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Split(Regex(r"\p{P}"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return tokenizer


def published_tokenizer(vocabulary: Vocabulary, casing: Casing) -> Tokenizer:
    """Return what Hugging Face's users have: text -> [CLS] pieces [SEP]; special tokens in the text are themselves."""
    tokenizer = build_tokenizer(vocabulary.tokens, casing)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    special = vocabulary.special
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", special.cls), ("[SEP]", special.sep)],
    )
    return tokenizer


def save_tokenizer(vocabulary: Vocabulary, casing: Casing, folder: Path, model_max_length: int) -> None:
    """Write `tokenizer_files`: all of them or none. Raises UserError where they cannot be written."""
    write_all(folder, tokenizer_files(vocabulary, casing, model_max_length))


def tokenizer_files(vocabulary: Vocabulary, casing: Casing, model_max_length: int) -> dict[str, str | bytes]:
    """Return vocab.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json, for ElectraTokenizer."""
    settings = {
        "tokenizer_class": "ElectraTokenizer",
        "do_lower_case": casing.do_lower_case,
        "strip_accents": casing.strip_accents,
        "tokenize_chinese_chars": True,
        "do_basic_tokenize": True,
        "model_max_length": model_max_length,
        **SPECIAL_TOKENS,
    }
    return {
        "vocab.txt": vocabulary.content,
        "tokenizer.json": published_tokenizer(vocabulary, casing).to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "special_tokens_map.json": json.dumps(SPECIAL_TOKENS, indent=2) + "\n",
    }
