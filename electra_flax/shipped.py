"""Models and configurations that ship with the package, found by their names."""

from __future__ import annotations

import difflib
from pathlib import Path

from electra_flax.errors import UserError

_PACKAGE = Path(__file__).parent
FOLDER = _PACKAGE / "models"
PARTS = ("discriminator", "generator")
# In the package that a wheel brings (setup.cfg: package_dir); beside it in a clone, which an editable install uses too.
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


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


def presets() -> dict[str, Path]:
    """Return the configurations that ship, by name."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.yaml"))}


def located_config(given: str | Path) -> Path:
    """Return a configuration: the file of that name or, where there is none, the preset.

    Raises UserError with the nearest preset where there is neither.
    """
    if Path(given).is_file():
        return Path(given)
    there = presets()
    if str(given) in there:
        return there[str(given)]
    nearest = difflib.get_close_matches(Path(given).stem, there, n=1)
    known = f"did you mean {nearest[0]}? " if nearest else ""
    raise UserError(f"--config {given}: no such file or preset: {known}electra-flax configs lists the presets")
