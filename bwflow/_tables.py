"""The tables of a spec: which target, which networks, how flows and descents are followed."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from bwflow._names import Draw, Optimizer, Solver, Start
from bwflow._spec import Rules, Spec, distinct

_DRAWN = 10**9  # random numbers, 8 GB, that a target may take


@dataclass(frozen=True)
class TargetSpec(Spec):
    """The covariance to be learnt."""

    kind: Literal["digits", "power_law", "geometric", "step", "wishart", "random", "file"] = (
        "geometric"
    )
    """Handwritten digits of scikit-learn, a recipe of bwflow.covariances, or a .npy file."""
    n: int = 10
    """Size of a recipe's covariance."""
    condition: float = 10.0
    """Largest over smallest eigenvalue (geometric)."""
    exponent: float = 1.0
    """Decay of the eigenvalues (power_law)."""
    rank: int = 0
    """Positive eigenvalues (random), ones (step), degrees of freedom (wishart); 0 is n."""
    low: float = 0.0
    """The other eigenvalues (step)."""
    distribution: Literal["zipf", "ginibre", "uniform", "exponential", "normal"] = "zipf"
    """Law of the spectrum (random), see bwflow.covariances.random_spectrum."""
    sampled: Literal["eigenvalues", "singular_values"] = "eigenvalues"
    """What the law is that of (random); singular values are squared."""
    minimum: float = 0.0
    """Least of the positive eigenvalues, before any normalisation (random)."""
    seed: int = 0
    """Seed of the spectrum (random), the matrix (wishart) and the samples."""
    basis_seed: int = -1
    """Seed of a random eigenbasis; -1 is the standard basis (recipes but wishart)."""
    pixels: int = 4
    """Side of the averaged digits: 1, 2, 4 or 8."""
    path: str = ""
    """File with a square covariance, or with samples in rows (file)."""
    num_samples: int = 0
    """Size of a Gaussian sample whose covariance is learnt in place of the true one; 0 is none."""
    normalize: bool = True
    """Whether to divide by the largest eigenvalue."""

    _table: ClassVar[str] = "target."

    @property
    def dim(self) -> int | None:
        """Size of the covariance; None if only a file tells."""
        return {"digits": self.pixels**2, "file": None}.get(self.kind, self.n)

    def _rules(self) -> Rules:
        most = self.n if self.kind in ("step", "random") else _DRAWN // max(1, self.n)
        return {
            "n": (1 <= self.n <= 10_000, "between 1 and 10000"),
            "condition": (self.condition >= 1, "at least 1"),
            "exponent": (
                self.kind != "power_law" or abs(self.exponent) * math.log10(max(1, self.n)) <= 30,
                "so small that n^exponent is between 1e-30 and 1e30",
            ),
            "rank": (0 <= self.rank <= most, f"between 1 and {most}, or 0 for n"),
            "low": (0 <= self.low <= 1, "between 0 and 1"),
            "minimum": (self.minimum >= 0, "not negative"),
            "seed": (self.seed >= 0, "not negative"),
            "basis_seed": (self.basis_seed >= -1, "not negative, or -1 for the standard basis"),
            "pixels": (self.pixels in (1, 2, 4, 8), "1, 2, 4 or 8"),
            "path": (bool(self.path) or self.kind != "file", "given for the kind 'file'"),
            "num_samples": (
                self.num_samples == 0 or 2 <= self.num_samples <= _DRAWN // max(1, self.dim or 1),
                f"0, or at least 2 and at most {_DRAWN} / n",
            ),
        }


@dataclass(frozen=True)
class NetworkSpec(Spec):
    """The networks and their starts."""

    depth: tuple[int, ...] = (2,)
    """Numbers of layers N."""
    bottleneck: tuple[int, ...] = (0,)
    """Smallest widths; 0 is the size n of the covariance."""
    width: int = 0
    """Width of the inner layers where it is not the bottleneck; 0 is the bottleneck."""
    latent: int = 0
    """Width d_0 of the white noise where it is not the bottleneck; 0 is the bottleneck."""
    init: Start = "balanced"
    """Start: a matrix split evenly (the first four), or the layers as they are drawn."""
    draw: Draw = "gaussian"
    """What balanced and rebalanced draw."""
    std: float = 0.0
    """Standard deviation of gaussian and uniform entries; 0 is d^(-1/2), d the width below."""
    gamma: float = 1.0
    """Makes the standard deviation of gaussian entries d^(-gamma/2) where std is 0."""
    scale: float = 1.0
    """Factor on the start's layers (on its end-to-end matrix if evenly split; not near_target)."""
    min_singular_value: float = 0.0
    """Least singular value of the end-to-end matrix (balanced, rebalanced)."""
    rank: int = 0
    """Rank of the start (balanced, rebalanced, low_rank); 0 is the bottleneck."""
    radius: float = 0.5
    """Distance from the optimum over the root of the last eigenvalue learnt (near_target)."""

    _table: ClassVar[str] = "network."

    def widths(self, n: int, depth: int, bottleneck: int) -> tuple[int, ...]:
        """Widths `(d_0, ..., d_N)` of one of the networks, for a covariance of size `n`.

        One layer has no inner width: a bottleneck below `n` is its latent dimension.

        Raises
        ------
        ValueError
            If the bottleneck is not the smallest of them.
        """
        k = bottleneck or n
        inner = self.width or k
        latent = k if depth == 1 and k < n else self.latent or k
        widths = (latent, *(depth - 1) * (inner,), n)
        if min(widths) != k:
            raise ValueError(
                f"network.bottleneck must be the smallest width, here {min(widths)}; got {k} "
                f"for widths {widths}."
            )
        return widths

    def _rules(self) -> Rules:
        return {
            "depth": (
                distinct(self.depth) and min(self.depth) >= 1 and max(self.depth) <= 1000,
                "distinct integers between 1 and 1000",
            ),
            "bottleneck": (
                distinct(self.bottleneck) and min(self.bottleneck) >= 0,
                "distinct widths, or 0 for the full one",
            ),
            "width": (0 <= self.width <= 10_000, "at most 10000, or 0 for the bottleneck"),
            "latent": (0 <= self.latent <= 10_000, "at most 10000, or 0 for the bottleneck"),
            "std": (self.std >= 0, "positive, or 0 for d^(-gamma/2)"),
            "scale": (self.scale > 0, "positive"),
            "min_singular_value": (self.min_singular_value >= 0, "not negative"),
            "rank": (self.rank >= 0, "positive, or 0 for the bottleneck"),
            "radius": (self.radius >= 0, "not negative"),
        }


@dataclass(frozen=True)
class FlowSpec(Spec):
    """The gradient flow."""

    solver: Solver = "Tsit5"
    """Name of a diffrax solver with an error estimate, or `"RKC"` of `bwflow.solvers`."""
    end_time: float = 100.0
    """Where runs that have not arrived are censored."""
    num_saves: int = 100
    """Records after the start."""
    first_save: float = 0.01
    """Time of the first of the log-spaced records; 0 spaces them linearly."""
    rtol: float = 1e-6
    """Relative tolerance of the step-size control."""
    atol: float = 1e-9
    """Absolute tolerance of the step-size control."""
    max_steps: int = 100_000
    """Bound on the solver's steps; a run that needs more has failed."""

    _table: ClassVar[str] = "flow."

    def _rules(self) -> Rules:
        return {
            "end_time": (self.end_time > 0, "positive"),
            "num_saves": (2 <= self.num_saves <= 100_000, "between 2 and 100000"),
            "first_save": (0 <= self.first_save < self.end_time, "between 0 and flow.end_time"),
            "rtol": (self.rtol > 0, "positive"),
            "atol": (self.atol > 0, "positive"),
            "max_steps": (self.max_steps >= 1, "at least 1"),
        }


@dataclass(frozen=True)
class DescentSpec(Spec):
    """The gradient descent."""

    optimizer: Optimizer = "sgd"
    """Name of an optax optimiser, or deep_precgd."""
    learning_rate: float = 0.0
    """0 takes 1 for deep_precgd, 1 / (2 N (sqrt(lambda_1) + sqrt(L(0)))^(2 (N-1) / N)) for sgd."""
    num_steps: int = 1000
    """Where runs that have not arrived are censored."""
    total_time: float = 0.0
    """If given, num_steps is this over the learning rate."""
    save_every: int = 10
    """Updates between records."""

    _table: ClassVar[str] = "descent."

    @property
    def updates(self) -> int:
        """Number of updates after which runs are censored."""
        if self.total_time == 0:
            return self.num_steps
        return max(1, round(self.total_time / self.learning_rate))

    def _rules(self) -> Rules:
        steps = float(self.num_steps)
        if self.total_time:
            steps = self.total_time / self.learning_rate if self.learning_rate > 0 else math.inf
        return {
            "learning_rate": (self.learning_rate >= 0, "positive, or 0 for the rule"),
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "total_time": (
                self.total_time >= 0 and steps < 2**31,
                "0, or positive beside a learning_rate that makes it less than 2^31 steps",
            ),
            "save_every": (
                self.save_every >= 1 and steps / self.save_every <= 100_000,
                "at least 1, and so large that there are at most 100000 records",
            ),
        }
