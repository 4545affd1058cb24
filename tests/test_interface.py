"""The public interface is what was agreed on: names, parameters and defaults."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import bwflow as bw

ROOT = Path(__file__).parents[1]


def test_the_interface_is_the_one_that_is_written_down():
    """Whoever changes it on purpose runs `make interface`, and says so in the changelog."""
    script = ROOT / "docs" / "interface.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    written = (ROOT / "tests" / "interface.txt").read_text(encoding="utf-8")
    assert done.stdout.splitlines() == written.splitlines()


def test_every_public_name_of_a_room_is_there():
    for room in (*bw._MODULES, "experimental.semirandom"):
        module = import_module(f"bwflow.{room}")
        for name in module.__all__:
            assert hasattr(module, name), f"bwflow.{room}.{name}"
        assert sorted(module.__all__) == sorted(set(module.__all__))


def test_what_the_package_offers_is_offered_by_its_room_too():
    rooms = {name: import_module(f"bwflow.{room}") for name, room in bw._ROOMS.items()}
    for name, module in rooms.items():
        if hasattr(module, "__all__"):
            assert name in module.__all__
