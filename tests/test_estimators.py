"""The estimators against numpy, as scikit-learn uses them, and what they refuse.

They compute in the precision of what they get, whatever that of the run is.
"""

import pickle
import re
import warnings

import jax
import numpy as np
import pytest
import sklearn
from helpers import assert_close
from sklearn.base import clone
from sklearn.covariance import ledoit_wolf, oas
from sklearn.exceptions import ConvergenceWarning, NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

from bwflow.estimators import (
    MDM,
    BarycenterAlignment,
    Covariances,
    KMeans,
    ShrunkCovariances,
    TangentSpace,
)

pytestmark = pytest.mark.once

N, SIZE = 8, 3  # matrices of a class, and their size: few shapes, that few programs be compiled
CENTRING = np.eye(SIZE) - 1 / SIZE
RANGE = np.linalg.eigh(CENTRING)[1][:, 1:]
Y = np.repeat(["left", "right"], N)
ALL = [MDM(), TangentSpace(), KMeans(2), BarycenterAlignment(), Covariances(), ShrunkCovariances()]
NAMES = [type(estimator).__name__ for estimator in ALL]
ON_COVARIANCES = [estimator for estimator in ALL if not isinstance(estimator, Covariances)]


def wishart(seed, count, samples=2 * SIZE):
    G = np.random.default_rng(seed).normal(size=(count, SIZE, samples))
    return G @ G.swapaxes(1, 2) / samples


def planted(count):
    """Two clusters that are far from each other."""
    return np.concatenate([wishart(0, count, 20), 25 * wishart(1, count, 20)])


def two_classes(singular=False):
    """Matrices of two classes, after an average reference if they are to be singular."""
    spread = np.diag([3.0, 1.0, 0.5])
    X = np.concatenate([wishart(0, N), spread @ wishart(1, N) @ spread])
    if singular:
        X = CENTRING @ X @ CENTRING
        X = (X + X.swapaxes(1, 2)) / 2
    return X


def root(A):
    values, vectors = np.linalg.eigh(A)
    return (vectors * np.sqrt(np.maximum(values, 0))[..., None, :]) @ vectors.swapaxes(-1, -2)


def squared_distance(A, B):
    a = root(A)
    return np.trace(A) + np.trace(B) - 2 * np.trace(root(a @ B @ a))


def squared_distances(X, S):
    return np.array([[squared_distance(A, B) for B in S] for A in X])


def barycenter(X, w=None):
    """By the fixed-point iteration, in numpy."""
    w = np.full(len(X), 1 / len(X)) if w is None else w / np.sum(w)
    S = np.einsum("i,ijk", w, X)
    for _ in range(200):
        s = root(S)
        inner = np.einsum("i,ijk", w, root(s @ X @ s))
        S = np.linalg.solve(s, inner @ inner) @ np.linalg.inv(s)
    return (S + S.T) / 2


def inside(X, singular):
    """Matrices on the range that singular ones share, where they are regular."""
    return RANGE.T @ X @ RANGE if singular else X


singular_too = pytest.mark.parametrize("singular", [False, True], ids=["regular", "singular"])


@singular_too
def test_mdm_has_the_barycenters_and_the_nearest_of_them(singular):
    X = two_classes(singular)
    mdm = MDM().fit(X, Y)
    means = np.stack([barycenter(inside(X[name == Y], singular)) for name in ("left", "right")])
    assert mdm.classes_.tolist() == ["left", "right"]
    assert mdm.weights_.tolist() == [N, N]
    assert_close(inside(mdm.means_, singular), means, 1e-7)
    if singular:
        assert_close(mdm.means_ @ np.ones(SIZE), np.zeros((2, SIZE)), 1e-12)
    squares = squared_distances(inside(X, singular), means)
    assert_close(mdm.transform(X), np.sqrt(squares), 1e-6)
    assert mdm.predict(X).tolist() == mdm.classes_[np.argmin(squares, axis=1)].tolist()
    odds = np.exp(-squares)
    assert_close(mdm.predict_proba(X), odds / odds.sum(axis=1, keepdims=True), 1e-6)
    assert_close(mdm.predict_proba(X).sum(axis=1), np.ones(2 * N), 1e-14)


def test_weights_count_as_repetitions_and_zeros_as_absence():
    X = two_classes()
    kept = np.r_[0:6, 8:14]
    w = np.ones(len(kept))
    w[[0, 8]] = 2
    w[5] = 0
    rows = np.delete(np.repeat(kept, w.astype(int)), [])
    weighted, repeated = MDM().fit(X[kept], Y[kept], w), MDM().fit(X[rows], Y[rows])
    assert_close(weighted.means_, repeated.means_, 1e-7)
    assert weighted.weights_.tolist() == repeated.weights_.tolist() == [6, 7]
    assert_close(weighted.means_[0], barycenter(X[:5], np.array([2.0, 1, 1, 1, 1])), 1e-7)


def test_means_of_a_rank_have_it():
    mdm = MDM(rank=1).fit(two_classes(), Y)
    assert np.linalg.matrix_rank(mdm.means_, rtol=1e-10).tolist() == [1, 1]
    before = mdm.means_
    mdm.partial_fit(two_classes(), Y)
    assert np.linalg.matrix_rank(mdm.means_, rtol=1e-10).tolist() == [1, 1]
    assert_close(mdm.means_, before, 1e-6)


def test_one_class_is_enough():
    mdm = MDM().fit(two_classes()[:N], ["only"] * N)
    assert mdm.predict(two_classes()[:N]).tolist() == ["only"] * N
    assert mdm.predict_proba(two_classes()[:N]).tolist() == [[1.0]] * N


def diagonal(seed, count):
    return np.random.default_rng(seed).uniform(0.1, 4.0, (count, SIZE, 1)) * np.eye(SIZE)


def test_batches_of_matrices_that_commute_give_their_mean():
    """There it is the square of the mean root, whatever the batches and their weights."""
    X, w = diagonal(0, 2 * N), np.random.default_rng(1).uniform(0.0, 2.0, 2 * N)
    mdm = MDM()
    for part in (slice(0, 2), slice(2, 7), slice(7, 16)):
        mdm.partial_fit(X[part], Y[part], classes=["right", "left"], sample_weight=w[part])
    for k, name in enumerate(mdm.classes_):
        own = name == Y
        expected = np.einsum("i,ijk", w[own], np.sqrt(X[own])) / np.sum(w[own])
        assert_close(mdm.means_[k], expected**2, 1e-7)
        assert_close(mdm.weights_[k], np.sum(w[own]), 1e-12)


def test_batches_go_to_the_mean_of_all():
    X = wishart(3, 30 * N)
    mdm, errors = MDM(), []
    expected = barycenter(X)
    for batch in X.reshape(30, N, SIZE, SIZE):
        mdm.partial_fit(batch, ["one"] * N, classes=["one"])
        errors.append(np.linalg.norm(mdm.means_[0] - expected) / np.linalg.norm(expected))
    assert errors[-1] < 0.02
    assert errors[-1] < errors[0] / 5


def test_a_batch_goes_on_from_a_fit_as_a_fit_of_both():
    X = two_classes()
    first = np.arange(16) % 2 == 0
    mdm = MDM().fit(X[first], Y[first]).partial_fit(X[~first], Y[~first])
    whole = MDM().fit(X, Y)
    assert mdm.weights_.tolist() == [N, N]
    assert_close(mdm.means_, whole.means_, 0.03 * np.max(whole.means_))


def test_classes_that_have_not_come_are_never_predicted():
    X = two_classes()
    mdm = MDM().partial_fit(X[:N], Y[:N], classes=["left", "right"])
    assert np.all(np.isnan(mdm.means_[1]))
    assert mdm.predict_proba(X).tolist() == [[1.0, 0.0]] * 2 * N
    assert np.all(np.isinf(mdm.transform(X)[:, 1]))
    mdm.partial_fit(X[N:], Y[N:])
    assert_close(mdm.means_, MDM().fit(X, Y).means_, 1e-12)


def test_ranks_grow_from_batch_to_batch():
    """The geodesic between orthogonal lines is that of independent parts."""
    first, second = (np.diag(d)[None] for d in ([1.0, 0, 0], [0, 1.0, 0]))
    mdm = MDM().partial_fit(first, ["a"], classes=["a"]).partial_fit(second, ["a"])
    assert_close(mdm.means_[0], np.diag([0.25, 0.25, 0]), 1e-14)


@singular_too
def test_lengths_in_the_tangent_space_are_distances(singular):
    X = two_classes(singular)[:N]
    space = TangentSpace()
    vectors = space.fit_transform(X)
    assert vectors.shape == (N, SIZE * (SIZE + 1) // 2)
    mean = barycenter(inside(X, singular))
    assert_close(inside(space.reference_, singular), mean, 1e-7)
    squares = squared_distances(inside(X, singular), [mean])[:, 0]
    assert_close(np.sum(vectors**2, axis=1), squares, 1e-6)
    assert_close(np.mean(vectors, axis=0), np.zeros(vectors.shape[1]), 1e-7)
    assert_close(space.inverse_transform(vectors), X, 1e-12)
    assert_close(space.transform(space.reference_[None]), np.zeros((1, vectors.shape[1])), 1e-12)


def test_inner_products_in_the_tangent_space_are_those_of_the_metric():
    X = two_classes()[:N]
    space = TangentSpace().fit(X)
    vectors = space.transform(X)
    M = space.reference_
    roots = root(M)
    inverse = np.linalg.inv(roots)
    # tr (S M S') for S = T - I with the optimal maps T.
    S = inverse @ root(roots @ X @ roots) @ inverse - np.eye(SIZE)
    assert_close(vectors @ vectors.T, np.einsum("aij,jk,bki->ab", S, M, S), 1e-10)


def test_coordinates_in_the_tangent_space_are_those_of_the_formula():
    X = two_classes()[:N]
    space = TangentSpace().fit(X)
    a, Q = space.eigenvalues_, space.eigenvectors_
    assert_close((Q * a) @ Q.T, space.reference_, 1e-12)
    roots = root(space.reference_)
    inverse = np.linalg.inv(roots)
    S = Q.T @ (inverse @ root(roots @ X @ roots) @ inverse - np.eye(SIZE)) @ Q
    i, j = np.triu_indices(SIZE)
    scales = np.where(i == j, np.sqrt(a[i]), np.sqrt(a[i] + a[j]))
    assert_close(space.transform(X), scales * S[:, i, j], 1e-10)


@singular_too
def test_kmeans_finds_planted_clusters(singular):
    X = planted(N)
    if singular:
        X = CENTRING @ X @ CENTRING
        X = (X + X.swapaxes(1, 2)) / 2
    kmeans = KMeans(2, n_init=1, random_state=0).fit(X)
    assert len(set(kmeans.labels_[:N])) == len(set(kmeans.labels_[N:])) == 1
    assert kmeans.labels_[0] != kmeans.labels_[-1]
    assert kmeans.weights_.tolist() == [N, N]
    parts = [inside(X[kmeans.labels_ == k], singular) for k in range(2)]
    means = np.stack([barycenter(part) for part in parts])
    assert_close(inside(kmeans.cluster_centers_, singular), means, 1e-6)
    squares = squared_distances(inside(X, singular), means)
    assert_close(kmeans.inertia_, np.sum(np.min(squares, axis=1)), 1e-6)
    assert_close(kmeans.score(X), -kmeans.inertia_, 1e-10)
    assert_close(kmeans.transform(X), np.sqrt(squares), 1e-6)
    assert kmeans.predict(X).tolist() == kmeans.labels_.tolist()
    assert 1 <= kmeans.n_iter_ <= 100
    again = KMeans(2, n_init=1, random_state=0)
    assert again.fit_predict(X).tolist() == kmeans.labels_.tolist()


def test_kmeans_fills_clusters_that_lose_all():
    """The second of two equal centers has nothing until it takes what is farthest."""
    X = planted(N // 2)
    kmeans = KMeans(2, init=np.stack([X[0], X[0]])).fit(X)
    assert sorted(np.bincount(kmeans.labels_)) == [N // 2, N // 2]


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_kmeans_of_no_more_matrices_than_clusters_keeps_all(init):
    X = two_classes()[[0, N]]
    kmeans = KMeans(2, init=init, random_state=1).fit(X)
    assert_close(kmeans.inertia_, 0.0, 1e-12)
    assert_close(kmeans.cluster_centers_[kmeans.labels_], X, 1e-7)
    alike = KMeans(2, init=init, random_state=1).fit(X[[0, 0]])
    assert_close(alike.cluster_centers_, X[[0, 0]], 1e-7)


def test_kmeans_of_batches_goes_to_the_means():
    rng = np.random.default_rng(5)
    X = planted(20 * N)
    kmeans = KMeans(2, random_state=0)
    for batch in rng.permutation(len(X)).reshape(20, 2 * N):
        kmeans.partial_fit(X[batch])
    assert np.sum(kmeans.weights_) == 40 * N
    assert kmeans.n_iter_ == 20
    order = np.argsort(np.trace(kmeans.cluster_centers_, axis1=1, axis2=2))
    for k, part in zip(order, np.split(X, 2), strict=True):
        mean = barycenter(part)
        assert_close(kmeans.cluster_centers_[k], mean, 0.03 * np.max(mean))


def test_alignment_moves_the_barycenter_of_a_domain_to_the_target():
    """By `T A T` with the optimal map, `T M T` being the target."""
    X = two_classes()
    alignment = BarycenterAlignment()
    moved = alignment.fit_transform(X, domains=Y)
    means = np.stack([barycenter(X[:N]), barycenter(X[N:])])
    assert alignment.domains_.tolist() == ["left", "right"]
    assert_close(alignment.means_, means, 1e-7)
    assert_close(alignment.target_, barycenter(means), 1e-7)
    T = alignment.maps_
    assert_close(T, T.swapaxes(1, 2), 1e-12)
    assert np.all(np.linalg.eigvalsh(T) > 0)
    assert_close(T @ means @ T, np.stack([barycenter(means)] * 2), 1e-6)
    assert_close(moved, np.repeat(T, N, axis=0) @ X @ np.repeat(T, N, axis=0), 1e-12)


@singular_too
def test_rounds_of_alignment_make_barycenters_equal(singular):
    X = two_classes(singular)
    target = np.diag([1.0, 2.0, 3.0])
    if singular:
        target = CENTRING @ target @ CENTRING
    errors = []
    for rounds in (1, 10):
        moved = BarycenterAlignment(target, rounds).fit_transform(X, domains=Y)
        parts = (barycenter(inside(part, singular)) for part in np.split(moved, 2))
        errors.append(max(np.max(np.abs(M - inside(target, singular))) for M in parts))
    assert 0.1 < errors[0] < 1
    assert errors[1] < 1e-6


def test_one_round_of_alignment_is_enough_for_matrices_that_commute():
    X = diagonal(0, 2 * N) * np.repeat([1.0, 7.0], N)[:, None, None]
    moved = BarycenterAlignment().fit_transform(X, domains=Y)
    assert_close(*(np.mean(np.sqrt(part), axis=0) for part in np.split(moved, 2)), 1e-7)


def test_alignment_of_new_domains_takes_their_own_barycenter():
    X = two_classes()
    alignment = BarycenterAlignment(np.eye(SIZE)).fit(X[:N], domains=Y[:N])
    both = BarycenterAlignment(np.eye(SIZE)).fit_transform(X, domains=Y)
    assert_close(alignment.transform(X, domains=Y), both, 1e-6)
    assert_close(alignment.transform(X[N:]), both[N:], 1e-6)
    alone = BarycenterAlignment(np.eye(SIZE)).fit(X[:N])
    T = alone.maps_[0]
    assert_close(alone.transform(X), T @ X @ T, 1e-12)


def test_domains_are_routed_through_a_pipeline():
    X = two_classes()
    with sklearn.config_context(enable_metadata_routing=True):
        alignment = BarycenterAlignment(np.eye(SIZE))
        alignment.set_fit_request(domains=True).set_transform_request(domains=True)
        labels = np.tile(["low", "high"], N)
        pipeline = make_pipeline(alignment, MDM()).fit(X, labels, domains=Y)
        found = pipeline.predict(X, domains=Y)
    moved = BarycenterAlignment(np.eye(SIZE)).fit_transform(X, domains=Y)
    assert found.tolist() == MDM().fit(moved, labels).predict(moved).tolist()


def signals(seed=0, count=2 * N):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, SIZE, 20)) * np.repeat([1.0, 3.0], count // 2)[:, None, None] + 5


def test_covariances_are_those_of_numpy_and_scikit_learn():
    X = signals()
    assert_close(Covariances().fit_transform(X), [np.cov(x, bias=True) for x in X], 1e-12)
    for name, estimate in (("ledoit_wolf", ledoit_wolf), ("oas", oas)):
        found = Covariances(name).fit_transform(X)
        assert_close(found, [estimate(x.T)[0] for x in X], 1e-12)
    shrunk = ShrunkCovariances(0.3).fit_transform(Covariances().fit_transform(X))
    assert_close(Covariances(0.3).fit_transform(X), shrunk, 1e-12)
    assert_close(np.trace(shrunk, axis1=1, axis2=2), X.var(axis=2).sum(axis=1), 1e-12)
    assert_close(
        np.array([np.ptp(np.linalg.eigvalsh(A)) for A in Covariances(1.0).transform(X)]),
        np.zeros(len(X)),
        1e-12,
    )
    assert Covariances("oas").fit_transform(X[:, :1]).shape == (2 * N, 1, 1)


def test_pipelines_and_searches_take_them():
    X, y = signals(), Y
    tangent = make_pipeline(Covariances("oas"), TangentSpace(), LogisticRegression())
    assert tangent.fit(X[4:12], y[4:12]).score(X[4:12], y[4:12]) == 1
    search = GridSearchCV(
        make_pipeline(Covariances(), ShrunkCovariances(), MDM()),
        {"shrunkcovariances__shrinkage": [0.0, 0.5]},
        cv=2,
    ).fit(X, y)
    assert search.best_score_ == 1
    assert cross_val_score(search.best_estimator_, X, y, cv=2).tolist() == [1, 1]
    names = tangent[1].get_feature_names_out()
    assert names.tolist() == [f"tangentspace{i}" for i in range(6)]
    assert search.best_estimator_[-1].get_feature_names_out().tolist() == ["mdm0", "mdm1"]


def fitted(estimator, dtype=np.float64, singular=False):
    """A fitted copy, what it was given, and what it makes of that."""
    X = (signals() if isinstance(estimator, Covariances) else two_classes(singular)).astype(dtype)
    if isinstance(estimator, TangentSpace):
        X = X[:N]
    found = clone(estimator)
    if isinstance(estimator, KMeans):
        found.set_params(random_state=0, n_init=1)
    found.fit(X, Y[: len(X)])
    return found, X, found.transform(X)


# What scikit-learn checks without data, or of the refusal of data, and so of any estimator.
WITHOUT_DATA = {
    "check_complex_data",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_sparse_array",
    "check_estimator_sparse_matrix",
    "check_estimator_sparse_tag",
    "check_estimator_tags_renamed",
    "check_estimators_empty_data_messages",
    "check_fit1d",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
}


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_what_scikit_learn_checks_holds_or_fails_for_its_data(estimator, as_installed):
    """It has no checks with arrays of three dimensions, and lists none for estimators of these.

    With a tag that claims otherwise every check that gives data has to end in the refusal of them.
    """
    with pytest.warns(SkipTestWarning, match="Can't test estimator"):
        assert [run["check_name"] for run in check_estimator(estimator)] == [
            "check_estimator_cloneable"
        ]

    class Claims(type(estimator)):
        def __sklearn_tags__(self):
            tags = super().__sklearn_tags__()
            tags.input_tags.two_d_array = True
            return tags

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        claims = Claims(**estimator.get_params())
        runs = check_estimator(claims, on_skip=None, on_fail=None)
    passed = {run["check_name"] for run in runs if run["status"] == "passed"}
    assert passed >= WITHOUT_DATA
    failed = [run for run in runs if run["status"] == "failed"]
    assert len(failed) >= 20
    for run in failed:
        assert refused_for_dimensions(run), run


# Those that look for a sentence in the refusal, or hide it.
OF_SENTENCES = {
    "check_all_zero_sample_weights_error",
    "check_classifiers_one_label",
    "check_classifiers_one_label_sample_weights",
    "check_classifiers_regression_target",
    "check_fit2d_1feature",
    "check_fit2d_1sample",
    "check_positive_only_tag_during_fit",
    "check_requires_y_none",
    "check_sample_weights_pandas_series",
}


def refused_for_dimensions(run):
    error = run["exception"]
    while error is not None:
        if re.search(r"X must be (covariances|signals), .*; got shape \(\d+, \d+\)", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return run["check_name"] in OF_SENTENCES


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_copies_and_pickles_do_the_same(estimator):
    found, X, transformed = fitted(estimator)
    assert np.array_equal(pickle.loads(pickle.dumps(found)).transform(X), transformed)
    assert clone(found).get_params() == found.get_params()
    assert not [name for name in vars(clone(found)) if name.endswith("_")]
    assert np.array_equal(fitted(estimator)[2], transformed)
    assert found.n_features_in_ == SIZE


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_what_they_are_given_stays_as_it_is_and_may_come_in_any_layout(estimator):
    found, X, transformed = fitted(estimator)
    before = X.copy()
    X.setflags(write=False)
    assert np.array_equal(
        clone(found).fit(np.asfortranarray(X), Y[: len(X)]).transform(X), transformed
    )
    assert np.array_equal(X, before)


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_matrices_do_not_depend_on_their_neighbours(estimator):
    found, X, transformed = fitted(estimator)
    order = np.random.default_rng(0).permutation(len(X))
    assert_close(found.transform(X[order]), transformed[order], 1e-12)
    assert_close(found.transform(X[:2]), transformed[:2], 1e-12)


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_single_precision_stays_and_says_the_same(estimator):
    found, _, transformed = fitted(estimator, np.float32)
    assert transformed.dtype == np.float32
    arrays = {name: x for name, x in vars(found).items() if isinstance(x, np.ndarray)}
    exact = ("weights_", "classes_", "labels_", "domains_")
    assert all(x.dtype == np.float32 for name, x in arrays.items() if name not in exact)
    expected, X, precise = fitted(estimator)
    assert precise.dtype == np.float64
    if not isinstance(estimator, TangentSpace):  # whose basis has no sign
        assert_close(transformed, precise, 2e-3 * np.max(np.abs(precise)))
        mixed = expected.transform(X.astype(np.float32))
        assert mixed.dtype == np.float32
        assert_close(mixed, precise, 1e-3 * np.max(np.abs(precise)))
    assert found.transform(X).dtype == (np.float64 if hasattr(found, "shrinkage") else np.float32)


@pytest.mark.parametrize("estimator", ON_COVARIANCES, ids=lambda x: type(x).__name__)
def test_singular_matrices_may_come_in_single_precision(estimator):
    _, _, found = fitted(estimator, np.float32, singular=True)
    assert np.all(np.isfinite(found))


def test_double_precision_does_not_depend_on_the_setting_of_jax():
    X = two_classes()
    expected = MDM().fit(X, Y)
    with jax.enable_x64(not jax.config.read("jax_enable_x64")):
        found = MDM().fit(X, Y)
        assert np.array_equal(found.transform(X), expected.transform(X))
    assert np.array_equal(found.means_, expected.means_)


@pytest.mark.parametrize("scale", [2.0**-88, 2.0**80], ids=str)
@pytest.mark.parametrize("estimator", ON_COVARIANCES, ids=lambda x: type(x).__name__)
def test_units_do_not_matter(estimator, scale):
    """Squares of teslas are far from 1 in single precision."""
    found, X, expected = fitted(estimator, np.float32)
    length = scale if expected.ndim == 3 else scale**0.5
    moved = clone(found).fit(X * np.float32(scale), Y[: len(X)]).transform(X * np.float32(scale))
    assert_close(moved / length, expected, 1e-4 * np.max(expected))


def test_means_that_are_not_found_are_warned_of():
    with pytest.warns(ConvergenceWarning, match="2 of 2 barycenters: The maximum number of steps"):
        MDM(max_steps=2).fit(two_classes(), Y)


X = two_classes()
HOLED = X.copy()
HOLED[3, 0, 0] = np.nan
LOPSIDED = X + np.triu(np.ones((SIZE, SIZE)), 1)


@pytest.mark.parametrize("estimator", ON_COVARIANCES, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize(
    ("X", "text"),
    [
        (X[0], r"X must be covariances, of shape .*; got shape \(3, 3\)"),
        (X[:, :2], r"X must be covariances, of shape .*; got shape \(16, 2, 3\)"),
        (X[:0], r"0 sample"),
        (LOPSIDED, "X must be symmetric"),
        (X - 5 * np.eye(SIZE), "X must be positive semi-definite; its smallest eigenvalue"),
        (HOLED, "Input X contains NaN"),
        (X * 1j, "Complex data not supported"),
        ([[["a"]]] * 16, "could not convert string to float"),
    ],
    ids=["matrix", "rectangles", "none", "lopsided", "negative", "nan", "complex", "words"],
)
def test_what_are_no_covariances_is_refused(estimator, X, text, as_installed):
    with pytest.raises(ValueError, match=text):
        clone(estimator).fit(X, Y)


@pytest.mark.parametrize("estimator", ALL, ids=NAMES)
def test_what_is_met_must_be_of_the_size_of_what_was_fitted(estimator):
    found, X, _ = fitted(estimator)
    with pytest.raises(ValueError, match=r"X must hold .* as .*in fit; got shape \(\d+, 2, \d+\)"):
        found.transform(X[:, :2] if isinstance(estimator, Covariances) else X[:, :2, :2])


@pytest.mark.parametrize("estimator", [x for x in ALL if not hasattr(x, "shrinkage")], ids=repr)
def test_nothing_is_told_before_a_fit_and_of_other_metrics(estimator):
    with pytest.raises(NotFittedError):
        clone(estimator).transform(X)
    with pytest.raises(ValueError, match="metric must be one of bures_wasserstein; got 'riemann'"):
        clone(estimator).set_params(metric="riemann").fit(X, Y)
    with pytest.raises(ValueError, match=r"rtol must be at least 0.0; got -1.0"):
        clone(estimator).set_params(rtol=-1.0).fit(X, Y)
    with pytest.raises(ValueError, match=r"max_steps must be a positive integer; got 0"):
        clone(estimator).set_params(max_steps=0).fit(X, Y)


REFUSED = {
    "y missing": (lambda: MDM().fit(X, None), "requires y to be passed"),
    "y short": (lambda: MDM().fit(X, Y[1:]), "y must have 16 entries, .*; got 15"),
    "y of numbers": (lambda: MDM().fit(X, np.linspace(0, 1, 16)), "Unknown label type: continuous"),
    "y of two dimensions": (lambda: MDM().fit(X, np.ones((16, 2))), "y should be a 1d array"),
    "weights short": (lambda: MDM().fit(X, Y, np.ones(3)), "sample_weight must have 16 entries"),
    "weights below 0": (lambda: MDM().fit(X, Y, -np.ones(16)), "sample_weight must be at least 0"),
    "no weight": (
        lambda: MDM().fit(X, Y, 1.0 * (Y == "left")),
        r"sample_weight must not be zero for all of a class; it is for \['right'\]",
    ),
    "no weights": (lambda: TangentSpace().fit(X, None, np.zeros(16)), "must not be zero for all"),
    "rank": (lambda: MDM(rank=4).fit(X, Y), "rank must be at most 3; got 4"),
    "classes missing": (lambda: MDM().partial_fit(X, Y), "classes must be given in the first call"),
    "a strange label": (
        lambda: MDM().partial_fit(X, Y, classes=["left", "up"]),
        r"y must hold labels among \['left', 'up'\]; got \['right'\]",
    ),
    "other classes": (
        lambda: MDM().fit(X, Y).partial_fit(X, Y, classes=["left"]),
        r"classes must be the \['left', 'right'\] of before; got \['left'\]",
    ),
    "nothing yet": (
        lambda: MDM().partial_fit(X, Y, ["left", "right"], np.zeros(16)).predict(X),
        "No matrix of positive weight was seen yet",
    ),
    "columns": (
        lambda: TangentSpace().fit(X[:N]).inverse_transform(np.ones((2, 5))),
        r"X must have 6 columns, as transform gives them; got shape \(2, 5\)",
    ),
    "clusters": (lambda: KMeans(0).fit(X), "n_clusters must be a positive integer; got 0"),
    "many clusters": (lambda: KMeans(17).fit(X), "as many matrices as n_clusters says, 17, .*16"),
    "n_init": (lambda: KMeans(2, n_init=0).fit(X), "n_init must be a positive integer; got 0"),
    "tol": (lambda: KMeans(2, tol=-1.0).fit(X), "tol must be at least 0"),
    "init": (lambda: KMeans(2, init="best").fit(X), r"init must be one of k-means\+\+, random"),
    "centers": (lambda: KMeans(2, init=X[:3]).fit(X), "init must hold 2 centers; got shape"),
    "rounds": (lambda: BarycenterAlignment(rounds=0).fit(X), "rounds must be a positive integer"),
    "target": (lambda: BarycenterAlignment(np.eye(2)).fit(X), "target must hold matrices of 3 x 3"),
    "domains": (lambda: BarycenterAlignment().fit(X, domains=[0]), "domains must have 16 entries"),
    "shrinkage": (lambda: ShrunkCovariances(1.5).fit(X), "shrinkage must be at most 1.0; got 1.5"),
    "its name": (lambda: Covariances("none").fit(X), "shrinkage must be one of ledoit_wolf, oas"),
    "signals": (lambda: Covariances().fit(X[0]), r"X must be signals, of shape .*; got shape \(3"),
    "one time": (lambda: Covariances().fit(X[:, :, :1]), "of a channel and two times or more"),
}


@pytest.mark.parametrize(("call", "text"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_by_name(call, text, as_installed):
    with pytest.raises(ValueError, match=text):
        call()
