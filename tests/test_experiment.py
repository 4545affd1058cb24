"""Specs as data, their refusals, the targets they name and the runs they describe."""

import copy
import dataclasses
import hashlib
import json
import tomllib
from importlib import resources

import jax
import numpy as np
import optax
import pytest
from helpers import X64, assert_close, by_precision
from hypothesis import given, settings
from hypothesis import strategies as st

import bwflow as bw
from bwflow import study
from bwflow.experiment import DescentSpec, Experiment, FlowSpec, NetworkSpec, TargetSpec

PRECISION = by_precision("float64", "float32")
DTYPE = np.dtype(PRECISION)
ROUNDING = by_precision(1e-12, 1e-5)

positive = st.floats(1e-8, 1e8)
counts = st.integers(1, 10**6)
words = st.text("abcXYZ019-_", min_size=1, max_size=8)
names = words.filter(lambda text: text.strip("-_"))


def distinct(elements):
    return st.lists(elements, min_size=1, max_size=4, unique=True)


targets = {
    "kind": st.sampled_from(["digits", "power_law", "geometric", "step", "wishart", "file"]),
    "n": counts,
    "condition": positive,
    "exponent": st.floats(allow_nan=False, allow_infinity=False),
    "rank": counts,
    "low": positive,
    "pixels": st.sampled_from([1, 2, 4, 8]),
    "path": st.text('aé"\\ /.\n\t', max_size=6),
    "basis_seed": st.integers(-1, 99),
    "normalize": st.booleans(),
}
networks = {
    "depth": distinct(st.integers(1, 9)),
    "bottleneck": distinct(st.integers(0, 9)),
    "init": words,
    "scale": positive,
}
flows = {
    "solver": words,
    "end_time": st.floats(1.0, 1e6),
    "num_saves": st.integers(2, 1000),
    "first_save": st.floats(0.0, 0.5),
    "rtol": positive,
    "atol": positive,
    "max_steps": counts,
}
descents = {
    "optimizer": words,
    "learning_rate": st.floats(0.0, 10.0),
    "num_steps": counts,
    "save_every": counts,
}
fields = {
    "name": names,
    "target": st.fixed_dictionaries({}, optional=targets),
    "network": st.fixed_dictionaries({}, optional=networks),
    "loss": st.sampled_from(["bures_wasserstein", "frobenius"]),
    "tau": distinct(st.floats(0.0, 1e3)),
    "seeds": counts,
    "dynamics": distinct(st.sampled_from(["flow", "descent"])),
    "tolerance": st.floats(1e-300, 0.999),
    "probe": st.permutations(["loss", "gap", "numerical_rank"]),
    "flow": st.fixed_dictionaries({}, optional=flows),
    "descent": st.fixed_dictionaries({}, optional=descents),
    "precision": st.sampled_from(["float64", "float32"]),
    "batch_size": st.integers(0, 99),
    "memory_limit_gb": positive,
}
specs = st.fixed_dictionaries({}, optional=fields)
few = settings(max_examples=50, deadline=None)


def toml(data, where=""):
    """Plain tables as TOML text: values first, then the tables below."""
    values = [f"{key} = {value_text(x)}" for key, x in data.items() if not isinstance(x, dict)]
    tables = [
        f"\n[{where}{key}]\n{toml(x, f'{where}{key}.')}"
        for key, x in data.items()
        if isinstance(x, dict)
    ]
    return "\n".join([*values, *tables])


def value_text(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def within(data, whole):
    """Whether a table holds what another one, with more keys, says."""
    return all(
        within(value, whole[key]) if isinstance(value, dict) else whole[key] == value
        for key, value in data.items()
    )


@few
@given(specs)
def test_an_experiment_is_what_its_spec_says(data):
    """As a dict, as JSON and as TOML; what the spec says is kept and the rest is default."""
    experiment = Experiment.from_dict(data)
    whole = json.loads(experiment.to_json())
    assert within(data, whole)
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    assert Experiment.from_dict(whole) == experiment
    assert Experiment.from_dict(tomllib.loads(toml(data))) == experiment
    assert Experiment.from_dict(tomllib.loads(toml(whole))) == experiment


@few
@given(specs)
def test_the_slug_is_the_name_and_a_hash_of_the_data(data):
    experiment = Experiment.from_dict(data)
    text = json.dumps(experiment.to_dict(), sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode(), digest_size=5).hexdigest()
    assert experiment.slug == f"{experiment.name}-{digest}"


def leaves(data, path=()):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def changed(path, value):
    """The default experiment with one field at another value."""
    data = copy.deepcopy(Experiment().to_dict())
    table = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    return data


OTHER = {
    "target.kind": "step",
    "target.pixels": 2,
    "loss": "frobenius",
    "dynamics": ["flow"],
    "probe": ["loss", "gap"],
    "precision": "float32",
    "network.depth": [3],
    "network.bottleneck": [2],
    "tau": [0.5],
    "tolerance": 1e-3,
    "flow.first_save": 0.5,
}


def other(path, value):
    """Another value that the field may have."""
    name = ".".join(path)
    if name in OTHER:
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value + 1


def test_the_slug_changes_with_every_field():
    fields = list(leaves(Experiment().to_dict()))
    assert len(fields) > 30
    slugs = {Experiment.from_dict(changed(path, other(path, value))).slug for path, value in fields}
    assert len(slugs | {Experiment().slug}) == len(fields) + 1


def test_the_slug_is_that_of_what_is_meant():
    """Whatever the order of the keys, and whether numbers are written 1 or 1.0, alone or listed."""
    one = {"tau": [0.0, 1.0], "flow": {"end_time": 50.0, "rtol": 1e-4}, "seeds": 3}
    two = {"seeds": 3, "flow": {"rtol": 0.0001, "end_time": 50}, "tau": [0, 1]}
    assert Experiment.from_dict(one).slug == Experiment.from_dict(two).slug
    lone, listed = {"tau": 1, "dynamics": "flow"}, {"tau": [1.0], "dynamics": ["flow"]}
    assert Experiment.from_dict(lone) == Experiment.from_dict(listed)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seed": 3}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"target": {"kinds": "step"}}, "unknown key 'target.kinds'; did you mean 'kind'?"),
        ({"flow": {"endtime": 1.0}}, "unknown key 'flow.endtime'; did you mean 'end_time'?"),
        ({"descent": {"zzz": 1}}, "unknown key 'descent.zzz'; known: optimizer, learning_rate, "),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(data, message):
    with pytest.raises(ValueError) as caught:
        Experiment.from_dict(data)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seeds", 2.0),
        ("seeds", True),
        ("seeds", "3"),
        ("name", 3),
        ("tau", ["0.1"]),
        ("tau", [[0.1]]),
        ("tolerance", "small"),
        ("network.depth", [1.5]),
        ("target.normalize", 1),
        ("target", 3),
        ("loss", "mse"),
        ("dynamics", ["flow", "sgd"]),
        ("precision", "float16"),
        ("target.kind", "gaussian"),
    ],
)
def test_values_of_another_type_are_refused_by_key(path, value):
    with pytest.raises(ValueError, match=f"^{path} must be "):
        Experiment.from_dict(changed(path.split("."), value))


RULES = {
    "name": ["", "a/b", "a b", "..", "--"],
    "seeds": [0, -1],
    "tau": [[], [0.1, 0.1], [-0.1], [np.inf], [np.nan]],
    "dynamics": [[], ["flow", "flow"]],
    "network.depth": [[], [0], [2, 2], [-1]],
    "network.bottleneck": [[], [-1], [3, 3]],
    "network.scale": [0.0, -1.0, np.inf, np.nan],
    "tolerance": [0.0, 1.0, -1e-6, np.nan],
    "flow.end_time": [0.0, -1.0, np.inf, np.nan],
    "flow.num_saves": [1, 0],
    "flow.first_save": [-1.0, 100.0, np.nan],
    "flow.rtol": [0.0, -1.0, np.inf, np.nan],
    "flow.atol": [0.0, -1.0, np.inf, np.nan],
    "flow.max_steps": [0],
    "descent.learning_rate": [-0.1, np.inf, np.nan],
    "descent.num_steps": [0],
    "descent.save_every": [0],
    "batch_size": [-1],
    "memory_limit_gb": [0.0, -1.0, np.nan],
    "probe": [[], ["loss"], ["gap"], ["loss", "gap", "loss"]],
    "target.pixels": [0, 3, 16],
    "target.n": [0],
}


@pytest.mark.parametrize(("path", "value"), [(p, v) for p, bad in RULES.items() for v in bad])
def test_what_cannot_run_is_refused_by_key(path, value):
    with pytest.raises(ValueError, match=f"^{path} must be .*; got"):
        Experiment.from_dict(changed(path.split("."), value))


def test_an_experiment_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Experiment().seeds = 3


def test_a_file_is_read_with_defaults_for_what_it_leaves_out(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text('name = "mine"\ntau = [0, 0.5]\n[target]\nkind = "step"\n', encoding="utf-8")
    expected = Experiment(name="mine", tau=(0.0, 0.5), target=TargetSpec(kind="step"))
    assert Experiment.from_toml(path) == expected
    assert Experiment.from_toml(str(path)) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"seeds = ", "is not valid TOML"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"sedes = 3", "unknown key 'sedes'"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "spec.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Experiment.from_toml(path)


def test_the_shipped_specs_are_valid_and_say_every_kind_of_thing():
    folder = resources.files("bwflow") / "specs"
    files = [file for file in folder.iterdir() if file.name.endswith(".toml")]
    found = {file.name: Experiment.from_toml(file) for file in files}
    demo = found["demo.toml"]
    assert demo.name == "demo"
    assert demo.target == TargetSpec(kind="digits", pixels=4)
    assert len({spec.slug for spec in found.values()}) == len(found)


RECIPES = {
    "power_law": (TargetSpec(kind="power_law", n=4, exponent=0.5), np.arange(1.0, 5.0) ** -0.5),
    "geometric": (TargetSpec(kind="geometric", n=3, condition=100.0), [1.0, 0.1, 0.01]),
    "step": (TargetSpec(kind="step", n=4, rank=2, low=0.25), [1.0, 1.0, 0.25, 0.25]),
    "low rank": (TargetSpec(kind="step", n=4, rank=3), [1.0, 1.0, 1.0]),
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("basis_seed", [-1, 0, 5])
def test_recipes_have_their_spectrum_in_the_basis_asked_for(recipe, basis_seed):
    spec, expected = RECIPES[recipe]
    target = study.make_target(dataclasses.replace(spec, basis_seed=basis_seed), DTYPE)
    assert target.factor.dtype == DTYPE
    assert_close(target.eigenvalues, np.array(expected), ROUNDING)
    Sigma = np.asarray(target.covariance)
    diagonal = np.allclose(Sigma, np.diag(np.diag(Sigma)), atol=1e-3)
    assert diagonal == (basis_seed == -1)


def test_recipes_are_divided_by_their_largest_eigenvalue_if_asked():
    spec = TargetSpec(kind="wishart", n=4, rank=2, basis_seed=3, normalize=False)
    raw = study.make_target(spec, DTYPE)
    unit = study.make_target(dataclasses.replace(spec, normalize=True), DTYPE)
    Sigma = np.asarray(raw.covariance, np.float64)
    largest = np.linalg.eigvalsh(Sigma)[-1]
    assert abs(largest - 1.0) > 0.1
    assert_close(unit.covariance, Sigma / largest, ROUNDING)
    assert unit.rank == raw.rank == np.linalg.matrix_rank(Sigma, tol=1e-4) == 2


def test_wisharts_of_two_seeds_differ():
    spec = TargetSpec(kind="wishart", n=3, rank=3)
    one, two = (
        study.make_target(dataclasses.replace(spec, basis_seed=seed), DTYPE) for seed in (1, 2)
    )
    assert np.max(np.abs(one.covariance - two.covariance)) > 0.05


def digits_covariance(pixels):
    from sklearn.datasets import load_digits

    images = load_digits().images
    block = 8 // pixels
    means = np.zeros((len(images), pixels, pixels))
    for i in range(8):
        for j in range(8):
            means[:, i // block, j // block] += images[:, i, j] / block**2
    return np.cov(means.reshape(len(images), -1), rowvar=False, bias=True)


@pytest.mark.parametrize(("pixels", "rank"), [(1, 1), (4, 16), (8, 61)])
def test_digits_are_the_covariance_of_averaged_images(pixels, rank):
    target = study.make_target(TargetSpec(kind="digits", pixels=pixels), DTYPE)
    Sigma = np.atleast_2d(digits_covariance(pixels))
    assert target.dim == pixels**2
    assert target.rank == rank
    assert_close(target.covariance, Sigma / np.linalg.eigvalsh(Sigma)[-1], ROUNDING)


def test_a_file_holds_a_covariance_or_samples(tmp_path):
    X = np.random.default_rng(0).normal(size=(20, 3)) + 5.0
    Sigma = np.cov(X, rowvar=False, bias=True)
    for name, array in (("covariance", Sigma), ("samples", X)):
        np.save(tmp_path / f"{name}.npy", array)
        path = str(tmp_path / f"{name}.npy")
        spec = TargetSpec(kind="file", path=path, normalize=False)
        target = study.make_target(spec, DTYPE)
        assert target.factor.dtype == DTYPE
        assert_close(target.covariance, Sigma, 10 * ROUNDING)
        unit = study.make_target(dataclasses.replace(spec, normalize=True), DTYPE)
        assert_close(unit.covariance, Sigma / np.linalg.eigvalsh(Sigma)[-1], 10 * ROUNDING)


@pytest.mark.parametrize("content", ["missing", "empty", "text", "pickle", "archive"])
def test_files_that_hold_no_array_are_refused(tmp_path, content):
    path = tmp_path / "target.npy"
    if content == "empty":
        path.touch()
    elif content == "text":
        path.write_text("1 2 3")
    elif content == "pickle":
        np.save(path, np.array([{}], object), allow_pickle=True)
    elif content == "archive":
        with path.open("wb") as file:
            np.savez(file, X=np.eye(2))
    with pytest.raises(ValueError, match=r"target.path .*target.npy"):
        study.make_target(TargetSpec(kind="file", path=str(path)), DTYPE)


TINY = Experiment(
    name="tiny",
    target=TargetSpec(kind="step", n=2, rank=1),
    network=NetworkSpec(depth=(1, 2), bottleneck=(1,)),
    tau=(0.0, 0.1),
    seeds=2,
    precision=PRECISION,
    flow=FlowSpec(end_time=1.0, num_saves=3, rtol=1e-4, atol=1e-6),
    descent=DescentSpec(num_steps=8, save_every=4),
)


@pytest.fixture(scope="module")
def tiny():
    return study.run(TINY, progress=False)


def test_a_study_is_a_labelled_grid_of_finite_results(tiny):
    axes = {"dynamics": 2, "depth": 2, "bottleneck": 1, "tau": 2, "seed": 2}
    assert tiny["loss"].sizes == {**axes, "save": 4}
    assert tiny["success"].all()
    records = tiny["loss"].notnull() & np.isfinite(tiny["loss"])
    assert records.sel(dynamics="flow").all()
    assert records.sel(dynamics="descent").isel(save=slice(0, 3)).all()
    assert tiny["loss"].dtype == DTYPE
    assert (tiny["gap"].isel(save=2) < tiny["gap"].isel(save=0)).all()


def test_a_study_keeps_its_spec_and_the_whole_spectrum(tiny):
    assert Experiment.from_dict(json.loads(tiny.attrs["experiment"])) == TINY
    assert tiny.attrs["tolerance"] == TINY.tolerance
    assert_close(tiny["target_eigenvalues"], np.array([1.0, 0.0]), ROUNDING)
    assert tiny["bottleneck"].values.tolist() == [1]
    assert tiny["target_eigenvalues"].attrs["units"] == "covariance"


def test_a_study_saves_when_its_spec_says(tiny):
    """The start, then log-spaced times from `first_save`; steps by `save_every`."""
    assert_close(tiny["time"], np.array([0.0, 0.01, 0.1, 1.0]), ROUNDING)
    assert tiny["step"].values[:3].tolist() == [0, 4, 8]


def test_a_learning_rate_of_zero_is_the_rule_of_each_run(tiny):
    """`1 / (2 N (sqrt(lambda_1) + sqrt(L(0)))^{2 (N-1) / N})`, here with `lambda_1 = 1`."""
    target = study.make_target(TINY.target, DTYPE)
    loss, stop = bw.losses.BuresWasserstein(target, 0.1), bw.until.gap(TINY.tolerance)
    for depth in (1, 2):
        start = bw.initializers.balanced()(jax.random.key(1), (1,) * depth + (2,), dtype=DTYPE)
        at_start = float(loss(bw.end_to_end(start)))
        rate = 1 / (2 * depth * (1 + at_start**0.5) ** (2 * (depth - 1) / depth))
        run = bw.gradient_descent(
            loss, start, optax.sgd(rate), num_steps=8, save_every=4, until=stop
        )
        found = tiny["loss"].sel(dynamics="descent", depth=depth).isel(tau=1, seed=1)
        assert_close(found.values.ravel()[:3], run.probes["loss"], ROUNDING)


DESCENT = dataclasses.replace(
    TINY, dynamics=("descent",), tau=(0.1,), network=NetworkSpec(depth=(1,))
)


def test_other_losses_optimizers_and_starts_are_found_by_name():
    spec = dataclasses.replace(
        DESCENT,
        loss="frobenius",
        network=NetworkSpec(depth=(1,), init="gaussian", scale=0.5),
        descent=DescentSpec(optimizer="adam", learning_rate=0.05, num_steps=3, save_every=1),
        seeds=1,
    )
    ds = study.run(spec, progress=False)
    target = study.make_target(spec.target, DTYPE)
    init = bw.initializers.gaussian()(jax.random.key(0), (2, 2), dtype=DTYPE)
    run = bw.gradient_descent(
        bw.losses.Frobenius(target, 0.1), (init[0] / 2,), optax.adam(0.05), num_steps=3
    )
    assert_close(ds["loss"].values.ravel(), run.probes["loss"], ROUNDING)


@pytest.mark.skipif(not X64, reason="compares with double precision")
def test_single_precision_is_asked_for_by_the_spec():
    """Also where jax runs in double precision."""
    spec = dataclasses.replace(DESCENT, precision="float32")
    single, double = study.run(spec, progress=False), study.run(DESCENT, progress=False)
    assert single["loss"].dtype == single["tau"].dtype == np.float32
    assert double["loss"].dtype == np.float64
    # Random numbers of the two precisions differ, so only the minimum is shared.
    minima = [(ds["loss"] - ds["gap"]).values.ravel()[0] for ds in (single, double)]
    assert abs(minima[0] - minima[1]) < 1e-5


@pytest.mark.skipif(X64, reason="says what happens without double precision")
def test_double_precision_is_refused_where_jax_has_none():
    with pytest.raises(ValueError, match="precision is float64, but jax runs in float32"):
        study.run(dataclasses.replace(DESCENT, precision="float64"), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": NetworkSpec(bottleneck=(3,))}, "network.bottleneck must be distinct widths"),
        ({"network": NetworkSpec(bottleneck=(0, 2))}, "network.bottleneck must be distinct widths"),
        ({"network": NetworkSpec(init="ones")}, "network.init must be one of .*; got 'ones'"),
        ({"flow": FlowSpec(solver="RK4")}, "flow.solver must be a diffrax solver .*; got 'RK4'"),
        ({"flow": FlowSpec(solver="Euler")}, "flow.solver must be .* with an error estimate"),
        ({"flow": FlowSpec(solver="Solution")}, "flow.solver must be a diffrax solver"),
        ({"descent": DescentSpec(optimizer="sdg")}, "descent.optimizer must be an optax optimiser"),
        ({"descent": DescentSpec(optimizer="apply_updates")}, "descent.optimizer must be an optax"),
        ({"descent": DescentSpec(optimizer="adam")}, "descent.learning_rate must be given"),
        ({"loss": "frobenius", "dynamics": ("descent",)}, "descent.learning_rate must be given"),
        ({"probe": ("loss", "gap", "rank")}, "unknown quantity 'rank'"),
        ({"target": TargetSpec(kind="step", n=2, rank=3)}, "rank must "),
    ],
)
def test_names_that_are_not_registered_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        study.run(dataclasses.replace(TINY, **change), progress=False)
