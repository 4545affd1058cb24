"""Specs of small studies, drawn at random, and what may be added to them."""

import contextlib
from typing import get_args

from bwflow._names import Draw, Optimizer, Quantity, Solver, Start
from bwflow.experiment import Experiment

TAUS = (0.0, 1e-3, 0.03, 0.1, 0.5, 2.0)
PROGRAMS = 2  # at most, for compilation takes the most time


def drawn_study(draw):
    """A study of a few short runs."""
    while True:
        with contextlib.suppress(ValueError):
            experiment = Experiment.from_dict(_fields(draw))
            if len(experiment.programs()) <= PROGRAMS:
                return experiment


def growth(spec, draw):
    """Options of `bwflow extend`, for the study of a spec file."""
    held = Experiment.from_toml(spec)
    # Quadrature is for positive ones.
    taus = [tau for tau in (*TAUS, 0.7) if tau or held.method != "quadrature"]
    options = {
        "--seeds": [held.seeds + draw.randint(1, 12)],
        "--tau": draw.sample([tau for tau in taus if tau not in held.tau], 1),
        "--depth": [draw.choice([depth for depth in (1, 2, 3) if depth not in held.network.depth])],
    }
    kinds = ["--seeds", "--tau", "--seeds --tau"]
    if "descent" in held.dynamics and _may_grow(held):
        kinds.append("--depth")
    chosen = draw.choice(kinds).split()
    return [word for name in chosen for word in (name, *map(str, options[name]))]


def _may_grow(held):
    """Whether any depth fits the bottlenecks."""
    return held.network.width == 0 and held.network.latent == 0


def _some(draw, values, most):
    return draw.sample(values, draw.randint(1, min(most, len(values))))


def _fields(draw):
    n, batch = draw.randint(1, 6), draw.choice([0, 1, 1, 2, 3, 5, 8])
    quantities = [name for name in get_args(Quantity) if name not in ("loss", "gap")]
    quadrature = draw.random() < 0.1
    return {
        "name": "soak",
        "seeds": draw.randint(1, 24),
        "tau": [tau for tau in _some(draw, TAUS, 3) if tau or not quadrature],
        "dynamics": draw.choice([["flow"], ["descent"], ["descent"], ["flow", "descent"]]),
        "tolerance": draw.choice([0.0, 1e-6, 1e-2]),
        "precision": draw.choice(["float64", "float64", "float32"]),
        "loss": draw.choice(["bures_wasserstein", "bures_wasserstein", "frobenius"]),
        "method": "quadrature" if quadrature else draw.choice(["auto", "auto", "svd", "gram"]),
        "batch_size": batch,
        "group_size": draw.choice([0, draw.randint(0, batch)]),
        "probe": ["loss", "gap", *draw.sample(quantities, draw.choice([0, 0, 1, 2]))],
        "target": _target(draw, n),
        "network": _network(draw, n),
        "flow": {
            "solver": draw.choice(["Tsit5", "Tsit5", *get_args(Solver)]),
            "end_time": draw.choice([0.5, 2.0, 5.0]),
            "num_saves": draw.randint(2, 12),
            "first_save": draw.choice([0.0, 0.01]),
            "rtol": draw.choice([1e-3, 1e-5]),
            "atol": 1e-6,
            "max_steps": draw.choice([5, 300, 300]),
        },
        "descent": {
            "optimizer": draw.choice(["sgd", "sgd", "deep_precgd", *get_args(Optimizer)]),
            "learning_rate": draw.choice([0.0, 1e-3, 0.02, 0.1, 5.0]),
            "num_steps": draw.randint(1, 120),
            "save_every": draw.randint(1, 20),
        },
    }


def _target(draw, n):
    return {
        "kind": draw.choice(["geometric", "power_law", "step", "wishart", "random"]),
        "n": n,
        "condition": draw.choice([1.0, 10.0, 1e4]),
        "rank": draw.choice([0, 0, draw.randint(1, n)]),
        "basis_seed": draw.choice([-1, 0, 7]),
        "seed": draw.randrange(100),
        "num_samples": draw.choice([0, 0, 0, 2, 50]),
        "normalize": draw.random() < 0.7,
    }


def _network(draw, n):
    return {
        "depth": _some(draw, (1, 2, 3), 2),
        "bottleneck": draw.choice([[0], [0], [1], [0, draw.randint(1, n)]]),
        "width": draw.choice([0, 0, n + 1]),
        "latent": draw.choice([0, 0, n + 2]),
        "init": draw.choice(get_args(Start)),
        "draw": draw.choice(get_args(Draw)),
        "scale": draw.choice([0.1, 1.0]),
        "rank": draw.choice([0, 0, 1]),
    }
