"""What the tests of the command share: a small spec, and what a command may leave behind."""

import os

from helpers import by_precision

from bwflow import cli

PRECISION = by_precision("float64", "float32")
SPEC = f"""
name = "small"
tau = [0.0, 0.1]
seeds = 2
dynamics = ["descent"]
precision = "{PRECISION}"
[target]
kind = "geometric"
n = 2
[network]
depth = [1]
[descent]
num_steps = 10
save_every = 2
"""
# What the command sets; the suite's values stay after it.
_ENVIRONMENT = {
    "JAX_ENABLE_X64": by_precision("1", "0"),
    "EQX_ON_ERROR": "nan",
    "JAX_COMPILATION_CACHE_DIR": "",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "OPENBLAS_NUM_THREADS": "1",
}


def enter(folder, monkeypatch):
    """Make a folder with the small spec the working directory, until the patch is undone."""
    (folder / "spec.toml").write_text(SPEC, encoding="utf-8")
    monkeypatch.chdir(folder)
    for name, value in _ENVIRONMENT.items():
        monkeypatch.setenv(name, os.environ.get(name, value))


def state(folder):
    """Sizes and times of all files, and names of the folders."""
    found = {path: path.stat() for path in sorted(folder.rglob("*"))}
    return {
        path: (info.st_size, info.st_mtime_ns) if path.is_file() else None
        for path, info in found.items()
    }


def refusal(capsys, *arguments):
    """The one line on standard error of a command that ends with 2."""
    assert cli.main([*arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("bwflow: ")
    assert output.err.count("\n") == 1
    assert output.err.endswith("\n")
    return output.err
