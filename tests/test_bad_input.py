"""Every bad input at every public door: refused by name, before anything is compiled or run."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xarray as xr
from helpers import array, random_target

import bwflow as bw
from bwflow import (
    covariances,
    diagnostics,
    factors,
    geometry,
    initializers,
    landscape,
    plotting,
    statistics,
    store,
    theory,
    until,
)
from bwflow.geometry import Factor

pytestmark = pytest.mark.once

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY)
TARGET = random_target(0, 2)
LOSS = bw.losses.BuresWasserstein(TARGET, 0.1)
EYE = np.eye(2)
PAIR = (np.eye(2), np.eye(2))
SGD = optax.sgd(0.1)
HERE = Path(__file__)
DYNAMICS = ("gradient_flow", "gradient_descent")
ROWS = []


def row(door, case, call, message):
    ROWS.append(pytest.param(call, message, id=f"{door}: {case}"))


def rows(doors, cases):
    """Every case at every door; a message names the argument by `{name}`."""
    for (door, name), call in doors.items():
        for case, (value, message) in cases.items():
            row(
                f"{door}({name})",
                case,
                lambda call=call, value=value: call(value),
                message.replace("{name}", name),
            )


def run(dynamics="gradient_flow", **change):
    """A short run with one argument changed."""
    common = {"loss": LOSS, "params": PAIR}
    options = {
        "gradient_flow": {"times": [0.0, 1.0], "rtol": 1e-3, "atol": 1e-3},
        "gradient_descent": {"optimizer": SGD, "num_steps": 2},
    }
    return getattr(bw, dynamics)(**{**common, **options[dynamics], **change})


def at_both(name):
    """The doors of both dynamics to one of their arguments."""
    return {(d, name): lambda x, d=d: run(d, **{name: x}) for d in DYNAMICS}


# --- what is no array of real numbers ------------------------------------------------------------

RAGGED = [[1.0], [1.0, 2.0]]
OBJECTS = np.array([[1.0, None], [None, 1.0]])
NOT_NUMBERS = {
    "text": ("eye", r"{name} must be made of numbers; got 'eye'"),
    "bytes": (b"eye", r"{name} must be made of numbers; got b'eye'"),
    "object": (object(), r"{name} must be made of numbers; got <object"),
    "objects": (OBJECTS, r"{name} must be made of numbers; got array\("),
    "ragged": (RAGGED, r"{name} must be made of numbers; got \[\[1.0\], \[1.0, 2.0\]\]"),
    "masked": (np.ma.ones((2, 2)), r"{name} must be made of numbers; got masked_array"),
}
NONE = {"None": (None, r"{name} must be made of numbers; got None")}
REAL = r"{name} must be real floating point, of 32 or 64 bits; got dtype "
NOT_REAL = {
    "complex": (1j * EYE, REAL + "complex128"),
    "integer": (np.eye(2, dtype=np.int32), REAL + "int32"),
    "integers of Python": ([[1, 0], [0, 1]], REAL + "int64"),
    "bool": (np.eye(2, dtype=bool), REAL + "bool"),
    "half precision": (np.eye(2, dtype=np.float16), REAL + "float16"),
    "random keys": (jnp.stack([KEYS, KEYS]), REAL + "key"),
}
NOT_FINITE = {
    "NaN": (np.full((2, 2), np.nan), r"{name} must be finite; it holds NaN or infinity"),
    "infinite": (np.full((2, 2), np.inf), r"{name} must be finite; it holds NaN or infinity"),
}
NOT_2D = {
    "number": (1.0, r"{name} must have 2 dimensions; got shape \(\)"),
    "vector": (np.ones(2), r"{name} must have 2 dimensions; got shape \(2,\)"),
    "three dimensions": (np.ones((2, 2, 2)), r"{name} must have 2 dimensions; got shape \(2, 2, 2"),
}
NOT_A_MATRIX = NOT_NUMBERS | NOT_REAL | NOT_FINITE | NOT_2D

# --- covariances ---------------------------------------------------------------------------------

NOT_A_COVARIANCE = NOT_A_MATRIX | {
    "not square": (np.ones((2, 3)), r"{name} must be square and not empty; got shape \(2, 3\)"),
    "empty": (np.ones((0, 0)), r"{name} must be square and not empty; got shape \(0, 0\)"),
    "asymmetric": (np.array([[1.0, 0.5], [0.25, 1.0]]), r"{name} must be symmetric; .* up to 0.25"),
    "negative": (-EYE, r"{name} must be pos.* smallest eigenvalue is -1 \(largest -1\)"),
    "indefinite": (np.diag([1.0, -0.5]), r"{name} must be pos.* smallest eigenvalue is -0.5 .*t 1"),
}
rows(
    {
        ("rank_one_flow", "covariance"): lambda S: theory.rank_one_flow(np.ones(2), S, 1.0),
        ("frobenius_flow", "covariance"): lambda S: theory.frobenius_flow(EYE, S, 1.0),
    },
    NOT_A_COVARIANCE
    | NONE
    | {"other size": (np.eye(3), r"must have (one shape|shape \(2, 2\)).*\(3, 3\)")},
)
ZERO = {
    "zero": (np.zeros((2, 2)), r"{name} must not be zero: a target needs a positive eigenvalue")
}
rows({("Target", "Sigma"): bw.Target}, NOT_A_COVARIANCE | ZERO)
EMPTY = {"empty": (np.ones((0, 2)), r"{name} must not be empty; got shape \(0, 2\)")}
rows({("Target.from_factor", "factor"): bw.Target.from_factor}, NOT_A_MATRIX | ZERO | EMPTY)
rows({("Target.from_samples", "X"): bw.Target.from_samples}, NOT_A_MATRIX | NONE | EMPTY)
rows({("sampling_error", "X"): covariances.sampling_error}, NOT_A_MATRIX | NONE)
for door, call in {
    "Target.from_samples": bw.Target.from_samples,
    "sampling_error": covariances.sampling_error,
}.items():
    message = "X must hold samples that differ; all its rows are equal"
    row(door, "equal rows", lambda call=call: call(np.ones((3, 2))), message)
    message = r"X must hold more than ddof=2 samples in its rows; got 2"
    row(door, "too few", lambda call=call: call(EYE, ddof=2), message)
    for ddof in (-1, 0.5, True, "1", None):
        message = r"ddof must be an integer of at least 0; got "
        row(door, f"ddof={ddof!r}", lambda call=call, ddof=ddof: call(EYE, ddof=ddof), message)
row("Target", "nothing", bw.Target, "either a covariance Sigma or factor=; got both or none")
row("Target", "None", lambda: bw.Target(None), "either a covariance Sigma or factor=")
row("Target", "both", lambda: bw.Target(EYE, factor=EYE), "either a covariance Sigma or factor=")
SPECTRUM = r"eigenvalues must be one or more numbers, none negative and not all zero; got"
for case, (value, message) in {
    "text": ("one", r"eigenvalues must be made of numbers; got 'one'"),
    "None": (None, r"eigenvalues must be made of numbers; got None"),
    "list of text": (["one"], r"eigenvalues must be made of numbers; got \['one'\]"),
    "ragged": (RAGGED, r"eigenvalues must be made of numbers; got \[\[1.0"),
    "list of complex numbers": ([1j], r"eigenvalues must be real; got \[1j\]"),
    "integers": (np.ones(2, np.int32), r"eigenvalues must be real floating point"),
    "matrix": (EYE, r"eigenvalues must have 1 dimensions; got shape \(2, 2\)"),
    "NaN": ([1.0, np.nan], r"eigenvalues must be finite; got \[ *1. *nan\]"),
    "infinite": (np.array([1.0, np.inf]), r"eigenvalues must be finite"),
    "negative": ([1.0, -1.0], SPECTRUM),
    "none": ([], SPECTRUM),
    "zero": ([0.0, 0.0], SPECTRUM),
}.items():
    row("from_spectrum", case, lambda value=value: covariances.from_spectrum(value), message)
row(
    "from_spectrum",
    "traced",
    lambda: jax.jit(covariances.from_spectrum)(np.ones(2)),
    "eigenvalues must not be traced",
)

# --- the geometry of covariances -----------------------------------------------------------------

NO_STACK = {case: NOT_2D[case][0] for case in ("number", "vector")}
NO_COVARIANCES = {case: found for case, found in NOT_A_COVARIANCE.items() if case not in NOT_2D} | {
    case: (value, r"{name} must be square and not empty; got shape \(2?,?\)")
    for case, value in NO_STACK.items()
}
SIZES = {
    "other size": (np.eye(3), r"must be of one size; got covariances (2 x 2 and 3|3 x 3 and 2)")
}
BATCHES = {
    "other batch": (
        np.stack([EYE] * 3),
        r"batches must broadcast; got leading dimensions \(\d,\) of \w+ and \(\d,\) of \w+",
    )
}
TWICE = np.stack([EYE] * 2)
PAIRED = {
    "bures_wasserstein": bw.bures_wasserstein,
    "bures_wasserstein_distance": geometry.bures_wasserstein_distance,
    "transport_map": geometry.transport_map,
    "transport": lambda A, B: geometry.transport(A, B, EYE),
    "optimal_coupling": geometry.optimal_coupling,
    "geodesic": lambda A, B: geometry.geodesic(A, B, 0.5),
    "gaussian_wasserstein": lambda A, B: geometry.gaussian_wasserstein(ONES, A, ONES, B),
    "log": geometry.log,
    "parallel_transport": lambda A, B: geometry.parallel_transport(A, B, EYE),
}
ONES = np.ones(2)
rows(
    {(door, "A"): lambda A, call=call: call(A, TWICE) for door, call in PAIRED.items()}
    | {(door, "B"): lambda B, call=call: call(TWICE, B) for door, call in PAIRED.items()},
    NO_COVARIANCES | NONE | SIZES | BATCHES,
)
AT_ONE = {
    "exp": lambda A: geometry.exp(A, EYE),
    "inner_product": lambda A: geometry.inner_product(A, EYE, EYE),
    "norm": lambda A: geometry.norm(A, EYE),
    "tangent_projection": lambda A: geometry.tangent_projection(A, EYE),
    "injectivity_radius": geometry.injectivity_radius,
    "riemannian_gradient": lambda A: geometry.riemannian_gradient(A, EYE),
    "riemannian_hessian": lambda A: geometry.riemannian_hessian(A, EYE, EYE, EYE),
}
rows({(door, "A"): call for door, call in AT_ONE.items()}, NO_COVARIANCES | NONE)
MATRICES = {
    ("exp", "V"): lambda V: geometry.exp(EYE, V),
    ("inner_product", "U"): lambda U: geometry.inner_product(EYE, U, EYE),
    ("inner_product", "V"): lambda V: geometry.inner_product(EYE, EYE, V),
    ("norm", "V"): lambda V: geometry.norm(EYE, V),
    ("tangent_projection", "V"): lambda V: geometry.tangent_projection(EYE, V),
    ("parallel_transport", "V"): lambda V: geometry.parallel_transport(EYE, EYE, V),
    ("riemannian_gradient", "E"): lambda E: geometry.riemannian_gradient(EYE, E),
    ("riemannian_hessian", "E"): lambda E: geometry.riemannian_hessian(EYE, E, EYE, EYE),
    ("riemannian_hessian", "dE"): lambda dE: geometry.riemannian_hessian(EYE, EYE, dE, EYE),
    ("riemannian_hessian", "V"): lambda V: geometry.riemannian_hessian(EYE, EYE, EYE, V),
}
A_MATRIX = {
    case: (value, r"{name} must be a matrix or a batch of them; got shape \(2?,?\)")
    for case, value in NO_STACK.items()
}
rows(
    MATRICES,
    NOT_NUMBERS
    | NOT_REAL
    | NOT_FINITE
    | NONE
    | A_MATRIX
    | {"other shape": (np.ones((2, 3)), r"{name} must be 2 x 2 for such a A; got shape \(2, 3\)")},
)
rows(
    {("exp", "V"): lambda V: geometry.exp(Factor(np.ones((2, 1))), V)},
    {"of a factor": (EYE, r"{name} must be 2 x 1 for such a A; got shape \(2, 2\)")},
)
rows({("Factor", "factor"): Factor}, NOT_NUMBERS | NOT_REAL | NOT_FINITE | NONE | A_MATRIX)
rows(
    {("transport", "points"): lambda x: geometry.transport(EYE, EYE, x)},
    NOT_NUMBERS
    | NOT_REAL
    | NOT_FINITE
    | NONE
    | A_MATRIX
    | {"other width": (np.ones((2, 3)), r"points must have 2 columns, as A has; got shape \(2, 3")},
)
rows(
    {
        ("gaussian_wasserstein", "mean_a"): lambda x: geometry.gaussian_wasserstein(
            x, EYE, ONES, EYE
        ),
        ("gaussian_wasserstein", "mean_b"): lambda x: geometry.gaussian_wasserstein(
            ONES, EYE, x, EYE
        ),
    },
    NOT_NUMBERS
    | NOT_REAL
    | NOT_FINITE
    | NONE
    | {
        "number": (1.0, r"{name} must be a vector or a batch of them; got shape \(\)"),
        "longer": (np.ones(3), r"{name} must have 2 entries, as A has rows; got shape \(3,\)"),
    },
)
for value in (-0.1, 1.1, np.nan, "half", 1j, None):
    message = "t must be "
    row("geodesic", f"t={value!r}", lambda t=value: geometry.geodesic(EYE, EYE, t), message)
for value in ("traces", None, 1):
    message = r"form must be one of residual, trace; got "
    row(
        "bures_wasserstein",
        f"form={value!r}",
        lambda x=value: bw.bures_wasserstein(EYE, EYE, form=x),
        message,
    )
rows(
    {
        ("pairwise_distances", "A"): geometry.pairwise_distances,
        ("pairwise_distances", "B"): lambda B: geometry.pairwise_distances(TWICE, B),
    },
    NO_COVARIANCES | {"one": (EYE, r"{name} must be a list of covariances, of 3 dim.*\(2, 2\)")},
)
for value in (0, -1, 1.5, True, "1"):
    for door, name, call in (
        (
            "pairwise_distances",
            "batch_size",
            lambda x: geometry.pairwise_distances(TWICE, batch_size=x),
        ),
        (
            "parallel_transport",
            "num_steps",
            lambda x: geometry.parallel_transport(EYE, EYE, EYE, num_steps=x),
        ),
        ("barycenter", "max_steps", lambda x: geometry.barycenter(TWICE, max_steps=x)),
        (
            "geometric_median",
            "max_steps",
            lambda x: geometry.geometric_median(TWICE, smoothing=1.0, max_steps=x),
        ),
        ("barycenter", "rank", lambda x: geometry.barycenter(TWICE, rank=x)),
    ):
        message = f"{name} must be a positive integer; got "
        row(door, f"{name}={value!r}", lambda call=call, value=value: call(value), message)
rows(
    {
        ("frechet_distance", "X"): lambda X: geometry.frechet_distance(X, EYE),
        ("frechet_distance", "Y"): lambda Y: geometry.frechet_distance(EYE, Y),
    },
    NOT_A_MATRIX
    | NONE
    | {
        "other width": (
            np.ones((2, 3)),
            r"X and Y must have as many features; got (2 and 3|3 and 2)",
        ),
        "no pair": (
            (ONES, EYE, EYE),
            r"{name} must be samples or a pair \(mean, covariance\); got 3",
        ),
        "bad mean": ((np.ones(3), EYE), r"{name}\[0\] must have 2 entries"),
        "bad covariance": ((ONES, -EYE), r"{name}\[1\] must be positive semi-definite"),
        "no samples": (np.ones((0, 2)), r"{name} must "),
    },
)
message = r"X must hold more than ddof=2 samples in its rows; got 2"
row("frechet_distance", "too few", lambda: geometry.frechet_distance(EYE, EYE, ddof=2), message)
MEANS = {
    "barycenter": geometry.barycenter,
    "geometric_median": lambda x, **options: geometry.geometric_median(x, smoothing=1.0, **options),
}
THREE = np.stack([EYE] * 3)
rows(
    {(door, "covariances"): call for door, call in MEANS.items()},
    NO_COVARIANCES
    | NONE
    | {
        "one": (EYE, r"covariances must be a list of covariances, of 3 dimensions or more; got"),
        "none": (np.ones((0, 2, 2)), r"covariances must be a list of covariances"),
    },
)
RUNNING = geometry.RunningBarycenter(EYE)
rows(
    {
        ("RunningBarycenter", "start"): geometry.RunningBarycenter,
        ("RunningBarycenter.update", "covariances"): RUNNING.update,
        ("interpolate", "covariances"): lambda x: geometry.interpolate(x, ONES.cumsum(), 1.0),
    },
    NO_COVARIANCES | NONE,
)
WEIGHTS = {
    "text": ("equal", r"weights must be made of numbers; got 'equal'"),
    "negative": ([0.5, -0.1, 0.5], r"weights must be at least 0.0; got"),
    "NaN": ([0.5, np.nan, 0.5], r"weights must be finite"),
    "all zero": ([0.0, 0.0, 0.0], r"weights and mask must leave a positive weight in every set"),
    "too few": ([0.5, 0.5], r"weights must be of shape \(3,\), as covariances has; got \(2,\)"),
    "one number": (1.0, r"weights must be of shape \(3,\), as covariances has; got \(\)"),
}
MASKS = {
    "numbers": ([1.0, 1.0, 0.0], r"mask must be booleans of shape \(3,\).*float64"),
    "too few": ([True, True], r"mask must be booleans of shape \(3,\).*got shape \(2,\)"),
    "text": ("all", r"mask must be made of numbers; got 'all'"),
    "nothing left": ([False] * 3, r"weights and mask must leave a positive weight in every set"),
}
for door, call in MEANS.items():
    rows({(door, "weights"): lambda x, call=call: call(THREE, weights=x)}, WEIGHTS)
    rows({(door, "mask"): lambda x, call=call: call(THREE, mask=x)}, MASKS)
    for case, (options, message) in {
        "rank too large": ({"rank": 3}, "rank must be at most 2; got 3"),
        "rank of another start": (
            {"rank": 2, "start": Factor(np.ones((2, 1)))},
            "rank must be the columns of start, 1; got 2",
        ),
        "a matrix as start of a low rank": (
            {"rank": 1, "start": EYE},
            "start must be a Factor of 1 columns for a rank below 2",
        ),
        "start of another size": ({"start": np.eye(3)}, "start must be of size 2, .*; got 3"),
        "start below zero": ({"start": -EYE}, "start must be positive semi-definite"),
        "rtol below zero": ({"rtol": -1.0}, "rtol must be at least 0.0; got -1.0"),
        "rtol of NaN": ({"rtol": np.nan}, "rtol must be a finite number; got nan"),
        "memory below zero": ({"memory": -1}, "memory must be an integer of at least 0; got -1"),
        "half a memory": ({"memory": 0.5}, "memory must be an integer of at least 0; got 0.5"),
    }.items():
        row(door, case, lambda call=call, options=options: call(THREE, **options), message)
for value, message in {
    -1.0: "entropy must be at least 0.0; got -1.0",
    np.nan: "entropy must be a finite number; got nan",
    "some": "entropy must be made of numbers; got 'some'",
}.items():
    row(
        "barycenter",
        f"entropy={value!r}",
        lambda x=value: geometry.barycenter(THREE, entropy=x),
        message,
    )
row(
    "barycenter",
    "entropy of a low rank",
    lambda: geometry.barycenter(THREE, entropy=1.0, rank=1),
    "entropy must be 0 for a rank below 2; got rank=1",
)
row(
    "barycenter",
    "means of another size",
    lambda: geometry.barycenter(THREE, means=np.ones((3, 3))),
    "means must have 2 entries",
)
row(
    "barycenter",
    "means of fewer",
    lambda: geometry.barycenter(THREE, means=np.ones((2, 2))),
    r"means must be of shape \(3, 2\), as covariances has; got \(2, 2\)",
)
for value in (0.0, -1.0, np.nan, "small"):
    message = "smoothing must be "
    row(
        "geometric_median",
        f"smoothing={value!r}",
        lambda x=value: geometry.geometric_median(THREE, smoothing=x),
        message,
    )

# --- other matrices ------------------------------------------------------------------------------

ROWS_OF_W = {"other rows": (np.ones((3, 2)), r"W must have 2 rows, as the target has.*\(3, 2\)")}
rows(
    {
        ("smoothed_bures", "W"): lambda W: bw.smoothed_bures(W, TARGET, tau=0.1),
        ("frobenius", "W"): lambda W: bw.frobenius(W, TARGET),
        ("losses.BuresWasserstein", "W"): LOSS,
        ("losses.Frobenius", "W"): bw.losses.Frobenius(TARGET),
    },
    NOT_A_MATRIX | NONE | ROWS_OF_W,
)
SHAPE_OF_W = {"other shape": (np.ones((3, 2)), r"W must have shape \(2, 2\) for .*got \(3, 2\)")}
rows(
    {("split_evenly", "W"): lambda W: initializers.split_evenly(W, (2, 2, 2))},
    NOT_A_MATRIX | NONE | SHAPE_OF_W,
)
rows(
    {
        ("linear_flow", "W0"): lambda W0: theory.linear_flow(W0, EYE, 1.0),
        ("linear_flow", "B"): lambda B: theory.linear_flow(EYE, B, 1.0),
        ("frobenius_flow", "W0"): lambda W0: theory.frobenius_flow(W0, EYE, 1.0),
    },
    NOT_A_MATRIX | NONE,
)
row(
    "linear_flow",
    "other rows of B",
    lambda: theory.linear_flow(EYE, np.ones((3, 2)), 1.0),
    r"B must be n x m for W0 n x p, p >= m; got \(3, 2\) and \(2, 2\)",
)
row(
    "linear_flow",
    "more columns of B",
    lambda: theory.linear_flow(EYE, np.ones((2, 3)), 1.0),
    r"B must be n x m for W0 n x p, p >= m; got \(2, 3\) and \(2, 2\)",
)
rows(
    {("rank_one_flow", "w0"): lambda w0: theory.rank_one_flow(w0, EYE, 1.0)},
    NOT_NUMBERS
    | NOT_REAL
    | NOT_FINITE
    | NONE
    | {"matrix": (EYE, r"w0 must be a vector or one column; got shape \(2, 2\)")},
)

# --- factors and parameters ----------------------------------------------------------------------

NO_TUPLE = r"factors must be a non-empty tuple of matrices; got "
CHAINS = {
    "matrix for a tuple": (EYE, NO_TUPLE + "[aA]rray"),
    "vector as layer": ((EYE, np.ones(2)), r"factors\[1\] must have 2 dimensions; got shape \(2,"),
    "empty layer": ((EYE, np.ones((0, 2))), r"factors must be non-empty .* W_2 has shape \(0, 2\)"),
    "bottleneck of 0": ((np.ones((0, 2)), np.ones((2, 0))), r"factors must be non-empty.*\(0, 2\)"),
    "no chain": (
        (EYE, np.ones((2, 3))),
        r"factors must chain: W_2 of shape \(2, 3\) cannot follow W_1 .* expected 2 columns",
    ),
    "None as second layer": ((EYE, None), r"factors\[1\] must be made of numbers; got None"),
}
rows(
    {
        ("end_to_end", "factors"): bw.end_to_end,
        ("imbalance", "factors"): bw.imbalance,
        ("widths", "factors"): factors.widths,
        ("partial_products", "factors"): factors.partial_products,
        ("zero_pad", "factors"): lambda x: factors.zero_pad(x, (2, 2, 2)),
        ("sample", "factors"): lambda x: factors.sample(x, KEY, 2),
    },
    CHAINS
    | {
        "empty tuple": ((), NO_TUPLE + r"\(\)"),
        "None": (None, NO_TUPLE + "None"),
        "text": ("EYE", NO_TUPLE + "'EYE'"),
        "integer layer": ((EYE, np.ones((2, 2), int)), r"factors\[1\] must be real floating point"),
        "complex layer": ((1j * EYE,), r"factors\[0\] must be real floating point.*complex128"),
        "text as layer": ((EYE, "EYE"), r"factors\[1\] must be made of numbers; got 'EYE'"),
    },
)
rows(
    at_both("params"),
    CHAINS
    | {
        "empty tuple": ((), r"params must hold arrays of one dtype; got no array in \(\)"),
        "None": (None, r"params must hold arrays of one dtype; got no array in None"),
        "text": ("EYE", r"params must be made of numbers; got 'EYE'"),
        "integer layer": ((EYE, np.ones((2, 2), int)), r"params\[1\] must be real floating point"),
        "complex layer": ((1j * EYE,), r"params\[0\] must be real floating point.*complex128"),
        "text as layer": ((EYE, "EYE"), r"params\[1\] must be made of numbers; got 'EYE'"),
        "NaN": ((EYE, EYE * np.nan), r"params\[1\] must be finite; it holds NaN or infinity"),
        "infinite": ((np.full((2, 2), np.inf),), r"params\[0\] must be finite"),
    }
    | {k: ((EYE, value), message) for k, (value, message) in ROWS_OF_W.items()},
)
MIXED = (np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float64))


def with_x64(enabled, call, *arguments, **keywords):
    with jax.enable_x64(enabled):
        return call(*arguments, **keywords)


for door in (bw.end_to_end, bw.imbalance, factors.widths, factors.partial_products):
    row(
        door.__name__,
        "two dtypes",
        lambda door=door: with_x64(True, door, MIXED),
        "factors must have one dtype; got float32, float64",
    )
for door in DYNAMICS:
    row(
        door,
        "two dtypes",
        lambda door=door: with_x64(True, run, door, params=MIXED),
        "params must hold arrays of one dtype; got float32 and float64",
    )

# --- numbers -------------------------------------------------------------------------------------

NOT_A_NUMBER = {
    "NaN": (np.nan, r"{name} must be a finite number; got nan"),
    "infinite": (np.inf, r"{name} must be a finite number; got inf"),
    "minus infinity": (-np.inf, r"{name} must be a finite number; got -inf"),
    "complex": (1j, r"{name} must be real; got 1j of dtype complex128"),
    "bool": (True, r"{name} must be real; got True of dtype bool"),
    "array": (np.ones(2), r"{name} must be a scalar; got shape \(2,\)"),
    "text": ("0.1", r"{name} must be made of numbers; got '0.1'"),
    "object": (object(), r"{name} must be made of numbers; got <object"),
    "ragged": (RAGGED, r"{name} must be made of numbers; got \[\["),
}
NEGATIVE = {"negative": (-0.5, r"{name} must be at least 0.0; got -0.5")}
NOT_POSITIVE = {
    "negative": (-0.5, r"{name} must be positive; got -0.5"),
    "zero": (0.0, r"{name} must be positive; got 0.0"),
}
rows(
    {
        ("smoothed_bures", "tau"): lambda x: bw.smoothed_bures(EYE, TARGET, tau=x),
        ("frobenius", "tau"): lambda x: bw.frobenius(EYE, TARGET, tau=x),
        ("losses.BuresWasserstein", "tau"): lambda x: bw.losses.BuresWasserstein(TARGET, x),
        ("losses.Frobenius", "tau"): lambda x: bw.losses.Frobenius(TARGET, x),
        ("minimum", "tau"): lambda x: landscape.minimum(TARGET, 1, tau=x),
        ("minimizer", "tau"): lambda x: landscape.minimizer(TARGET, 1, tau=x),
        ("minimizing_eigenvalues", "tau"): lambda x: landscape.minimizing_eigenvalues(
            TARGET, 1, tau=x
        ),
        ("sample", "tau"): lambda x: factors.sample(PAIR, KEY, 2, tau=x),
        ("near_target", "tau"): lambda x: initializers.near_target(TARGET, tau=x),
        ("near_target", "radius"): lambda x: initializers.near_target(TARGET, radius=x),
        ("xavier_normal", "gain"): initializers.xavier_normal,
        ("xavier_uniform", "gain"): initializers.xavier_uniform,
        ("kaiming_normal", "gain"): initializers.kaiming_normal,
        ("kaiming_uniform", "gain"): initializers.kaiming_uniform,
        ("orthogonal", "scale"): initializers.orthogonal,
        ("identity", "scale"): initializers.identity,
        ("balanced", "scale"): lambda x: initializers.balanced(scale=x),
        ("rebalanced", "scale"): lambda x: initializers.rebalanced(scale=x),
        ("low_rank", "scale"): lambda x: initializers.low_rank(1, scale=x),
        ("balanced", "min_singular_value"): lambda x: initializers.balanced(min_singular_value=x),
        ("linear_flow", "time"): lambda x: theory.linear_flow(EYE, EYE, x),
        ("rank_one_flow", "time"): lambda x: theory.rank_one_flow(np.ones(2), EYE, x),
        ("frobenius_flow", "time"): lambda x: theory.frobenius_flow(EYE, EYE, x),
        ("random_spectrum", "minimum"): lambda x: covariances.random_spectrum(KEY, 3, minimum=x),
        ("step", "low"): lambda x: covariances.step(3, 1, x),
    },
    NOT_A_NUMBER | NEGATIVE | NONE,
)
rows(
    {
        ("gaussian", "std"): initializers.gaussian,
        ("uniform", "bound"): initializers.uniform,
    },
    NOT_A_NUMBER | NEGATIVE,
)
rows(
    {
        ("gradient_flow", "rtol"): lambda x: run(rtol=x),
        ("gradient_flow", "atol"): lambda x: run(atol=x),
        ("until.gap", "tolerance"): until.gap,
        ("until.gradient_norm", "tolerance"): until.gradient_norm,
    },
    NOT_A_NUMBER | NOT_POSITIVE | NONE,
)
rows({("gradient_flow", "dt0"): lambda x: run(dt0=x)}, NOT_A_NUMBER | NOT_POSITIVE)
rows({("until.gap", "minimum"): lambda x: until.gap(1e-3, minimum=x)}, NOT_A_NUMBER)
rows(
    {
        ("gaussian", "gamma"): lambda x: initializers.gaussian(gamma=x),
        ("power_law", "exponent"): lambda x: covariances.power_law(3, x),
        ("geometric", "condition"): lambda x: covariances.geometric(3, x),
    },
    NOT_A_NUMBER | NONE,
)
row(
    "smoothed_bures(tau)",
    "beyond the range of float32",
    lambda: with_x64(False, bw.smoothed_bures, np.eye(2, dtype=np.float32), TARGET, tau=1e300),
    r"tau must be a finite number; got 1e\+300 \(in float32\)",
)
row(
    "gradient_flow(rtol)",
    "zero in float32",
    lambda: with_x64(False, run, params=(np.eye(2, dtype=np.float32),), rtol=1e-300),
    r"rtol must be positive; got 1e-300 \(in float32\)",
)
row(
    "gradient_flow(rtol)",
    "what float32 does not resolve",
    lambda: with_x64(False, run, params=(np.eye(2, dtype=np.float32),), rtol=1e-8, atol=1e-9),
    r"rtol or atol must be at least 1.2e-07, what float32 resolves; got 1e-08 and 1e-09\. "
    r'For double precision call jax.config.update\("jax_enable_x64", True\) first',
)
row(
    "geometric",
    "condition below 1",
    lambda: covariances.geometric(3, 0.5),
    "condition must be at least 1.0; got 0.5",
)
row("step", "low above 1", lambda: covariances.step(3, 1, 2.0), "low must be at most 1.0; got 2.0")
row(
    "gradient_flow",
    "no dt0",
    lambda: run(solver=diffrax.Euler()),
    "dt0 must be given: Euler has no error estimate",
)
AXES_OF_A_FLOW = {
    ("aligned_flow", "singular_values"): lambda x: theory.aligned_flow(x, 1.0, 1.0, depth=2),
    ("aligned_flow", "eigenvalues"): lambda x: theory.aligned_flow(1.0, x, 1.0, depth=2),
    ("aligned_flow", "time"): lambda x: theory.aligned_flow(1.0, 1.0, x, depth=2),
    ("aligned_flow", "tau"): lambda x: theory.aligned_flow(1.0, 1.0, 1.0, depth=2, tau=x),
    ("scalar_unbalanced_flow", "w1"): lambda x: theory.scalar_unbalanced_flow(x, 1.0, 1.0, 1.0),
    ("scalar_unbalanced_flow", "w2"): lambda x: theory.scalar_unbalanced_flow(1.0, x, 1.0, 1.0),
    ("scalar_unbalanced_flow", "eigenvalue"): lambda x: theory.scalar_unbalanced_flow(
        1.0, 1.0, x, 1.0
    ),
    ("scalar_unbalanced_flow", "time"): lambda x: theory.scalar_unbalanced_flow(1.0, 1.0, 1.0, x),
}
rows(
    AXES_OF_A_FLOW,
    NOT_NUMBERS
    | NONE
    | {
        "NaN": (np.array([1.0, np.nan]), r"{name} must be finite; got \[ *1. *nan\]"),
        "infinite": (np.inf, r"{name} must be finite; got inf"),
        "complex": (1j, r"{name} must be real; got 1j"),
        "bool": (True, r"{name} must be real; got True"),
    },
)
rows({k: v for k, v in AXES_OF_A_FLOW.items() if k[1] not in ("w1", "w2")}, NEGATIVE)
row(
    "aligned_flow",
    "shapes",
    lambda: theory.aligned_flow(np.ones(2), np.ones(3), 1.0, depth=2),
    r"singular_values, eigenvalues, time, tau must have shapes that broadcast; got \(2,\), \(3,\)",
)
row(
    "scalar_unbalanced_flow",
    "shapes",
    lambda: theory.scalar_unbalanced_flow(np.ones(2), np.ones(3), 1.0, 1.0),
    r"w1, w2, eigenvalue, time must have shapes that broadcast; got \(2,\), \(3,\)",
)
rows(
    {("gradient_flow", "times"): lambda x: run(times=x)},
    {
        "none": ([], r"times must be at least two numbers; got 0"),
        "one": ([0.0], r"times must be at least two numbers; got 1"),
        "decreasing": ([1.0, 0.0], r"times must be strictly increasing; got \[1. 0.\]"),
        "repeated": ([0.0, 1.0, 1.0], r"times must be strictly increasing; got \[0. 1. 1.\]"),
        "NaN": ([0.0, np.nan], r"times must be finite; got \[ *0. *nan\]"),
        "infinite": ([0.0, np.inf], r"times must be finite; got \[ *0. *inf\]"),
        "matrix": (EYE, r"times must be a list of numbers, of 1 dimensions; got shape \(2, 2\)"),
        "number": (1.0, r"times must be a list of numbers.* got shape \(\)"),
        "complex": ([0, 1j], r"times must be real; got \[0, 1j\]"),
        "bools": ([False, True], r"times must be real; got \[False, True\]"),
        "text": ("01", r"times must be made of numbers; got '01'"),
        "list of text": (["0", "1"], r"times must be made of numbers; got \['0', '1'\]"),
        "None": (None, r"times must be made of numbers; got None"),
        "ragged": (RAGGED, r"times must be made of numbers; got \[\["),
    },
)
row(
    "gradient_flow",
    "times too close for float32",
    lambda: with_x64(False, run, times=[1.0, 1.0 + 1e-9], params=(np.eye(2, dtype=np.float32),)),
    r"times must be strictly increasing; got .* \(in float32\)",
)

# --- counts, widths, dtypes, keys ----------------------------------------------------------------

NOT_A_COUNT = {
    f"{value!r}": (value, r"{name} must be a positive integer; got ")
    for value in (0, -1, 1.5, 2.0, True, "3", (2,), np.nan)
}
NO_COUNT = {"None": (None, r"{name} must be a positive integer; got None")}
rows(
    {
        ("Target", "rank"): lambda x: bw.Target(EYE, rank=x),
        ("Target.from_factor", "rank"): lambda x: bw.Target.from_factor(EYE, rank=x),
        ("Target.from_samples", "rank"): lambda x: bw.Target.from_samples(EYE, rank=x),
        ("random_spectrum", "rank"): lambda x: covariances.random_spectrum(KEY, 3, rank=x),
        ("balanced", "rank"): lambda x: initializers.balanced(rank=x),
        ("rebalanced", "rank"): lambda x: initializers.rebalanced(rank=x),
        ("constant_widths", "inner"): lambda x: factors.constant_widths(2, 2, inner=x),
        ("linear_widths", "latent"): lambda x: factors.linear_widths(2, 2, bottleneck=1, latent=x),
        ("sweep", "batch_size"): lambda x: bw.sweep(
            never, traced={"seed": [0]}, batch_size=x, progress=False
        ),
        ("sweep", "group_size"): lambda x: bw.sweep(
            never, traced={"seed": [0]}, group_size=x, progress=False
        ),
    },
    NOT_A_COUNT,
)
rows(
    {
        ("gradient_descent", "num_steps"): lambda x: run("gradient_descent", num_steps=x),
        ("gradient_descent", "save_every"): lambda x: run("gradient_descent", save_every=x),
        ("gradient_flow", "max_steps"): lambda x: run(max_steps=x),
        ("minimum", "rank"): lambda x: landscape.minimum(TARGET, x),
        ("minimizer", "rank"): lambda x: landscape.minimizer(TARGET, x),
        ("minimizing_eigenvalues", "rank"): lambda x: landscape.minimizing_eigenvalues(TARGET, x),
        ("low_rank", "rank"): initializers.low_rank,
        ("step", "rank"): lambda x: covariances.step(3, x),
        ("step", "n"): lambda x: covariances.step(x, 1),
        ("haar", "n"): lambda x: covariances.haar(KEY, x),
        ("power_law", "n"): covariances.power_law,
        ("geometric", "n"): lambda x: covariances.geometric(x, 2.0),
        ("random_spectrum", "n"): lambda x: covariances.random_spectrum(KEY, x),
        ("wishart", "n"): lambda x: covariances.wishart(KEY, x, dof=2),
        ("wishart", "dof"): lambda x: covariances.wishart(KEY, 2, dof=x),
        ("sample", "n"): lambda x: factors.sample(PAIR, KEY, x),
        ("constant_widths", "n"): lambda x: factors.constant_widths(x, 2),
        ("constant_widths", "depth"): lambda x: factors.constant_widths(2, x),
        ("linear_widths", "n"): lambda x: factors.linear_widths(x, 2, bottleneck=1),
        ("linear_widths", "depth"): lambda x: factors.linear_widths(2, x, bottleneck=1),
        ("linear_widths", "bottleneck"): lambda x: factors.linear_widths(2, 2, bottleneck=x),
        ("aligned_flow", "depth"): lambda x: theory.aligned_flow(1.0, 1.0, 1.0, depth=x),
    },
    NOT_A_COUNT | NO_COUNT,
)
row("Target", "rank", lambda: bw.Target(EYE, rank=3), "rank must be at most 2; got 3")
for door, call in {
    "Target.from_factor": lambda: bw.Target.from_factor(np.ones((3, 2)), rank=3),
    "Target.from_samples": lambda: bw.Target.from_samples(np.ones((3, 2)), rank=3),
}.items():
    row(door, "rank", call, "rank must be at most 2; got 3")
row("step", "rank above n", lambda: covariances.step(2, 3), "rank must be at most n=2; got 3")
row(
    "random_spectrum",
    "rank above n",
    lambda: covariances.random_spectrum(KEY, 2, rank=3),
    "rank must be at most n=2; got 3",
)
row(
    "low_rank",
    "rank above the bottleneck",
    lambda: initializers.low_rank(3)(KEY, (4, 2, 4)),
    r"rank must be at most the bottleneck 2 of widths \(4, 2, 4\); got 3",
)
row(
    "linear_widths",
    "bottleneck above n",
    lambda: factors.linear_widths(2, 2, bottleneck=3),
    "bottleneck must be at most 2; got 3",
)
row(
    "near_target",
    "other dimension",
    lambda: initializers.near_target(TARGET)(KEY, (3, 4)),
    r"widths must end with 2, the dimension of the target; got \(3, 4\)",
)

INITS = {name: factory() for name, factory in initializers.INITIALIZERS.items()}
INITS |= {"low_rank": initializers.low_rank(1), "near_target": initializers.near_target(TARGET)}
WIDTHS = {
    "none": ((), r"{name} must have at least two entries \(d_0, ..., d_N\).*; got \(\)"),
    "one": ((4,), r"{name} must have at least two entries .*; got \(4,\)"),
    "number": (4, r"{name} must have at least two entries .*; got 4"),
    "None": (None, r"{name} must have at least two entries .*; got None"),
    "zero": ((2, 0, 2), r"{name}\[1\] must be a positive integer; got 0"),
    "negative": ((-2, 2), r"{name}\[0\] must be a positive integer; got -2"),
    "float": ((2.0, 2), r"{name}\[0\] must be a positive integer; got 2.0"),
    "bool": ((2, True), r"{name}\[1\] must be a positive integer; got True"),
    "texts": (("2", 2), r"{name}\[0\] must be a positive integer; got '2'"),
    "text": ("22", r"{name}\[0\] must be a positive integer; got '2'"),
    "matrix": (EYE, r"{name}\[0\] must be a positive integer; got array"),
}
rows({(name, "widths"): lambda x, i=i: i(KEY, x) for name, i in INITS.items()}, WIDTHS)
rows({("split_evenly", "widths"): lambda x: initializers.split_evenly(EYE, x)}, WIDTHS)
rows(
    {("zero_pad", "new_widths"): lambda x: factors.zero_pad(PAIR, x)},
    WIDTHS
    | {
        "too few": ((2, 2), r"new_widths must be 3 numbers, none below \(2, 2, 2\); got \(2, 2\)"),
        "smaller": ((2, 1, 2), r"new_widths must be 3 numbers, none below .*; got \(2, 1, 2\)"),
    },
)

TYPED = {(name, "dtype"): lambda x, i=i: i(KEY, (2, 2), dtype=x) for name, i in INITS.items()} | {
    ("haar", "dtype"): lambda x: covariances.haar(KEY, 2, dtype=x),
    ("power_law", "dtype"): lambda x: covariances.power_law(2, dtype=x),
    ("geometric", "dtype"): lambda x: covariances.geometric(2, 2.0, dtype=x),
    ("step", "dtype"): lambda x: covariances.step(2, 1, dtype=x),
    ("random_spectrum", "dtype"): lambda x: covariances.random_spectrum(KEY, 2, dtype=x),
    ("wishart", "dtype"): lambda x: covariances.wishart(KEY, 2, dof=2, dtype=x),
}
rows(
    TYPED,
    {
        str(dtype): (dtype, r"dtype must be float32, float64 or float, the default of jax; got ")
        for dtype in (int, complex, bool, str, None, "nonsense", 32, np.float16, jnp.bfloat16)
    },
)
OFF = (
    r"dtype must be float32 or float, because jax runs without 64-bit types; got float64. Set "
    r'JAX_ENABLE_X64=1 or call jax.config.update\("jax_enable_x64", True\) first'
)
rows(
    {door: lambda x, call=call: with_x64(False, call, x) for door, call in TYPED.items()},
    {f"{dtype!r} turned off": (dtype, OFF) for dtype in (jnp.float64, np.float64, "float64")},
)
rows(
    {(name, "key"): lambda x, i=i: i(x, (2, 2)) for name, i in INITS.items()}
    | {
        ("haar", "key"): lambda x: covariances.haar(x, 2),
        ("random_spectrum", "key"): lambda x: covariances.random_spectrum(x, 2),
        ("wishart", "key"): lambda x: covariances.wishart(x, 2, dof=2),
        ("sample", "key"): lambda x: factors.sample(PAIR, x, 2),
    },
    {
        case: (key, r"key must be one random key, such as jax.random.key\(0\); got ")
        for case, key in {
            "seed": 0,
            "None": None,
            "text": "seed",
            "floats": np.ones(2),
            "several": KEYS,
        }.items()
    },
)
row(
    "from_spectrum",
    "key",
    lambda: covariances.from_spectrum([1.0, 2.0], key=0),
    "key must be one random key",
)

# --- names ---------------------------------------------------------------------------------------

for value in ("gaps", 3, None, ["loss"], "Loss"):
    row(
        "diagnostics.record",
        repr(value),
        lambda value=value: diagnostics.record("loss", value),
        r"unknown quantity .*; choose from loss, gap, gradient_norm, singular_values",
    )
rows(
    {
        ("minimum", "loss"): lambda x: landscape.minimum(TARGET, 1, loss=x),
        ("random_spectrum", "sampled"): lambda x: covariances.random_spectrum(KEY, 3, sampled=x),
        ("random_spectrum", "distribution"): lambda x: covariances.random_spectrum(
            KEY, 3, distribution=x
        ),
    },
    {
        repr(value): (
            value,
            r"{name} must be one of (bures_wasserstein, frobenius|eigenvalues, singular_values"
            r"|zipf, ginibre, uniform, exponential, normal); got ",
        )
        for value in ("euclidean", None, 2, ["zipf"])
    },
)

# --- functions and objects -----------------------------------------------------------------------

rows(
    {
        ("smoothed_bures", "target"): lambda x: bw.smoothed_bures(EYE, x, tau=0.1),
        ("frobenius", "target"): lambda x: bw.frobenius(EYE, x),
        ("losses.BuresWasserstein", "target"): bw.losses.BuresWasserstein,
        ("losses.Frobenius", "target"): bw.losses.Frobenius,
        ("minimum", "target"): lambda x: landscape.minimum(x, 1),
        ("minimizer", "target"): lambda x: landscape.minimizer(x, 1),
        ("minimizing_eigenvalues", "target"): lambda x: landscape.minimizing_eigenvalues(x, 1),
        ("near_target", "target"): initializers.near_target,
    },
    {
        case: (value, r"target must be a bwflow.Target; got ")
        for case, value in {
            "covariance": EYE,
            "class": bw.Target,
            "None": None,
            "text": "wishart",
        }.items()
    },
)
rows(
    {("balanced", "init"): initializers.balanced, ("rebalanced", "init"): initializers.rebalanced},
    {
        "class": (dict, r"init must be a function of key, widths and dtype; got <class 'dict'>"),
        "text": ("gaussian", r"init must be a function of .*; got 'gaussian'"),
        "factory": (initializers.identity, r"init must be a function of .*: too many positional"),
    },
)
A_LOSS = r"loss must be a function of the end-to-end matrix; "
rows(
    at_both("loss"),
    {
        "None": (None, A_LOSS + "got None"),
        "name": ("frobenius", A_LOSS + "got 'frobenius'"),
        "number": (0.1, A_LOSS + "got 0.1"),
        "class": (bw.losses.Frobenius, A_LOSS + r"got <class 'bwflow.losses._targets.Frobenius'>"),
        "without argument": (lambda: 0.0, A_LOSS + r".* takes \(\): too many positional arguments"),
        "unbound": (bw.frobenius, A_LOSS + r".*missing a required argument: 'target'"),
        "no scalar": (lambda W: W, r"loss must return a real scalar; got "),
        "Python's number": (lambda W: 1.0, r"loss must return a real scalar; got 1.0"),
        "None returned": (lambda W: None, r"loss must return a real scalar; got None"),
    },
)
A_PROBE = r"probe must be a function of the loss and the parameters; "
RECORDED = r"probe must return a dict of arrays by name; got "
rows(
    at_both("probe"),
    {
        "None": (None, A_PROBE + "got None"),
        "name": ("loss", A_PROBE + "got 'loss'"),
        "names": (("loss", "gap"), A_PROBE + r"got \('loss', 'gap'\)"),
        "class": (diagnostics.Record, A_PROBE + "got <class"),
        "one argument": (lambda loss: {}, A_PROBE + ".*too many positional arguments"),
        "record itself": (diagnostics.record, "unknown quantity BuresWasserstein"),
        "array returned": (lambda loss, params: loss(params[0]), RECORDED),
        "list returned": (lambda loss, params: [params[0]], RECORDED + r"\["),
        "None returned": (lambda loss, params: None, RECORDED + "None"),
        "dict in the dict": (lambda loss, params: {"W": {"1": params[0]}}, RECORDED + r"\{'W'"),
        "number as name": (lambda loss, params: {1: params[0]}, RECORDED + r"\{1"),
    },
)
CRITERION = r"until must be a criterion of bwflow.until, such as bwflow.until.gap\(1e-6\); got "
rows(
    at_both("until"),
    {
        "tolerance": (1e-6, CRITERION + "1e-06"),
        "text": ("gap", CRITERION + "'gap'"),
        "function": (until.gap, CRITERION + "<function gap"),
        "class": (until.Criterion, CRITERION + "<class"),
    },
)
PROTOCOL = r"factorization must be an object with the methods assemble, pullback, .*got "
rows(
    at_both("factorization"),
    {
        "None": (None, PROTOCOL + "None"),
        "text": ("Deep", PROTOCOL + "'Deep'"),
        "class": (factors.Deep, PROTOCOL + "<class"),
        "part of it": (SimpleNamespace(assemble=bw.end_to_end), PROTOCOL + "namespace"),
    },
)
rows(
    {("gradient_flow", "solver"): lambda x: run(solver=x)},
    {
        case: (value, r"solver must be a diffrax solver, such as diffrax.Tsit5\(\); got ")
        for case, value in {
            "None": None,
            "name": "Tsit5",
            "class": diffrax.Tsit5,
            "optimizer": SGD,
        }.items()
    },
)
rows(
    {("gradient_descent", "optimizer"): lambda x: run("gradient_descent", optimizer=x)},
    {
        case: (value, r"optimizer must be an optax transformation, such as optax.sgd\(0.1\); got ")
        for case, value in {
            "None": None,
            "name": "sgd",
            "rate": 0.1,
            "factory": optax.sgd,
            "solver": diffrax.Tsit5(),
        }.items()
    },
)
row(
    "gradient_flow",
    "adjoint",
    lambda: run(adjoint=diffrax.ForwardMode),
    "adjoint must be a diffrax adjoint or None; got <class",
)
row(
    "gradient_flow",
    "progress_meter",
    lambda: run(progress_meter=True),
    "progress_meter must be a diffrax progress meter; got True",
)
row("gradient_flow", "norm", lambda: run(norm=2), "norm must be a function of .*; got 2")

AT_LEAST_ONE = {"below one": (0.5, r"{name} must be at least 1.0; got 0.5")}
rows(
    {
        ("EndToEnd", "depth"): factors.EndToEnd,
        ("Covariance", "depth"): factors.Covariance,
        ("gradient_flow", "depth"): lambda x: run(params=EYE, coordinates="covariance", depth=x),
    },
    {case: NOT_A_NUMBER[case] for case in ("NaN", "infinite", "text")} | AT_LEAST_ONE,
)
rows(
    {
        ("EndToEnd", "rank"): lambda x: factors.EndToEnd(2, rank=x),
        ("Covariance", "rank"): lambda x: factors.Covariance(2, rank=x),
    },
    NOT_A_COUNT,
)
row(
    "gradient_flow",
    "rank above the sides",
    lambda: run(params=EYE, factorization=factors.EndToEnd(2, rank=3)),
    "rank must be at most 2 for this start; got 3",
)
for case, change, message in (
    ("coordinates", {"coordinates": "layers"}, "coordinates must be one of factors, .*'layers'"),
    ("depth of layers", {"coordinates": "covariance", "depth": 2}, "depth must be left out.*got 2"),
    ("depth of factors", {"depth": 2}, "depth must be left out with coordinates='factors'.*got 2"),
    ("no depth", {"params": EYE, "coordinates": "end_to_end"}, "depth must be given.*got None"),
    (
        "factorization in coordinates",
        {"coordinates": "end_to_end", "factorization": factors.EndToEnd(2)},
        "factorization must be left out with coordinates='end_to_end'; got EndToEnd",
    ),
    (
        "not balanced",
        {"params": (EYE, 2 * EYE), "coordinates": "end_to_end"},
        r"params must be balanced layers.*W_\(j\+1\)\^T.* is 3\..*rebalanced",
    ),
    (
        "not finite",
        {"params": (EYE, np.nan * EYE), "coordinates": "end_to_end"},
        r"params\[1\] must be finite",
    ),
):
    row("gradient_flow", case, lambda change=change: run(**change), message)

# --- sweeps --------------------------------------------------------------------------------------


def never(**_):
    raise AssertionError("the axes are looked at before anything runs")


def swept(experiment=never, traced=None, **keywords):
    traced = {"seed": [0, 1]} if traced is None else traced
    return bw.sweep(experiment, traced=traced, progress=False, **keywords)


LIST = r"axis {name} must be a non-empty list of values"
rows(
    {
        ("sweep static", "depth"): lambda x: swept(static={"depth": x}),
        ("sweep traced", "tau"): lambda x: swept(traced={"tau": x}),
    },
    {
        "empty": ([], LIST),
        "number": (3, LIST),
        "scalar array": (np.array(0.1), LIST),
        "repeated": ([1, 2, 1], r"axis {name} must not repeat a value; got \[1, 2, 1\]"),
        "NaN": ([0.1, np.nan], r"axis {name} must not hold NaN; got \[0.1"),
        "text": ("ab", r"axis {name} must be .*; got 'ab'"),
        "None": (None, r"axis {name} must be .*; got None"),
    },
)
rows(
    {("sweep traced", "tau"): lambda x: swept(traced={"tau": x})},
    {
        "list of text": (["a", "b"], r"axis tau must be made of numbers; got \['a', 'b'\]"),
        "ragged": (RAGGED, r"axis tau must be made of numbers"),
        "matrix": (EYE, LIST + ", real numbers; got array"),
        "complex": ([0.0, 1j], LIST + r", real numbers; got \[0.0, 1j\]"),
        "keys": (KEYS, LIST + ", real numbers; got"),
    },
)
for case, (call, message) in {
    "no axis": (lambda: swept(traced={}), "traced must name at least one axis, such as seed"),
    "in both groups": (
        lambda: swept(static={"seed": [0]}),
        "axes must be static or traced, not both: seed",
    ),
    "traced no dict": (lambda: swept(traced=[0]), r"traced must be a dict of axes; got \[0\]"),
    "static no dict": (lambda: swept(static="depth"), "static must be a dict of axes; got 'depth'"),
    "axis without a name": (
        lambda: swept(traced={0: [1]}),
        "an axis must be named by a text.*got 0",
    ),
    "axis of a variable's name": (
        lambda: swept(traced={"time": [1.0]}),
        "an axis must be named by a text other than .*, which the dataset has already; got 'time'",
    ),
    "experiment None": (
        lambda: swept(None),
        "experiment must be a function of the keywords seed; got None",
    ),
    "experiment's run": (
        lambda: swept({"loss": LOSS}),
        "experiment must be a function of the keywords seed; got {'loss'",
    ),
    "missing keyword": (
        lambda: swept(lambda *, depth: None, static={"depth": [1]}),
        r"experiment must be a function of the keywords depth, seed; .* takes \(\*, depth\): got "
        "an unexpected keyword argument 'seed'",
    ),
    "other keyword": (
        lambda: swept(lambda *, seed, tau: None),
        "experiment must be .* missing a required .*argument: 'tau'",
    ),
    "positional": (lambda: swept(lambda seed, /: None), "experiment must be .*'seed'"),
    "result": (
        lambda: swept(lambda *, seed: {"loss": seed}),
        "experiment must return a bwflow.Trajectory; got dict",
    ),
    "no result": (
        lambda: swept(lambda *, seed: None),
        "experiment must return a bwflow.Trajectory; got NoneType",
    ),
}.items():
    row("sweep", case, call, message)
for value in (0, -1.0, np.nan, True, None, "1GB", 1j):
    row(
        "sweep",
        f"memory_limit={value!r}",
        lambda value=value: swept(memory_limit=value),
        "memory_limit must be a positive number of bytes; got",
    )

# --- datasets ------------------------------------------------------------------------------------

EMPTY_SET = xr.Dataset()
NO_DATASET = {"closure": lambda: None, "trajectory": LOSS, "None": None, "list": ["results/demo"]}
STORED = r"ds must be an xarray.Dataset; got .*Experiment.*registered names.*numbers.*bwflow.sweep"
for case, value in NO_DATASET.items():
    for door, call in {
        "statistics.summary": statistics.summary,
        "statistics.algebraic_decay": statistics.algebraic_decay,
        "plotting.gap_bands": plotting.gap_bands,
        "plotting.convergence": plotting.convergence,
    }.items():
        message = "ds must be an xarray.Dataset, .*; got"
        row(door, case, lambda call=call, value=value: call(value), message)
    row("store.write", case, lambda value=value: store.write(value, HERE.parent / "new"), STORED)
PLAIN = EMPTY_SET.assign({name: ("seed", [1.0]) for name in ("loss", "gap", "hit", "num_steps")})
PLAIN = PLAIN.assign(success=("seed", [True]))
SPECTRAL = EMPTY_SET.assign(target_eigenvalues=("eigenvalue", [1.0]))
for case, (call, message) in {
    "summary of nothing": (
        lambda: statistics.summary(EMPTY_SET),
        "ds must be a sweep with probes loss and gap; it lacks gap, hit, loss, num_steps, success",
    ),
    "summary without a clock": (
        lambda: statistics.summary(PLAIN),
        "ds must be a sweep with times or steps; it lacks step",
    ),
    "summary over another axis": (
        lambda: statistics.summary(PLAIN, over="start"),
        "ds must be a sweep over 'start'; it lacks the axis 'start'",
    ),
    "summary over None": (lambda: statistics.summary(PLAIN, over=None), "it lacks the axis None"),
    "decay without axes": (
        lambda: statistics.algebraic_decay(SPECTRAL),
        "ds must be what bwflow.study.run returns; it lacks bottleneck, depth, tau",
    ),
    "bands of nothing": (
        lambda: plotting.gap_bands(EMPTY_SET),
        "ds must be a sweep over seed alone with probe loss; got none",
    ),
    "study of nothing": (
        lambda: plotting.convergence(EMPTY_SET),
        "ds must be what bwflow.study.run returns; it lacks bottleneck, depth, dynamics",
    ),
    "slices of an array": (lambda: plotting.slices(EYE), "samples must be a dict of sets.*got arr"),
    "slices of text": (
        lambda: plotting.slices({"a": "EYE"}),
        r"samples\['a'\] must be made of numbers; got 'EYE'",
    ),
    "slices of complex": (lambda: plotting.slices({"a": 1j * EYE}), "samples must be real; 'a'"),
    "slices of NaN": (lambda: plotting.slices({"a": EYE * np.nan}), "samples must be finite; 'a'"),
    "slices in a number": (
        lambda: plotting.slices({"a": EYE}, planes=3),
        "planes must be a list of pairs of coordinates; got 3",
    ),
    "slices in a line": (
        lambda: plotting.slices({"a": EYE}, planes=[0, 1]),
        "planes must be pairs of coordinates below 2; got 0",
    ),
    "slices in half planes": (
        lambda: plotting.slices({"a": EYE}, planes=[(0, 0.5)]),
        r"planes must be pairs of coordinates below 2; got \(0, 0.5\)",
    ),
}.items():
    row("dataset", case, call, message)


def write_twice():
    with tempfile.TemporaryDirectory() as folder:
        store.write(EMPTY_SET, f"{folder}/store")
        store.write(EMPTY_SET, f"{folder}/store")


for case, (call, message) in {
    "write on a file": (
        lambda: store.write(EMPTY_SET, HERE, overwrite=True),
        "test_bad_input.py is not a Zarr store and is not replaced",
    ),
    "write on a folder": (
        lambda: store.write(EMPTY_SET, HERE.parent),
        "tests is not a Zarr store and is not replaced",
    ),
    "write below a file": (
        lambda: store.write(EMPTY_SET, HERE / "store"),
        "store .*store cannot be made: ",
    ),
    "write twice": (write_twice, "store .*store exists; ask for overwrite to replace it"),
    "write nowhere": (lambda: store.write(EMPTY_SET, None), "path must be a text .*; got None"),
    "write to no name": (lambda: store.write(EMPTY_SET, ""), "path must be a text .*; got ''"),
    "read a file": (lambda: store.read(HERE), "store .*test_bad_input.py is not a Zarr store"),
    "read a folder": (lambda: store.read(HERE.parent), "store .*tests is not a Zarr store"),
    "read nothing": (lambda: store.read(HERE.parent / "no"), "store .*no is not a Zarr store"),
    "read None": (lambda: store.read(None), "path must be a text .*; got None"),
}.items():
    row("store", case, call, message)

# --- the statements ------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(("call", "message"), ROWS)
def test_it_is_refused_by_name_before_anything_is_compiled(call, message, compilations):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert type(caught.value) is ValueError
    assert Path(bw.__file__).parent in Path(caught.traceback[-1].path).parents
    assert compilations == []


@pytest.mark.usefixtures("as_installed")
def test_compilations_are_counted(compilations):
    bw.smoothed_bures(EYE, TARGET, tau=0.1)
    assert compilations


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bw.smoothed_bures(x[0], TARGET, tau=0.1), "W must have 2 dimensions"),
        (lambda x: bw.smoothed_bures(x[:1], TARGET, tau=0.1), "W must have 2 rows"),
        (lambda x: bw.smoothed_bures(x > 0, TARGET, tau=0.1), "W must be real floating point"),
        (lambda x: bw.smoothed_bures(x, TARGET, tau=x[0]), "tau must be a scalar"),
        (
            lambda x: bw.smoothed_bures(x, TARGET, tau=jax.lax.complex(x[0, 0], x[0, 0])),
            "tau must be real",
        ),
        (lambda x: bw.smoothed_bures(x, TARGET, tau=-1.0), "tau must be at least 0.0; got -1.0"),
        (lambda x: bw.Target(x[0]).factor, "Sigma must have 2 dimensions"),
        (lambda x: bw.Target.from_factor(x, rank=3).factor, "rank must be at most 2"),
        (lambda x: bw.end_to_end((x, x[:, :1])), "factors must chain"),
        (lambda x: run(params=(x, x[:, :1])).factors, "factors must chain"),
        (lambda x: run(times=[0.0, x]).factors, "times must be made of numbers"),
        (lambda x: initializers.gaussian(x)(KEY, (2, 2)), "std must be a scalar"),
        (lambda x: theory.aligned_flow(x, 1.0, x[0, :1].repeat(3), depth=1), "shapes that broad"),
    ],
)
def test_shapes_and_dtypes_are_looked_at_under_a_trace(call, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(call)(EYE)


def test_numbers_may_be_traced_wherever_they_are_numbers():
    """One program serves all of them, and lists may mix them with numbers that are known."""

    @jax.jit
    @jax.vmap
    def last_gaps(x):
        loss = bw.losses.BuresWasserstein(TARGET, x)
        start = initializers.balanced(scale=x)(KEY, (2, 2, 2))
        flow = bw.gradient_flow(
            loss, start, times=[0.0, x], rtol=x / 100, atol=x / 100, until=until.gap(x)
        )
        descent = bw.gradient_descent(loss, start, SGD, num_steps=2, until=until.gap(x))
        spectrum = covariances.step(2, 1, x) * covariances.power_law(2, x)
        return flow.probes["gap"][-1], descent.probes["gap"][-1], spectrum

    for values in last_gaps(array([0.1, 0.2])):
        assert np.all(np.isfinite(values))


def test_float_means_the_default_precision():
    for enabled, expected in ((False, np.float32), (True, np.float64)):
        with jax.enable_x64(enabled):
            for (door, _), call in TYPED.items():
                if door == "near_target":  # it takes the precision of its target along
                    continue
                assert jax.tree.leaves(call(float))[0].dtype == expected
                assert jax.tree.leaves(call("float32"))[0].dtype == np.float32
