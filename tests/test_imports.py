"""The rooms of the house and who may import whom, read off the source (docs/design.md)."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top down: a room imports what is below it, and itself.
ROOMS = (
    "commands", "api", "reports", "finetuning", "planning", "weights", "training", "data", "model", "storage",
    "runtime", "config",
)  # fmt: skip
# Below all rooms, in this order.
GROUND = ("pictures", "files", "text", "trees", "shipped", "errors", "formats")
# Modules in a chain of imports at the top of files.
LONGEST = 9
# What the other packages need of this one: all else stays out of a worker of data preparation, and of a laptop.
OF_THE_PACKAGE = {
    "data_prep": {"data", "runtime", "config", *GROUND},
    "tpu": {"config", "runtime.console", "runtime.ending", "runtime.flags", "runtime.tpus", *GROUND},
    # It runs on the TPU.
    "tpu.worker": {"config", "runtime", "storage.bucket", *GROUND},
}
# Room or module: the frameworks that it may not bring along.
WITHOUT = {
    "data_prep": {"jax", "flax", "torch", "tensorflow"},
    "tpu": {"jax", "flax", "torch", "tensorflow"},
    "electra_flax": {"torch", "tensorflow", "data_prep", "tpu", "tests"},
    "electra_flax.config": {"jax", "flax", "numpy"},
}
# The only modules that know a framework: Linen, and other frameworks' forward passes.
KNOWS = {
    "flax": {f"electra_flax.model.{name}" for name in ("layers", "electra", "heads")},
    "torch": {"electra_flax.weights.parity"},
}


def _modules() -> dict[str, Path]:
    files = [path for package in ("electra_flax", "data_prep", "tpu") for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


MODULES = _modules()


@functools.cache
def imports(module: str, *, at_top: bool = False) -> frozenset[str]:
    """Modules of ours by their full names, and the roots of all others; also what is imported within a function."""
    found = set()
    tree = ast.parse(MODULES[module].read_text())
    for node in tree.body if at_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return frozenset(name if name in MODULES else name.split(".")[0] for name in found) - {module, "electra_flax"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


@pytest.mark.parametrize("module", [name for name in MODULES if name.count(".") > 1 or room(name) in GROUND])
def test_imports_point_down(module):
    order = [*ROOMS, *GROUND]
    for other in imports(module) & MODULES.keys():
        here, there = room(module), room(other)
        assert order.index(here) <= order.index(there), f"{module} imports {other}, which lies above it"


def test_every_module_lies_in_a_room():
    ours = {room(name) for name in MODULES if name.startswith("electra_flax.")}
    assert ours == {*ROOMS, *GROUND, "__main__"}


def test_imports_of_a_room_make_no_circle():
    assert chain("electra_flax.__main__")


@pytest.mark.parametrize("module", MODULES)
def test_chains_of_imports_are_short(module):
    assert len(chain(module, at_top=True)) <= LONGEST, " -> ".join(chain(module, at_top=True))


@functools.cache
def chain(module: str, *, at_top: bool = False) -> tuple[str, ...]:
    """The longest way down from a module; endless recursion where imports make a circle."""
    below = [chain(other, at_top=at_top) for other in imports(module, at_top=at_top) if other in MODULES]
    return (module, *max(below, key=len, default=()))


@pytest.mark.parametrize("package", ["data_prep", "tpu"])
def test_other_packages_need_only_the_contract(package):
    for module in MODULES:
        if not module.startswith(f"{package}."):
            continue
        allowed = OF_THE_PACKAGE.get(module, OF_THE_PACKAGE[package])
        for other in imports(module):
            name = other.removeprefix("electra_flax.")
            assert not other.startswith("electra_flax.") or {name, name.split(".")[0]} & allowed, f"{module}: {other}"


# What the API does, commands do not do beside it.
BEHIND_THE_API = {
    "electra_flax.training.pretrain", "electra_flax.finetuning.run", "electra_flax.planning.plan",
    "electra_flax.reports.sentences",
}  # fmt: skip


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("electra_flax.commands.")])
def test_commands_are_built_on_the_api(module):
    assert not imports(module) & BEHIND_THE_API


@pytest.mark.parametrize("module", MODULES)
def test_frameworks_stay_behind_their_seams(module):
    for place, unwanted in WITHOUT.items():
        if module == place or module.startswith(f"{place}."):
            known = {name for name in unwanted if module in KNOWS.get(name, ())}
            assert not imports(module) & (unwanted - known), module
    if "flax" in imports(module):
        assert module in KNOWS["flax"], module


@pytest.mark.parametrize(
    ("module", "others"),
    [
        # Nor do the packages that it uses: tensorboardX would bring torch along where it is installed.
        ("electra_flax.training.pretrain", {"torch", "tensorflow", "transformers"}),
        # Whoever asks for help waits for what is loaded.
        ("electra_flax.commands.cli", {"jax", "numpy", "jsonargparse", "pydantic"}),
        # A program that names it waits for nothing, also where it looks at what there is.
        ("electra_flax", {"jax", "numpy", "jsonargparse", "pydantic", "rich", "electra_flax.errors"}),
    ],
)
def test_what_is_not_needed_is_not_loaded(module, others):
    program = f"import sys, {module}; print(sorted({others} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
