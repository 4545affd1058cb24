"""The command, in this process with small studies and as a process with the demo."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from typing import get_args

import jax
import numpy as np
import pytest
from commands import PRECISION, SPEC, enter, refusal, state

from bwflow import _names, cli, plan, store, study
from bwflow.experiment import DescentSpec, Experiment, FlowSpec, NetworkSpec, TargetSpec

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, as_installed):
    """An empty working directory with a spec; the environment is put back afterwards."""
    enter(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """What one sweep of the spec leaves behind: its folder, its exit code and its output."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        code = cli.main(["sweep", "spec.toml", "--no-progress"])
    return place, code


@pytest.fixture
def results(finished, folder):
    """The finished store in this test's own folder, and its path from there."""
    place, _ = finished
    shutil.copytree(place / "results", folder / "results", copy_function=shutil.copy2)
    return f"results/{Experiment.from_toml('spec.toml').slug}"


def forbid_runs(monkeypatch):
    """From here on nothing may be computed."""

    def run(*_, **__):
        raise AssertionError("the study was run")

    monkeypatch.setattr("bwflow._compute.compute", run)


def test_a_sweep_writes_the_store_of_its_spec(finished):
    place, code = finished
    experiment = Experiment.from_toml(place / "spec.toml")
    assert code == 0
    ds = store.read(place / "results" / experiment.slug)
    assert Experiment.from_dict(json.loads(ds.attrs["experiment"])) == experiment
    expected = {"dynamics": 1, "depth": 1, "bottleneck": 1, "tau": 2, "seed": 2, "save": 6}
    assert ds["loss"].sizes == expected
    assert np.isfinite(ds["loss"]).all()
    names = {path.name for path in (place / "results").iterdir()}
    assert names == {experiment.slug, f"{experiment.slug}-log"}


def test_a_store_can_be_made_here_and_filled_elsewhere(folder, capsys):
    arguments = ["sweep", "spec.toml", "--store", "here", "--no-run"]
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("store   here\nnext    bwflow slurm here --array 16")
    assert not store.open("here")["done"].any()
    assert cli.main(["work", "here", "--no-progress"]) == 0
    assert store.open("here")["done"].all()
    arguments[3] = "there"
    assert cli.main([*arguments, "--platform", "tpu"]) == 0
    capsys.readouterr()
    before = state(folder)
    line = refusal(capsys, "work", "there")
    assert "store there was begun elsewhere: platform is tpu there and cpu here" in line
    assert state(folder) == before


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
    assert "tau is (0.0, 0.1) there and (0.2,) here" in line
    assert "overwrite" in line
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


@pytest.mark.parametrize("command", ["sweep", "report", "show", "demo", "completion"])
def test_every_command_has_help(command, capsys):
    assert cli.main([command, "--help"]) == 0
    output = capsys.readouterr()
    assert f"usage: bwflow {command}" in output.out
    assert output.err == ""


def test_help_explains_every_field(capsys):
    """Without a spec file, and with the file's values for defaults where there is one."""
    assert cli.main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    for name, value in Experiment().to_dict().items():
        for field in value if isinstance(value, dict) else [None]:
            option = f"--{name}.{field}" if field else f"--{name}"
            assert option.replace("_", "-") in text or f"{name}.{{{field},no-{field}}}" in text


def test_the_example_has_every_field_of_every_table(folder, capsys):
    """It reads back to the defaults and values it shows, and makes a study of many batches."""
    assert cli.main(["sweep", "--example"]) == 0
    text = capsys.readouterr().out
    (folder / "example.toml").write_text(text, encoding="utf-8")
    experiment = Experiment.from_toml("example.toml")
    said = tomllib.loads(text)
    assert said == json.loads(experiment.to_json())
    tables = {"": Experiment, "target": TargetSpec, "network": NetworkSpec, "flow": FlowSpec}
    for table, kind in (tables | {"descent": DescentSpec}).items():
        names = {field.name for field in dataclasses.fields(kind)}
        assert set(said[table] if table else said) == names
    assert sum(cell.batches for cell in plan.cells(experiment)) >= 8


def test_the_example_names_every_choice(capsys):
    """Of optimisers, which are many, it says where they are listed."""
    assert cli.main(["sweep", "--example"]) == 0
    text = capsys.readouterr().out
    named = (*get_args(_names.Start), *get_args(_names.Quantity), *get_args(_names.Solver))
    for name in named:
        assert name in text, name
    assert "bwflow sweep --help" in text


def test_a_dry_run_prints_every_cell_and_does_nothing_else(folder, capsys, compilations):
    before = state(folder)
    arguments = ["--network.depth", "1", "2", "9", "--network.bottleneck", "1", "0"]
    arguments += ["--dynamics", "flow", "descent", "--store", "somewhere", "--batch-size", "1"]
    assert cli.main(["sweep", "spec.toml", "--dry-run", *arguments]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    lines = output.out.splitlines()
    assert " ".join(lines[0].split()) == "dynamics N widths runs batches steps a batch"
    rows = [line.split() for line in lines[1:13]]
    assert [row[:3] for row in rows] == [
        [dynamics, str(depth), widths]
        for dynamics in ("flow", "descent")
        for depth, widths in (
            (1, "1-2"),
            (1, "2-2"),
            (2, "1-1-2"),
            (2, "2-2-2"),
            (9, "1-1-1-...-2"),
            (9, "2-2-2-...-2"),
        )
    ]
    assert {tuple(row[3:5]) for row in rows} == {("4", "4")}
    assert lines[13] == ""
    assert "48 runs in 48 batches" in lines[14]
    assert lines[-1] == "store   somewhere"
    assert state(folder) == before
    assert compilations == []


def test_a_dry_run_needs_no_precision(capsys, compilations):
    """The other one than jax has in this process."""
    other = {"float64": "float32", "float32": "float64"}[PRECISION]
    assert cli.main(["sweep", "spec.toml", "--dry-run", "--precision", other]) == 0
    assert "4 runs" in capsys.readouterr().out
    assert compilations == []


def test_a_dry_run_reads_the_size_of_the_covariance_in_a_file(folder, capsys, compilations):
    """Or of the samples; their numbers are not looked at."""
    np.save("samples.npy", np.full((7, 5), np.nan))
    file = ["--target.kind", "file", "--target.path", "samples.npy"]
    assert cli.main(["sweep", "spec.toml", "--dry-run", *file]) == 0
    assert " 5-5 " in capsys.readouterr().out
    line = refusal(capsys, "sweep", "spec.toml", "--dry-run", *file, "--network.bottleneck", "6")
    assert "network.bottleneck must be the smallest width, here 5" in line
    assert compilations == []


def test_the_demo_has_a_dry_run(folder, capsys, compilations):
    before = state(folder)
    assert cli.main(["demo", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert sum(line.startswith(("flow ", "descent ")) for line in output.splitlines()) == 12
    assert "3072 runs in 48 batches" in output
    assert re.search(r"store   results/demo-[0-9a-f]{10}/store\n$", output)
    assert cli.main(["demo", "--full", "--dry-run"]) == 0
    assert " 64-64-64-64 " in capsys.readouterr().out
    assert state(folder) == before
    assert compilations == []


ESTIMATED = {
    "small": {"target": TargetSpec(n=4), "network": NetworkSpec(depth=(3,), bottleneck=(2,))},
    "spectra": {
        "target": TargetSpec(n=8),
        "probe": ("loss", "gap", "singular_values", "cosines", "imbalance"),
    },
    "wide": {"target": TargetSpec(n=4), "network": NetworkSpec(width=24)},
}


@pytest.mark.parametrize("dynamics", ["flow", "descent"])
@pytest.mark.parametrize("case", ESTIMATED)
@pytest.mark.slow
def test_a_plan_is_right_about_memory(case, dynamics, monkeypatch):
    """Within a factor of 1.5 of what the compiled program takes, and of what the records are."""
    spec = Experiment(
        precision=PRECISION,
        dynamics=(dynamics,),
        seeds=8,
        batch_size=8,
        flow=FlowSpec(end_time=1.0, num_saves=40, rtol=1e-2, atol=1e-3),
        descent=DescentSpec(num_steps=43, save_every=2),
        **ESTIMATED[case],
    )
    used = []
    compile_program = jax.stages.Lowered.compile

    def compiled(lowered, *args, **kwargs):
        program = compile_program(lowered, *args, **kwargs)
        usage = program.memory_analysis()
        used.append(usage.temp_size_in_bytes + usage.output_size_in_bytes)
        return program

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    ds = study.run(spec, progress=False)
    (cell,) = plan.cells(spec)
    assert used[-1] / 1.5 < cell.batch_bytes < 1.5 * used[-1]
    records = sum(ds[name].nbytes for name in spec.probe)
    assert records / 1.01 <= cell.result_bytes <= 1.01 * records
    assert cell.result_bytes <= ds.nbytes <= 1.5 * cell.result_bytes
    assert cell.runs == ds["hit"].size


def test_a_plan_knows_the_updates_of_a_descent():
    spec = Experiment(
        dynamics=("descent",), descent=DescentSpec(learning_rate=0.25, total_time=2.0), seeds=3
    )
    (cell,) = plan.cells(spec)
    assert (cell.steps, cell.runs, cell.batches) == (8, 3, 1)


def test_a_plan_needs_the_size_of_what_is_in_a_file():
    spec = Experiment(target=TargetSpec(kind="file", path="x.npy"))
    assert plan.cells(spec, 3)[0].widths == (3, 3, 3)
    with pytest.raises(ValueError, match="n must be given"):
        plan.cells(spec)


def test_show_says_what_a_store_holds(results, folder, capsys):
    before = state(folder)
    assert cli.main(["show", results]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    said = dict(re.split("  +", line, maxsplit=1) for line in output.out.splitlines())
    assert said["study"] == Experiment.from_toml("spec.toml").slug
    assert said["target"] == "geometric, n = 2"
    assert said["minimised"] == f"bures_wasserstein, in {PRECISION}"
    assert said["loss"] == "loss [loss] by save"
    assert said["axis tau"] == "0, 0.1"
    arrived = int(np.isfinite(store.read(results)["hit"]).sum())
    assert said["runs"] == f"4: {arrived} arrived, 0 failed"
    assert said["step"] == "6 records up to 10"
    assert said["gradient_norm"].endswith("[loss / parameter] by save")
    assert said["versions"].startswith(
        f"bwflow {metadata.version('bwflow')}, jax {jax.__version__}"
    )
    assert state(folder) == before


def test_show_prints_the_spec_of_a_study(results, folder, capsys):
    """As a spec file that says the same study."""
    assert cli.main(["show", results, "--spec"]) == 0
    (folder / "shown.toml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert Experiment.from_toml("shown.toml") == Experiment.from_toml("spec.toml")
    assert cli.main(["sweep", "shown.toml"]) == 0
    assert capsys.readouterr().err == f"{results} holds this study already\n"


def test_the_versions_are_those_a_bug_report_should_name(capsys):
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"bwflow {metadata.version('bwflow')}"
    version = ".".join(map(str, sys.version_info[:3]))
    assert lines[1].startswith(f"Python {version} on ")
    assert sys.platform in lines[1].lower()
    for name in ("jax", "jaxlib", "diffrax", "optax", "equinox", "numpy", "xarray", "zarr"):
        assert f"{name} {metadata.version(name)}" in lines


def test_the_versions_are_told_without_what_the_command_line_needs(capsys):
    code = "import sys; sys.modules['tyro'] = None; from bwflow.__main__ import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, text=True, check=True
    )
    assert cli.main(["--version"]) == 0
    assert found.stdout == capsys.readouterr().out


@pytest.mark.parametrize("command", [["--version"], ["completion", "bash"]], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_error(folder, command):
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-m", "bwflow", "completion", "bash"],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (141, b"")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_names_commands_and_options(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    for word in ("sweep", "report", "demo", "--dry-run", "--flow.solver", "Kvaerno5"):
        assert word in output.out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_choices(folder, capsys):
    assert cli.main(["completion", "bash"]) == 0
    (folder / "complete.sh").write_text(capsys.readouterr().out, encoding="utf-8")
    assert subprocess.run(["bash", "-n", "complete.sh"], check=False).returncode == 0
    for words, found in (
        (["bwflow", "rep"], "report"),
        (["bwflow", "sweep", "--flow.so"], "--flow.solver"),
        (["bwflow", "sweep", "--flow.solver", "Kv"], "Kvaerno3"),
    ):
        line = " ".join(words)
        code = f"""
            source ./complete.sh
            COMP_WORDS=({line}) COMP_CWORD={len(words) - 1}
            COMP_LINE='{line}' COMP_POINT={len(line)}
            complete=$(complete -p bwflow); complete=${{complete#* -F }}
            ${{complete% *}} bwflow '{words[-1]}' '{words[-2]}'
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
        assert found in [word.strip() for word in done.stdout.splitlines()], done


def test_a_report_of_the_store_in_the_working_directory_goes_beside_it(
    results, folder, monkeypatch
):
    name = results.split("/")[1]
    monkeypatch.chdir(results)
    assert cli.main(["report", "."]) == 0
    found = {path.name for path in (folder / "results").iterdir()}
    assert found == {name, f"{name}-log", f"{name}-report"}


def test_without_a_tolerance_a_study_is_run_to_the_end_and_reported(folder, capsys):
    arguments = ["--tolerance", "0", "--descent.num-steps", "60", "--store", "here"]
    assert cli.main(["sweep", "spec.toml", "--no-progress", *arguments]) == 0
    ds = store.read("here")
    assert np.isinf(ds["hit"]).all()
    assert (ds["num_steps"] == 60).all()
    assert cli.main(["report", "here"]) == 0
    assert "since the tolerance is 0" in capsys.readouterr().out


def test_runs_that_diverge_are_reported_as_failed(folder, capsys):
    """Their numbers, infinite and NaN, are no reason not to print the table and draw the rest."""
    arguments = ["--descent.learning-rate", "1e9", "--store", "here", "--descent.num-steps", "99"]
    assert cli.main(["sweep", "spec.toml", "--no-progress", *arguments]) == 0
    assert not store.read("here")["success"].any()
    assert cli.main(["report", "here"]) == 0
    assert cli.main(["show", "here"]) == 0
    assert "4: 0 arrived, 4 failed" in capsys.readouterr().out


def test_options_may_be_joined_to_their_values(folder, capsys):
    arguments = ["--tau=0.5", "--network.gamma=-2", "--store=a b/c", "--dry-run"]
    assert cli.main(["sweep", "spec.toml", *arguments]) == 0
    output = capsys.readouterr().out
    assert "2 runs" in output
    assert output.endswith("store   a b/c\n")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")],
    ids=["host", "device"],
)
def test_a_lack_of_memory_ends_with_1_and_advice(error, capsys, monkeypatch):
    def run(*_, **__):
        raise error

    monkeypatch.setattr("bwflow._compute.compute", run)
    assert cli.main(["sweep", "spec.toml", "--no-progress"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("bwflow: out of memory; a lower batch_size")
    assert output.err.count("\n") == 1


def test_an_interrupt_ends_with_130(capsys, monkeypatch):
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bwflow._compute.compute", run)
    assert cli.main(["sweep", "spec.toml", "--no-progress"]) == 130
    assert capsys.readouterr().err == "bwflow: interrupted\n"


_WHILE_IMPORTING = """\
import importlib.abc, os, signal, sys, time

class Signals(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tyro":
            os.kill(os.getpid(), signal.{name})
            time.sleep(10)

sys.meta_path.insert(0, Signals())
from bwflow.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interrupt_while_the_command_is_imported_shows_no_traceback(folder, name):
    done = process("-c", _WHILE_IMPORTING.format(name=name), folder=folder)
    assert (done.returncode, done.stderr) == (130, "bwflow: interrupted\n")


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
    names = {path.name for path in results.iterdir()}
    assert names == {"store", "store-log", "table.txt", "figure.png"}
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


def test_an_option_may_mend_what_the_file_lacks(folder, capsys):
    """The rules are those of the whole, not of the file alone."""
    (folder / "spec.toml").write_text(SPEC + 'optimizer = "adam"\n', encoding="utf-8")
    line = refusal(capsys, "sweep", "spec.toml", "--dry-run")
    assert "descent.learning_rate must be positive" in line
    for options in (["--descent.learning-rate", "0.1"], ["--dynamics", "flow"]):
        assert cli.main(["sweep", "spec.toml", *options, "--dry-run"]) == 0
    capsys.readouterr()


def test_a_dry_run_says_what_is_at_the_place(results, capsys):
    assert cli.main(["sweep", "spec.toml", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith(
        f"store   {results}, which holds this study: complete\n"
    )
    place = ["sweep", "spec.toml", "--store", results, "--tau", "0.2", "--dry-run"]
    assert "holds another study" in refusal(capsys, *place)
    assert cli.main([*place, "--overwrite"]) == 0
    capsys.readouterr()
