"""Specs as data, their refusals, the targets they name and the runs they describe."""

import copy
import dataclasses
import hashlib
import json
import math
import tomllib
from importlib import resources
from typing import get_args, get_origin, get_type_hints

import jax
import numpy as np
import optax
import pytest
from helpers import X64, assert_close, by_precision
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bwflow as bw
from bwflow import study
from bwflow.experiment import DescentSpec, Experiment, FlowSpec, NetworkSpec, TargetSpec

PRECISION = by_precision("float64", "float32")
DTYPE = np.dtype(PRECISION)
ROUNDING = by_precision(1e-12, 1e-5)


@pytest.fixture(autouse=True)
def _refusing(as_installed):
    """The records refuse by themselves what the suite's type checks would stop before."""


def choices(kind, name):
    """Any of the names that a field may have."""
    hint = get_type_hints(kind)[name]
    hint = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return st.sampled_from(get_args(hint))


def distinct(elements, most=4):
    return st.lists(elements, min_size=1, max_size=most, unique=True)


def numbers(least, most):
    """Floats of either precision, small ones and zero included where they are in range."""
    inner = st.floats(max(least, 1e-30), most)
    return inner | st.just(0.0) if least <= 0 else inner


positive = numbers(1e-30, 1e30)
anything = numbers(0, 1e30) | numbers(0, 1e30).map(lambda x: -x)
texts = st.text(max_size=6) | st.text('aé"\\ /.\n\t\x00\x7f\u2028', min_size=1, max_size=6)
largest = 2**31 - 1


@st.composite
def targets(draw):
    kind = draw(choices(TargetSpec, "kind"))
    n = draw(st.integers(1, 10_000))
    return {
        "kind": kind,
        "n": n,
        "condition": draw(numbers(1, 1e30)),
        "exponent": draw(st.floats(-7.5, 7.5).filter(lambda x: x == 0 or abs(x) > 1e-30)),
        "rank": draw(st.integers(0, n)),
        "low": draw(numbers(0, 1)),
        "distribution": draw(choices(TargetSpec, "distribution")),
        "sampled": draw(choices(TargetSpec, "sampled")),
        "minimum": draw(numbers(0, 1e30)),
        "seed": draw(st.integers(0, largest)),
        "basis_seed": draw(st.integers(-1, largest)),
        "pixels": draw(st.sampled_from([1, 2, 4, 8])),
        "path": draw(texts.filter(bool) if kind == "file" else texts),
        "num_samples": draw(st.sampled_from([0, 2, 100_000])),
        "normalize": draw(st.booleans()),
    }


@st.composite
def networks(draw, n):
    bottleneck = draw(distinct(st.integers(1, n)))
    if n not in bottleneck and draw(st.booleans()):
        bottleneck.append(0)
    wide = draw(st.just(0) | st.integers(n, 10_000))
    width, latent = draw(st.permutations([wide, 0]))
    init = draw(choices(NetworkSpec, "init"))
    least = min(k or n for k in bottleneck)
    return {
        "depth": draw(distinct(st.integers(1, 1000))),
        "bottleneck": bottleneck,
        "width": width,
        "latent": latent,
        "init": init,
        "draw": draw(choices(NetworkSpec, "draw")),
        "std": draw(numbers(0, 1e30)),
        "gamma": draw(anything),
        "scale": draw(positive),
        "min_singular_value": draw(numbers(0, 1e30)),
        "rank": draw(st.integers(1, least) if init == "low_rank" else st.integers(0, largest)),
        "radius": draw(numbers(0, 1e30)),
    }


flows = st.fixed_dictionaries(
    {
        "solver": choices(FlowSpec, "solver"),
        "end_time": st.floats(1.0, 1e30),
        "num_saves": st.integers(2, 1000),
        "first_save": numbers(0, 0.5),
        "rtol": positive,
        "atol": numbers(2.0**-23, 1e30),  # one of the two is resolved by the precision
        "max_steps": st.integers(1, largest),
    }
)


@st.composite
def descents(draw):
    rate = draw(positive)
    steps = draw(st.integers(1, largest))
    save_every = draw(st.integers(math.ceil(steps / 100_000), largest))
    by_time = draw(st.booleans()) and 1e-29 <= rate * steps <= 1e30
    return {
        "optimizer": draw(choices(DescentSpec, "optimizer")),
        "learning_rate": rate,
        "num_steps": steps,
        "total_time": 0.999 * rate * steps if by_time else 0.0,
        "save_every": save_every,
    }


@st.composite
def specs(draw):
    """Plain data of an experiment that breaks no rule, every field of every table drawn."""
    target = draw(targets())
    n = {"digits": target["pixels"] ** 2, "file": 9}.get(target["kind"], target["n"])
    descent, loss = draw(descents()), draw(choices(Experiment, "loss"))
    if (descent["optimizer"], loss) == ("sgd", "bures_wasserstein") and not descent["total_time"]:
        descent["learning_rate"] = draw(st.just(0.0) | positive)
    taus = draw(distinct(st.floats(0.0, 2.0**99, width=32).filter(lambda x: not 0 < x < 1e-30)))
    methods = choices(Experiment, "method").filter(lambda m: m != "quadrature" or min(taus) > 0)
    others = distinct(choices(Experiment, "probe").filter(lambda q: q not in ("loss", "gap")))
    return {
        "name": draw(st.text("abcXYZ019-_", min_size=1, max_size=64)),
        "target": target,
        "network": draw(networks(n)),
        "loss": loss,
        "method": draw(methods) if loss == "bures_wasserstein" else "auto",
        "tau": taus,
        "seeds": draw(st.integers(1, 10_000_000)),
        "dynamics": draw(distinct(choices(Experiment, "dynamics"))),
        "tolerance": draw(numbers(0, 0.999)),
        "probe": ["loss", "gap", *draw(others)],
        "flow": draw(flows),
        "descent": descent,
        "precision": draw(choices(Experiment, "precision")),
        "batch_size": draw(st.integers(0, largest)),
        "group_size": draw(st.sampled_from((0, 1))),
        "memory_limit_gb": draw(positive),
    }


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
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@few
@given(specs())
def test_an_experiment_is_what_its_spec_says(data):
    """Of every field; whether the spec is a dict, JSON or TOML written by somebody else."""
    experiment = Experiment.from_dict(data)
    assert json.loads(experiment.to_json()) == data
    assert Experiment.from_dict(tomllib.loads(toml(data))) == experiment
    for kind, table in ((Experiment, data), *tables_of(data)):
        assert set(table) == {field.name for field in dataclasses.fields(kind)}


def tables_of(data):
    kinds = {"target": TargetSpec, "network": NetworkSpec, "flow": FlowSpec, "descent": DescentSpec}
    return [(kind, data[name]) for name, kind in kinds.items()]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("specs") / "spec.toml"


@few
@given(data=specs())
@example(data={"target": {"kind": "file", "path": 'C:\\new\t"é\x7f\u2028'}})
def test_an_experiment_comes_back_exactly_from_what_it_writes(file, data):
    experiment = Experiment.from_dict(data)
    file.write_text(experiment.to_toml(), encoding="utf-8")
    assert Experiment.from_toml(file) == experiment
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    assert Experiment.from_dict(json.loads(experiment.to_json())) == experiment


@few
@given(specs())
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


# With a learning rate, so that any loss and optimiser may stand beside it.
PLAIN = Experiment(descent=DescentSpec(learning_rate=0.1))


def changed(path, value):
    """A plain experiment with one field at another value."""
    data = copy.deepcopy(PLAIN.to_dict())
    table = data
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    return data


OTHER = {
    "target.kind": "step",
    "target.low": 0.5,
    "target.distribution": "normal",
    "target.sampled": "singular_values",
    "target.num_samples": 20,
    "target.pixels": 2,
    "loss": "frobenius",
    "dynamics": ["flow"],
    "probe": ["loss", "gap"],
    "precision": "float32",
    "network.depth": [3],
    "network.bottleneck": [2],
    "network.width": 20,
    "network.latent": 20,
    "method": "svd",
    "network.init": "identity",
    "network.draw": "orthogonal",
    "tau": [0.5],
    "tolerance": 1e-3,
    "flow.solver": "Dopri5",
    "flow.first_save": 0.5,
    "descent.optimizer": "adam",
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
    fields = list(leaves(PLAIN.to_dict()))
    assert len(fields) > 45
    slugs = {Experiment.from_dict(changed(path, other(path, value))).slug for path, value in fields}
    assert len(slugs | {PLAIN.slug}) == len(fields) + 1


def test_the_slug_is_that_of_what_is_meant():
    """Whatever the order of the keys, and whether numbers are written 1 or 1.0, alone or listed."""
    one = {"tau": [0.0, 1.0], "flow": {"end_time": 50.0, "rtol": 1e-4}, "seeds": 3}
    two = {"seeds": 3, "flow": {"rtol": 0.0001, "end_time": 50}, "tau": [0, 1]}
    assert Experiment.from_dict(one).slug == Experiment.from_dict(two).slug
    lone, listed = {"tau": 1, "dynamics": "flow"}, {"tau": [1.0], "dynamics": ["flow"]}
    assert Experiment.from_dict(lone) == Experiment.from_dict(listed)
    assert Experiment(tau=(-0.0,)).slug == Experiment(tau=(0.0,)).slug


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"seed": 3}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"target": {"kinds": "step"}}, "unknown key 'target.kinds'; did you mean 'target.kind'?"),
        ({"flow": {"endtime": 1.0}}, "unknown key 'flow.endtime'; did you mean 'flow.end_time'?"),
        ({"descent": {"zzz": 1}}, "unknown key 'descent.zzz'; known: optimizer, learning_rate, "),
        ({1: 2}, "unknown key '1'; known: name, target, "),
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
        ("seeds", None),
        ("tau", {"0": 1}),
        ("network.depth", "2"),
        ("probe", [["loss"]]),
    ],
)
def test_values_of_another_type_are_refused_by_key(path, value):
    with pytest.raises(ValueError, match=f"^{path} must be "):
        Experiment.from_dict(changed(path.split("."), value))


@pytest.mark.parametrize(
    ("path", "value", "end"),
    [
        ("loss", "mse", "bures_wasserstein, frobenius; got 'mse'."),
        ("dynamics", ["flow", "decent"], "got 'decent'; did you mean 'descent'?"),
        ("precision", "float16", "float64, float32; got 'float16'; did you mean 'float64'?"),
        ("target.kind", "gaussian", "wishart, random, file; got 'gaussian'."),
        ("target.distribution", "zipff", "did you mean 'zipf'?"),
        ("target.sampled", "eigenvalue", "did you mean 'eigenvalues'?"),
        ("network.init", "ones", "got 'ones'."),
        ("network.draw", "balanced", "orthogonal, identity; got 'balanced'."),
        ("flow.solver", "Euler", "got 'Euler'."),
        ("flow.solver", "RK4", "got 'RK4'; did you mean 'RKC'?"),
        ("descent.optimizer", "sdg", "got 'sdg'; did you mean 'sgd'?"),
        ("descent.optimizer", "apply_updates", "got 'apply_updates'."),
        ("probe", ["loss", "gap", "rank"], "got 'rank'."),
        ("network.init", ["balanced"], "got ['balanced']; did you mean 'balanced'?"),
    ],
)
def test_names_that_are_not_known_are_refused_with_the_choices(path, value, end):
    with pytest.raises(ValueError) as caught:
        Experiment.from_dict(changed(path.split("."), value))
    assert str(caught.value).startswith(f"{path} must be one of ")
    assert str(caught.value).endswith(end)


RULES = {
    "name": ["", "a/b", "a b", "..", "a\n", "a" * 65],
    "method": ["quadrature"],  # with tau = 0
    "seeds": [0, -1, 10**8, 2**31, 10**30],
    "tau": [[], [0.1, 0.1], [-0.1], [np.inf], [np.nan], [1e31], [1e-31]],
    "dynamics": [[], ["flow", "flow"]],
    "network.depth": [[], [0], [2, 2], [-1], [1001]],
    "network.bottleneck": [[], [-1], [3, 3], [11], [10, 0]],
    "network.width": [-1, 10_001],
    "network.latent": [-1, 10_001],
    "network.std": [-1.0, np.nan],
    "network.gamma": [np.inf, np.nan],
    "network.scale": [0.0, -1.0, np.inf, np.nan],
    "network.min_singular_value": [-1.0, np.nan],
    "network.rank": [-1],
    "network.radius": [-0.1, np.nan],
    "tolerance": [1.0, -1e-6, np.nan],
    "flow.end_time": [0.0, -1.0, np.inf, np.nan],
    "flow.num_saves": [1, 0, 100_001],
    "flow.first_save": [-1.0, 100.0, np.nan],
    "flow.rtol": [0.0, -1.0, np.inf, np.nan],
    "flow.atol": [0.0, -1.0, np.inf, np.nan],
    "flow.max_steps": [0, 2**31],
    "descent.learning_rate": [-0.1, np.inf, np.nan],
    "descent.num_steps": [0, 2**31],
    "descent.total_time": [-1.0, 1e30, np.nan],
    "descent.save_every": [0, -1],
    "batch_size": [-1],
    "group_size": [-1],
    "memory_limit_gb": [0.0, -1.0, np.nan],
    "probe": [[], ["loss"], ["gap"], ["loss", "gap", "loss"]],
    "target.pixels": [0, 3, 16],
    "target.n": [0, 10_001],
    "target.condition": [0.5, np.nan],
    "target.exponent": [np.nan, 1e31],
    "target.rank": [-1],
    "target.low": [-0.1, 1.1],
    "target.minimum": [-1.0],
    "target.seed": [-1],
    "target.basis_seed": [-2],
    "target.num_samples": [-1, 1, 10**9],
}


@pytest.mark.parametrize(("path", "value"), [(p, v) for p, bad in RULES.items() for v in bad])
def test_what_cannot_run_is_refused_by_key(path, value):
    with pytest.raises(ValueError, match=rf"^{path} must be .*; got"):
        Experiment.from_dict(changed(path.split("."), value))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"target": {"kind": "file"}}, "target.path must be given for the kind 'file'; got ''"),
        ({"target": {"kind": "step", "rank": 11}}, "target.rank must be between 1 and 10,"),
        ({"target": {"kind": "wishart", "rank": 10**9}}, "target.rank must be between 1 and 10000"),
        ({"target": {"kind": "power_law", "exponent": 31.0}}, "target.exponent must be so small"),
        ({"network": {"bottleneck": 3, "width": 2}}, "network.bottleneck must be the smallest"),
        (
            {"network": {"bottleneck": 3, "width": 12, "latent": 12}},
            "network.bottleneck must be the smallest",
        ),
        ({"network": {"init": "low_rank"}}, "network.rank must be between 1 and every bottleneck"),
        (
            {"network": {"init": "low_rank", "rank": 3, "bottleneck": [2, 4]}},
            "network.rank must be between 1 and every bottleneck for low_rank; got 3",
        ),
        ({"loss": "frobenius"}, "descent.learning_rate must be positive: 0 stands for a rule"),
        ({"descent": {"optimizer": "adam"}}, "descent.learning_rate must be positive: 0 stands"),
        ({"descent": {"total_time": 9.0}}, "descent.total_time must be 0, or positive beside a le"),
        ({"descent": {"num_steps": 10**6, "save_every": 1}}, "descent.save_every must be at least"),
        ({"tau": [0.1, 0.1 + 1e-12], "precision": "float32"}, "tau must be distinct numbers in fl"),
        (
            {"flow": {"first_save": 99.9999}, "precision": "float32"},
            "flow.first_save must leave room for 100 times that differ in float32 up to 100.0",
        ),
        (
            {"flow": {"rtol": 1e-8, "atol": 1e-9}, "precision": "float32"},
            "flow.rtol or flow.atol must be at least 1.2e-07, what float32 resolves; got 1e-08 and",
        ),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(data, message):
    with pytest.raises(ValueError) as caught:
        Experiment.from_dict(data)
    assert str(caught.value).startswith(message)


def test_the_same_taus_and_times_are_distinct_in_double_precision():
    data = {"tau": [0.1, 0.1 + 1e-12], "flow": {"first_save": 99.9999}}
    assert Experiment.from_dict(data).tau == (0.1, 0.1 + 1e-12)


def test_numbers_of_numpy_and_jax_are_taken_as_they_are():
    given = Experiment(
        tau=np.array([0.0, 0.5]),
        seeds=np.int64(3),
        network=NetworkSpec(depth=jax.numpy.array([1, 2]), scale=np.float32(0.5)),
    )
    assert given == Experiment(
        tau=(0.0, 0.5), seeds=3, network=NetworkSpec(depth=(1, 2), scale=0.5)
    )
    assert Experiment.from_json(given.to_json()) == given


@pytest.mark.parametrize("text", ["", "{", "[1]", "nan", '{"tau": [NaN]}', "[" * 10**5])
def test_json_that_is_no_spec_is_refused(text):
    with pytest.raises(ValueError, match=r"spec|finite"):
        Experiment.from_json(text)


@pytest.mark.parametrize(
    ("network", "depth", "expected"),
    [
        ({}, 1, (3, 8)),
        ({}, 3, (3, 3, 3, 8)),
        ({"width": 9}, 3, (3, 9, 9, 8)),
        ({"latent": 9}, 3, (9, 3, 3, 8)),
        ({"width": 9, "latent": 9}, 1, (3, 8)),
    ],
)
def test_widths_have_the_bottleneck_inside_or_as_the_latent_dimension(network, depth, expected):
    assert NetworkSpec(**network).widths(8, depth, 3) == expected


def test_programs_are_every_dynamics_with_every_network():
    spec = Experiment(target=TargetSpec(n=4), network=NetworkSpec(depth=(1, 2), bottleneck=(2, 0)))
    widths = [(2, 4), (4, 4), (2, 2, 4), (4, 4, 4)]
    assert spec.programs() == [(d, w) for d in ("flow", "descent") for w in widths]


def test_the_size_of_a_file_is_not_known_from_its_spec():
    spec = Experiment(
        target=TargetSpec(kind="file", path="x.npy"), network=NetworkSpec(bottleneck=(9,))
    )
    assert spec.programs() == []
    with pytest.raises(ValueError, match=r"network.bottleneck .* smallest width, here 3"):
        spec.programs(3)


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
    one, two = (study.make_target(dataclasses.replace(spec, seed=seed), DTYPE) for seed in (1, 2))
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


def test_deep_preconditioning_is_found_by_name_and_has_a_rate_of_one():
    ds = study.run(
        dataclasses.replace(DESCENT, descent=DescentSpec(optimizer="deep_precgd", num_steps=3)),
        progress=False,
    )
    target = study.make_target(TINY.target, DTYPE)
    start = bw.initializers.balanced()(jax.random.key(0), (2, 2), dtype=DTYPE)
    run = bw.gradient_descent(
        bw.losses.BuresWasserstein(target, 0.1),
        start,
        bw.precondition.deep_precgd(1.0),
        num_steps=3,
        until=bw.until.gap(TINY.tolerance),
    )
    found = ds["loss"].isel(seed=0).values.ravel()
    assert_close(found[-1], run.probes["loss"][-1], ROUNDING)


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


def cell(**changes):
    """The end-to-end start and the losses of one run of a small study."""
    network = NetworkSpec(**({"depth": (2,)} | changes.pop("network", {})))
    target = TargetSpec(**({"kind": "step", "n": 3, "rank": 3} | changes.pop("target", {})))
    spec = dataclasses.replace(DESCENT, target=target, network=network, seeds=1, tau=(0.0,))
    return spec, study.run(dataclasses.replace(spec, **changes), progress=False)


def singular_values(network, target=None):
    """Of the start's end-to-end matrix."""
    probe = ("loss", "gap", "singular_values")
    _, ds = cell(network=network, target=target or {}, probe=probe)
    return ds["singular_values"].isel(save=0).values.ravel()


def drawn(init, widths):
    """The singular values of what an initializer draws from the first seed."""
    W = bw.end_to_end(init(jax.random.key(0), widths, DTYPE))
    return np.linalg.svd(np.asarray(W), compute_uv=False)


STARTS = {
    "rank": ({"rank": 1}, bw.initializers.balanced(rank=1)),
    "minimum": (
        {"min_singular_value": 2.0},
        bw.initializers.balanced(min_singular_value=2.0),
    ),
    "std": ({"std": 0.3}, bw.initializers.balanced(bw.initializers.gaussian(0.3))),
    "gamma": ({"gamma": 3.0}, bw.initializers.balanced(bw.initializers.gaussian(gamma=3.0))),
    "uniform": (
        {"draw": "uniform", "std": 1.0},
        bw.initializers.balanced(bw.initializers.uniform(3**0.5)),
    ),
    "layers": (
        {"init": "xavier_normal", "scale": 2.0},
        lambda *a: tuple(2 * W for W in bw.initializers.xavier_normal()(*a)),
    ),
    "rebalanced": (
        {"init": "rebalanced", "draw": "orthogonal", "scale": 0.5},
        bw.initializers.rebalanced(bw.initializers.orthogonal(), scale=0.5),
    ),
    "low rank": ({"init": "low_rank", "rank": 2}, bw.initializers.low_rank(2)),
}


@pytest.mark.parametrize("case", STARTS)
def test_a_start_is_what_its_fields_say(case):
    network, init = STARTS[case]
    assert_close(singular_values(network), drawn(init, (3, 3, 3)), ROUNDING)


def test_a_start_near_the_target_is_as_near_as_asked():
    """At radius 0 it is the optimum itself, at 0.1 as far as that."""
    for radius in (0.0, 0.1):
        spec, ds = cell(network={"init": "near_target", "radius": radius})
        at_start = float(ds["loss"].isel(save=0).values.ravel()[0])
        assert at_start <= radius**2 + ROUNDING
        assert spec.network.radius == radius


@pytest.mark.parametrize(
    ("network", "widths"), [({"width": 5}, (3, 5, 3)), ({"latent": 5}, (5, 3, 3))]
)
def test_inner_and_latent_widths_are_those_asked_for(network, widths):
    assert_close(singular_values(network), drawn(bw.initializers.balanced(), widths), ROUNDING)


def test_the_number_of_updates_may_be_given_as_a_time():
    descent = DescentSpec(learning_rate=0.25, total_time=2.0, save_every=3, num_steps=999)
    assert descent.updates == 8
    _, ds = cell(descent=descent, tolerance=0.0)
    assert ds["step"].values.tolist() == [0, 3, 6, 8]
    assert (ds["num_steps"] == 8).all()


def test_without_a_tolerance_runs_go_to_the_end(tmp_path):
    """Long after they have arrived; the report says so and draws down to rounding."""
    spec = dataclasses.replace(
        TINY,
        tolerance=0.0,
        descent=DescentSpec(num_steps=80, save_every=20),
        flow=FlowSpec(end_time=30.0, num_saves=6, rtol=1e-4, atol=1e-6),
        network=NetworkSpec(depth=(1,), bottleneck=(1,)),
    )
    ds = study.run(spec, progress=False)
    assert np.isinf(ds["hit"]).all()
    assert ds["success"].all()
    assert (ds["num_steps"].sel(dynamics="descent") == 80).all()
    assert np.isfinite(ds["loss"].sel(dynamics="descent").isel(save=slice(0, 5))).all()
    table = bw.report.write(ds, tmp_path)[0]
    assert "arrived: none, since the tolerance is 0" in table
    assert "0%" in table
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert "0 arrived, 0 failed" in bw.report.describe(ds)


def test_random_targets_are_those_of_the_covariances():
    spec = TargetSpec(
        kind="random",
        n=5,
        rank=3,
        seed=7,
        distribution="exponential",
        sampled="singular_values",
        minimum=0.5,
        normalize=False,
    )
    expected = bw.covariances.random_spectrum(
        jax.random.key(7),
        5,
        distribution="exponential",
        sampled="singular_values",
        minimum=0.5,
        rank=3,
        dtype=DTYPE,
    )
    target = study.make_target(spec, DTYPE)
    assert target.rank == 3
    assert target.eigenvalues[-1] >= 0.5 * (1 - ROUNDING)
    assert_close(target.eigenvalues, np.asarray(expected[:3]), 10 * ROUNDING)


def test_a_sample_stands_for_its_covariance():
    """It is near the true one, of the seed given, and divided by its own largest eigenvalue."""
    spec = TargetSpec(kind="step", n=2, rank=1, low=0.5, num_samples=20_000, normalize=False)
    one = study.make_target(spec, DTYPE).covariance
    assert 1e-4 < np.max(np.abs(one - np.diag([1.0, 0.5]))) < 0.05
    other = study.make_target(dataclasses.replace(spec, seed=1), DTYPE).covariance
    assert np.max(np.abs(one - other)) > 1e-4
    unit = study.make_target(dataclasses.replace(spec, normalize=True), DTYPE).covariance
    assert_close(unit, one / np.linalg.eigvalsh(np.asarray(one))[-1], 10 * ROUNDING)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"bottleneck": (3,)}, "network.bottleneck must be the smallest width, here 2; got 3"),
        ({"bottleneck": (0, 2)}, "network.bottleneck must be distinct widths, 0 standing for 2"),
        ({"init": "low_rank", "rank": 3}, "network.rank must be between 1 and every bottleneck"),
    ],
)
def test_networks_that_do_not_fit_the_covariance_in_a_file_are_refused(tmp_path, network, message):
    np.save(tmp_path / "target.npy", np.diag([1.0, 0.5]))
    target = TargetSpec(kind="file", path=str(tmp_path / "target.npy"))
    spec = dataclasses.replace(TINY, target=target, network=NetworkSpec(**network))
    with pytest.raises(ValueError, match=message):
        study.run(spec, progress=False)


@pytest.mark.parametrize("spec", [{}, None, "spec.toml", TargetSpec()])
def test_only_experiments_are_run(spec):
    with pytest.raises(ValueError, match=r"^experiment must be a bwflow\.Experiment"):
        study.run(spec, progress=False)
