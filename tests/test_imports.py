"""The direction of imports that docs/design.md promises, read off the source."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ALLOWED_IN_DATA_PREP = {f"electra_flax.{name}" for name in (
    "compiled", "config", "console", "ctrl_c", "ending", "errors", "files", "pictures", "ranges", "records", "text",
    "tfrecord", "tokenizer",
)}  # fmt: skip


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "electra_flax":
                found |= {f"electra_flax.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def test_data_prep_needs_only_the_contract():
    for path in (ROOT / "data_prep").glob("*.py"):
        names = imports(path)
        ours = {name for name in names if name.startswith("electra_flax")}
        assert ours <= ALLOWED_IN_DATA_PREP, path
        assert not {name.split(".")[0] for name in names} & {"jax", "flax", "torch", "tensorflow"}, path


def test_electra_flax_keeps_its_seams():
    for path in (ROOT / "electra_flax").rglob("*.py"):
        names = imports(path)
        roots = {name.split(".")[0] for name in names}
        # What compares our forward pass with other frameworks' imports them, where they are installed.
        others = {"tensorflow"} if path.stem == "parity" else {"torch", "tensorflow"}
        assert not roots & {"data_prep", "tests", "tpu", *others}, path
        if "flax" in roots:
            assert path.stem in ("layers", "model") or names & {"flax.serialization"}, path


def test_pretraining_needs_nothing_of_fine_tuning():
    for path in (ROOT / "electra_flax").glob("*.py"):
        # The command line imports it when it is asked for.
        assert path.stem in ("cli", "arguments") or not any("finetune" in name for name in imports(path)), path


def test_the_launcher_starts_without_jax():
    """It runs on a laptop, and what it needs of the trainer is words and numbers."""
    allowed = {
        f"electra_flax.{name}"
        for name in ("config", "config_io", "console", "ending", "errors", "files", "ranges", "text", "tpus")
    }
    for path in (ROOT / "tpu").glob("*.py"):
        names = {name for name in imports(path) if name.startswith("electra_flax")}
        # worker.py runs on the TPU.
        assert names <= (allowed | ({"electra_flax.storage"} if path.stem == "worker" else set())), path


def test_leaves_import_nothing_heavy():
    for name in ("config", "errors", "names"):
        roots = {module.split(".")[0] for module in imports(ROOT / f"electra_flax/{name}.py")}
        assert roots <= {
            "__future__",
            "collections",
            "contextlib",
            "dataclasses",
            "re",
            "typing",
            "unicodedata",
            "electra_flax",
        }, name


def test_a_trainer_loads_no_other_framework():
    """Nor do the packages that it uses: tensorboardX would bring torch along where it is installed."""
    others = "{'torch', 'tensorflow', 'transformers'}"
    program = f"import sys, electra_flax.train; print(sorted({others} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
