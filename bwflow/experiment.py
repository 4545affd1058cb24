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
from typing import Literal

from bwflow._names import Method, Quantity
from bwflow._spec import Rules, Spec, distinct, rounded
from bwflow._tables import DescentSpec, FlowSpec, NetworkSpec, TargetSpec

__all__ = ["DescentSpec", "Experiment", "FlowSpec", "NetworkSpec", "TargetSpec"]

DYNAMICS = ("flow", "descent")


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
        if max(flow.rtol, flow.atol) < eps:
            raise ValueError(
                f"flow.rtol or flow.atol must be at least {eps:.2g}, what {self.precision} "
                f"resolves; got {flow.rtol} and {flow.atol}."
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
