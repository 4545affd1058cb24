"""The package as people import it."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bwflow as bw


@pytest.mark.parametrize("name", bw.__all__)
def test_every_public_name_resolves_and_is_described(name):
    value = getattr(bw, name)
    assert name in dir(bw)
    if name != "__version__":
        assert value.__doc__


def test_the_version_is_the_same_everywhere():
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    citation = re.search(r"^version: (.*)$", (root / "CITATION.cff").read_text(), re.MULTILINE)
    assert citation is not None
    assert project["version"] == citation[1] == bw.__version__


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(bw, "no" + "thing")


@pytest.mark.parametrize(
    ("public", "room", "package", "extra"),
    [
        ("sweep", "sweeps", "xarray", "sweep"),
        ("estimators", "estimators", "sklearn", "sklearn"),
    ],
)
def test_a_missing_extra_is_named(monkeypatch, public, room, package, extra):
    for name in list(sys.modules):
        if f"{name}.".startswith((f"bwflow.{room}.", f"{package}.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(bw), public, raising=False)
    monkeypatch.setattr(sys, "meta_path", [Without(package), *sys.meta_path])
    advice = rf"bwflow.{room} needs {package}: pip install 'bwflow\[{extra}\]'"
    with pytest.raises(ImportError, match=advice):
        getattr(bw, public)


class Without:
    """An import system that does not find a package."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_importing_the_package_imports_neither_jax_nor_the_extras():
    code = (
        "import bwflow, sys; print({'jax', 'xarray', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_dynamics_import_nothing_that_costs_as_much_as_they_do():
    """`scipy.stats` takes as long as jax and diffrax together."""
    code = (
        "import sys, bwflow as bw; bw.gradient_flow, bw.gradient_descent, bw.losses, bw.geometry, "
        "bw.initializers, bw.until, bw.theory, bw.landscape, bw.precondition, bw.problems; "
        "print({'scipy.stats', 'scipy.optimize', 'xarray', 'matplotlib', 'sklearn', 'pandas'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_library_changes_no_setting_of_jax():
    code = (
        "import jax; before = dict(jax.config.values); import bwflow as bw; bw.gradient_flow; "
        "bw.gradient_descent; bw.theory; bw.sweep; assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
