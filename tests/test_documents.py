"""Notebooks and benchmarks run as people run them, at smoke size."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


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
@pytest.mark.parametrize(
    "script", sorted((ROOT / "notebooks").glob("[0-9]*.py")), ids=lambda script: script.stem
)
def test_notebook_runs_and_writes_its_pictures(script, tmp_path):
    assert run(script, cwd=tmp_path).strip()
    assert list((tmp_path / "results" / "notebooks").glob(f"{script.stem[:2]}_*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").glob("[A-Z]*.py")), ids=lambda script: script.stem
)
def test_benchmark_runs_and_writes_its_dataset(script, tmp_path):
    assert run(script, "--smoke", cwd=tmp_path).strip()
    assert (tmp_path / "results" / "benchmarks" / script.stem / "zarr.json").is_file()
