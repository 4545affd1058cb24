"""Notebooks and benchmarks run as people run them, at smoke size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.py"))


def run(script, *arguments, cwd):
    environment = os.environ | {"BWFLOW_SMOKE": "1", "MPLBACKEND": "Agg", "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda script: script.stem)
def test_notebook_runs_and_writes_its_pictures(script, tmp_path):
    assert run(script, cwd=tmp_path).strip()
    assert list((tmp_path / "results" / "notebooks").glob(f"{script.stem[:2]}_*.png"))


@pytest.mark.slow
@pytest.mark.parametrize("script", NOTEBOOKS, ids=lambda script: script.stem)
def test_rendered_notebook_is_of_the_code_as_it_is(script):
    cells = re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)[1:]
    code = [cell.strip() for cell in cells if not cell.startswith(" [markdown]")]
    page = ROOT / "docs" / "notebooks" / f"{script.stem}.md"
    assert page.is_file(), f"make notebooks ONLY={script.stem[:2]}"
    text = page.read_text()
    shown = re.findall(r"^```python\n(.*?)\n```$", text, flags=re.MULTILINE | re.DOTALL)
    assert shown == code, f"make notebooks ONLY={script.stem[:2]}"
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", text, flags=re.MULTILINE)
    assert pictures
    assert all((page.parent / picture).is_file() for picture in pictures)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").glob("[A-Z]*.py")), ids=lambda script: script.stem
)
def test_benchmark_runs_and_writes_its_dataset(script, tmp_path):
    assert run(script, "--smoke", cwd=tmp_path).strip()
    assert (tmp_path / "results" / "benchmarks" / script.stem / "zarr.json").is_file()
