"""Pretrain ELECTRA on TPUs with JAX and Flax.

The names of `__all__` are what programs call (docs/api.md). Each is imported when it is first asked for, so that the
package itself costs nothing: JAX takes seconds.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# pip asks before it installs, in a clone nobody does. Words that any Python can read, before those that only a new one
# can.
if sys.version_info < (3, 11):  # noqa: UP036
    raise SystemExit(
        "electra-flax: error: Python " + sys.version.split()[0] + ", expected 3.11 or newer: " + sys.executable
    )

if TYPE_CHECKING:
    from electra_flax.api.models import Model, load
    from electra_flax.api.plans import plan
    from electra_flax.api.runs import pretrain
    from electra_flax.api.tasks import finetune
    from electra_flax.config.schema import Config
    from electra_flax.errors import RunError, Unavailable, UserError
    from electra_flax.finetuning.result import Finetuned
    from electra_flax.planning.table import Plan
    from electra_flax.reports.scoring import Scored
    from electra_flax.reports.sentences import Detected, Filled
    from electra_flax.training.callbacks import Callbacks
    from electra_flax.training.pretrain import Pretrained
    from electra_flax.weights.start import Start
else:
    _MODULES = {
        "Callbacks": "training.callbacks",
        "Config": "config.schema",
        "Detected": "reports.sentences",
        "Filled": "reports.sentences",
        "Finetuned": "finetuning.result",
        "Model": "api.models",
        "Plan": "planning.table",
        "Pretrained": "training.pretrain",
        "RunError": "errors",
        "Scored": "reports.scoring",
        "Start": "weights.start",
        "Unavailable": "errors",
        "UserError": "errors",
        "finetune": "api.tasks",
        "load": "api.models",
        "plan": "api.plans",
        "pretrain": "api.runs",
    }

    def __getattr__(name):
        if name not in _MODULES:
            raise AttributeError(f"module 'electra_flax' has no attribute {name!r}")
        globals()[name] = value = getattr(import_module(f"electra_flax.{_MODULES[name]}"), name)
        return value

    def __dir__():
        return sorted([*globals(), *_MODULES])


__all__ = [
    "Callbacks", "Config", "Detected", "Filled", "Finetuned", "Model", "Plan", "Pretrained", "RunError",
    "Scored", "Start", "Unavailable", "UserError", "finetune", "load", "plan", "pretrain",
]  # fmt: skip
