"""Nested dicts of arrays and the names "a/b/c" of their leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

Params = dict[str, Any]
"""Nested dicts of arrays."""
Batch = dict[str, jax.Array]
"""Arrays of a global batch by name, each with B rows."""


def tree_names(tree: Any) -> Any:
    """Return the same tree with each leaf replaced by its name, "a/b/c"."""

    def name(path: tuple[Any, ...], leaf: Any) -> str:
        del leaf
        return "/".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", "")))) for part in path)

    return jax.tree_util.tree_map_with_path(name, tree)


def flat(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree of parameters by their names "a/b/c"."""
    return dict(zip(jax.tree.leaves(tree_names(tree)), jax.tree.leaves(tree), strict=True))


def nested(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tree of parameters that are named "a/b/c"."""
    tree: dict[str, Any] = {}
    for name, value in parameters.items():
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree
