"""What every test and every documented example shares."""

import sys

import pytest


@pytest.fixture(autouse=True)
def figures_closed():
    """The current axes are new for each of them."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
