"""The way to the first step: programs compiled by an earlier start, and how long the compiler took."""

from __future__ import annotations

import importlib.util
import logging
import time
from pathlib import Path
from typing import Any

import jax

from electra_flax import formats
from electra_flax.errors import UserError
from electra_flax.runtime.host_memory import give_back_unused

log = logging.getLogger("electra_flax")

_CACHE_HIT = "/jax/compilation_cache/cache_hits"


def set_up_compiler(cache_folder: str) -> None:
    """Keep compiled programs in a folder, local or gs://, and take them from there; "" keeps none.

    Whoever may write there can run code here: it must not be shared with strangers. Raises UserError for a bucket that
    cannot be read for lack of a library.
    """
    if cache_folder.startswith("gs://") and importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"training.compilation_cache={cache_folder}: gs:// needs gcsfs: pip install 'electra-flax[gcs]', or name a "
            "folder"
        )
    path = cache_folder if "://" in cache_folder else str(Path(cache_folder).expanduser())
    jax.config.update("jax_compilation_cache_dir", path if cache_folder else None)
    # One kernel instead of twenty rounds written out at each draw, of which a GPU's compiler takes minutes for a model.
    jax.config.update("jax_threefry_gpu_kernel_lowering", True)


def compile_step(name: str, function: Any, *arguments: Any) -> Any:
    """Compile a jitted function for arguments (arrays or their shapes) ahead of its first call, and log the time."""
    hits = 0

    def listen(event: str, **unused: object) -> None:
        nonlocal hits
        hits += event == _CACHE_HIT

    started = time.perf_counter()
    jax.monitoring.register_event_listener(listen)
    try:
        compiled = function.lower(*arguments).compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    give_back_unused()
    source = "found in the compilation cache" if hits else "compiled"
    log.info("%s %s in %s", name, source, formats.duration(time.perf_counter() - started))
    return compiled
