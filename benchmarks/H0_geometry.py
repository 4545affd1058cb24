"""H0: what do distances, gradients and means of covariances cost beside other libraries, how right?

bwflow.geometry beside POT, pyRiemann, ott and formulas by hand, float64, all sides alternating on
one core of one process. Squared distances of a pair and of many, values with gradients,
barycenters to a relative error of 1e-10, Frechet distances of few samples of many features. Errors
are against 50 digits. A library that is not installed is left out; `pip install --group peers` has
them. `--table docs/peers.md` writes the tables to a page.
"""

import datetime
import os
import platform
import time
import warnings
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import _peers
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import xarray as xr
from _scripts import command_line, save

import bwflow as bw

CONDITIONS = (1e2, 1e6)
RIGHT, ARRIVED = 1e-4, 1e-10


def covariances(rng, n, condition, shape=()):
    """With eigenvalues from 1 to 1 / condition, log-spaced, in a random basis."""
    Q = np.linalg.qr(rng.standard_normal((*shape, n, n)))[0]
    C = (Q * np.geomspace(1.0, 1 / condition, n)) @ np.swapaxes(Q, -1, -2)
    return (C + np.swapaxes(C, -1, -2)) / 2


def alternate(calls, repeats, least=4e-3):
    """Seconds of every call, in turn, each as often as `least` seconds allow."""
    counts = {}
    for name, call in calls.items():
        call()
        begin = time.perf_counter()
        call()
        counts[name] = int(np.clip(least / (time.perf_counter() - begin), 1, 200))
    seconds = np.zeros((len(calls), repeats))
    for k in range(repeats):
        for row, (name, call) in zip(seconds, calls.items(), strict=True):
            begin = time.perf_counter()
            for _ in range(counts[name]):
                call()
            row[k] = (time.perf_counter() - begin) / counts[name]
    return xr.DataArray(seconds, dims=("side", "repeat"), coords={"side": [*calls]})


def prepared(sides, arrays, left_out=()):
    """The calls of those sides that can do it."""
    calls = {}
    for name, side in sides.items():
        if name in left_out:
            continue
        try:
            calls[name] = side(*arrays)
            calls[name]()
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:80]}")
    return calls


def timed(sides, cases, repeats, slow=()):
    """Seconds by case, side and repeat. `slow` sides take part in the smaller cases only."""
    found = []
    for n, condition, number in cases:
        shape = () if number == 1 else (number,)
        rng = np.random.default_rng(n)
        arrays = [covariances(rng, n, condition, shape) for _ in range(2)]
        calls = prepared(sides, arrays, slow if n > 20 or number > 1 else ())
        found.append(alternate(calls, repeats))
        print(f"n={n} condition {condition:g}, {number} at once:", shown(found[-1]), flush=True)
    cases = [f"{n}, {condition:g}, {number}" for n, condition, number in cases]
    return xr.concat(found, xr.IndexVariable("case", cases), join="outer")


def shown(seconds):
    ratio = seconds / seconds.sel(side="bwflow, residual")
    middle = ratio.median("repeat")
    return ", ".join(
        f"{name} {float(x):.2f}" for name, x in zip(middle.side.values, middle, strict=True)
    )


# How right.


def digits(X):
    return mpmath.matrix(np.asarray(X, float).tolist())


def root(A):
    values, Q = mpmath.eigsy(A)
    return Q * mpmath.diag([mpmath.sqrt(max(x, 0)) for x in values]) * Q.T


def exact(A, B):
    """Squared distance, and its gradient in `A` where that is regular, to 50 digits."""
    A, B = digits(A), digits(B)
    R = root(B)
    values, Q = mpmath.eigsy(R * A * R)
    cross = mpmath.fsum(mpmath.sqrt(max(x, 0)) for x in values)
    squared = mpmath.fsum(A[i, i] + B[i, i] for i in range(len(A))) - 2 * cross
    return squared, R, values, Q


def exact_gradient(A, B):
    """`I - A^{-1/2} (A^{1/2} B A^{1/2})^{1/2} A^{-1/2}` as floats."""
    A, B = digits(A), digits(B)
    S = root(A)
    inverse = S**-1
    T = inverse * root(S * B * S) * inverse
    return np.eye(len(A)) - np.array(T.tolist(), float)


def exact_factor_gradient(W, B):
    """Of `BW^2(W W^T, B)` in `W`: `2 (W - B W (W^T B W)^{-1/2})`."""
    W, B = digits(W), digits(B)
    G = 2 * (W - B * W * root(W.T * B * W) ** -1)
    return np.array(G.tolist(), float)


def low_rank(rng, n, k):
    """Of few bits, so that its Gram matrix is exact."""
    F = rng.integers(-8, 9, (n, k)) / 8
    return F @ F.T, F


def pairs(n):
    rng = np.random.default_rng(7)
    A = covariances(rng, n, 1e2)
    E = rng.standard_normal((n, n))
    E = (E + E.T) / np.linalg.norm(E + E.T)
    return {
        "generic": (A, covariances(rng, n, 1e2)),
        "condition 1e8": (covariances(rng, n, 1e8), covariances(rng, n, 1e8)),
        "condition 1e12": (covariances(rng, n, 1e12), covariances(rng, n, 1e12)),
        "1e-9 apart": (A, A + 1e-9 * E),
        "coincident": (A, A),
        "low rank": (low_rank(rng, n, n // 2)[0], low_rank(rng, n, n // 2)[0]),
    }


def errors(sides, cases, wanted):
    """Of every side; relative, or absolute where the exact value is 0. NaN if it is not finite."""
    found = np.full((len(sides), len(cases)), np.nan)
    for i, side in enumerate(sides.values()):
        for j, (name, arrays) in enumerate(cases.items()):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found[i, j] = float(wanted(name, side(*arrays)()))
            except Exception:  # some refuse, each in their way
                found[i, j] = np.nan
    return xr.DataArray(found, dims=("side", "pair"), coords={"side": [*sides], "pair": [*cases]})


def distance_errors(n, precision):
    cases = pairs(n)
    if precision == "float32":
        cases = {name: cases[name] for name in ("generic", "coincident", "low rank")}
        rng = np.random.default_rng(8)
        cases["condition 1e4"] = (covariances(rng, n, 1e4), covariances(rng, n, 1e4))
        cases = {name: [X.astype(np.float32) for X in pair] for name, pair in cases.items()}
    truth = {name: exact(*pair)[0] for name, pair in cases.items()}

    def wanted(name, value):
        value = mpmath.mpf(float(value))
        return abs(value) if name == "coincident" else abs(value / truth[name] - 1)

    sides = {k: side for k, side in _peers.distances().items() if "not compiled" not in k}
    if precision == "float32":
        sides.pop("ott", None)  # it mixes precisions where jax has both
    return errors(sides, cases, wanted)


def gradient_errors(n):
    all_pairs, rng = pairs(n), np.random.default_rng(9)
    cases = {name: all_pairs[name] for name in ("generic", "condition 1e8", "coincident")}
    cases["A = I"] = (np.eye(n), all_pairs["generic"][1])
    cases["B of low rank"] = (all_pairs["generic"][0], low_rank(rng, n, n // 2)[0])
    truth = {name: exact_gradient(*pair) for name, pair in cases.items() if name != "coincident"}
    truth["coincident"] = np.zeros((n, n))

    def wanted(name, found):
        G = np.asarray(found[1])
        off = np.linalg.norm((G + G.T) / 2 - truth[name])
        return off if name == "coincident" else off / np.linalg.norm(truth[name])

    return errors(_peers.gradients(), cases, wanted)


def factor_errors(n):
    """Of the gradient in `W`, of fewer columns than rows, of the distance of `W W^T`."""
    rng = np.random.default_rng(10)
    W, B = low_rank(rng, n, n // 2)[1], covariances(rng, n, 1e2)
    best = np.linalg.eigh(B)
    W = {"generic W": W, "optimal W": (best[1] * np.sqrt(best[0]))[:, n // 2 :]}
    cases = {name: (W, B) for name, W in W.items()}
    truth = {"generic W": exact_factor_gradient(W["generic W"], B)}

    def wanted(name, found):
        G = np.asarray(found[1])
        if name == "optimal W":
            return np.linalg.norm(G)
        return np.linalg.norm(G - truth[name]) / np.linalg.norm(truth[name])

    return errors(_peers.factor_gradients(), cases, wanted)


def correct(*tables):
    """Sides whose every error is below `RIGHT`, but for pairs that nearly coincide."""
    found = []
    for side in tables[0].side.values:
        own = [t.sel(side=side) for t in tables if side in t.side.values]
        if all(bool(((x < RIGHT) | (x.pair == "1e-9 apart")).all()) for x in own):
            found.append(str(side))
    return found


# Barycenters.


def sets(smoke):
    rng = np.random.default_rng(0)

    def drawn(N, n, values):
        Q = np.linalg.qr(rng.standard_normal((N, n, n)))[0]
        C = (Q * values[:, None, :]) @ np.swapaxes(Q, 1, 2)
        return (C + np.swapaxes(C, 1, 2)) / 2

    if smoke:
        return {"3 of n=2": drawn(3, 2, np.exp(rng.uniform(0, 1, (3, 2))))}
    return {
        "100 of n=32, condition 30": drawn(100, 32, np.exp(rng.uniform(0, np.log(30), (100, 32)))),
        "20 of n=8, condition 1e4": drawn(20, 8, np.tile(np.geomspace(1e-4, 1, 8), (20, 1))),
    }


def means(C, repeats):
    """Seconds, error and setting of each side at the loosest that arrives, and the first call."""
    reference = _peers.mean_by_hand(C, 1e-15)
    again = bw.geometry.barycenter(jnp.asarray(C), rtol=1e-13, throw=False).covariance
    apart = np.linalg.norm(again - reference) / np.linalg.norm(reference)
    print(f"references of bwflow and by hand are {apart:.1e} apart")
    calls, error, first, setting = {}, {}, {}, {}
    for name, (side, settings) in _peers.barycenters().items():
        for value in settings:
            call = side(C, value)
            begin = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = call()
            spent = time.perf_counter() - begin
            first.setdefault(name, spent)
            off = float(np.linalg.norm(np.asarray(found) - reference) / np.linalg.norm(reference))
            calls[name], error[name], setting[name] = call, off, value
            if off < ARRIVED:
                break
    seconds = alternate(calls, repeats)
    return xr.Dataset(
        {
            "seconds": seconds,
            "error": ("side", [error[s] for s in calls]),
            "first_call": ("side", [first[s] for s in calls]),
            "setting": ("side", [float(setting[s]) for s in calls]),
        }
    )


# Frechet distances.


def frechet_error(sides, num_samples, features):
    rng = np.random.default_rng(3)
    X = rng.standard_normal((num_samples, features))
    Y = X @ np.diag(np.linspace(0.5, 1.5, features)) + 0.1
    near = X + 1e-6 * rng.standard_normal(X.shape)
    cases = {"generic": (X, Y), "1e-6 apart": (X, near)}
    truth = {name: exact_frechet(*pair) for name, pair in cases.items()}

    def wanted(name, value):
        return abs(mpmath.mpf(float(value)) / truth[name] - 1)

    return errors(sides, cases, wanted)


def exact_frechet(X, Y):
    (a, F), (b, G) = map(exactly_fitted, (X, Y))
    M = F * G.T
    cross = mpmath.fsum(mpmath.sqrt(max(x, 0)) for x in mpmath.eigsy(M * M.T, eigvals_only=True))
    return sum_of_squares(a - b) + sum_of_squares(F) + sum_of_squares(G) - 2 * cross


def exactly_fitted(X):
    X = digits(X)
    N, n = X.rows, X.cols
    mean = mpmath.matrix([[mpmath.fsum(X[i, j] for i in range(N)) / N for j in range(n)]])
    scale = 1 / mpmath.sqrt(N - 1)
    rows = [[(X[i, j] - mean[0, j]) * scale for j in range(n)] for i in range(N)]
    return mean, mpmath.matrix(rows)


def sum_of_squares(X):
    return mpmath.fsum(x**2 for x in X)


def frechet_seconds(num_samples, features, dense, repeats):
    rng = np.random.default_rng(4)
    X, Y = (s * rng.standard_normal((num_samples, features)) for s in (1.0, 1.3))
    calls = prepared(_peers.frechets(dense), (X, Y))
    return alternate(calls, repeats)


# What is written.


def median(seconds):
    return seconds.median("repeat")


def markdown(rows, head):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def in_order(sides):
    """bwflow first, then by hand, then libraries."""
    return sorted(sides, key=lambda s: (not s.startswith("bwflow"), "by hand" not in s, str(s)))


def ratio_table(seconds, base, first):
    """Rows are sides; times over those of `base`, with milliseconds of that in its row."""
    middle, ratio = median(seconds), median(seconds / seconds.sel(side=base, drop=True))
    rows = []
    for side in in_order(seconds.side.values):
        cells = [str(side)]
        for case in seconds.case.values:
            own = float(ratio.sel(side=side, case=case))
            ms = float(middle.sel(side=side, case=case)) * 1e3
            cells.append("-" if np.isnan(own) else f"{ms:.3g} ms" if side == base else f"{own:.2g}")
        rows.append(cells)
    return markdown(rows, [first, *map(str, seconds.case.values)])


def error_table(table, first):
    rows = [
        [str(s), *("-" if np.isnan(x) else f"{x:.0e}" for x in table.sel(side=s).values)]
        for s in table.side.values
    ]
    return markdown(rows, [first, *map(str, table.pair.values)])


def verdicts(ds):
    """How far ahead of the fastest of the others, whatever their errors, and of the right ones."""
    lines = []
    for name, names in (
        ("distance", ["distance_error"]),
        ("gradient", ["distance_error", "gradient_error", "factor_error"]),
    ):
        own = {f"{name}_side": "side", f"{name}_case": "case"}
        seconds = ds[f"{name}_seconds"].rename(own)
        tables = [ds[x].rename({f"{x}_side": "side", f"{x}_pair": "pair"}) for x in names]
        others = [s for s in seconds.side.values if s.startswith(("POT", "pyRiemann", "ott"))]
        right = [s for s in correct(*tables) if s in others]
        for case in seconds.case.values:
            row = seconds.sel(case=case)
            cells = [name, str(case)]
            for some in (others, right):
                cells += ahead(row, some)
            lines.append(cells)
    ours = ["residual", "trace"]
    head = ["", "n, condition, at once", "fastest other", *ours, "fastest right one", *ours]
    return markdown(lines, head)


def ahead(seconds, sides):
    """The fastest of them, and its time over ours."""
    if not sides:
        return ["none", "-", "-"]
    middle = median(seconds)
    best = min(sides, key=lambda s: np.nan_to_num(float(middle.sel(side=s)), nan=np.inf))
    return [str(best)] + [
        f"{float(median(seconds.sel(side=best) / seconds.sel(side=s))):.2f}"
        for s in ("bwflow, residual", "bwflow, trace")
    ]


def means_table(ds):
    rows = []
    for name in ds.mean_set.values:
        part = ds.sel(mean_set=name)
        for side in ds.mean_side.values:
            own = part.sel(mean_side=side)
            ms = float(own.mean_seconds.median("repeat")) * 1e3
            cells = [f"{ms:.3g} ms", f"{float(own.mean_error):.0e}", f"{float(own.mean_setting):g}"]
            first = f"{float(own.mean_first_call):.2g} s"
            rows.append([str(name), str(side), *cells, first])
    return markdown(rows, ["set", "by", "time", "error", "setting", "first call"])


def frechet_table(ds):
    rows = []
    for case in ds.frechet_case.values:
        middle = ds.frechet_seconds.sel(frechet_case=case).median("repeat")
        for side in ds.frechet_side.values:
            ms = float(middle.sel(frechet_side=side)) * 1e3
            off = ds.frechet_error.sel(frechet_side=side).values
            if not np.isnan(ms):
                rows.append([str(case), str(side), f"{ms:.3g} ms", *(f"{x:.0e}" for x in off)])
    head = ["samples, features", "by", "time", "error", "error, 1e-6 apart"]
    return markdown(rows, head)


def tables(ds):
    """Markdown by name."""

    def part(name, *names):
        return ds[name].rename(dict(names))

    found = {}
    for name in ("distance", "gradient"):
        seconds = part(f"{name}_seconds", (f"{name}_side", "side"), (f"{name}_case", "case"))
        found[name] = ratio_table(seconds, "bwflow, residual", "n, condition, at once")
    for name in ("distance_error", "distance_error32", "gradient_error", "factor_error"):
        found[name] = error_table(
            part(name, (f"{name}_side", "side"), (f"{name}_pair", "pair")), ""
        )
    found["verdicts"] = verdicts(ds)
    found["means"] = means_table(ds)
    found["frechet"] = frechet_table(ds)
    return found


def main(
    smoke: bool = False, out: Path = Path("results/benchmarks"), table: Path | None = None
) -> xr.Dataset:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    jax.config.update("jax_enable_x64", True)
    mpmath.mp.dps = 50
    print(_peers.versions())
    repeats, n = (1, 3) if smoke else (7, 10)
    sizes = (3,) if smoke else (10, 20, 50, 100, 200, 500)
    many = [(3, 1e2, 2)] if smoke else [(20, condition, 1000) for condition in CONDITIONS]
    cases = [(size, condition, 1) for condition in CONDITIONS for size in sizes] + many
    slopes = [(3, 1e2, 2)]
    if not smoke:
        batches = {20: 100, 50: 100, 100: 20}
        slopes = [(k, c, N) for c in CONDITIONS for k in batches for N in (1, batches[k])]
    error = {
        "distance_error": distance_errors(n, "float64"),
        "distance_error32": distance_errors(n, "float32"),
        "gradient_error": gradient_errors(n),
        "factor_error": factor_errors(n),
    }
    regular = [x for name, x in error.items() if not name.endswith("32")]
    print("right in all but what nearly coincides:", correct(*regular))
    measured = {
        "distance": timed(_peers.distances(), cases, repeats, ("ott",)),
        "gradient": timed(_peers.gradients(), slopes, repeats, ("ott",)),
    }
    parts = {}
    for name, x in measured.items():
        parts[f"{name}_seconds"] = x.rename(side=f"{name}_side", case=f"{name}_case")
    for name, x in error.items():
        parts[name] = x.rename(side=f"{name}_side", pair=f"{name}_pair")
    kinds = sets(smoke)
    found = xr.concat(
        [means(C, repeats) for C in kinds.values()], xr.IndexVariable("mean_set", [*kinds])
    ).rename(side="mean_side")
    parts |= {f"mean_{name}": x for name, x in found.items()}
    counts = ((4, 6, True),) if smoke else ((100, 256, True), (500, 2048, False))
    frechet = [frechet_seconds(N, k, dense, repeats) for N, k, dense in counts]
    index = xr.IndexVariable("frechet_case", [f"{N}, {k}" for N, k, _ in counts])
    seconds = xr.concat(frechet, index, join="outer").rename(side="frechet_side")
    off = frechet_error(_peers.frechets(True), *((3, 4) if smoke else (10, 24)))
    parts["frechet_seconds"] = seconds
    parts["frechet_error"] = off.rename(side="frechet_side", pair="frechet_pair")
    ds = xr.Dataset(
        parts,
        attrs={"question": __doc__.splitlines()[0], "dtype": "float64", **_peers.versions()},
    )
    text = np.dtypes.StringDType()
    ds = ds.assign_coords(
        {k: (x.dims, x.values.astype(text)) for k, x in ds.coords.items() if x.dtype.kind in "OUT"}
    )
    save(ds, out, "H0_geometry")
    shown_tables = tables(ds)
    for name, lines in shown_tables.items():
        print(f"\n{name}\n\n{lines}")
    if table is not None:
        table.write_text(page(shown_tables))
    return ds


def page(found):
    template = Path(__file__).with_name("_peers.md").read_text()
    versions = ", ".join(f"{name} {version}" for name, version in _peers.versions().items())
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    date = f"{datetime.date.today():%B %Y}"
    return template.format(**found, versions=versions, machine=machine, date=date)


if __name__ == "__main__":
    command_line(main, __doc__, table={"type": Path, "help": "write the tables to this page"})
