"""The wheel, alone in an environment: what it holds, and what people do with it first, far from any clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import electra_flax

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
# What a build needs of the clone; what else lies there (an old build/, a file nobody committed) has no say.
OF_THE_CLONE = ("electra_flax", "data_prep", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def run(*command: object, **how: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **how)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr[-3000:]
    return str(done.stdout)


def built(tree: Path, out: Path) -> Path:
    build = ("wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out)
    run(sys.executable, "-m", "pip", *build, tree)
    (wheel,) = out.iterdir()
    return wheel


def contents(wheel: Path) -> list[str]:
    return sorted(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("clone")
    for name in OF_THE_CLONE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory) -> Path:
    """Built as a release is: a source distribution, and from that the wheel."""
    place = tmp_path_factory.mktemp("dist")
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(place)!r})"
    run(sys.executable, "-c", build, cwd=clone)
    (sdist,) = place.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return built(place / sdist.name.removesuffix(".tar.gz"), place / "wheel")


def test_the_wheel_holds_the_product_and_nothing_else(clone, wheel, tmp_path):
    assert wheel.name == f"electra_flax-{electra_flax.__version__}-py3-none-any.whl"
    found = contents(wheel)
    tops = {name.split("/")[0] for name in found}
    assert tops == {"electra_flax", "data_prep", f"electra_flax-{electra_flax.__version__}.dist-info"}
    ours = {
        path.relative_to(clone).as_posix()
        for folder in ("electra_flax", "data_prep")
        for path in (clone / folder).rglob("*")
        if path.is_file() and path.relative_to(clone).as_posix() != "data_prep/sample/README.md"
    }
    presets = {f"electra_flax/{path.relative_to(clone).as_posix()}" for path in (clone / "configs").iterdir()}
    assert ours | presets == {name for name in found if ".dist-info/" not in name}
    assert contents(built(clone, tmp_path / "dist")) == found, "of the clone itself"


def test_the_wheel_is_enough(wheel, tmp_path):
    """The packages that it needs are those of the tests' environment, by their path: none of them is downloaded."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    bin_ = tmp_path / "venv/bin"
    run(sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "--no-deps", "--no-index", wheel)
    place = Path(run(bin_ / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (place / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{bin_}:{environment['PATH']}"
    said = run(ROOT / ".ci/try-installed", cwd=tmp_path, env=environment)
    assert f"files (copy one to write your own): {place / 'electra_flax/configs'}\n" in said
    assert "나는" in said and "NSMC: accuracy" in said
