"""What is built for others: the wheel and the archive of the source."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.once]
ROOT = Path(__file__).parents[1]
# What no module imports and the wheel has to have all the same.
DATA = {"py.typed", "specs/demo.toml", "specs/example.toml", "specs/demo-full.toml"}


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


def test_both_are_as_the_index_wants_them(built):
    assert {path.suffix for path in built.iterdir()} == {".whl", ".gz"}
    assert "PASSED" in run("-m", "twine", "check", "--strict", *built.iterdir())


def test_the_wheel_is_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = Parser().parsestr(
            archive.read(next(n for n in archive.namelist() if n.endswith("METADATA"))).decode()
        )
    package = ROOT / "bwflow"
    files = {
        f"bwflow/{path.relative_to(package)}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files
    assert {f"bwflow/{name}" for name in DATA} <= names
    assert any(name.endswith(".js") for name in names)  # the web page
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"sweep", "plot", "sklearn", "demo"} <= set(metadata.get_all("Provides-Extra"))


def test_what_is_installed_from_the_wheel_runs_from_anywhere(wheel, tmp_path):
    place = tmp_path / "site"
    run("-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel)
    environment = os.environ | {"PYTHONPATH": str(place)}
    code = "import bwflow, bwflow.report; print(bwflow.__file__)"
    found = run("-c", code, cwd=tmp_path, env=environment)
    assert Path(found.strip()).is_relative_to(place)
    assert "bwflow" in run("-m", "bwflow", "--version", cwd=tmp_path, env=environment)
    assert "[target]" in run("-m", "bwflow", "sweep", "--example", cwd=tmp_path, env=environment)
