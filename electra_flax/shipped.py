"""Models that ship with the package, found by their names."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "models"
PARTS = ("discriminator", "generator")


def names() -> list[str]:
    """Return those of all that are there."""
    folders = sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []
    return [folder.name for folder in folders if (folder / PARTS[0]).is_dir()]


def located(place: str) -> str:
    """Return the folder of the model that ships by this name; any other place, and a local folder's name, as it is."""
    return str(FOLDER / place) if place in names() and not Path(place).is_dir() else place


def offered() -> str:
    """Return the end of an error about a name that nothing has: those that ship."""
    return f"; models that ship with the package: {', '.join(names())}" if names() else ""
