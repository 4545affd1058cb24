"""Covariances as ellipses and geodesics as spectra, and the curves through given covariances."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from covariance_oracles import covariance, factor
from helpers import array, assert_close, by_precision, random_target
from matplotlib.colors import to_rgba

from bwflow import geometry, plotting
from bwflow.geometry import Factor

EXACT, CLOSE = by_precision(1e-14, 2e-6), by_precision(1e-12, 2e-5)
PLANE = np.stack([covariance(seed, 2) for seed in range(3)])


# --- ellipses ------------------------------------------------------------------------------------


def outlines(ax):
    return [line.get_xydata() for line in ax.lines]


def test_outlines_are_two_standard_deviations_from_their_centres():
    """`x^T A^{-1} x = 4`, all around."""
    for A, curve in zip(PLANE, outlines(plotting.ellipses(array(PLANE))), strict=True):
        distances = np.einsum("ki,ij,kj->k", curve, np.linalg.inv(A), curve)
        assert_close(distances, np.full(len(curve), 4.0), by_precision(1e-12, 1e-4))
        assert_close(curve[0], curve[-1], 1e-12)
        angles = np.unwrap(np.arctan2(*curve.T))
        assert abs(abs(angles[-1] - angles[0]) - 2 * np.pi) < 1e-10


@pytest.mark.parametrize("kind", ["matrix", "factor"])
def test_of_rank_one_the_outline_is_a_segment(kind):
    column = np.array([[3.0], [4.0]])
    given = Factor(array(column)) if kind == "factor" else array(column @ column.T)
    (curve,) = outlines(plotting.ellipses(given))
    # The square root of what rounding leaves of a variance of 0.
    assert_close(curve @ np.array([4.0, -3.0]) / 5, np.zeros(len(curve)), by_precision(1e-6, 1e-2))
    assert_close(np.max(np.linalg.norm(curve, axis=1)), 10.0, 1e-2)


def test_centres_are_the_means():
    means = np.array([[0.0, 1.0], [5.0, -2.0], [3.0, 3.0]])
    plain = outlines(plotting.ellipses(array(PLANE), ax=plt.subplots()[1]))
    moved = outlines(plotting.ellipses(array(PLANE), means=array(means), ax=plt.subplots()[1]))
    for mean, here, there in zip(means, plain, moved, strict=True):
        assert_close(there, here + mean, EXACT)


def test_centres_are_in_a_row_with_a_spacing():
    plain = outlines(plotting.ellipses(array(PLANE), ax=plt.subplots()[1]))
    moved = outlines(plotting.ellipses(array(PLANE), spacing=6.0, ax=plt.subplots()[1]))
    for k, (here, there) in enumerate(zip(plain, moved, strict=True)):
        assert_close(there, here + np.array([6.0 * k, 0.0]), EXACT)


def test_a_factor_a_target_and_a_batch_are_drawn_as_matrices_are():
    roots = array(np.linalg.cholesky(PLANE))
    for given in (Factor(roots), Factor(roots[:, None]), array(PLANE[None])):
        ax = plotting.ellipses(given, ax=plt.subplots()[1])
        expected = outlines(plotting.ellipses(array(PLANE), ax=plt.subplots()[1]))
        for curve, other in zip(outlines(ax), expected, strict=True):
            # Eigenvectors may point either way.
            for x in curve[::20]:
                assert np.min(np.linalg.norm(other - x, axis=1)) < 0.1
    assert len(plotting.ellipses(random_target(0, 2), ax=plt.subplots()[1]).lines) == 1


def test_ellipses_are_drawn_into_given_axes_with_a_style():
    _, (left, right) = plt.subplots(1, 2)
    assert plotting.ellipses(array(PLANE), ax=left, color="red", linewidth=3.0) is left
    assert len(left.lines) == 3
    assert not right.lines
    assert left.get_aspect() == 1
    for line in left.lines:
        assert to_rgba(line.get_color()) == to_rgba("red")
        assert line.get_linewidth() == 3.0
    assert plotting.ellipses(array(PLANE)) is right


BAD_ELLIPSES = {
    "size": (
        lambda: plotting.ellipses(np.eye(3)),
        r"covariances must be of size 2; got .*\(3, 3\)",
    ),
    "factor": (lambda: plotting.ellipses(Factor(np.ones((3, 1)))), "covariances must be of size 2"),
    "indefinite": (lambda: plotting.ellipses(-np.eye(2)), "covariances must be positive"),
    "means": (
        lambda: plotting.ellipses(np.eye(2), means=np.zeros((2, 2))),
        "means must be one for each covariance; got 2",
    ),
    "axes": (lambda: plotting.ellipses(np.eye(2), ax="left"), "ax must be an Axes of matplotlib"),
    "spectra of a list": (
        lambda: plotting.geodesic_spectra(np.stack([np.eye(2)] * 2), np.eye(2)),
        r"A must be one covariance; got shape \(2, 2, 2\)",
    ),
    "spectra of two sizes": (
        lambda: plotting.geodesic_spectra(np.eye(2), np.eye(3)),
        "A and B must be of one size",
    ),
    "no points": (
        lambda: plotting.geodesic_spectra(np.eye(2), np.eye(2), points=0),
        "points must be a positive integer",
    ),
    "axes of spectra": (
        lambda: plotting.geodesic_spectra(np.eye(2), np.eye(2), ax="left"),
        "ax must be an Axes of matplotlib",
    ),
}


@pytest.mark.parametrize("case", BAD_ELLIPSES)
def test_bad_ellipses_and_spectra_are_refused(case, as_installed):
    call, message = BAD_ELLIPSES[case]
    with pytest.raises(ValueError, match=message):
        call()
    assert plt.get_fignums() == []


# --- spectra -------------------------------------------------------------------------------------


def spectra(A, B, **options):
    """Standard deviations along the geodesic and along the line, times by values."""
    ax = plotting.geodesic_spectra(A, B, **options)
    curves = {
        dash: np.stack([line.get_ydata() for line in ax.lines if line.get_linestyle() == dash])
        for dash in ("-", "--")
    }
    return curves["-"].T, curves["--"].T


@pytest.mark.parametrize("kind", ["matrices", "factors"])
def test_spectra_end_at_the_deviations_of_both(kind):
    A, B = covariance(0, 4), covariance(1, 4)
    given = [array(X) for X in (A, B)]
    if kind == "factors":
        given = [Factor(array(np.linalg.cholesky(X))) for X in (A, B)]
    for curves in spectra(*given, points=7):
        assert curves.shape == (7, 4)
        for end, X in ((0, A), (-1, B)):
            expected = np.sqrt(np.linalg.eigvalsh(X))[::-1]
            assert_close(curves[end], expected, by_precision(1e-12, 1e-5))


def test_the_straight_line_has_more_variance_than_the_geodesic():
    """By `t (1 - t)` times the squared distance."""
    A, B = (array(covariance(seed, 4)) for seed in (0, 1))
    geodesic, line = (np.sum(x**2, axis=1) for x in spectra(A, B, points=9))
    t = np.linspace(0, 1, 9)
    expected = t * (1 - t) * float(geometry.bures_wasserstein(A, B))
    assert_close(line - geodesic, expected, by_precision(1e-13, 1e-5))
    assert np.all(expected[1:-1] > 0.01)


def test_spectra_are_drawn_into_given_axes_with_a_legend():
    _, (left, right) = plt.subplots(1, 2)
    assert plotting.geodesic_spectra(np.eye(3), 4 * np.eye(3), ax=left) is left
    assert not right.lines
    assert len(left.lines) == 6
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "geodesic",
        "straight line",
    ]
    assert left.get_xlabel() == "t"
    assert len(left.lines[0].get_xdata()) == 101


# --- interpolation -------------------------------------------------------------------------------

KNOTS = np.stack([covariance(seed, 3) for seed in range(4)])
FACTORS = np.stack([factor(seed, 4, 2) for seed in range(4)])
TIMES = np.array([-1.0, 0.0, 0.5, 3.0])


def dense(S):
    return S.covariance if isinstance(S, Factor) else S


@pytest.mark.parametrize("kind", ["matrices", "factors"])
def test_interpolation_is_at_its_knots_and_on_geodesics_between(kind):
    given = array(KNOTS) if kind == "matrices" else Factor(array(FACTORS))
    expected = KNOTS if kind == "matrices" else FACTORS @ np.swapaxes(FACTORS, 1, 2)
    of = (lambda i: given[i]) if kind == "matrices" else (lambda i: Factor(given.factor[i]))
    found = geometry.interpolate(given, TIMES, TIMES)
    assert isinstance(found, Factor) == (kind == "factors")
    assert_close(dense(found), expected, CLOSE)
    for i, t in ((0, -0.75), (1, 0.1), (2, 2.0)):
        share = (t - TIMES[i]) / (TIMES[i + 1] - TIMES[i])
        between = geometry.geodesic(of(i), of(i + 1), array(share))
        assert_close(dense(geometry.interpolate(given, TIMES, t)), dense(between), CLOSE)


def test_interpolation_takes_times_of_any_shape():
    asked = np.array([[-1.0, 3.0, 0.2], [0.0, 0.4, -0.3]])
    found = geometry.interpolate(array(KNOTS), TIMES, asked)
    assert found.shape == (2, 3, 3, 3)
    for index in np.ndindex(asked.shape):
        one = geometry.interpolate(array(KNOTS), TIMES, asked[index])
        assert_close(found[index], one, CLOSE)


BAD_KNOTS = {
    "before": (KNOTS, TIMES, -1.1, "t must be .*at least -1"),
    "after": (KNOTS, TIMES, [0.0, 3.1], "t must be .*at most 3"),
    "NaN": (KNOTS, TIMES, np.nan, "t must"),
    "unsorted": (KNOTS, TIMES[[0, 2, 1, 3]], 0.0, "times must .*increasing"),
    "repeated": (KNOTS, TIMES[[0, 1, 1, 3]], 0.0, "times must .*increasing"),
    "fewer times": (KNOTS, TIMES[:3], 0.0, r"as many of one.*\(4, 3, 3\) and \(3,\)"),
    "one": (KNOTS[:1], TIMES[:1], -1.0, r"two or more of each.*\(1, 3, 3\) and \(1,\)"),
    "no list": (KNOTS[0], TIMES, 0.0, r"two or more of each.*got shapes \(3, 3\) and \(4,\)"),
    "indefinite": (-KNOTS, TIMES, 0.0, "covariances must be positive semi-definite"),
}


@pytest.mark.parametrize("case", BAD_KNOTS)
def test_bad_knots_and_times_are_refused(case, as_installed):
    covariances, times, t, message = BAD_KNOTS[case]
    with pytest.raises(ValueError, match=message):
        geometry.interpolate(covariances, times, t)


def test_covariances_come_as_matrices_whatever_they_were():
    F, target = FACTORS[0], random_target(0, 3)
    assert_close(
        geometry.matrices("A", Factor(array(FACTORS))),
        FACTORS @ np.swapaxes(FACTORS, 1, 2),
        EXACT * 10,
    )
    assert_close(geometry.matrices("A", array(KNOTS)), KNOTS, 0.0)
    assert_close(geometry.matrices("A", target), target.covariance, EXACT)
    assert geometry.matrices("A", Factor(array(F))).shape == (4, 4)
    with pytest.raises(ValueError, match="name must be positive semi-definite"):
        geometry.matrices("name", -np.eye(2))
