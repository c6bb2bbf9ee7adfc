"""What several files of tests begin with is made once, whichever of pytest's processes asks first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` filled; it is everybody's, to be read alone."""
    place = Path(os.environ["TESTS_COMMON"]) / name  # conftest.py
    done = place.with_suffix(".done")
    with FileLock(place.with_suffix(".lock")):
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)  # of one that failed
            place.mkdir()
            make(place)
            done.touch()
    return place


def copied_once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """`folder`, with a copy of that, which the test may change."""
    return shutil.copytree(made_once(name, make), folder, dirs_exist_ok=True)
