"""Which critical point: by enumeration, at saddles of all kinds, and where searches end."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import array, assert_close, by_precision, gaussian_factors
from jax import lax
from landscapes import LOSSES, SPECTRA, balanced, critical_sets, rotation, target_of

import bwflow as bw
from bwflow import landscape
from bwflow.landscape import KINDS

TAU = 0.1
every_loss = pytest.mark.parametrize("loss", sorted(LOSSES))


def kinds_of(found):
    """The names of the kinds of a batch."""
    return [landscape.KIND_NAMES[code] for code in found.code]


def classified(loss, layers, **tolerances):
    """One program for a batch of layers."""
    return jax.vmap(lambda *W: landscape.classify(loss, W, **tolerances))(*layers)


@every_loss
@pytest.mark.parametrize(
    ("spectrum", "rank"),
    [
        pytest.param("simple", 2, marks=pytest.mark.once),
        ("repeated", 3),
        pytest.param("rank two of four", 3, marks=pytest.mark.once),
    ],
)
def test_critical_points_are_recognised(spectrum, rank, loss):
    """With rotated columns, fewer and more of them than eigenvalues that can be learnt."""
    target = target_of(spectrum)
    points = list(landscape.critical_points(target, rank, tau=TAU, loss=loss))
    W = jnp.stack([point.end_to_end() @ array(rotation(1, rank)) for point in points])
    found = classified(LOSSES[loss](target, TAU), (W,))
    assert found.indices == tuple(point.indices for point in points)
    assert_close(found.distance, np.zeros(len(points)), by_precision(1e-14, 1e-5))
    assert_close(found.gradient_norm, np.zeros(len(points)), by_precision(1e-13, 1e-4))
    least = [point.hessian_eigenvalues[0] for point in points]
    assert_close(found.least_curvature, least, by_precision(1e-12, 1e-4))
    assert kinds_of(found) == ["minimum"] + ["strict_saddle"] * (len(points) - 1)


@pytest.mark.once
@every_loss
def test_an_eigenvalue_at_the_smoothing_is_not_learnt(loss):
    """Its direction is flat; without it the others make the minimum."""
    target = target_of("simple")
    points = list(landscape.critical_points(target, 4, tau=0.5, loss=loss))
    W = jnp.stack([point.end_to_end() for point in points])
    found = classified(LOSSES[loss](target, 0.5), (W,))
    assert found.indices == tuple(point.indices for point in points)
    assert [point.indices for point in points] == [(0, 1), (0,), (1,), ()]
    assert kinds_of(found) == ["minimum"] + ["strict_saddle"] * 3
    assert_close(found.least_curvature[0], np.zeros(()), by_precision(1e-13, 1e-5))


@pytest.mark.float64
def test_any_subspace_of_an_eigenspace_is_recognised():
    """At no distance; the eigenvalue is named by its first index."""
    target = target_of("repeated")
    Q = np.asarray(target.eigenvectors)
    W = []
    for angle in np.linspace(0, np.pi, 7):
        line = np.cos(angle) * Q[:, 1] + np.sin(angle) * Q[:, 2]
        W.append(np.stack([Q[:, 3] * (0.5 - TAU) ** 0.5, line * (1 - TAU) ** 0.5], axis=1))
    found = classified(bw.losses.BuresWasserstein(target, TAU), (jnp.asarray(W),))
    assert found.indices == ((1, 3),) * 7
    assert_close(found.distance, np.zeros(7), 1e-14)
    assert kinds_of(found) == ["strict_saddle"] * 7


@pytest.mark.once
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_nearest_critical_point_is_the_nearest_of_all(rank):
    """Against the distances to every one of them, at random matrices."""
    target = target_of("simple")
    lam, Q = np.asarray(target.eigenvalues, np.float64), np.asarray(target.eigenvectors, np.float64)
    W = np.random.default_rng(rank).normal(size=(40, 4, rank)) * 0.7
    found = classified(bw.losses.BuresWasserstein(target, TAU), (array(W),))
    sets = [J for _, J in critical_sets(lam, rank, TAU, "frobenius")]
    critical = np.array([(Q[:, list(J)] * (lam[list(J)] - TAU)) @ Q[:, list(J)].T for J in sets])
    S = W @ np.swapaxes(W, 1, 2)
    distances = np.linalg.norm(S[:, None] - critical[None], axis=(2, 3))
    assert_close(found.distance, distances.min(axis=1), by_precision(1e-13, 1e-5))
    assert list(found.indices) == [sets[i] for i in distances.argmin(axis=1)]
    assert set(kinds_of(found)) == {"not_critical"}


@pytest.mark.float64
def test_no_subspace_of_an_eigenspace_is_nearer():
    """Of 100 sampled for each number of its dimensions that is learnt."""
    target = target_of("repeated")
    Q, mu = np.asarray(target.eigenvectors), np.array(SPECTRA["repeated"]) - TAU
    rng = np.random.default_rng(0)
    W = rng.normal(size=(7, 4, 3)) * 0.7
    found = classified(bw.losses.BuresWasserstein(target, TAU), (jnp.asarray(W),))
    for x, distance in zip(W, found.distance, strict=True):
        sampled = []
        for angle in np.linspace(0, np.pi, 100):
            R = np.eye(4)
            R[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            for k in range(4):
                for J in map(list, combinations(range(4), k)):
                    V = (Q @ R)[:, J]
                    sampled.append(np.linalg.norm(x @ x.T - (V * mu[J]) @ V.T))
        assert float(distance) <= min(sampled) + 1e-14
        assert float(distance) >= min(sampled) - 1e-3


@pytest.mark.once
def test_smaller_sets_are_kinks_of_the_unsmoothed_bures_wasserstein_loss():
    """And saddles of the Frobenius loss; a deep network has them where its bottleneck is wider."""
    target = target_of("simple")
    sets = [(0, 1, 2), (0, 1, 3), (1, 2), (0,), ()]
    points = {p.indices: p for p in landscape.critical_points(target, 3, loss="frobenius")}
    W = jnp.stack([points[J].end_to_end() for J in sets])
    expected = {
        "bures_wasserstein": ["minimum", "strict_saddle", "kink", "kink", "kink"],
        "frobenius": ["minimum"] + ["strict_saddle"] * 4,
    }
    for loss, kinds in expected.items():
        found = classified(LOSSES[loss](target, 0.0), (W,))
        assert found.indices == tuple(sets)
        assert kinds_of(found) == kinds


@pytest.mark.once
@every_loss
def test_balanced_deep_saddles_that_learn_the_largest_eigenvalues_are_not_strict(loss):
    target, widths = target_of("simple"), (2, 2, 4)
    points = list(landscape.critical_points(target, 2, tau=TAU, loss=loss, depth=2))
    split = [balanced(np.asarray(p.end_to_end(), np.float64), widths) for p in points]
    layers = [array([layers[j] for layers in split]) for j in (0, 1)]
    found = classified(LOSSES[loss](target, TAU), layers)
    assert found.indices == tuple(point.indices for point in points)
    expected = {True: "strict_saddle", False: "non_strict_saddle"}
    assert kinds_of(found) == ["minimum"] + [expected[point.is_strict] for point in points[1:]]
    assert kinds_of(found).count("non_strict_saddle") == 2


@pytest.mark.float64
def test_unbalanced_layers_can_make_the_same_saddle_strict():
    """With `W_2 = diag(1, a, a)` by `a^2` times the curvature of one layer, four times."""
    lam = (4.0, 2.0, 1.0)
    target = bw.covariances.from_spectrum(lam)
    loss = bw.losses.BuresWasserstein(target, TAU)
    s = (lam[0] - TAU) ** 0.5
    W1 = jnp.diag(jnp.array([s, 0.0, 0.0]))
    for a in (0.0, 0.5):
        layers = (W1, jnp.diag(jnp.array([1.0, a, a])))
        found = landscape.classify(loss, layers)
        assert found.indices == (0,)
        assert_close(found.gradient_norm, np.zeros(()), 1e-14)
        least = a**2 * 2 * (1 - (lam[1] / TAU) ** 0.5)
        assert_close(found.least_curvature, np.float64(least), 1e-12)
        assert bool(found.kind == (KINDS.strict_saddle if a else KINDS.non_strict_saddle))
        assert int(landscape.morse_index(loss, layers)) == (4 if a else 0)


def root_finder(loss, shapes, steps):
    """Levenberg-Marquardt on the gradient: it goes to critical points of any index."""
    sizes = np.cumsum([a * b for a, b in shapes])

    def unravel(x):
        parts = jnp.split(x, sizes[:-1])
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    gradient = jax.grad(lambda x: loss(bw.end_to_end(unravel(x))))
    jacobian = jax.jacfwd(gradient)

    def advance(state):
        x, g, damping, count = state
        J = jacobian(x)
        A = J.T @ J + damping * jnp.eye(x.size)
        y = x - jnp.linalg.solve(A, J.T @ g)
        new = gradient(y)
        better = jnp.sum(new**2) < jnp.sum(g**2)
        damping = jnp.clip(jnp.where(better, damping / 10, damping * 10), 1e-18, 1e6)
        return jnp.where(better, y, x), jnp.where(better, new, g), damping, count + 1

    def solve(x):
        state = (x, gradient(x), jnp.asarray(1.0), jnp.asarray(0))
        state = lax.while_loop(
            lambda s: (jnp.linalg.norm(s[1]) > 1e-11) & (s[3] < steps), advance, state
        )
        return unravel(state[0])

    return jax.jit(lambda x: lax.map(solve, x, batch_size=128))


def starts(target, shape, count, seed):
    """Random matrices, a half of them within the span of some eigenvectors, up to a little."""
    rng = np.random.default_rng(seed)
    n, p = shape
    kept = rng.random(size=(count, n, 1)) < 0.5
    kept[::2] = True
    size = 10.0 ** rng.uniform(-1.5, 0.5, size=(count, 1, 1))
    coordinates = rng.normal(size=(count, n, p)) * size * kept
    coordinates += 1e-3 * rng.normal(size=(count, n, p))
    return np.linalg.eigh(np.asarray(target.covariance))[1] @ coordinates


def assert_found_points_are_predicted(loss, layers, name, rank, distance, gradient=1e-10):
    """What a search ended at with a small gradient is some `S_J`; which ones were found."""
    found = classified(loss, layers)
    stopped = np.asarray(found.gradient_norm) < gradient
    assert np.max(np.asarray(found.distance)[stopped]) < distance
    kinds = np.array(kinds_of(found))[stopped]
    assert "not_critical" not in kinds
    lam = np.asarray(loss.target.eigenvalues)
    expected = {J for _, J in critical_sets(np.round(lam, 12), rank, loss.tau, name)}
    reached = {J for J, ok in zip(found.indices, stopped, strict=True) if ok}
    assert reached <= expected
    return reached, expected, stopped, kinds


@pytest.mark.float64
@every_loss
def test_searches_for_critical_points_find_the_predicted_ones_alone(loss):
    """From 200 starts; and nearly all of them are found."""
    target = target_of("repeated")
    objective = LOSSES[loss](target, TAU)
    x = starts(target, (4, 2), 200, 0)
    layers = root_finder(objective, [(4, 2)], 100)(jnp.asarray(x.reshape(200, -1)))
    reached, expected, stopped, kinds = assert_found_points_are_predicted(
        objective, layers, loss, 2, 1e-9
    )
    assert stopped.mean() > 0.9
    assert len(reached) >= len(expected) - 1
    assert {"minimum", "strict_saddle"} == set(kinds)


@pytest.mark.slow
@pytest.mark.float64
@every_loss
@pytest.mark.parametrize("spectrum", sorted(SPECTRA))
def test_thousands_of_searches_find_the_predicted_points_alone(spectrum, loss):
    """All of them, at ranks below and above that of the target, deep networks included."""
    target = target_of(spectrum)
    objective = LOSSES[loss](target, TAU)
    for rank in (2, 3):
        x = starts(target, (4, rank), 2000, rank)
        layers = root_finder(objective, [(4, rank)], 200)(jnp.asarray(x.reshape(2000, -1)))
        reached, expected, stopped, _ = assert_found_points_are_predicted(
            objective, layers, loss, rank, 1e-8
        )
        assert stopped.mean() > 0.95
        assert reached == expected
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(2000, 4)), rng.normal(size=(2000, 8))], axis=1)
    layers = root_finder(objective, [(2, 2), (4, 2)], 200)(jnp.asarray(x))
    _, _, stopped, _ = assert_found_points_are_predicted(objective, layers, loss, 2, 1e-4)
    assert stopped.mean() > 0.9


@pytest.mark.once
def test_a_batch_and_a_traced_target_are_classified_alike():
    """Eigenvalues of a traced target count as simple, which these are."""
    target = target_of("simple")
    W = jnp.stack([p.end_to_end() for p in landscape.critical_points(target, 2, tau=TAU)])
    batch = classified(bw.losses.BuresWasserstein(target, TAU), (W,))
    traced = jax.jit(lambda target, W: classified(bw.losses.BuresWasserstein(target, TAU), (W,)))(
        target, W
    )
    single = landscape.classify(bw.losses.BuresWasserstein(target, TAU), (W[3],))
    assert traced.indices == batch.indices
    assert single.indices == batch.indices[3]
    assert kinds_of(traced) == kinds_of(batch)
    assert_close(single.least_curvature, np.asarray(batch.least_curvature)[3], 1e-4)


@pytest.mark.float64
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_tolerances_are_relative_to_the_units_of_the_target(scale):
    """A point at `d` from a saddle counts as it or not; so it is in other units."""
    target = bw.covariances.from_spectrum([4 * scale, scale])
    loss = bw.losses.BuresWasserstein(target, TAU * scale)
    d, r = 1e-4, 0.9**0.5
    W = (jnp.array([[d], [r]]) * scale**0.5,)
    curvature = 2 * (1 - 4) / (1 + (4 * TAU) ** 0.5)
    units = {
        "distance_tolerance": d * r * 2**0.5 / 4,
        "gradient_tolerance": -curvature * d / 4**0.5,
        "curvature_tolerance": -curvature,
    }
    below = {"curvature_tolerance": KINDS.non_strict_saddle}
    for name, value in units.items():
        generous = dict.fromkeys(units, 1.0) | {"curvature_tolerance": 0.1}
        for factor in (1.01, 0.99):
            found = landscape.classify(loss, W, **(generous | {name: factor * value}))
            wide = below.get(name, KINDS.strict_saddle)
            narrow = KINDS.strict_saddle if name in below else KINDS.not_critical
            assert bool(found.kind == (wide if factor > 1 else narrow))
    assert bool(landscape.classify(loss, W).kind == KINDS.not_critical)


@pytest.mark.once
def test_layers_that_are_not_finite_are_not_critical():
    loss = bw.losses.BuresWasserstein(target_of("simple"), TAU)
    found = landscape.classify(loss, (jnp.full((4, 2), jnp.nan),))
    assert bool(found.kind == KINDS.not_critical)


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": jnp.sum}, r"loss must be bwflow.losses.BuresWasserstein\(target, tau\)"),
        ({"factors": gaussian_factors(0, (2, 3, 4))[::-1]}, "factors must chain"),
        ({"gradient_tolerance": -1.0}, "gradient_tolerance must be at least 0"),
        ({"distance_tolerance": np.ones(2)}, "distance_tolerance must be a scalar"),
        ({"curvature_tolerance": np.inf}, "curvature_tolerance must be a finite number"),
    ],
)
def test_refusals(change, message, as_installed):
    loss = bw.losses.BuresWasserstein(target_of("simple"), TAU)
    with pytest.raises(ValueError, match=message):
        landscape.classify(**({"loss": loss, "factors": (jnp.ones((4, 2)),)} | change))
