"""WordPiece over code points, compiled: greedy matching in a trie of the vocabulary.

What a character is (part of a word, a word of its own, space) comes from outside as a table, so no rule of BERT's is
repeated here. Source of the matching: docs/semantics.md, section 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from electra_flax.data.vocabulary import MAX_WORD_CHARACTERS
from electra_flax.runtime.compiled import compiled

LETTER, ALONE, SPACE, OTHER, UNSEEN = range(5)
"""Kinds of characters: part of a word; a word of its own; between words; not for this module; not asked for yet."""
# OTHER is what no table of single characters can say: those that become several, or none, when they are normalised. The
# runs of text that hold one go to the tokenizer itself, and come back as `spans`.

_NEWLINE = 10
_START, _CONTINUE = 0, 1  # nodes where a word's first piece and its later pieces begin
_CODE_BITS = 21  # of a code point


class Trie(NamedTuple):
    """The vocabulary's edges in a hash table of open addresses."""

    edges: np.ndarray
    """Node << 21 | code point, or -1 where a slot is free, int64 [a power of two]."""
    nodes: np.ndarray
    """The node that the edge leads to, int32 [like edges]."""
    pieces: np.ndarray
    """Id of the piece that ends at a node, or -1, int32 [nodes]."""

    @classmethod
    def build(cls, tokens: list[str]) -> Trie:
        # One table for all nodes: an edge is a number, of where it begins and what it reads. With a free slot for every
        # taken one, look-ups end after a slot or two, also those of edges that are not there.
        found: dict[int, int] = {}
        pieces = [-1, -1]
        for number, token in enumerate(tokens):
            # "##" alone is an ordinary piece of two signs.
            node, text = (_CONTINUE, token[2:]) if token.startswith("##") and len(token) > 2 else (_START, token)
            for character in text:
                edge = node << _CODE_BITS | ord(character)
                node = found.setdefault(edge, len(pieces))
                if node == len(pieces):
                    pieces.append(-1)
            pieces[node] = number
        num_slots = 1 << (2 * len(found)).bit_length()
        edges, nodes = np.full(num_slots, -1, np.int64), np.zeros(num_slots, np.int32)
        _fill(edges, nodes, np.fromiter(found, np.int64), np.fromiter(found.values(), np.int32))
        return cls(edges, nodes, np.array(pieces, np.int32))


@compiled
def _slot(edges, edge):  # type: ignore[no-untyped-def]
    """Return where `edge` is, or where it would be."""
    mask = len(edges) - 1
    # 2^64 divided by the golden ratio spreads numbers that lie close together, as code points do. Of the product, the
    # low 20 bits are shifted out: they know nothing of the node.
    slot = (edge * np.int64(-7046029254386353131) >> 20) & mask
    while edges[slot] != edge and edges[slot] >= 0:
        slot = (slot + 1) & mask
    return slot


@compiled
def _fill(edges, nodes, keys, values):  # type: ignore[no-untyped-def]
    for i in range(len(keys)):
        slot = _slot(edges, keys[i])
        edges[slot], nodes[slot] = keys[i], values[i]


@compiled
def other_words(codes, kinds):  # type: ignore[no-untyped-def]
    """Return start and end of the runs without space that hold an OTHER character, int64 [runs, 2].

    `codes` are the text's code points, uint32 [characters]; `kinds` is each code point's kind, uint8 [0x110000].
    """
    spans = np.empty((len(codes) // 2 + 1, 2), np.int64)  # runs have a space between them
    count, start, has_other = 0, 0, False
    for i in range(len(codes) + 1):
        kind = kinds[codes[i]] if i < len(codes) else SPACE  # the end closes the last run
        if kind == SPACE:
            if has_other:
                spans[count, 0], spans[count, 1] = start, i
                count += 1
            start, has_other = i + 1, False
        elif kind == OTHER:
            has_other = True
    return spans[:count]


@compiled
def encode(codes, kinds, folded, edges, nodes, pieces, unknown, spans, span_ids, span_ends):  # type: ignore[no-untyped-def]
    """Return ids of the text, int32 [ids], and where each line's ids end, int64 [lines].

    `folded` is what each code point is looked up as, uint32 [0x110000]. The k-th of the `spans` (of `other_words`) has
    the ids up to `span_ends[k]` of `span_ids`.
    """
    ids = np.empty(len(codes) + len(span_ids), np.int32)  # a piece has a character at least
    ends = np.empty(len(codes) + 1, np.int64)
    count, lines, i, span = 0, 0, 0, 0
    while i < len(codes):
        if span < len(spans) and i == spans[span, 0]:
            for k in range(span_ends[span - 1] if span else 0, span_ends[span]):
                ids[count] = span_ids[k]
                count += 1
            i = spans[span, 1]
            span += 1
            continue
        kind = kinds[codes[i]]
        if kind == SPACE:
            if codes[i] == _NEWLINE:
                ends[lines] = count
                lines += 1
            i += 1
            continue
        end = i + 1
        if kind == LETTER:
            while end < len(codes) and kinds[codes[end]] == LETTER:
                end += 1
        # Greedy, as the original: of the pieces that the rest of the word begins with, the longest. The walk goes on
        # past shorter ones as long as the trie does and remembers the last. A rest without any makes all of it [UNK].
        first, begin = count, _START
        is_known = end - i <= MAX_WORD_CHARACTERS  # longer words are [UNK] whole, as BERT's
        while is_known and i < end:
            node, piece, piece_end = begin, -1, i
            for k in range(i, end):
                slot = _slot(edges, np.int64(node) << _CODE_BITS | np.int64(folded[codes[k]]))
                if edges[slot] < 0:
                    break
                node = nodes[slot]
                if pieces[node] >= 0:
                    piece, piece_end = pieces[node], k + 1
            is_known = piece >= 0
            ids[count] = piece
            count += 1
            i, begin = piece_end, _CONTINUE
        if not is_known:  # in place of the pieces found so far
            ids[first] = unknown
            count = first + 1
        i = end
    ends[lines] = count
    return ids[:count], ends[: lines + 1]
