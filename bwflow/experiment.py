"""An experiment as data: what a TOML file says, and what a store keeps of it.

`Experiment` is a frozen record of registered names, numbers and small tuples. It says which
target, networks, loss, dynamics and starts a sweep runs over; nothing in it is code. Every record
brings its fields to their declared types and refuses what cannot run, as it is made.
"""

import hashlib
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from bwflow._names import Draw, Method, Optimizer, Quantity, Solver, Start
from bwflow._spec import Rules, Spec, distinct, rounded

__all__ = ["DescentSpec", "Experiment", "FlowSpec", "NetworkSpec", "TargetSpec"]

DYNAMICS = ("flow", "descent")
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


@dataclass(frozen=True)
class Experiment(Spec):
    """A convergence study: every combination of the listed values, for every seed.

    Raises
    ------
    ValueError
        If a field is of the wrong type, holds an unknown name, or breaks a rule.

    Examples
    --------
    >>> import bwflow as bw
    >>> experiment = bw.Experiment(tau=(0.0, 0.1), seeds=4)
    >>> bw.Experiment.from_dict(experiment.to_dict()) == experiment
    True
    """

    name: str = "experiment"
    """First part of the store's name: letters, digits, - and _."""
    target: TargetSpec = field(default_factory=TargetSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    loss: Literal["bures_wasserstein", "frobenius"] = "bures_wasserstein"
    """What is minimised."""
    method: Method = "auto"
    """How the first of them is computed: by which polar factor, or "quadrature" for few columns."""
    tau: tuple[float, ...] = (0.0,)
    """Smoothings, in units of the covariance."""
    seeds: int = 64
    """Number of random starts."""
    dynamics: tuple[Literal["flow", "descent"], ...] = DYNAMICS
    """Gradient flow, gradient descent, or both."""
    tolerance: float = 1e-6
    """A run has arrived, and stops, when its gap is below tolerance * L(0); 0 runs to the end."""
    probe: tuple[Quantity, ...] = ("loss", "gap", "gradient_norm")
    """What to record, names of bwflow.diagnostics.QUANTITIES; loss and gap among them."""
    flow: FlowSpec = field(default_factory=FlowSpec)
    descent: DescentSpec = field(default_factory=DescentSpec)
    precision: Literal["float64", "float32"] = "float64"
    """Floating-point type of everything."""
    batch_size: int = 0
    """Runs of a chunk, which advance together; 0 fits the memory limit."""
    group_size: int = 0
    """Runs that advance together in its stead, by tau and by how small they start; 0 is all."""
    memory_limit_gb: float = 1.0
    """What one batch may take."""

    @classmethod
    def from_toml(cls, path: str | Path) -> "Experiment":
        """Read a spec file.

        Raises
        ------
        ValueError
            If the file is not TOML, holds a key or a value that is not known, or breaks a rule.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"spec {path} is not a text file.") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"spec {path} cannot be read: {reason}.") from None
        try:
            data = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"spec {path} is not valid TOML: {error}.") from None
        return cls.from_dict(data)

    def to_toml(self) -> str:
        """A spec file that `from_toml` reads back exactly."""
        try:
            import tomli_w
        except ImportError:
            raise ImportError(
                "spec files are written by tomli-w: pip install 'bwflow[sweep]'"
            ) from None
        return tomli_w.dumps(self.to_dict())

    @property
    def slug(self) -> str:
        """`<name>-<hash>`: ten hexadecimal digits of the BLAKE2b hash of the canonical JSON."""
        return f"{self.name}-{hashlib.blake2b(self.to_json().encode(), digest_size=5).hexdigest()}"

    def programs(self, n: int | None = None) -> list[tuple[str, tuple[int, ...]]]:
        """What is compiled: each dynamics with each network's widths, in the order of a sweep.

        Parameters
        ----------
        n
            Size of the covariance, where the spec does not tell it.

        Raises
        ------
        ValueError
            If the networks do not fit the covariance, or two bottlenecks are the same.
        """
        n = self.target.dim or n
        if n is None:
            return []
        network = self.network
        sizes = [k or n for k in network.bottleneck]
        if not distinct(tuple(sizes)):
            raise ValueError(
                f"network.bottleneck must be distinct widths, 0 standing for {n}; "
                f"got {network.bottleneck!r}."
            )
        widths = [network.widths(n, N, k) for N in network.depth for k in sizes]
        if network.init == "low_rank" and not 1 <= network.rank <= min(map(min, widths)):
            raise ValueError(
                "network.rank must be between 1 and every bottleneck for low_rank; "
                f"got {network.rank}."
            )
        return [(dynamics, w) for dynamics in self.dynamics for w in widths]

    def _rules(self) -> Rules:
        ruled = self.descent.learning_rate > 0 or (
            self.loss == "bures_wasserstein" and self.descent.optimizer in ("sgd", "deep_precgd")
        )
        if "descent" in self.dynamics and not ruled:
            raise ValueError(
                "descent.learning_rate must be positive: 0 stands for a rule that is for sgd and "
                "deep_precgd under the Bures-Wasserstein loss; "
                f"got 0 for {self.descent.optimizer} and {self.loss}."
            )
        flow, eps = self.flow, 2.0**-52 if self.precision == "float64" else 2.0**-23
        if (
            flow.first_save
            and math.log(flow.end_time / flow.first_save) < 200 * eps * flow.num_saves
        ):
            raise ValueError(
                f"flow.first_save must leave room for {flow.num_saves} times that differ in "
                f"{self.precision} up to {flow.end_time}; got {flow.first_save}."
            )
        self.programs()
        return {
            "name": (
                re.fullmatch("[A-Za-z0-9_-]{1,64}", self.name) is not None,
                "1 to 64 letters, digits, - and _",
            ),
            "tau": (
                distinct(rounded(self.tau, self.precision)) and min(self.tau) >= 0,
                f"distinct numbers in {self.precision}, none negative",
            ),
            "method": (
                self.method == "auto"
                or (
                    self.loss == "bures_wasserstein"
                    and (self.method != "quadrature" or all(tau > 0 for tau in self.tau))
                ),
                "auto for the Frobenius loss, and quadrature only where every tau is positive",
            ),
            "seeds": (1 <= self.seeds <= 10_000_000, "between 1 and 10 million"),
            "dynamics": (distinct(self.dynamics), "a non-empty list without repeats"),
            "tolerance": (0 <= self.tolerance < 1, "at least 0 and below 1"),
            "probe": (
                {"loss", "gap"} <= set(self.probe) and distinct(self.probe),
                "a list without repeats that holds loss and gap",
            ),
            "batch_size": (self.batch_size >= 0, "positive, or 0 to fit the memory"),
            "group_size": (
                0 <= self.group_size <= (self.batch_size or self.group_size),
                "between 1 and batch_size, or 0 for all runs of a batch",
            ),
            "memory_limit_gb": (self.memory_limit_gb > 0, "positive"),
        }
