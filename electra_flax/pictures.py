"""Charts -> PNGs that look the same everywhere: in fonts that come with the product, any text as it is written."""

from __future__ import annotations

import io
from functools import cache
from importlib import resources

from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

# The first is matplotlib's own, which has no Hangul; fonts/FONTLOG.txt says what the second is.
_FAMILIES = ["DejaVu Sans", "Electra Hangul"]


def to_png(figure: Figure) -> bytes:
    """Return the picture, with Hangul wherever it stands in its texts, and dollar signs that are no mathematics."""
    _add_hangul()
    for text in figure.findobj(Text):
        if not text.get_text().isascii():
            text.set_fontfamily(_FAMILIES)
            text.set_fontweight("normal")  # the one with Hangul has no other
        # Powers of ten on an axis are mathematics.
        if "$" in text.get_text() and r"\mathdefault" not in text.get_text():
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


@cache
def _add_hangul() -> None:
    with resources.as_file(resources.files("electra_flax") / "fonts/electra_hangul.ttf") as path:
        fontManager.addfont(path)
