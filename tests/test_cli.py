"""The command, in this process with small studies and as a process with the demo."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import by_precision

from bwflow import cli, store
from bwflow.experiment import Experiment

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
ENVIRONMENT = {
    "JAX_ENABLE_X64": by_precision("1", "0"),
    "EQX_ON_ERROR": "nan",
    "JAX_COMPILATION_CACHE_DIR": "",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "OPENBLAS_NUM_THREADS": "1",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty working directory with a spec; the environment is put back afterwards."""
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    (tmp_path / "spec.toml").write_text(SPEC, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What one sweep of the spec leaves behind: its folder, its exit code and its output."""
    place = tmp_path_factory.mktemp("finished")
    (place / "spec.toml").write_text(SPEC, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, os.environ.get(name, value))
        code = cli.main(["sweep", "spec.toml", "--no-progress"])
    return place, code


@pytest.fixture
def results(finished, folder):
    """The finished store in this test's own folder, and its path from there."""
    place, _ = finished
    shutil.copytree(place / "results", folder / "results", copy_function=shutil.copy2)
    return f"results/{Experiment.from_toml('spec.toml').slug}"


def refusal(capsys, *arguments):
    """The one line on standard error of a command that ends with 2."""
    assert cli.main([*arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("bwflow: ")
    assert output.err.count("\n") == 1
    return output.err


def state(folder):
    """Names, times and bytes of all files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path, path.stat().st_mtime_ns, path.read_bytes()) for path in files]


def forbid_runs(monkeypatch):
    """From here on nothing may be computed."""

    def run(*_, **__):
        raise AssertionError("the study was run")

    monkeypatch.setattr("bwflow.study.run", run)


def test_a_sweep_writes_the_store_of_its_spec(finished):
    place, code = finished
    experiment = Experiment.from_toml(place / "spec.toml")
    assert code == 0
    ds = store.read(place / "results" / experiment.slug)
    assert Experiment.from_dict(json.loads(ds.attrs["experiment"])) == experiment
    expected = {"dynamics": 1, "depth": 1, "bottleneck": 1, "tau": 2, "seed": 2, "save": 6}
    assert ds["loss"].sizes == expected
    assert np.isfinite(ds["loss"]).all()
    assert [path.name for path in (place / "results").iterdir()] == [experiment.slug]


def test_a_second_sweep_keeps_the_store(results, folder, capsys, monkeypatch):
    forbid_runs(monkeypatch)
    before = state(folder)
    assert cli.main(["sweep", "spec.toml"]) == 0
    assert state(folder) == before
    output = capsys.readouterr()
    assert output.err == f"{results} holds this study already\n"
    assert output.out == f"store   {results}\nnext    bwflow report {results}\n"


def test_a_report_writes_and_prints_the_table(results, folder, capsys):
    assert cli.main(["report", results]) == 0
    table = (folder / f"{results}-report" / "table.txt").read_text(encoding="utf-8")
    assert capsys.readouterr().out == (
        f"{table}\nstore   {results}\ntable   {results}-report/table.txt\n"
        f"figure  {results}-report/figure.png\n"
    )
    assert (folder / f"{results}-report" / "figure.png").read_bytes()[1:4] == b"PNG"
    assert sum(line.startswith("descent") for line in table.splitlines()) == 2


def test_a_report_goes_where_it_is_sent(results, folder, capsys):
    assert cli.main(["report", results, "--out", "elsewhere"]) == 0
    assert {path.name for path in (folder / "elsewhere").iterdir()} == {"table.txt", "figure.png"}
    assert "table   elsewhere/table.txt" in capsys.readouterr().out
    assert not (folder / f"{results}-report").exists()


def test_a_store_of_another_study_is_kept(results, folder, capsys, monkeypatch):
    forbid_runs(monkeypatch)
    before = state(folder)
    line = refusal(capsys, "sweep", "spec.toml", "--store", results, "--tau", "0.2")
    assert f"store {results} holds another study" in line
    assert "--overwrite" in line
    assert state(folder) == before


def test_options_go_before_the_file_and_overwrite_replaces(results, capsys):
    """The study in the store afterwards is the one that was asked for."""
    options = ["--tau", "0.3", "--target.n", "3", "--descent.num-steps", "4", "--seeds", "1"]
    arguments = ["sweep", "spec.toml", "--store", results, "--overwrite", "--no-progress"]
    assert cli.main([*arguments, *options]) == 0
    ds = store.read(results)
    assert np.allclose(ds["tau"], [0.3])
    assert ds.sizes["eigenvalue"] == 3
    assert ds["step"].values.tolist() == [0, 2, 4]
    kept = json.loads(ds.attrs["experiment"])
    assert (kept["name"], kept["precision"], kept["tau"]) == ("small", PRECISION, [0.3])
    assert capsys.readouterr().out.startswith(f"store   {results}\n")


def test_nothing_but_stores_is_overwritten(folder, capsys, monkeypatch):
    forbid_runs(monkeypatch)
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.tex").write_text("chapter one")
    before = state(folder)
    line = refusal(capsys, "sweep", "spec.toml", "--store", "precious", "--overwrite")
    assert "precious is not a Zarr store" in line
    assert state(folder) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "spec spec.toml cannot be read"),
        ("seeds = ", "spec spec.toml is not valid TOML"),
        ("sedes = 3", "unknown key 'sedes'; did you mean 'seeds'?"),
        ("seeds = 0", "seeds must be at least 1; got 0"),
        ("[network]\nbottleneck = [99]", "network.bottleneck must be distinct widths up to"),
        ('[network]\ninit = "ones"', "network.init must be one of"),
    ],
)
def test_bad_specs_are_refused_in_one_line(folder, capsys, text, message):
    if text is None:
        (folder / "spec.toml").unlink()
    else:
        (folder / "spec.toml").write_text(f'precision = "{PRECISION}"\n{text}\n')
    assert message in refusal(capsys, "sweep", "spec.toml", "--no-progress")
    assert not (folder / "results").exists()


def test_options_are_held_to_the_rules_of_the_spec(capsys):
    assert "seeds must be at least 1" in refusal(capsys, "sweep", "spec.toml", "--seeds", "0")


def test_a_spec_that_does_not_come_first_is_not_passed_over(folder, capsys, monkeypatch):
    """Without its ending only the first argument is taken for the spec."""
    forbid_runs(monkeypatch)
    shutil.copy("spec.toml", "spec")
    line = refusal(capsys, "sweep", "--seeds", "1", "spec")
    assert "the spec spec must come first" in line


def test_a_missing_store_has_no_report(folder, capsys):
    line = refusal(capsys, "report", "results/nothing")
    assert "store results/nothing is not a Zarr store" in line
    assert [path.name for path in folder.iterdir()] == ["spec.toml"]


@pytest.mark.parametrize("arguments", [[], ["swep"], ["sweep"], ["sweep", "spec.toml", "--sedes"]])
def test_unknown_commands_and_options_end_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("command", ["sweep", "report", "demo"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: bwflow {command}" in capsys.readouterr().out


def test_an_interrupt_ends_with_130(capsys, monkeypatch):
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bwflow.study.run", run)
    assert cli.main(["sweep", "spec.toml"]) == 130
    assert capsys.readouterr().err == "bwflow: interrupted\n"


def process(*arguments, folder, **variables):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("JAX_ENABLE_X64",)
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_sets_jax_up_before_it_imports_it(folder):
    """Precision and caches are read from the environment when jax and equinox are imported."""
    code = "import sys, bwflow.cli; print({'jax', 'equinox'} & set(sys.modules))"
    done = process("-c", code, folder=folder)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"], ids=["double", "single"])
def test_a_process_runs_in_the_precision_of_its_spec(folder, precision):
    """Whatever the environment says."""
    text = SPEC.replace(f'"{PRECISION}"', f'"{precision}"')
    (folder / "spec.toml").write_text(text, encoding="utf-8")
    arguments = ("-m", "bwflow.cli", "sweep", "spec.toml", "--store", "here", "--no-progress")
    done = process(*arguments, folder=folder, JAX_ENABLE_X64="0")
    assert done.returncode == 0, done.stderr
    assert store.read(folder / "here")["loss"].dtype == precision


@pytest.mark.slow
def test_the_demo_prints_its_table_and_is_not_run_twice(folder):
    arguments = ("-m", "bwflow.cli", "demo", "--seeds", "4", "--flow.end-time", "2")
    arguments += ("--descent.num-steps", "20", "--no-progress")
    first = process(*arguments, folder=folder)
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert sum(line.startswith(("flow ", "descent ")) for line in lines) == 2 * 3 * 2 * 4
    (results,) = (folder / "results").iterdir()
    assert {path.name for path in results.iterdir()} == {"store", "table.txt", "figure.png"}
    name = f"results/{results.name}"
    assert lines[-3:] == [
        f"store   {name}/store",
        f"table   {name}/table.txt",
        f"figure  {name}/figure.png",
    ]
    ds = store.read(results / "store")
    assert ds.sizes["seed"] == 4
    assert ds["success"].all()

    before = state(results / "store")
    second = process(*arguments, folder=folder)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout
    assert second.stderr == f"{name}/store holds this study already\n"
    assert state(results / "store") == before
