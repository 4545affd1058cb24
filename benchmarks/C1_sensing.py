"""C1: what does an iteration of ScaledGD cost, one run and 64 at once, beside numpy and PyTorch?

Matrix sensing with stored Gaussian matrices, `M = L R^T`, n = 200, rank 10, m = 5 n r, condition
number 20, spectral start, step 0.5, to a relative error of 1e-10. All sides descend from one start
on one array, some iterations each in turn; bwflow then goes on to the end. PyTorch is left out
where it is not installed.
"""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from _scripts import command_line, save
from tqdm.auto import tqdm

import bwflow as bw
from bwflow.factors import Product, Rectangular

try:
    import torch
except ImportError:
    torch = None

STEP, CONDITION, TOLERANCE, MOST = 0.5, 20.0, 1e-10, 500
RULE = bw.precondition.scaledgd(STEP)


def problem(n, r, m):
    """`bw.problems.sensing` with the matrices drawn one by one, so that they are held only once."""
    one, two, three = jax.random.split(jax.random.key(0), 3)
    root = jnp.sqrt(jnp.linspace(1.0, 1 / CONDITION, r))[None, :]
    left, right = (jax.random.orthogonal(key, n, m=r) * root for key in (two, three))
    draw = jax.jit(partial(jax.lax.map, lambda key: jax.random.normal(key, (n, n)) / m**0.5))
    operator = bw.operators.Dense(draw(jax.random.split(one, m)))
    return bw.losses.Sensing(operator, operator(left, right)), Product(left, right)


def descend(loss, start, truth, steps, save_every):
    """Factors and relative errors after `steps` iterations; a call takes one gradient more."""

    def error(loss, factors):
        difference = factors[0] @ factors[1].T - truth.matrix()
        return {"error": jnp.linalg.norm(difference) / jnp.linalg.norm(truth.matrix())}

    found = bw.gradient_descent(
        loss,
        start,
        RULE,
        num_steps=steps,
        save_every=save_every,
        factorization=Rectangular(),
        probe=error,
        throw=False,
    )
    return found.factors, found.probes["error"][1:]


def by_hand(A, y, truth, solve, norm):
    """The same rule in numpy or PyTorch."""

    def run(start, steps):
        (L, R), errors = start, []
        for _ in range(steps):
            Z = ((A @ (L @ R.T).reshape(-1) - y) @ A).reshape(L.shape[0], R.shape[0])
            step_left, step_right = solve(R.T @ R, (Z @ R).T).T, solve(L.T @ L, (Z.T @ L).T).T
            L, R = L - STEP * step_left, R - STEP * step_right
            errors.append(float(norm(L @ R.T - truth) / norm(truth)))
        return (L, R), errors

    return run


def sides_of(loss, truth, segment):
    """By name: a run, the start in its form, and the gradients that a run of `steps` takes."""
    single = jax.jit(partial(descend, steps=segment, save_every=1))
    y, M = loss.y, truth.matrix()
    # Views of the one array: `reshape` of jax would copy it.
    A = np.asarray(loss.operator.matrices).reshape(y.size, -1)
    hand = by_hand(A, np.asarray(y), np.asarray(M), np.linalg.solve, np.linalg.norm)
    sides = {
        "bwflow": (lambda s: jax.block_until_ready(single(loss, s, truth)), tuple, segment + 1),
        "numpy": (partial(hand, steps=segment), lambda s: tuple(map(np.asarray, s)), segment),
    }
    if torch is None:
        print("PyTorch is not installed: its side is left out")
        return sides
    A, y, M = map(torch.from_dlpack, (loss.operator.matrices, y, M))
    A = A.reshape(y.numel(), -1)
    hand = by_hand(A, y, M, torch.linalg.solve, torch.linalg.norm)
    sides["torch"] = (
        partial(hand, steps=segment),
        lambda s: tuple(map(torch.from_dlpack, s)),
        segment,
    )
    return sides


def alternate(sides, start, segments):
    """Seconds per gradient of every segment, and relative errors after every iteration."""
    states = {name: convert(start) for name, (_, convert, _) in sides.items()}
    for name, (run, _, _) in sides.items():
        run(states[name])  # compiled, threads started
    seconds, errors = ({name: [] for name in sides} for _ in range(2))
    for _ in range(segments):
        for name, (run, _, gradients) in sides.items():
            begin = time.perf_counter()
            states[name], more = run(states[name])
            seconds[name].append((time.perf_counter() - begin) / gradients)
            errors[name].extend(np.asarray(more).tolist())
    return {name: np.array(found) for name, found in seconds.items()}, errors, states["bwflow"]


def finish(run, state, errors):
    """Errors up to the tolerance."""
    errors = list(errors)
    with tqdm(initial=len(errors), total=MOST, desc="to the end", unit="iteration") as bar:
        while min(errors) > TOLERANCE and len(errors) < MOST:
            state, more = run(state)
            errors.extend(np.asarray(more).tolist())
            bar.update(len(more))
            bar.set_postfix(error=f"{errors[-1]:.2e}")
    return np.array(errors)


def together(loss, start, truth, batch, steps, repeats, beside):
    """Seconds per gradient and run of `batch` starts, those of one run of a side, temporaries."""
    keys = jax.random.split(jax.random.key(1), 2)
    starts = tuple(
        X + 0.01 * jax.random.normal(key, (batch, *X.shape))
        for key, X in zip(keys, start, strict=True)
    )
    many = jax.vmap(partial(descend, steps=steps, save_every=steps), in_axes=(None, 0, None))
    program = jax.jit(many).lower(loss, starts, truth).compile()
    run, convert, gradients = beside
    state, seconds = convert(start), np.zeros((repeats, 2))
    for row in seconds:
        begin = time.perf_counter()
        jax.block_until_ready(program(loss, starts, truth))
        middle = time.perf_counter()
        run(state)
        row[:] = (
            (middle - begin) / (batch * (steps + 1)),
            (time.perf_counter() - middle) / gradients,
        )
    return seconds, program.memory_analysis().temp_size_in_bytes


def main(smoke: bool = False, out: Path = Path("results/benchmarks")) -> xr.Dataset:
    n, r, batch, segment, segments, repeats = (
        (12, 2, 4, 3, 2, 1) if smoke else (200, 10, 64, 5, 9, 3)
    )
    m = 5 * n * r
    loss, truth = problem(n, r, m)
    start = bw.initializers.spectral(loss, rectangular=True)(jax.random.key(2), (n, r, n))
    sides = sides_of(loss, truth, segment)
    seconds, early, state = alternate(sides, start, segments)
    errors = finish(sides["bwflow"][0], state, early["bwflow"])
    below = np.flatnonzero(errors <= TOLERANCE)
    hit = below[0] + 1.0 if below.size else np.inf
    ds = xr.Dataset(
        {"error": ("iteration", errors), "hit": hit},
        attrs={"question": __doc__.splitlines()[0], "n": n, "r": r, "m": m, "dtype": "float64"},
    )
    print(f"bwflow: {hit:.0f} iterations to {TOLERANCE:.0e}", flush=True)
    for name in list(sides)[1:]:
        apart = np.max(np.abs(np.divide(early[name], early["bwflow"]) - 1))
        ds[f"apart_of_{name}"] = apart
        print(f"errors of {name} in {len(early[name])} iterations: equal to {apart:.0e}")
    for name in list(sides)[1:]:
        ratio = seconds["bwflow"] / seconds[name]
        ds[f"single_over_{name}"] = ("segment", ratio)
        low, middle, high = np.quantile(ratio, (0.25, 0.5, 0.75))
        print(f"one run, bwflow / {name}: {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)
    for name in list(sides)[1:]:
        pairs, temporary = together(loss, start, truth, batch, 2, repeats, sides[name])
        ds[f"batch_over_{name}"] = ("repeat", pairs[:, 0] / pairs[:, 1])
        ds.attrs["temporary_bytes"] = temporary
        print(
            f"{batch} runs at once, bwflow a run / {name}: "
            f"{np.array2string(ds[f'batch_over_{name}'].values, precision=3)}",
            flush=True,
        )
    held = loss.operator.matrices.nbytes
    print(f"temporaries of {batch} runs: {temporary / held:.3f} of the {held / 1e9:.2f} GB of A")
    save(ds, out, "C1_sensing")
    return ds


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    command_line(main, __doc__)
