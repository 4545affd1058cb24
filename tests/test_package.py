"""The package as people import it."""

import subprocess
import sys

import pytest

import bwflow as bw


@pytest.mark.parametrize("name", bw.__all__)
def test_every_public_name_resolves_and_is_described(name):
    value = getattr(bw, name)
    assert name in dir(bw)
    if name != "__version__":
        assert value.__doc__


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(bw, "no" + "thing")


def test_a_missing_extra_is_named(monkeypatch):
    for name in ("bwflow.sweeps", "xarray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoXarray, *sys.meta_path])
    with pytest.raises(
        ImportError, match=r"bwflow.sweeps needs xarray: pip install 'bwflow\[sweep"
    ):
        bw.sweep  # noqa: B018


class NoXarray:
    """An import system that does not find xarray."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "xarray":
            raise ModuleNotFoundError("No module named 'xarray'", name=name)


def test_importing_the_package_imports_neither_jax_nor_the_extras():
    code = "import bwflow, sys; print({'jax', 'xarray', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_library_changes_no_setting_of_jax():
    code = (
        "import jax; before = dict(jax.config.values); import bwflow as bw; bw.gradient_flow; "
        "bw.gradient_descent; bw.theory; bw.sweep; assert dict(jax.config.values) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
