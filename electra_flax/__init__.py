"""Pretrain ELECTRA on TPUs with JAX and Flax."""

import sys

__version__ = "0.1.0"

# pip asks before it installs, in a clone nobody does. Words that any Python can read, before those that only a new one
# can.
if sys.version_info < (3, 11):  # noqa: UP036
    raise SystemExit(
        "electra-flax: error: Python " + sys.version.split()[0] + ", expected 3.11 or newer: " + sys.executable
    )
