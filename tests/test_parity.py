"""docs/authors-script.md, row by row, against numpy that says what the authors' script means.

A row is named by its first column. `tries` registers the rows that a test tries, and a row that no
test tries is a failure. Fields and calls are read from the document, so that it is they that are
tried.
"""

import argparse
import dataclasses
import itertools
import re
import tomllib
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import pytest
import scipy.linalg
import scipy.stats
from authors_script import (
    LAWS,
    Script,
    draws,
    newton_schulz,
    product,
    spectra,
    stops_after,
    without_cancellation,
)
from helpers import X64, assert_close, by_precision

import bwflow as bw
from bwflow import cli, store, study
from bwflow.diagnostics import QUANTITIES
from bwflow.experiment import Experiment

pytestmark = pytest.mark.once

DOCUMENT = (Path(__file__).parents[1] / "docs" / "authors-script.md").read_text(encoding="utf-8")
PRECISION = by_precision("float64", "float32")
DTYPE = np.dtype(PRECISION)
ROUNDING = by_precision(1e-12, 1e-5)
DRIFT = by_precision(1e-9, 2e-3)  # of thirty updates
TRIED: dict[str, str] = {}


def tables(text):
    """The tables of a document: for each, its rows by their first cell without its marks."""
    found, lines = [], iter(text.splitlines())
    for line in lines:
        if line.startswith("|"):
            block = [line, *itertools.takewhile(lambda x: x.startswith("|"), lines)]
            rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in block[2:]]
            names = [re.sub(r"\*(\w+)\*", r"\1", row[0].replace("`", "")) for row in rows]
            found.append(dict(zip(names, (row[1:] for row in rows), strict=True)))
            assert all(row.count("|") == block[0].count("|") for row in block), block[0]
            assert len(found[-1]) == len(rows), "two rows have the same name"
    return found


OPTIONS, BOOKKEEPING, RECORDS = tables(DOCUMENT)
ERRORS = re.findall(r"^### (\d+)\. ", DOCUMENT, flags=re.MULTILINE)


def tries(*rows):
    """Register a test as one that tries rows of the document, or errors by their number."""

    def register(test):
        TRIED.update(dict.fromkeys(rows, test.__name__))
        return test

    return register


def cases(rows):
    """Rows as parameters of a test, and registered."""

    def register(test):
        return pytest.mark.parametrize("row", rows)(tries(*rows)(test))

    return register


def code(cell):
    return re.findall("`([^`]+)`", cell)


def fields(row):
    """What the document says a spec has for an option."""
    return tomllib.loads("\n".join(code(OPTIONS[row][1])))


def call(row, **names):
    """What the document says the library has for an option."""
    scope = {"bw": bw, "jax": jax, "jnp": jnp, "optax": optax, **names}
    return eval(code(OPTIONS[row][2])[0], scope)


def keywords(row):
    """The same where it is a keyword."""
    return eval(f"dict({code(OPTIONS[row][2])[0]})")


def merged(*parts):
    """Nested tables laid over each other."""
    whole = {}
    for part in parts:
        for key, value in part.items():
            inner = isinstance(value, dict)
            whole[key] = merged(whole.get(key, {}), value) if inner else value
    return whole


def experiment(*parts):
    return Experiment.from_dict(merged({"precision": PRECISION, "tolerance": 0.0}, *parts))


def start_of(spec, init, seed=0):
    """The start of a run of a spec with one network."""
    widths = spec.network.widths(spec.target.n, spec.network.depth[0], spec.network.bottleneck[0])
    return init(jax.random.key(seed), widths, DTYPE)


def doubles(factors):
    return [np.asarray(W, np.float64) for W in factors]


def largest(values):
    return np.max(np.abs(values))


# ---- one study that most rows are read off ---------------------------------------------------

N, K, DEPTH, RATE, TIME = 4, 2, 3, 0.01, 0.3
SMALL = {
    "seeds": 2,
    "dynamics": "descent",
    "target": {"kind": "random", "n": N, "basis_seed": 0, "normalize": False},
    "network": {"depth": DEPTH, "bottleneck": K, "latent": 3, "width": 2, "gamma": 0.4},
    "descent": {"learning_rate": RATE, "total_time": TIME, "save_every": 1},
}
TAUS = (0.0, 0.1)
WORLDS = {
    "BW": experiment(SMALL, {"tau": TAUS, "probe": list(QUANTITIES)}),
    "Fro": experiment(
        SMALL,
        fields("--loss Fro"),
        {"network": {"init": "rebalanced", "std": 0.7, "min_singular_value": 0.3}},
    ),
}
STARTS = {
    "BW": bw.initializers.balanced(bw.initializers.gaussian(gamma=0.4)),
    "Fro": bw.initializers.rebalanced(bw.initializers.gaussian(0.7), min_singular_value=0.3),
}


@cache
def small(loss):
    """A study, and the script's states for each of its smoothings and seeds."""
    spec = WORLDS[loss]
    target = study.make_target(spec.target, DTYPE)
    runs = {}
    for tau, seed in itertools.product(spec.tau, range(spec.seeds)):
        script = Script(target, tau, K, loss)
        layers = doubles(start_of(spec, STARTS[loss], seed))
        runs[tau, seed] = script, script.train(layers, RATE, round(TIME / RATE) + 1)
    ds = study.run(spec, progress=False).squeeze(["dynamics", "depth", "bottleneck"])
    return ds, runs


def assert_recorded(variable, name, loss="BW", atol=DRIFT):
    """A variable of the study is what the script means by a name, at every state but the last."""
    ds, runs = small(loss)
    values = variable(ds).transpose("tau", "seed", "save", ...)
    for (i, tau), seed in itertools.product(enumerate(WORLDS[loss].tau), range(2)):
        script, states = runs[tau, seed]
        expected = np.array([script.record(layers)[name] for layers in states[:-1]])
        assert_close(values.values[i, seed], expected, atol * max(1.0, largest(expected)))


# ---- the document ----------------------------------------------------------------------------


def test_every_row_and_every_error_of_the_document_is_tried():
    assert set(TRIED) == {*OPTIONS, *RECORDS, *ERRORS}


def test_every_option_of_the_script_is_in_the_document():
    options = """output name vary-name learning-rate depth width xdim zdim num-iter time cvg-test
    no-cvg-test init init-scheme gamma std tau smin sminmodel grad-comp grad-rank loss dataset-fname
    new-dataset load-dataset samp-mode samp-distrib save-dataset no-save-dataset save-every debug
    no-debug reset continue cpu cuda gif no-gif gpu-index run-id config"""
    found = {name for row in (*OPTIONS, *BOOKKEEPING) for name in re.findall("--([a-z-]+)", row)}
    assert found == set(options.split())


def test_links_within_the_document_lead_to_its_headings():
    headings = re.findall(r"^#+ (.*)$", DOCUMENT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", DOCUMENT)) <= anchors


def test_fields_of_the_document_are_options_of_the_command(tmp_path, capsys, as_installed):
    """Those of the default run, given as options to an empty spec, name the same store."""
    chosen = [
        *("--depth 5", "--xdim 20", "--learning-rate 1e-3", "--time 10", "--no-cvg-test"),
        *("--init normal (default)", "--gamma 1", "--tau 0", "--samp-distrib zipf (default)"),
        *("no option: scale of the target", "no option: eigenvectors", "no option: precision"),
    ]
    data, options = merged(*map(fields, chosen)), []
    for path, value in flattened(data):
        options += [f"--{path}", str(value)] if value is not False else [negated(path)]
    (tmp_path / "spec.toml").write_text('name = "parity"\n', encoding="utf-8")
    assert cli.main(["sweep", str(tmp_path / "spec.toml"), "--dry-run", *options]) == 0
    assert Experiment.from_dict({"name": "parity", **data}).slug in capsys.readouterr().out


def flattened(table, where=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{where}{key}.")
        else:
            yield where + key, value


def negated(path):
    table, name = path.split(".")
    return f"--{table}.no-{name}"


# ---- options: networks and descent -----------------------------------------------------------


@tries("--depth 5", "--width 20", "--zdim 20", "--xdim 20")
def test_widths_are_those_of_the_script():
    default = ("--depth 5", "--width 20", "--zdim 20", "--xdim 20")
    spec = experiment(*map(fields, default))
    assert spec.programs()[0][1] == (20,) * 6 == call("--depth 5") == call("--width 20")
    for depth, z, w, x in itertools.product((2, 3, 5), (2, 5, 7), (1, 4, 5), (3, 5)):
        data = {"target": {"n": x}, "network": {"latent": z, "width": w, "depth": depth}}
        widths = experiment(data, {"network": {"bottleneck": min(z, w, x)}}).programs()[0][1]
        assert widths == (z, *(depth - 1) * [w], x)
        assert (call("--zdim 20", widths=widths), call("--xdim 20", widths=widths)) == (z, x)
    ds, runs = small("BW")
    assert ds["layer"].size == DEPTH - 1
    shapes = [W.shape for W in runs[0.0, 0][1][0]]
    assert shapes == [(2, 3), (2, 2), (4, 2)]
    one = experiment({"target": {"n": 5}, "network": {"depth": 1, "bottleneck": 3}})
    assert one.programs()[0][1] == (3, 5)
    with pytest.raises(ValueError, match=r"network\.bottleneck"):
        experiment({"target": {"n": 5}, "network": {"depth": 1, "bottleneck": 7}})


@tries("no option: dynamics", "--learning-rate 1e-3", "checkpoints/*.pth, nets/*.pt")
def test_a_step_is_the_layers_minus_the_rate_times_their_gradients():
    assert fields("no option: dynamics") == {"dynamics": "descent"}
    assert experiment(fields("--learning-rate 1e-3")).descent.learning_rate == 1e-3
    _, runs = small("BW")
    start, sgd = start_of(WORLDS["BW"], STARTS["BW"]), call("--learning-rate 1e-3")
    target = study.make_target(WORLDS["BW"].target, DTYPE)
    for tau in TAUS:
        script, states = runs[tau, 0]
        loss = bw.losses.BuresWasserstein(target, jnp.asarray(tau, DTYPE))
        run = call("no option: dynamics")(loss, start, sgd, num_steps=1)
        gradients = script.gradients(states[0])
        for W, W0, g in zip(run.factors, states[0], gradients, strict=True):
            assert_close(W, W0 - 1e-3 * g, ROUNDING)
    assert_recorded(lambda ds: ds["loss"], "loss")  # and so on, to the last step


@tries("--num-iter (none)", "--time 10", "6")
def test_a_run_has_one_update_less_and_as_many_records():
    """And the script's columns *after* are those of the next record."""
    spec = experiment({"dynamics": "descent"}, fields("--learning-rate 1e-3"), fields("--time 10"))
    assert spec.descent.updates == int(10 / 1e-3 + 0.5) == 10_000
    assert experiment(fields("--num-iter (none)")).descent.updates == 10_000
    expected = {"num_steps": 10_000}
    assert keywords("--num-iter (none)") == keywords("--time 10") == expected
    for rate, time in ((0.3, 1.0), (0.07, 0.2), (1e-3, 0.0123)):
        data = {"descent": {"learning_rate": rate, "total_time": time}}
        assert experiment(data).descent.updates == int(time / rate + 0.5)
    flow = experiment({"flow": {"end_time": 10.0}})
    assert flow.flow.end_time == 10.0
    ds, runs = small("BW")
    script, states = runs[0.0, 0]
    script_rows = len(states) - 1
    assert ds["step"].values.tolist() == list(range(script_rows)) == list(range(31))
    before, after = script.record(states[5]), script.record(states[6])
    assert_close(ds["loss"].values[0, 0, 5], before["loss"], DRIFT)
    assert_close(ds["residual"].values[0, 0, 6], after["residual"], DRIFT)
    assert abs(ds["residual"].values[0, 0, 5] - after["residual"]) > 0.01


EASY = {
    "dynamics": "descent",
    "seeds": 1,
    "target": {"kind": "geometric", "n": 2, "condition": 2.0},
    "network": {"depth": 1, "scale": 0.3},
    "descent": {"learning_rate": 0.02, "num_steps": 300, "save_every": 1},
    "probe": ["loss", "gap", "cosines"],
}


@cache
def easy():
    """A study of one run to the end."""
    spec = experiment(EASY, fields("--no-cvg-test"), fields("no option: seeds"))
    return study.run(spec, progress=False)


@tries("--cvg-test (default)", "7")
def test_the_stopping_rule_is_the_scripts_without_its_wait():
    tolerance = fields("--cvg-test (default)")
    ds = study.run(experiment(EASY, tolerance), progress=False).squeeze()
    free = easy().squeeze()
    gaps = free["gap"].values.astype(float)
    assert int(ds["hit"]) == np.argmax(gaps <= tolerance["tolerance"] * float(free["loss"][0]))
    loss = bw.losses.BuresWasserstein(study.make_target(experiment(EASY).target, DTYPE))
    start = start_of(experiment(EASY), bw.initializers.balanced(scale=0.3))
    sgd, until = optax.sgd(0.02), call("--cvg-test (default)")
    run = bw.gradient_descent(loss, start, sgd, num_steps=300, until=until)
    assert int(run.hit) == np.argmax(gaps <= 1e-4)
    assert stops_after(gaps, 0.02) - int(run.hit) == round(0.1 / 0.02) - 1
    # Number 0 from the end is the first row: it is large, so the run never stops, or stops at once.
    assert stops_after(gaps, 0.21) is None
    assert stops_after(gaps[200:], 0.21) == 0


@tries("--no-cvg-test")
def test_without_a_tolerance_all_updates_are_made():
    assert keywords("--no-cvg-test") == {"until": None}
    ds, _ = small("BW")
    assert np.isinf(ds["hit"]).all()
    assert (ds["num_steps"] == round(TIME / RATE)).all()


@tries("--save-every 0.1")
def test_records_are_as_far_apart_as_the_scripts_files():
    rate, time = fields("--learning-rate 1e-3"), fields("--time 10")
    spec = experiment({"dynamics": "descent"}, rate, time, fields("--save-every 0.1")).descent
    assert spec.save_every == int(0.1 / spec.learning_rate + 0.5)
    assert keywords("--save-every 0.1") == {"save_every": spec.save_every}


# ---- options: starts -------------------------------------------------------------------------

DRAWN = {
    "seeds": 1500,
    "dynamics": "descent",
    "target": {"kind": "geometric", "n": 3},
    "network": {"depth": 2, "bottleneck": 2},
    "descent": {"learning_rate": 1e-3, "num_steps": 1},
    "probe": ["loss", "gap", "singular_values", "imbalance"],
}


def starts(*parts):
    """Singular values and imbalances of many starts of a study."""
    ds = study.run(experiment(DRAWN, *parts), progress=False).isel(save=0).squeeze()
    return ds["singular_values"].values.astype(float), ds["imbalance"].values.astype(float)


def assert_same_law(ours, theirs):
    """Two-sample Kolmogorov-Smirnov, column by column, at one in a thousand."""
    for x, y in zip(ours.T, theirs.T, strict=True):
        assert scipy.stats.ks_2samp(x, y).pvalue > 1e-3


@cases(LAWS)
def test_end_to_end_matrices_are_drawn_with_the_law_of_the_script(row):
    s, imbalances = starts(fields(row))
    drawn = draws(np.random.default_rng(0), 2, 3, row)
    assert_same_law(s, np.linalg.svd(drawn, compute_uv=False))
    assert largest(imbalances) <= 100 * ROUNDING
    std, is_uniform = LAWS[row]
    # Six uniform entries have bounded squares; six normal ones exceed the bound once in 160 draws.
    beyond = np.sum(s**2, axis=1) > 18 * std(2, 3) ** 2 * (1 + ROUNDING)
    assert beyond.any() != is_uniform
    entries = np.asarray(call(row)(jax.random.key(0), (40, 60))[0], np.float64)
    z = np.sort(entries.ravel()) / std(40, 60)
    cdf = scipy.stats.uniform(-(3**0.5), 2 * 3**0.5) if is_uniform else scipy.stats.norm
    assert scipy.stats.kstest(z, cdf.cdf).pvalue > 1e-3


@tries("--init-scheme balance-force (default)", "11")
def test_balance_force_splits_what_fits_through_the_bottleneck_of_a_draw():
    row, key = "--init-scheme balance-force (default)", jax.random.key(3)
    assert experiment(fields(row)) == experiment()
    assert call(row)(key, (4, 3, 5))[0].shape == (3, 4)
    drawn = np.asarray(bw.initializers.gaussian()(key, (4, 5), DTYPE)[0], np.float64)
    layers = doubles(call(row)(key, (4, 2, 6, 5), DTYPE))
    U, s, Vt = np.linalg.svd(drawn, full_matrices=False)
    assert_close(product(layers), (U[:, :2] * s[:2]) @ Vt[:2], ROUNDING)
    for W in layers:
        kept = np.linalg.svd(W, compute_uv=False)[:2]
        assert_close(kept, s[:2] ** (1 / 3), ROUNDING)
    assert largest(product(layers) - drawn) > 0.1
    uncut = bw.initializers.rebalanced()(key, (4, 2, 6, 5), DTYPE)
    as_drawn = bw.initializers.gaussian()(key, (4, 2, 6, 5), DTYPE)
    assert_close(product(doubles(uncut)), product(doubles(as_drawn)), ROUNDING)


@tries("--init-scheme balance")
def test_balance_splits_the_product_of_layers():
    s, imbalances = starts(fields("--init-scheme balance"))
    rng = np.random.default_rng(1)
    drawn = draws(rng, 2, 3) @ draws(rng, 2, 2)
    assert_same_law(s, np.linalg.svd(drawn, compute_uv=False))
    assert largest(imbalances) <= 100 * ROUNDING
    factors = call("--init-scheme balance")(jax.random.key(0), (2, 2, 3), DTYPE)
    assert_close(np.linalg.svd(product(doubles(factors)), compute_uv=False), s[0], ROUNDING)


@tries("--init-scheme None")
def test_without_a_scheme_layers_stay_as_they_are_drawn():
    s, imbalances = starts(fields("--init-scheme None"))
    rng = np.random.default_rng(2)
    W1, W2 = draws(rng, 2, 2), draws(rng, 2, 3)
    assert_same_law(s, np.linalg.svd(W2 @ W1, compute_uv=False))
    difference = W2.transpose(0, 2, 1) @ W2 - W1 @ W1.transpose(0, 2, 1)
    assert_same_law(imbalances.reshape(-1, 1), np.linalg.norm(difference, axis=(1, 2))[:, None])
    factors = call("--init-scheme None")(jax.random.key(0), (2, 2, 3), DTYPE)
    assert_close(np.linalg.svd(product(doubles(factors)), compute_uv=False), s[0], ROUNDING)


@tries("--init-scheme ortho", "14")
def test_orthogonal_layers_are_isometries_and_unknown_names_are_refused():
    s, imbalances = starts({"seeds": 3}, fields("--init-scheme ortho"))
    assert_close(s, np.ones((3, 2)), 10 * ROUNDING)
    assert largest(imbalances) <= 10 * ROUNDING
    for W in doubles(call("--init-scheme ortho")(jax.random.key(0), (4, 2, 3), DTYPE)):
        assert_close(np.linalg.svd(W, compute_uv=False), np.ones(2), 10 * ROUNDING)
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--init-scheme", choices=("balance", "ortho", "balance-force", None))
    with pytest.raises(argparse.ArgumentError):
        parser.parse_args(["--init-scheme", "None"])
    with pytest.raises(ValueError, match=r"network\.init must be one of"):
        experiment({"network": {"init": "ortho"}})


@tries("--std (none)", "--gamma 1")
def test_standard_deviations_are_the_scripts_where_widths_agree():
    key, widths, gamma = jax.random.key(0), (3, 5, 5, 4), 0.7
    unit = bw.initializers.gaussian(1.0)(key, widths, DTYPE)
    ours = bw.initializers.gaussian(gamma=gamma)(key, widths, DTYPE)
    by_number = bw.initializers.gaussian(5 ** (-gamma / 2))(key, widths, DTYPE)
    for j, (Z, W, V) in enumerate(zip(unit, ours, by_number, strict=True)):
        theirs = 5 ** (-gamma / 2) * np.asarray(Z)
        assert_close(V, theirs, ROUNDING)
        assert (largest(W - theirs) <= ROUNDING) == (j > 0)
    forced = bw.initializers.gaussian(gamma=gamma)(key, (3, 4), DTYPE)[0]
    Z = np.asarray(bw.initializers.gaussian(1.0)(key, (3, 4), DTYPE)[0])
    assert_close(forced, 3 ** (-gamma / 2) * Z, ROUNDING)
    assert_close(call("--std (none)")(key, (3, 4), DTYPE)[0], 0.1 * Z, ROUNDING)
    assert_close(call("--gamma 1")(key, (3, 4), DTYPE)[0], 3**-0.5 * Z, ROUNDING)
    assert fields("--std (none)") == {"network": {"std": 0.1}}
    assert fields("--gamma 1") == {"network": {"gamma": 1.0}}
    for loss, init in STARTS.items():  # one spec names gamma, the other std
        ds, runs = small(loss)
        script, _ = runs[0.0, 1]
        W = product(doubles(start_of(WORLDS[loss], init, 1)))
        assert_close(ds["loss"].sel(seed=1).isel(tau=0, save=0), script.loss(W), DRIFT)


@tries("--sminmodel -1", "9")
def test_the_minimum_of_a_start_raises_what_is_below_it_and_nothing_else():
    assert fields("--sminmodel -1") == {"network": {"min_singular_value": 0.1}}
    key, widths = jax.random.key(0), (3, 3, 3)
    drawn = np.asarray(bw.initializers.gaussian()(key, (3, 3), DTYPE)[0], np.float64)
    U, s, Vt = np.linalg.svd(drawn)
    for least in (0.5 * s[2], 0.5 * (s[1] + s[2])):
        init = bw.initializers.balanced(min_singular_value=least)
        ours = np.linalg.svd(product(doubles(init(key, widths, DTYPE))), compute_uv=False)
        assert_close(ours, np.maximum(s, least), ROUNDING)
        moved = s + least - s[2]  # what the script does
        assert (moved < s).all() == (least < s[2])
        factors = bw.initializers.split_evenly(jnp.asarray((U * moved) @ Vt, DTYPE), widths)
        assert_close(product(doubles(factors)), (U * moved) @ Vt, ROUNDING)
    factors = call("--sminmodel -1")(key, widths, DTYPE)
    ours = np.linalg.svd(product(doubles(factors)), compute_uv=False)
    assert_close(ours, np.maximum(s, 0.1), ROUNDING)


@tries("--init close", "13")
def test_starts_near_the_target_are_as_near_as_the_script_wants_them():
    full = {"seeds": 20, "network": {"bottleneck": 3}, "probe": ["loss", "gap"]}
    ds = study.run(experiment(DRAWN, full, fields("--init close")), progress=False)
    lam = ds["target_eigenvalues"].values
    assert (np.sqrt(ds["loss"].isel(save=0)) <= 0.5 * lam[2] ** 0.5 * (1 + ROUNDING)).all()
    # Below full rank the script's condition, L < lambda_k, may be out of reach.
    target = bw.Target(jnp.diag(jnp.asarray([1.0, 0.9, 0.9], DTYPE)))
    loss = bw.losses.BuresWasserstein(target, tau=0.0)
    assert loss.minimum(1) > 1.7 > target.eigenvalues[0]
    init = call("--init close", target=target)
    at_start = loss(bw.end_to_end(init(jax.random.key(0), (2, 1, 3), DTYPE)))
    assert at_start <= (1.8**0.5 + 0.5) ** 2


# ---- options: targets ------------------------------------------------------------------------


SPECTRA = {
    "--samp-distrib zipf (default)": ("zipf", "eig"),
    "--samp-distrib random": ("random", "eig"),
    "--samp-mode eig (default)": ("zipf", "eig"),
    "--samp-mode sing": ("zipf", "sing"),
    "no option: rank of the target": ("zipf", "eig"),
}


@cases(SPECTRA)
def test_spectra_have_the_law_of_the_script(row):
    n, rank = 20, 3 if "rank" in row else 20
    keys = jax.random.split(jax.random.key(7), 300)
    ours = np.asarray(jax.jit(jax.vmap(lambda key: call(row, key=key)))(keys), np.float64)
    theirs = spectra(np.random.default_rng(3), n, *SPECTRA[row], rank=rank)
    assert (ours[:, rank:] == 0).all()
    assert_same_law(ours[:, : rank - 1], theirs[:, : rank - 1])
    if SPECTRA[row][0] == "zipf" and rank == n:
        least = theirs[0, -1]
        assert_close(ours[:, -1], np.full(300, least), 10 * ROUNDING)
    data = merged({"target": {"kind": "random", "n": n, "normalize": False}}, fields(row))
    found = study.make_target(experiment(data).target, DTYPE).eigenvalues
    assert_close(found, np.asarray(call(row, key=jax.random.key(0)))[:rank], 100 * ROUNDING)


@tries("--smin -1", "8")
def test_the_least_eigenvalue_is_the_scripts_without_its_surplus():
    key, n = jax.random.key(0), 20
    assert fields("--smin -1") == {"target": {"minimum": 0.5}}
    assert_close(call("--smin -1", key=key)[-1], 0.5, ROUNDING)
    draw = bw.covariances.random_spectrum
    for sampled, power in (("eigenvalues", 1), ("singular_values", 2)):
        # The roots of what is drawn without a minimum, of which the least is 1 / n.
        S = np.asarray(draw(key, n, sampled=sampled), np.float64) ** (1 / power)
        theirs = (S + 0.5 - S[-1] + 1 / n) ** power
        assert_close(theirs[-1], (0.5 + 1 / n) ** power, ROUNDING)
        ours = draw(key, n, sampled=sampled, minimum=(0.5 + 1 / n) ** power)
        assert_close(ours, theirs, 100 * ROUNDING)
        assert_close(draw(key, n, sampled=sampled, minimum=0.5)[-1], 0.5, ROUNDING)
        # A bound between s and s + 1 / n moves nothing there.
        unmoved = draw(key, n, sampled=sampled, minimum=(0.9 / n) ** power)
        assert_close(unmoved, S**power, 100 * ROUNDING)


@tries("no option: eigenvectors", "no option: scale of the target")
def test_targets_have_random_eigenvectors_and_the_scale_that_is_drawn():
    keys = jax.random.split(jax.random.key(0), 2000)
    Q = np.asarray(jax.vmap(lambda key: bw.covariances.haar(key, 4))(keys), np.float64)
    theirs = np.linalg.svd(np.random.default_rng(0).normal(size=(2000, 4, 4)))[0]
    assert_same_law(Q.reshape(2000, 16) ** 2, theirs.reshape(2000, 16) ** 2)
    data = {"target": {"kind": "random", "n": 4}}
    rows = ("no option: eigenvectors", "no option: scale of the target")
    target = study.make_target(experiment(data, *map(fields, rows)).target, DTYPE)
    lam = bw.covariances.random_spectrum(jax.random.key(0), 4, dtype=DTYPE)
    same = call(rows[0], lam=lam, key=jax.random.key(0))
    assert_close(target.covariance, same.covariance, 10 * ROUNDING)
    Sigma = np.asarray(target.covariance)
    assert largest(Sigma - np.diag(np.diag(Sigma))) > 0.1
    assert_close(call(rows[1], lam=lam).eigenvalues, lam, 10 * ROUNDING)
    assert_close(target.eigenvalues, lam, 10 * ROUNDING)
    scaled = study.make_target(experiment(data, fields(rows[0])).target, DTYPE)
    assert_close(scaled.eigenvalues, lam / lam[0], 10 * ROUNDING)


@tries("--dataset-fname (none)")
def test_a_file_holds_the_target(tmp_path, monkeypatch):
    Sigma = np.cov(np.random.default_rng(0).normal(size=(3, 20)))
    np.save(tmp_path / "target.npy", Sigma)
    monkeypatch.chdir(tmp_path)
    spec = experiment({"target": {"normalize": False}}, fields("--dataset-fname (none)"))
    assert_close(study.make_target(spec.target, DTYPE).covariance, Sigma, ROUNDING)
    named = call("--dataset-fname (none)", Sigma=jnp.asarray(Sigma, DTYPE))
    assert_close(named.covariance, Sigma, ROUNDING)


@tries("--new-dataset", "--load-dataset", "--save-dataset (default), --no-save-dataset")
def test_a_seed_is_a_target():
    def target(row):
        data = {"target": {"kind": "random", "n": 4}}
        return np.asarray(study.make_target(experiment(data, fields(row)).target, DTYPE).factor)

    old, same = (
        target(row) for row in ("--load-dataset", "--save-dataset (default), --no-save-dataset")
    )
    assert np.array_equal(old, same)
    assert largest(old - target("--new-dataset")) > 0.01
    assert jnp.array_equal(call("--load-dataset"), jax.random.key(0))
    assert jnp.array_equal(call("--new-dataset"), jax.random.key(1))


@tries("no option: seeds", "15", "total time")
def test_the_same_spec_gives_the_same_numbers():
    assert fields("no option: seeds") == {"seeds": 1}
    again = study.run(Experiment.from_json(easy().attrs["experiment"]), progress=False)
    assert again.identical(easy())  # nothing of the wall clock
    ds, _ = small("BW")
    assert abs(float(ds["loss"][0, 0, 0] - ds["loss"][0, 1, 0])) > 1e-3
    assert jnp.array_equal(call("no option: seeds"), jax.random.key(0))


@tries("no option: precision")
def test_precision_is_that_of_the_spec():
    assert fields("no option: precision") == {"precision": "float32"}
    assert Experiment().precision == "float64"
    assert small("BW")[0]["loss"].dtype == DTYPE


# ---- options: losses and gradients -----------------------------------------------------------


@tries("--loss BW (default)", "--loss Fro")
def test_losses_are_those_that_the_script_minimises():
    assert experiment(fields("--loss BW (default)")) == experiment()
    for loss in ("BW", "Fro"):
        assert_recorded(lambda ds: ds["loss"], "loss", loss)
    _, runs = small("Fro")
    script, states = runs[0.0, 0]
    target = study.make_target(WORLDS["Fro"].target, DTYPE)
    W = product(states[0])
    for row, law in (("--loss BW (default)", small("BW")[1][0.0, 0][0]), ("--loss Fro", script)):
        value = call(row, target=target)(jnp.asarray(W, DTYPE))
        assert_close(value, law.loss(W), 100 * ROUNDING)


@tries("--grad-comp manual (default), backprop A, backprop B")
def test_gradients_are_the_closed_form_and_the_slope_of_the_loss():
    row = "--grad-comp manual (default), backprop A, backprop B"
    target = study.make_target(WORLDS["BW"].target, DTYPE)
    script, h = Script(target, 0.0, K), 1e-5
    W = np.random.default_rng(0).normal(size=(N, 3))
    G = call(row, target=target)(jnp.asarray(W, DTYPE))
    assert_close(G, script.gradient(W), 100 * ROUNDING)
    for i, j in ((0, 0), (3, 2)):
        step = np.zeros_like(W)
        step[i, j] = h
        up, down = (script.loss(V) for V in (W + step, W - step))
        assert_close((up - down) / (2 * h), float(G[i, j]), 1e-4)


@tries("--grad-rank full (default), adapt")
def test_the_gradient_is_adapted_to_the_rank():
    row = "--grad-rank full (default), adapt"
    target = study.make_target(WORLDS["BW"].target, DTYPE)
    script = Script(target, 0.0, K)
    layers = small("BW")[1][0.0, 0][1][0]
    W = product(layers)
    G = np.asarray(call(row, target=target)(jnp.asarray(W, DTYPE)))
    assert_close(G, script.gradient(W, rank=K), 100 * ROUNDING)
    assert largest(G - script.gradient(W)) > 0.01
    for full, adapted in zip(
        script.gradients(layers), script.gradients(layers, rank=K), strict=True
    ):
        assert_close(full, adapted, 1e-7)


@tries("--tau 0", "4")
def test_a_smoothing_above_eigenvalues_is_kept():
    lam, tau = np.array([4.0, 1.0, 0.25]), 1.5
    target = bw.Target(jnp.diag(jnp.asarray(lam, DTYPE)))
    loss = call("--tau 0", target=target)
    assert_close(loss.minimum(3), 0.0, ROUNDING)
    clipped = dataclasses.replace(loss, tau=min(tau, lam[-1]))
    assert_close(clipped.minimum(3), 0.0, ROUNDING)
    kept = dataclasses.replace(loss, tau=tau)
    expected = np.sum((lam[1:] ** 0.5 - tau**0.5) ** 2)
    assert_close(kept.minimum(3), expected, ROUNDING)
    S = bw.landscape.minimizer(target, 3, tau=tau)
    assert_close(S, np.diag([2.5, 0.0, 0.0]), ROUNDING)
    assert np.any(lam - tau < 0)  # what the script's optimum would have on its diagonal
    for axis in (0.0, [0.0, tau]):
        assert experiment({"tau": axis}).tau[0] == fields("--tau 0")["tau"]
    ds, _ = small("BW")
    assert_close(ds["tau"], np.array(TAUS), ROUNDING)


# ---- records ---------------------------------------------------------------------------------

RECORDED = {
    "loss A (before)": (lambda ds: ds["loss"], "loss"),
    "loss B (before, at tau = 0)": (lambda ds: ds["loss"], "loss"),
    "norm grad (before)": (lambda ds: ds["gradient_norm"], "norm grad"),
    "rank W (before)": (lambda ds: ds["numerical_rank"], "rank W"),
    "erank W (before)": (lambda ds: ds["effective_rank"], "erank W"),
    "WW' - Sigma0 (after)": (lambda ds: ds["residual"], "residual"),
    "diff loss to OPT (before)": (lambda ds: ds["gap"], "gap"),
    "diff loss to OPT theo (before)": (lambda ds: ds["gap"], "gap theo"),
    "euc. dist to OPT (after)": (lambda ds: ds["distance_frobenius"], "euc"),
    "wass. dist to OPT (after)": (lambda ds: ds["distance_bures"] ** 2, "wass"),
}


@cases(RECORDED)
def test_recorded_quantities_are_the_scripts(row):
    assert_recorded(*RECORDED[row])


@tries("niter, time (before)", "balance (before)")
def test_clocks_count_updates_and_imbalances_are_kept_layer_by_layer():
    ds, _ = small("BW")
    assert_close(ds["step"] * RATE, np.arange(31) * RATE, ROUNDING)
    assert_recorded(lambda ds: ds["imbalance"].max("layer"), "balance")


@tries("distance values, cvg (after)", "cos(U, Omega) (after)", "U - Omega")
def test_eigenvalues_and_eigenvectors_are_compared_as_in_the_script():
    learnt = slice(0, K)
    assert_recorded(lambda ds: ds["eigenvalue_errors"].isel(rank=learnt), "cvg")
    norm = lambda ds: (ds["eigenvalue_errors"].isel(rank=learnt) ** 2).sum("rank") ** 0.5
    assert_recorded(norm, "distance values")
    assert_recorded(lambda ds: abs(ds["cosines"].isel(rank=learnt)), "cos")
    ds, _ = small("BW")
    diagonal = np.einsum("...ii->...i", np.abs(ds["cosines"].values)[..., :3, :3])
    assert_close(ds["alignment"], diagonal, ROUNDING)
    assert (ds["cosines"].values[..., K:] == 0).all()
    assert (ds["eigenvalue_errors"].values[..., K:] >= 0).all()


@tries("Loss0", "L_OPT, L_OPT_theo", "smin, smin*, smin**", "trainset", "config.json", "error")
def test_constants_of_a_run_are_in_the_store():
    ds, runs = small("BW")
    target = study.make_target(Experiment.from_json(ds.attrs["experiment"]).target, DTYPE)
    lam = np.asarray(target.eigenvalues, np.float64)
    assert_close(ds["target_eigenvalues"], lam, ROUNDING)
    for i, tau in enumerate(TAUS):
        script, states = runs[tau, 0]
        assert_close(ds["loss"].values[i, 0, 0], script.record(states[0])["loss"], DRIFT)
        least = script.loss(script.optimum)
        assert_close(least, np.sum((lam[K:] ** 0.5 - tau**0.5) ** 2), 100 * ROUNDING)
        difference = (ds["loss"] - ds["gap"]).values[i]
        assert_close(difference, np.full_like(difference, least), 100 * ROUNDING)
        loss = bw.losses.BuresWasserstein(target, tau)
        assert_close(loss.minimum(K), least, 100 * ROUNDING)
    assert Experiment.from_json(ds.attrs["experiment"]) == WORLDS["BW"]
    assert ds["success"].all()
    assert ds["reason"].attrs["flag_meanings"].split()[0] == "successful"


@tries("C_0, K, Pred_C, M, Delta, eta_1, eta_2, eta_3", "max diff grad")
def test_constants_of_the_bounds_are_not_recorded_but_the_first_can_be_had():
    ds, runs = small("BW")
    assert not {"C_0", "K", "Pred_C", "M", "Delta", "eta", "max_diff_grad"} & {*ds, *QUANTITIES}
    recipe = re.search("`(2 \\* \\(ds.*)`", DOCUMENT)[1]
    C_0 = eval(recipe, {"ds": ds})
    for i, tau in enumerate(TAUS):
        script, states = runs[tau, 1]
        at_start = script.loss(product(states[0]))
        assert_close(C_0[i, 1], 2 * (at_start + script.lam.sum()), DRIFT)
        traces = [np.sum(script.smoothed(product(layers)) ** 2) for layers in states]
        assert max(traces) <= float(C_0[i, 1])


@tries("results.csv, dfs.pkl")
def test_results_are_one_dataset_on_disk(tmp_path):
    ds, _ = small("BW")
    store.write(ds, tmp_path / "store")
    assert code(RECORDS["results.csv, dfs.pkl"][1]) == ["bw.store.read(path)"]
    found = eval("bw.store.read(path)", {"bw": bw, "path": tmp_path / "store"})
    assert_close(found["loss"], ds["loss"], 0.0)


@tries(
    "plot/target.pdf, plot/model-init.pdf",
    "plot/loss.pdf, plot/diff_to_opt.pdf",
    "plot/dist_eigvals.pdf, plot/cos_matrix.pdf, plot/cos_matrix.gif",
)
def test_pictures_are_drawn_from_the_dataset():
    ds = easy()
    figure = eval(code(RECORDS["plot/loss.pdf, plot/diff_to_opt.pdf"][0])[0], {"bw": bw, "ds": ds})
    assert figure.axes
    row = RECORDS["plot/dist_eigvals.pdf, plot/cos_matrix.pdf, plot/cos_matrix.gif"]
    image = eval(code(row[1])[0], {"ds": ds})
    assert image.get_array().size == 4
    plt.close("all")
    assert {"singular_values", "eigenvalue_errors"} <= set(small("BW")[0])


@tries("plot/scatter.pdf")
def test_samples_of_the_network_are_drawn_in_a_plane():
    target = study.make_target(WORLDS["BW"].target, DTYPE)
    scope = {"bw": bw, "factors": (target.factor,), "key": jax.random.key(0), "tau": 4.0}
    plain = eval(code(RECORDS["plot/scatter.pdf"][0])[1], scope)
    assert plain.shape == (100, N)
    assert_close(np.cov(plain.T, bias=True), np.asarray(target.covariance), 1.5)
    text = code(RECORDS["plot/scatter.pdf"][1])[0].replace("...", "factors, key, 4000")
    smoothed = np.cov(eval(text, scope).T)
    assert_close(smoothed, np.asarray(target.covariance) + 4 * np.eye(N), 0.6)
    assert bw.plotting.slices({"start": plain}, planes=((0, 1), (2, 3))).axes
    plt.close("all")


# ---- where the script is wrong ---------------------------------------------------------------


def diagonal_target(lam):
    return bw.Target(jnp.diag(jnp.asarray(lam, DTYPE)))


@tries("1")
def test_the_distance_to_the_optimum_is_zero_there():
    lam, tau = np.array([3.0, 2.0, 1.0]), 0.1
    script = Script(diagonal_target(lam), tau, 3)
    layers = [np.eye(3), np.diag((lam - tau) ** 0.5)]
    theirs = script.record(layers)["wass one-sided"]
    assert_close(theirs, 4.8e-3, 5e-5)
    assert_close(theirs, np.sum((lam**0.5 - (lam - tau) ** 0.5) ** 2), 1e-6)
    loss = bw.losses.BuresWasserstein(diagonal_target(lam), tau)
    factors = tuple(jnp.asarray(W, DTYPE) for W in layers)
    ours = bw.diagnostics.record("distance_bures")(loss, factors)["distance_bures"]
    assert_close(ours, 0.0, by_precision(1e-7, 2e-3))


@tries("2")
def test_losses_and_gradients_vanish_at_the_optimum():
    lam = spectra(np.random.default_rng(0), 20, "zipf", "eig", count=1)[0]
    there, _ = newton_schulz(np.diag(lam**2))
    assert 0.05 < 2 * lam.sum() - 2 * np.trace(there) < 0.12
    converged, _ = newton_schulz(np.diag(lam**2), steps=60)
    assert_close(np.diag(converged), lam, 1e-6)
    W = np.diag(lam**0.5)
    loss = bw.losses.BuresWasserstein(diagonal_target(lam), tau=0.0)
    assert_close(loss(jnp.asarray(W, DTYPE)), 0.0, ROUNDING)
    # Training with a smoothing: the last entry of the gradient at the optimum.
    lam, tau = np.array([1.0, 0.1, 0.01]), 0.005
    W, R0 = np.diag((lam - tau) ** 0.5), np.diag(lam**0.5)
    _, inverse = newton_schulz(R0 @ W @ W @ R0 + tau * R0 @ R0)
    assert abs(2 * (W - R0 @ inverse @ R0 @ W)[2, 2]) > 0.06
    ours = jax.grad(bw.losses.BuresWasserstein(diagonal_target(lam), tau))(jnp.asarray(W, DTYPE))
    assert largest(ours) <= 100 * ROUNDING


@tries("2")
@pytest.mark.filterwarnings("ignore:An ill-conditioned matrix")
def test_gradients_are_right_where_an_inverse_in_single_precision_is_not():
    lam, rng, theirs = np.geomspace(1.0, 1e-4, 4), np.random.default_rng(0), []
    tau = lam[-1] / 2
    for _ in range(5):
        Q, V = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
        R0, W = (Q * lam**0.5) @ Q.T, (Q * (lam - tau) ** 0.5) @ V
        A, X = R0.astype(np.float32), W.astype(np.float32)
        inverse = scipy.linalg.inv(A @ X @ X.T @ A + np.float32(tau) * A @ A)
        theirs.append(largest(2 * (X - A @ scipy.linalg.sqrtm(inverse).real @ A @ X)))
        target = bw.Target.from_factor(jnp.asarray(A))
        ours = jax.grad(bw.losses.BuresWasserstein(target, float(tau)))(jnp.asarray(X))
        assert largest(ours) <= 5e-6 * (np.linalg.norm(W) + np.linalg.norm(R0))
    assert max(theirs) > 0.01


@tries("3")
def test_the_frobenius_loss_has_one_size_and_its_smoothing():
    lam, k = np.array([3.0, 2.0, 1.0]), 2
    target, S = diagonal_target(lam), np.diag([3.0, 2.0, 0.0])
    W = jnp.asarray(S**0.5, DTYPE)
    trained = np.sum((S - np.diag(lam)) ** 2)
    reported = np.sum(((S - np.diag(lam)) / 2) ** 2)
    assert trained == 4 * reported
    least = bw.losses.Frobenius(target).minimum(k)
    assert_close(bw.losses.Frobenius(target)(W), trained, ROUNDING)
    assert_close(least, trained, ROUNDING)
    assert trained - reported > 0.7  # what has to fall below 1e-4
    tau = 0.5
    smoothed = bw.losses.Frobenius(target, tau)
    optimum = np.diag(np.maximum(lam - tau, 0.0))
    W = jnp.asarray(optimum**0.5, DTYPE)
    assert_close(jax.grad(smoothed)(W), np.zeros((3, 3)), 10 * ROUNDING)
    assert largest(4 * (optimum - np.diag(lam)) @ np.asarray(W)) > 1.0


@tries("5")
def test_losses_near_the_optimum_are_not_noise():
    lam, rng = np.geomspace(1.0, 0.1, 8), np.random.default_rng(0)
    Q = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    R0 = (Q * lam**0.5) @ Q.T
    errors = []
    for size in 4 * (0.3, 0.5, 1.0, 1.5):
        W = R0 + size * 1e-4 * rng.normal(size=(8, 8)) / 8
        loss = without_cancellation(W, R0)
        A, X = R0.astype(np.float32), W.astype(np.float32)
        M = A @ X @ X.T @ A
        trace = np.trace(X @ X.T + A @ A)
        theirs = trace - 2 * np.sqrt(np.linalg.eigvalsh((M + M.T) / 2)).sum()
        errors.append(abs(theirs - loss) / loss)
        target = bw.Target.from_factor(jnp.asarray(R0, DTYPE))
        ours = bw.smoothed_bures(jnp.asarray(W, DTYPE), target, tau=0.0)
        assert abs(float(ours) - loss) <= by_precision(1e-6, 0.1) * loss
    assert max(errors) > 5
    clipped = max(np.float32(-1e-7), 0)
    assert type(clipped) is int  # which has no `detach`


@tries("10")
def test_c_bounds_the_smoothed_singular_value_and_nothing_else():
    lam, tau = np.array([3.0, 2.0, 1.0]), 0.1
    sigma = (lam - tau) ** 0.5
    c = lam[-1] ** 0.5 - 0.0  # at the optimum, where the loss is zero
    assert sigma[-1] < c
    loss = bw.losses.BuresWasserstein(diagonal_target(lam), tau)
    rng = np.random.default_rng(0)
    for size in (0.02, 0.1, 0.3):
        W = np.diag(sigma) + size * rng.normal(size=(3, 3))
        c = lam[-1] ** 0.5 - float(loss(jnp.asarray(W, DTYPE))) ** 0.5
        least = np.linalg.svd(W, compute_uv=False)[-1]
        assert (least**2 + tau) ** 0.5 >= c - ROUNDING
    # One eigenvalue, a small start, and the script's c and rate.
    depth, start, tau, time = 3, 1e-3, 0.25, 20.0
    value = lambda s: (np.sqrt(s**2 + tau) - 1.0) ** 2
    C_0, c = 2 * (value(start) + 1.0), 1.0
    rate = 8 * depth * c ** (2 * (2 * depth - 1) / depth) * tau**0.5 / (2 * C_0**2)
    s = bw.theory.aligned_flow(jnp.asarray(start, DTYPE), 1.0, time, depth=depth, tau=tau)
    assert_close(np.exp(-rate * time), 5e-9, 1e-9)
    fall = 1 - value(float(s)) / value(start)
    assert 0 < fall < 2e-7 or not X64


@tries("12")
def test_the_effective_rank_is_finite_at_zero_singular_values():
    s = np.array([2.0, 2.0, 0.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = s / s.sum()
        assert np.isnan(np.exp(-np.sum(shares * np.log(shares))))
    loss = bw.losses.BuresWasserstein(diagonal_target([1.0, 1.0, 1.0]))
    ours = bw.diagnostics.record("effective_rank")(loss, (jnp.diag(jnp.asarray(s, DTYPE)),))
    assert_close(ours["effective_rank"], 2.0, ROUNDING)


# ---- the default run -------------------------------------------------------------------------


def test_the_default_run_of_the_document_follows_the_script():
    """Shortened to forty updates; its length is that of the script."""
    (text,) = re.findall("```toml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    whole = tomllib.loads(text)
    spec = Experiment.from_dict(whole)
    assert (spec.descent.updates, spec.precision) == (10_000, "float32")
    assert spec.programs() == [("descent", (20,) * 6)]
    change = {"precision": PRECISION, "descent": {"total_time": 0.04, "save_every": 40}}
    short = Experiment.from_dict(merged(whole, change))
    ds = study.run(short, progress=False).squeeze()
    script = Script(study.make_target(short.target, DTYPE), 0.0, 20)
    assert_close(script.lam[-1], 1 / 20, 10 * ROUNDING)
    layers = doubles(start_of(short, bw.initializers.balanced()))
    states = script.train(layers, 1e-3, 40)
    assert ds["step"].values.tolist() == [0, 40]
    names = {"loss": "loss", "norm grad": "gradient_norm", "residual": "residual"}
    for save, layers in ((0, states[0]), (1, states[-1])):
        expected = script.record(layers)
        for theirs, ours in names.items():
            assert_close(ds[ours][save], expected[theirs], DRIFT * max(1, expected[theirs]))
        assert_close(ds["eigenvalue_errors"][save], expected["cvg"], 10 * DRIFT)
    assert set(spec.probe) <= set(ds)
