"""Tests run on eight simulated CPU devices, with implicit broadcasting of ranks forbidden."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling dominates these tests; the results are the same to the last digits that they check.
jax.config.update("jax_disable_most_optimizations", True)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Values that the original code produced."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("NOT CHECKED: the golden values of the original code are not beside this clone (../shared)")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def sample_corpus() -> Path:
    """The small corpus that comes with the product."""
    return Path(__file__).parents[1] / "data_prep/sample"
