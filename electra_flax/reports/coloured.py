"""What detect found in a sentence, as people read it: in colour."""

from __future__ import annotations

from rich.text import Text

from electra_flax.errors import escaped
from electra_flax.reports.sentences import Detected, Piece

# Probability of "replaced" from which a piece is shown so.
_STYLES = ((0.9, "bold red"), (0.5, "bold yellow"), (0.2, "cyan"))


def coloured(detected: Detected) -> Text:
    """Return the text as it was given, suspicious pieces in colour and followed by their probability.

    Where nothing is suspicious, the word that is most so follows.
    """
    text, shown, position = detected.text, Text(), 0
    for piece in detected.pieces:
        shown.append(escaped(text[position : piece.start]))
        style = next((style for least, style in _STYLES if piece.probability >= least), "")
        shown.append(escaped(text[piece.start : piece.end]), style)
        if is_marked(piece):
            shown.append(f"({piece.probability:.0%})", "dim")
        position = piece.end
    shown.append(escaped(text[position:]))
    if detected.words and not any(map(is_marked, detected.pieces)):
        highest = max(detected.words, key=lambda word: word.probability)
        said = (
            f"  (nothing at {_STYLES[-1][0]:.0%} or more; highest: {escaped(highest.text)} {highest.probability:.0%})"
        )
        shown.append(said, "dim")
    return shown


def is_marked(piece: Piece) -> bool:
    """Return whether it looks replaced enough to be shown so."""
    return piece.probability >= _STYLES[-1][0]


def legend() -> Text:
    """Return what the marks mean: the number, where there are no colours."""
    shown = Text("in brackets: probability of replacement; ")
    for (least, style), glue in zip(reversed(_STYLES), (", ", ", ", ""), strict=True):
        shown.append(f"{least:.0%} or more", style).append(glue)
    return shown
