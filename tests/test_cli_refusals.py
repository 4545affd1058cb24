"""Every bad input to the command: one line, exit code 2, nothing written, nothing compiled."""

import os
import re
import shutil
import tomllib

import jax
import numpy as np
import pytest
import tomli_w
import xarray as xr
from commands import SPEC, enter, refusal, state
from helpers import X64

from bwflow import cli, store, study
from bwflow.experiment import Experiment

pytestmark = pytest.mark.once

NAN, INF = float("nan"), float("inf")
RNG = np.random.default_rng(0)
ROWS = []


def row(case, arguments, message, *, spec=SPEC, marks=()):
    ROWS.append(pytest.param(spec, arguments, message, id=case, marks=marks))


def sweep(case, arguments, message, **kinds):
    row(case, ["sweep", *arguments, "--no-progress"], message, **kinds)


def spec_with(key, value):
    """The small spec with one key at another value, as text."""
    data = tomllib.loads(SPEC)
    *above, last = key.split(".")
    table = data
    for name in above:
        table = table.setdefault(name, {})
    table[last] = value
    return tomli_w.dumps(data)


def field(key, value, message, *, option=None):
    """A bad value in the spec file and, unless it is of another type, as an option."""
    sweep(f"{key} = {value!r}", ["spec.toml"], message, spec=spec_with(key, value))
    if option is None:
        values = value if isinstance(value, list) else [value]
        words = [str(v) for v in values]
        sweep(f"--{key} {' '.join(words)}", ["spec.toml", f"--{key}", *words], message)
    elif option:
        sweep(f"--{key} {option[0]}", ["spec.toml", f"--{key}", option[0]], option[1])


# --- numbers out of range ------------------------------------------------------------------------

for key, values, expected in (
    ("network.depth", ([0], [-1], [2, 2], [], [1001], [2**31]), "network.depth must be "),
    ("network.bottleneck", ([-1], [], [1, 1]), "network.bottleneck must be distinct widths"),
    ("network.bottleneck", ([2, 0],), "network.bottleneck must be distinct widths, 0 standing"),
    ("network.bottleneck", ([3],), "network.bottleneck must be the smallest width, here 2"),
    ("tau", ([-0.1], [NAN], [INF], [], [0.1, 0.1], [1e300], [-0.0, 0.0]), "tau must be "),
    ("network.width", (-1, 10**6), "network.width must be "),
    ("network.latent", (-1, 10**6), "network.latent must be "),
    ("network.std", (-1.0, NAN, INF), "network.std must be "),
    ("network.gamma", (NAN, INF), "network.gamma must be a finite number"),
    ("network.scale", (0.0, -1.0, NAN, INF, 1e300), "network.scale must be "),
    ("network.min_singular_value", (-1.0, NAN), "network.min_singular_value must be "),
    ("network.rank", (-1,), "network.rank must be positive, or 0"),
    ("network.radius", (-1.0, NAN), "network.radius must be "),
    ("flow.end_time", (0.0, -1.0, NAN, INF), "flow.end_time must be "),
    ("flow.rtol", (0.0, -1.0, NAN, INF), "flow.rtol must be "),
    ("flow.atol", (0.0, -1.0, NAN, INF), "flow.atol must be "),
    ("flow.first_save", (-1.0, NAN, 1e9), "flow.first_save must be "),
    ("flow.num_saves", (0, 1, -1, 10**6), "flow.num_saves must be between 2 and 100000"),
    ("flow.max_steps", (0, -1, 2**31), "flow.max_steps must be "),
    ("descent.learning_rate", (-1.0, NAN, INF), "descent.learning_rate must be "),
    ("descent.num_steps", (0, -1, 2**31), "descent.num_steps must be "),
    ("descent.num_steps", (10**6,), "descent.save_every must be .* at most 100000 records"),
    ("descent.total_time", (-1.0, NAN, 1.0), "descent.total_time must be "),
    ("descent.save_every", (0, -1), "descent.save_every must be at least 1"),
    ("seeds", (0, -1, 10**8, 10**20), "seeds must be "),
    ("batch_size", (-1,), "batch_size must be positive, or 0"),
    ("memory_limit_gb", (0.0, -1.0, NAN), "memory_limit_gb must be "),
    ("tolerance", (-1e-6, 1.0, NAN), "tolerance must be "),
    ("target.n", (0, -1, 10**6), "target.n must be between 1 and 10000"),
    ("target.condition", (0.5, NAN, INF), "target.condition must be "),
    ("target.rank", (-1,), "target.rank must be "),
    ("target.low", (-0.1, 2.0), "target.low must be between 0 and 1"),
    ("target.minimum", (-1.0,), "target.minimum must be not negative"),
    ("target.seed", (-1,), "target.seed must be not negative"),
    ("target.basis_seed", (-2,), "target.basis_seed must be "),
    ("target.pixels", (3, 0), "target.pixels must be 1, 2, 4 or 8"),
    ("target.num_samples", (1, -1, 10**9), "target.num_samples must be 0, or at least 2"),
    ("name", ("", "a/b", "..", "a b", "é"), "name must be 1 to 64 letters"),
    ("probe", (["loss"], ["loss", "gap", "gap"], []), "probe must be a list without repeats"),
    ("dynamics", ([], ["flow", "flow"]), "dynamics must be a non-empty list without repeats"),
):
    for value in values:
        field(key, value, expected)

# --- names, types --------------------------------------------------------------------------------

for key, value, known in (
    ("loss", "mse", "frobenius"),
    ("network.init", "ones", "near_target"),
    ("network.draw", "balanced", "orthogonal"),
    ("flow.solver", "RK4", "Kvaerno5"),
    ("descent.optimizer", "sdg", "adam"),
    ("target.kind", "gauss", "wishart"),
    ("target.distribution", "cauchy", "ginibre"),
    ("target.sampled", "values", "singular_values"),
    ("precision", "float16", "float64"),
):
    field(
        key,
        value,
        rf"{key} must be one of .*{known}.*; got '{value}'",
        option=(value, rf"invalid choice '{value}' for argument '--{key}'.*'{known}'"),
    )
field("probe", ["loss", "gap", "rank"], "probe must be one of .*", option=("rank", "invalid choi"))
field(
    "dynamics", ["sgd"], "dynamics must be one of flow, d", option=("sgd", "invalid choice 'sgd'")
)

for key, value, kind, option in (
    ("seeds", 1.5, "int", "1.5"),
    ("seeds", True, "int", "True"),
    ("seeds", "2", "int", "two"),
    ("tau", "small", "float", "small"),
    ("tau", [[0.1]], "float", ()),
    ("tau", {"a": 1}, "float", ()),
    ("tolerance", True, "float", "yes"),
    ("network.depth", [1.5], "int", "1.5"),
    ("network.scale", "big", "float", "big"),
    ("target.normalize", 1, "bool", ()),
    ("name", 3, "str", ()),
    ("target.path", 3, "str", ()),
):
    field(
        key,
        value,
        f"{key} must be of type {kind}; got",
        option=option and (option, rf"Error parsing --{key}: .*'{option}'"),
    )
field("target", 3, "target must be a table of keys; got 3", option=())
sweep("a table without a value", ["spec.toml", "--flow"], "Unrecognized options: --flow")
sweep("a missing value", ["spec.toml", "--seeds"], "Missing value for argument '--seeds'")
sweep("a flag with a value", ["spec.toml", "--overwrite=1"], "Unrecognized options: 1")

# --- unknown keys and options --------------------------------------------------------------------

field(
    "sedes", 3, "unknown key 'sedes'; did you mean 'seeds'", option=("3", "did you mean --seeds?")
)
field(
    "flow.endtime",
    3,
    "unknown key 'flow.endtime'; did you mean 'flow.end_time'",
    option=("3", r"Unrecognized options: --flow.endtime.* did you mean --flow.end-time\?"),
)
field(
    "zzz", 3, "unknown key 'zzz'; known: name, target", option=("3", "Unrecognized options: --zzz")
)
sweep(
    "joined", ["spec.toml", "--sedes=3"], r"Unrecognized options: --sedes.* did you mean --seeds\?"
)
sweep("a shortened option", ["spec.toml", "--max-steps", "3"], r"did you mean --flow.max-steps\?")
sweep(
    "a flag's other half", ["spec.toml", "--target.no-normalise"], r"mean --target.no-normalize\?"
)
sweep("a flag turned off", ["spec.toml", "--target.normalize", "false"], "flags take no value")
sweep("a near choice", ["spec.toml", "--flow.solver", "tsit5"], r"; did you mean 'Tsit5'\?")
sweep("commas", ["spec.toml", "--tau", "0,0.1"], "lists are written with spaces, as in --tau 0 0.1")
row("the spec as a value", ["sweep", "--tau", "0", "spec.toml"], "the spec must come first")
sweep("a field at the top", ["spec.toml"], "did you mean 'network.depth'", spec="depth = 3")
sweep("a field in its table", ["spec.toml"], r"did you mean 'target.n'\?", spec="target.nn = 3")
sweep("one dash", ["spec.toml", "-seeds", "3"], "Unrecognized options: -seeds, 3")

# --- commands and files --------------------------------------------------------------------------

for case, arguments, message in (
    ("nothing", [], "a command is needed, of sweep, status, .*, demo, completion; got none"),
    ("unknown", ["swep"], "got swep; did you mean 'sweep'"),
    ("far off", ["zzz"], "got zzz; bwflow --help explains them"),
    ("a file", ["spec.toml"], "a command is needed"),
    ("an empty word", [""], "a command is needed"),
    ("an option", ["--sweep"], "Unrecognized options: --sweep"),
    ("report", ["report"], "Missing from bwflow report: STORE"),
    ("show", ["show"], "Missing from bwflow show: STORE"),
    ("completion", ["completion"], "Missing from bwflow completion"),
    ("shell", ["completion", "fish"], "invalid choice 'fish'.*'bash', 'zsh'"),
    ("demo", ["demo", "--ful"], r"Unrecognized options: --ful; did you mean --full\?"),
    ("demo of bad", ["demo", "--tau", "-1"], "tau must be distinct numbers .* none negative"),
    ("two stores", ["report", "results", "results"], "Unrecognized options: results"),
    ("version and more", ["--version", "x"], "Unrecognized options: --version, x"),
):
    row(f"command: {case}", arguments, message)

for case, arguments, message in (
    ("none", [], "sweep needs a spec file: bwflow sweep SPEC.toml"),
    ("options alone", ["--seeds", "1"], "sweep needs a spec file"),
    ("empty", [""], "cannot be read: Is a directory"),
    ("missing", ["none.toml"], "spec none.toml cannot be read: No such file"),
    ("missing without ending", ["none"], "spec none cannot be read: No such file"),
    ("a folder", ["folder"], "spec folder cannot be read: Is a directory"),
    ("a long name", ["x" * 300], "cannot be read: File name too long"),
    ("below a file", ["spec.toml/x"], "spec spec.toml/x cannot be read: Not a directory"),
    ("not text", ["good.npy"], "spec good.npy is not a text file"),
    ("a store", ["plain"], "spec plain cannot be read: Is a directory"),
    ("not first", ["--seeds", "1", "copy"], "the spec copy must come first"),
    ("two", ["spec.toml", "other.toml"], "Unrecognized options: other.toml"),
):
    sweep(f"spec: {case}", arguments, message)
for case, text, message in (
    ("half a line", "seeds = ", "spec spec.toml is not valid TOML"),
    ("twice", "seeds = 1\nseeds = 2", "spec spec.toml is not valid TOML"),
    ("huge number", f"seeds = {'9' * 5000}", "spec spec.toml is not valid TOML"),
    ("deep", f"tau = {'[' * 10**5}", "spec spec.toml is not valid TOML"),
    ("a date", "seeds = 2020-01-01", "seeds must be of type int; got"),
    ("huge hexadecimal", f"seeds = 0x{'f' * 10**4}", ""),
    ("a quoted key", '"a b" = 1', "unknown key 'a b'"),
    ("low rank", '[network]\ninit = "low_rank"', "network.rank must be between 1 and every bottl"),
    ("no rate", 'loss = "frobenius"', "descent.learning_rate must be positive: 0 stands for"),
):
    sweep(f"spec: {case}", ["spec.toml"], message, spec=text)

# --- covariances in files ------------------------------------------------------------------------

ARRAYS = {
    "good": (np.diag([1.0, 0.5]), None),
    "asymmetric": (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric; .* by up to 0.5"),
    "indefinite": (np.diag([1.0, -0.25]), r"its smallest eigenvalue is -0.25 \(largest 1\)"),
    "nan": (np.diag([1.0, NAN]), "must be finite; it holds NaN"),
    "infinite": (np.diag([1.0, INF]), "must be finite; it holds NaN or infinity"),
    "zero": (np.zeros((2, 2)), "must not be zero"),
    "complex": (np.eye(2) + 0j, r"real floating matrix.* got shape \(2, 2\) of complex128"),
    "integer": (np.eye(2, dtype=int), r"real floating matrix.* got shape \(2, 2\) of int64"),
    "bool": (np.eye(2, dtype=bool), "real floating matrix.* of bool"),
    "text": (np.array([["a", "b"]]), "real floating matrix.* of <U1"),
    "empty": (np.zeros((0, 0)), r"real floating matrix.* got shape \(0, 0\)"),
    "no-columns": (np.zeros((5, 0)), r"real floating matrix.* got shape \(5, 0\)"),
    "flat": (np.ones(4), r"real floating matrix.* got shape \(4,\)"),
    "cube": (np.ones((2, 2, 2)), r"real floating matrix.* got shape \(2, 2, 2\)"),
    "scalar": (np.float64(1.0), r"real floating matrix.* got shape \(\)"),
    "one-sample": (np.ones((1, 2)), "samples that differ"),
    "equal-samples": (np.ones((5, 2)), "samples that differ"),
    "nan-samples": (np.full((5, 2), NAN), "must be finite"),
    "objects": (np.array([[{}]], object), "not a readable .npy file"),
    "archive": (None, "not a readable .npy file: the magic string is not correct"),
    "words": (None, "not a readable .npy file"),
    "nothing": (None, "not a readable .npy file"),
    "truncated": (None, "not a readable .npy file"),
    "folder": (None, "not a readable .npy file: Is a directory"),
    "missing": (None, "not a readable .npy file: No such file or directory"),
}
if not X64:
    ARRAYS["too-large"] = (1e300 * np.eye(2), "must be finite")


def write_arrays():
    for name, (array, _) in ARRAYS.items():
        if array is not None:
            np.save(f"{name}.npy", array, allow_pickle=True)
    with open("archive.npy", "wb") as file:
        np.savez(file, X=np.eye(2))
    with open("words.npy", "w") as file:
        file.write("1.0 0.0\n0.0 1.0\n")
    open("nothing.npy", "wb").close()
    with open("good.npy", "rb") as whole, open("truncated.npy", "wb") as file:
        file.write(whole.read()[:-9])
    os.mkdir("folder.npy")


for name, (_, message) in ARRAYS.items():
    if message:
        path = f"target.path '{name}.npy'"
        file = {"kind": "file", "path": f"{name}.npy"}
        sweep(f"{name}.npy", ["spec.toml"], f"{path}.*{message}", spec=spec_with("target", file))
        options = ["--target.kind", "file", "--target.path", f"{name}.npy"]
        sweep(f"--target.path {name}.npy", ["spec.toml", *options], f"{path}.*{message}")
FILE = ["spec.toml", "--target.kind", "file", "--target.path"]
sweep("no path", FILE[:-1], "target.path must be given for the kind 'file'")
sweep("an empty path", [*FILE, ""], "target.path must be given for the kind 'file'")
for option, message in (
    ("--network.bottleneck=3", "network.bottleneck must be the smallest width, here 2; got 3"),
    ("--network.width=1", "network.bottleneck must be the smallest width, here 1|distinct"),
    ("--network.init=low_rank", "network.rank must be between 1 and every bottleneck"),
):
    sweep(f"a file and {option}", [*FILE, "good.npy", option, "--network.depth", "2"], message)
sweep(
    "a file and a bottleneck twice",
    [*FILE, "good.npy", "--network.bottleneck", "2", "0"],
    r"network.bottleneck must be distinct widths, 0 standing for 2; got \(2, 0\)",
)
sweep(
    "double precision where jax has none",
    ["spec.toml", "--precision", "float64"],
    "precision is float64, but jax runs in float32: set JAX_ENABLE_X64=1",
    marks=pytest.mark.skipif(X64, reason="says what happens without double precision"),
)

# --- stores --------------------------------------------------------------------------------------

as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
for case, arguments, message in (
    (
        "another study",
        ["--store", "study", "--seeds", "3"],
        "study holds another study: seeds is 2 there and 3 here; bwflow extend",
    ),
    ("no study", ["--store", "plain"], "plain holds no study: .* overwrite"),
    ("a file", ["--store", "good.npy"], "good.npy is not a Zarr store"),
    ("a file overwritten", ["--store", "good.npy", "--overwrite"], "good.npy is not a Zarr store"),
    ("in a file", ["--store", "good.npy/x"], "good.npy is not a writable folder"),
    ("deep in a file", ["--store", "good.npy/x/y/z"], "good.npy is not a writable folder"),
    ("a folder", ["--store", "folder"], "folder is not a Zarr store and is not replaced"),
    ("a folder overwritten", ["--store", "folder", "--overwrite"], "folder is not a Zarr store"),
    ("here", ["--store", "."], ". is not a Zarr store"),
    ("above", ["--store", ".."], ".. is not a Zarr store"),
    ("empty", ["--store", ""], ". is not a Zarr store"),
    ("root", ["--store", "/"], "/ is not a Zarr store"),
    ("damaged", ["--store", "damaged"], "store damaged cannot be read"),
    ("a long name", ["--store", "x" * 300], "cannot be made: File name too long"),
):
    sweep(f"store: {case}", ["spec.toml", *arguments], message)
sweep("locked", ["spec.toml", "--store", "locked/x"], "locked is not a writable", marks=as_root)

NO_STORES = (
    ("missing", "nothing", "store nothing is not a Zarr store"),
    ("a file", "good.npy", "store good.npy is not a Zarr store"),
    ("a folder", "folder", "store folder is not a Zarr store"),
    ("here", ".", "store . is not a Zarr store"),
    ("root", "/", "store / is not a Zarr store"),
)
for command in ("report", "show"):
    for case, path, message in (
        *NO_STORES,
        ("no study", "plain", "must be a dataset of bwflow.study.run; it lacks the axes"),
        ("half a study", "half", "must be a dataset of bwflow.study.run; it lacks the attribute"),
        ("another spec", "older", "unknown key 'sedes'"),
        ("no spec", "garbled", "the spec is not valid JSON"),
        ("damaged", "damaged", "store damaged cannot be read"),
        ("cut", "cut", "store cut cannot be read"),
    ):
        row(f"{command}: {case}", [command, path], message)
for command in ("status", "work", "extend", "repair", "rerun", "export", "slurm"):
    given = {"export": ["--parquet", "x"], "slurm": ["--array", "2"]}.get(command, [])
    for case, path, message in (
        *NO_STORES,
        ("no study", "plain", "store plain "),
        ("damaged", "damaged", "store damaged cannot be read"),
    ):
        row(f"{command}: {case}", [command, path, *given], message)
for case, arguments, message in (
    ("part 0", ["work", "study", "--part", "0/2"], "--part must be i/n .*; got '0/2'"),
    ("part 3 of 2", ["work", "study", "--part", "3/2"], "--part must be i/n .*; got '3/2'"),
    ("no part", ["work", "study", "--part", "two"], "--part must be i/n .*; got 'two'"),
    ("half a part", ["work", "study", "--part", "1/"], "--part must be i/n .*; got '1/'"),
    ("parts", ["work", "study", "--part", "1/2", "--processes", "2"], "do not go together"),
    ("processes", ["work", "study", "--processes", "-1"], "processes must be .*; got -1"),
    ("whole", ["work", "whole"], "store whole was written whole"),
    ("fewer seeds", ["extend", "study", "--seeds", "1"], "at least the store's 2; got 1"),
    ("no seeds", ["extend", "study", "--seeds", "-1"], "at least the store's 2; got -1"),
    ("bad tau", ["extend", "study", "--tau", "-1"], "tau must be distinct numbers"),
    ("bad depth", ["extend", "study", "--depth", "0"], "depth must be distinct integers"),
    ("wide", ["extend", "study", "--bottleneck", "9"], "bottleneck must be the smallest width"),
    ("bad dynamics", ["extend", "study", "--dynamics", "fly"], "invalid choice 'fly'"),
    ("which seed", ["rerun", "study"], "tau must be given, of 0, 0.1"),
    ("no such seed", ["rerun", "study", "--seed", "7", "--tau", "0"], "seed must be .*; got 7"),
    ("no such tau", ["rerun", "study", "--seed", "1", "--tau", "9"], "tau must be .*; got 9"),
    ("no such depth", ["rerun", "study", "--depth", "4"], "depth must be one of 1; got 4"),
    ("rerun there", ["rerun", "study", "--out", "folder"], "folder is not a Zarr store and is"),
    ("export nothing", ["export", "study"], "needs --netcdf FILE or --parquet FILE"),
    ("export there", ["export", "study", "--netcdf", "folder"], "file must be .*folder"),
    ("no array", ["slurm", "study"], "Missing from bwflow slurm: --array"),
    ("array 0", ["slurm", "study", "--array", "0"], "array must be a positive integer; got 0"),
):
    row(f"store: {case}", arguments, message)
for case, out, message in (
    ("a file", "good.npy", "folder good.npy cannot be made: File exists"),
    ("in a file", "good.npy/x", "folder good.npy/x cannot be made: Not a directory"),
):
    arguments = ["report", "study", "--out", out]
    row(f"report: into {case}", arguments, message)
arguments = ["report", "study", "--out", "locked/x"]
row("report: locked", arguments, "cannot be made: Perm", marks=as_root)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with every kind of file and store, made once."""
    place = tmp_path_factory.mktemp("shelf")
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        write_arrays()
        shutil.copy("spec.toml", "copy")
        shutil.copy("spec.toml", "other.toml")
        os.mkdir("folder")
        with open("folder/thesis.tex", "w") as file:
            file.write("chapter one")
        assert cli.main(["sweep", "spec.toml", "--store", "study", "--no-progress"]) == 0
        ds = store.read("study")
        store.write(study.run(Experiment.from_toml("spec.toml"), progress=False), "whole")
        store.write(ds.drop_attrs(), "half")
        store.write(ds.assign_attrs(experiment='{"sedes":3}'), "older")
        store.write(ds.assign_attrs(experiment="{"), "garbled")
        store.write(xr.Dataset({"x": ("seed", [1.0])}), "plain")
        for name in ("damaged", "cut"):
            shutil.copytree("study", name)
        with open("damaged/zarr.json", "w") as file:
            file.write("{")
        with open("cut/loss/zarr.json", "w") as file:
            file.write("")
        os.mkdir("locked", mode=0o500)
    jax.clear_caches()  # what was compiled here would not be compiled again, and so not be counted
    return place


@pytest.fixture
def folder(shelf, monkeypatch, as_installed):
    enter(shelf, monkeypatch)
    return shelf


@pytest.mark.parametrize(("spec", "arguments", "message"), ROWS)
def test_it_is_refused_in_one_line(spec, arguments, message, folder, capsys, compilations):
    (folder / "spec.toml").write_text(spec, encoding="utf-8")
    before = state(folder)
    line = refusal(capsys, *arguments)
    assert re.search(message, line), line
    assert state(folder) == before
    assert compilations == []


def test_compilations_are_counted(folder, compilations):
    """A study that is run does compile."""
    assert cli.main(["sweep", "spec.toml", "--no-progress", "--store", "new"]) == 0
    assert compilations
