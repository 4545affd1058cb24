"""The smoothed loss by quadrature: against many digits, and against the polar factor."""

import dataclasses

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from helpers import EPS, array, assert_close, by_precision, random_target

import bwflow as bw
from bwflow import _quadrature

RNG = np.random.default_rng(0)
W, D = (array(RNG.normal(size=(6, 2))) for _ in range(2))
TARGET = random_target(0, 6, condition=100.0)


@pytest.mark.parametrize(("condition", "tau"), [(10, 0.1), (1e4, 1e-3), (1e8, 1e-3), (1e8, 1e-8)])
def test_roots_are_exact_to_rounding_whatever_the_condition(condition, tau):
    """Trace, product with the inverse, and its diagonal, by forty digits."""
    spectrum = np.geomspace(1, 1 / condition, 7)
    d = array(tau * spectrum)
    X = array(np.sqrt(spectrum)[:, None] * np.random.default_rng(1).normal(size=(7, 3)))
    with mpmath.workdps(40):
        exact = mpmath.matrix(np.asarray(X, float).tolist())
        M = mpmath.diag([mpmath.mpf(float(x)) for x in d]) + exact * exact.T
        values, Q = mpmath.eigsy(M)
        inverse = Q * mpmath.diag([1 / mpmath.sqrt(x) for x in values]) * Q.T
        trace = float(mpmath.fsum(mpmath.sqrt(x) for x in values))
        product = np.array((inverse * exact).tolist(), float)
        diagonal = np.array([float(inverse[i, i]) for i in range(7)])
    root, found = _quadrature._inverse_root(d, X)
    assert_close(_quadrature.trace_root(d, X) / trace, 1.0, 10 * EPS)
    # As it stands in the gradient: after a product with the target's factor.
    scale = np.sqrt(spectrum)[:, None]
    assert_close(scale * np.asarray(root, float), scale * product, 64 * EPS)
    # Entries are differences of the inverse roots of d.
    assert_close(found * np.sqrt(d), diagonal * np.sqrt(np.asarray(d, float)), 64 * EPS)


def test_a_fixed_number_of_nodes_is_taken():
    assert _quadrature.nodes(np.float64) == 416
    assert _quadrature.nodes(np.float32) == 96


def by(method, **options):
    return lambda W, tau: bw.smoothed_bures(W, TARGET, tau=tau, method=method, **options)


@pytest.mark.parametrize(
    "quantity",
    [
        lambda f: f(W, 0.05),
        lambda f: jax.grad(f)(W, 0.05),
        lambda f: jax.grad(f, 1)(W, 0.05),
        lambda f: jax.jvp(lambda W: jax.grad(f)(W, 0.05), (W,), (D,))[1],
        lambda f: jax.grad(lambda W: jnp.vdot(jax.grad(f)(W, 0.05), D))(W),
        lambda f: jax.jacfwd(jax.grad(f), 1)(W, 0.05),
        lambda f: jax.grad(jax.grad(f, 1), 1)(W, 0.05),
    ],
    ids=["value", "gradient", "in tau", "product", "product in reverse", "mixed", "twice in tau"],
)
def test_values_and_derivatives_are_those_of_the_polar_factor(quantity):
    found, expected = (jax.jit(lambda m=m: quantity(by(m)))() for m in ("quadrature", "svd"))
    size = float(np.max(np.abs(expected)))
    assert_close(found / size, expected / size, by_precision(1e-13, 1e-4))


@pytest.mark.float64
def test_targets_of_low_rank_and_dependent_columns():
    """As behind a bottleneck; eigenvalues of the target that are zero do not come in."""
    target = bw.Target.from_factor(array(np.random.default_rng(2).normal(size=(6, 4))))
    for at in (W, W @ jnp.ones((2, 2)), 0 * W):
        value, slope = jax.value_and_grad(bw.smoothed_bures)(at, target, tau=0.1)
        quick = lambda W: bw.smoothed_bures(W, target, tau=0.1, method="quadrature")
        assert_close(quick(at), value, 1e-13)
        assert_close(jax.grad(quick)(at), slope, 1e-13)


def test_no_matrix_of_the_size_of_the_target_is_decomposed():
    """Of `m = 60` rows there are products alone."""
    target, X = random_target(1, 60), array(np.ones((60, 3)))
    f = jax.value_and_grad(lambda W: bw.smoothed_bures(W, target, tau=0.1, method="quadrature"))
    text = str(jax.make_jaxpr(f)(X))
    assert "svd" not in text
    sizes = {
        line.split(":")[1].split("[")[1].split("]")[0]
        for line in text.splitlines()
        if " = eigh" in line or " = cholesky" in line
    }
    assert sizes
    assert all(size.endswith("3,3") or size.endswith("3") for size in sizes)


def test_batches_descents_and_zero_smoothing():
    """A run whose smoothing is zero is NaN by itself."""
    values = jax.vmap(lambda tau: by("quadrature")(W, tau))(array([0.1, 0.0, 0.2]))
    expected = jax.vmap(lambda tau: by("svd")(W, tau))(array([0.1, 0.2]))
    assert np.isnan(values[1])
    assert_close(values[::2], expected, by_precision(1e-13, 1e-5))
    losses = [
        bw.losses.BuresWasserstein(TARGET, 0.1, method=method)(W)
        for method in ("quadrature", "svd")
    ]
    assert_close(losses[0], losses[1], by_precision(1e-13, 1e-5))


@pytest.mark.slow
@pytest.mark.once
def test_studies_by_any_method_agree():
    """Of a bottleneck, with smoothing."""
    study = bw.Experiment(
        target=bw.experiment.TargetSpec(n=4),
        network=bw.experiment.NetworkSpec(depth=(2,), bottleneck=(2,)),
        descent=bw.experiment.DescentSpec(num_steps=3),
        dynamics=("descent",),
        tau=(0.1,),
        seeds=2,
    )
    losses = [
        bw.study.run(dataclasses.replace(study, method=method), progress=False)["loss"]
        for method in ("auto", "quadrature", "newton_schulz")
    ]
    assert_close(losses[1], losses[0], 1e-13)
    assert_close(losses[2], losses[0], 1e-13)


@pytest.mark.once
@pytest.mark.parametrize(
    "fields",
    [{"method": "quadrature"}, {"method": "svd", "loss": "frobenius", "dynamics": ("flow",)}],
)
def test_specs_refuse_a_method_that_does_not_fit(fields, as_installed):
    with pytest.raises(ValueError, match=r"method must be auto for the Frobenius loss, and quad"):
        bw.Experiment(**fields)


@pytest.mark.once
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: by("quadrature")(W, 0.0), "tau must be positive with method='quadrature'; got 0"),
        (
            lambda: bw.smoothed_bures(
                W, bw.covariances.Spiked(W, 1.0), tau=0.1, method="quadrature"
            ),
            "target must be a bwflow.Target with method='quadrature'; got Spiked",
        ),
        (
            lambda: jax.grad(
                lambda B: bw.smoothed_bures(
                    W, bw.Target.from_factor(B, rank=6), tau=0.1, method="quadrature"
                )
            )(TARGET.factor),
            "method must not be 'quadrature' where derivatives in the target",
        ),
        (lambda: by("trapezoid")(W, 0.1), "method must be one of .*, quadrature; got 'trapezoid'"),
    ],
)
def test_what_it_does_not_do_is_refused(call, message, as_installed):
    with pytest.raises(ValueError, match=message):
        call()
