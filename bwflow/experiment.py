"""An experiment as data: what a TOML file says, and what a store keeps of it.

`Experiment` is a frozen record of registered names, numbers and small tuples. It says which
target, networks, loss, dynamics and starts a sweep runs over; nothing in it is code.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DYNAMICS = ("flow", "descent")


@dataclass(frozen=True)
class TargetSpec:
    """The covariance to be learnt."""

    kind: Literal["digits", "power_law", "geometric", "step", "wishart", "file"] = "geometric"
    """Handwritten digits of scikit-learn, a recipe of bwflow.covariances, or a .npy file."""
    n: int = 10
    """Size of a recipe's covariance."""
    condition: float = 10.0
    """Largest over smallest eigenvalue (geometric)."""
    exponent: float = 1.0
    """Decay of the eigenvalues (power_law)."""
    rank: int = 5
    """Number of large eigenvalues (step) or degrees of freedom (wishart)."""
    low: float = 0.0
    """The small eigenvalues (step)."""
    pixels: int = 4
    """Side of the averaged digits: 1, 2, 4 or 8."""
    path: str = ""
    """File with a square covariance, or with samples in rows (file)."""
    basis_seed: int = -1
    """Seed of a random eigenbasis; -1 for the standard basis (recipes)."""
    normalize: bool = True
    """Whether to divide by the largest eigenvalue."""


@dataclass(frozen=True)
class NetworkSpec:
    """The networks and their starts."""

    depth: tuple[int, ...] = (2,)
    """Numbers of layers N."""
    bottleneck: tuple[int, ...] = (0,)
    """Inner and latent widths; 0 is the full width n."""
    init: str = "balanced"
    """Name in bwflow.initializers.INITIALIZERS."""
    scale: float = 1.0
    """Factor on the start's layers (on its end-to-end matrix if balanced)."""


@dataclass(frozen=True)
class FlowSpec:
    """The gradient flow."""

    solver: str = "Tsit5"
    """Name of a diffrax solver with an error estimate."""
    end_time: float = 100.0
    """Where runs that have not arrived are censored."""
    num_saves: int = 100
    """Records after the start."""
    first_save: float = 0.01
    """Time of the first of the log-spaced records; 0 spaces them linearly."""
    rtol: float = 1e-6
    atol: float = 1e-9
    max_steps: int = 100_000


@dataclass(frozen=True)
class DescentSpec:
    """The gradient descent."""

    optimizer: str = "sgd"
    """Name of an optax optimiser that takes a learning rate."""
    learning_rate: float = 0.0
    """0 takes 1 / (2 N (sqrt(lambda_1) + sqrt(L(0)))^(2 (N-1) / N)), run by run:
    the rule is for sgd under the Bures-Wasserstein loss, others need a number."""
    num_steps: int = 1000
    """Where runs that have not arrived are censored."""
    save_every: int = 10


@dataclass(frozen=True)
class Experiment:
    """A convergence study: every combination of the listed values, for every seed.

    Examples
    --------
    >>> import bwflow as bw
    >>> experiment = bw.Experiment(tau=(0.0, 0.1), seeds=4)
    >>> bw.Experiment.from_dict(experiment.to_dict()) == experiment
    True
    """

    name: str = "experiment"
    """Slug of the store."""
    target: TargetSpec = field(default_factory=TargetSpec)
    network: NetworkSpec = field(default_factory=NetworkSpec)
    loss: Literal["bures_wasserstein", "frobenius"] = "bures_wasserstein"
    tau: tuple[float, ...] = (0.0,)
    """Smoothings, in units of the covariance."""
    seeds: int = 64
    """Number of random starts."""
    dynamics: tuple[Literal["flow", "descent"], ...] = DYNAMICS
    tolerance: float = 1e-6
    """A run has arrived when its gap is below tolerance * L(0)."""
    probe: tuple[str, ...] = ("loss", "gap", "gradient_norm")
    """Names of bwflow.diagnostics.QUANTITIES."""
    flow: FlowSpec = field(default_factory=FlowSpec)
    descent: DescentSpec = field(default_factory=DescentSpec)
    precision: Literal["float64", "float32"] = "float64"
    batch_size: int = 0
    """Runs that advance together; 0 fits the memory limit."""
    memory_limit_gb: float = 1.0

    def __post_init__(self):
        _check(self)

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
        except OSError as error:
            raise ValueError(f"spec {path} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise ValueError(f"spec {path} is not a text file.") from None
        try:
            return cls.from_dict(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"spec {path} is not valid TOML: {error}.") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Experiment":
        """The experiment that `to_dict` or a TOML file describes."""
        return _build(cls, data, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict of every field."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal for equal experiments."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @property
    def slug(self) -> str:
        """`<name>-<hash>`: ten hexadecimal digits of the BLAKE2b hash of the canonical JSON."""
        return f"{self.name}-{hashlib.blake2b(self.to_json().encode(), digest_size=5).hexdigest()}"


def _build(kind: type, data: Any, where: str) -> Any:
    """An instance of a spec class from plain data; unknown keys get the nearest known one."""
    if not isinstance(data, dict):
        raise ValueError(f"{where or 'the spec'} must be a table of keys; got {data!r}.")
    hints = typing.get_type_hints(kind)
    for key in data:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            advice = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(hints)}."
            raise ValueError(f"unknown key {_join(where, key)!r}{advice}")
    values = {key: _convert(hints[key], value, _join(where, key)) for key, value in data.items()}
    return kind(**values)


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)  # pyright: ignore[reportArgumentType]
    if typing.get_origin(hint) is tuple:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in values)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise ValueError(f"{where} must be one of {', '.join(choices)}; got {value!r}.")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        kind = hint.__name__ if isinstance(hint, (type, types.GenericAlias)) else hint
        raise ValueError(f"{where} must be of type {kind}; got {value!r}.")
    return value


def _check(spec: Experiment) -> None:
    """Refuse what cannot run, before anything is compiled."""
    rules = {
        "name": (spec.name.replace("-", "").replace("_", "").isalnum(), "letters, digits, - and _"),
        "seeds": (spec.seeds >= 1, "at least 1"),
        "tau": (
            _distinct(spec.tau) and all(0 <= t < math.inf for t in spec.tau),
            "distinct numbers, none negative",
        ),
        "dynamics": (_distinct(spec.dynamics), "a non-empty list without repeats"),
        "network.depth": (
            _distinct(spec.network.depth) and min(spec.network.depth) >= 1,
            "distinct positive integers",
        ),
        "network.bottleneck": (
            _distinct(spec.network.bottleneck) and min(spec.network.bottleneck) >= 0,
            "distinct widths, or 0 for the full one",
        ),
        "network.scale": (0 < spec.network.scale < math.inf, "positive"),
        "tolerance": (0 < spec.tolerance < 1, "between 0 and 1"),
        "flow.end_time": (0 < spec.flow.end_time < math.inf, "positive"),
        "flow.num_saves": (spec.flow.num_saves >= 2, "at least 2"),
        "flow.first_save": (
            0 <= spec.flow.first_save < spec.flow.end_time,
            "between 0 and flow.end_time",
        ),
        "flow.rtol": (0 < spec.flow.rtol < math.inf, "positive"),
        "flow.atol": (0 < spec.flow.atol < math.inf, "positive"),
        "flow.max_steps": (spec.flow.max_steps >= 1, "at least 1"),
        "descent.learning_rate": (
            0 <= spec.descent.learning_rate < math.inf,
            "positive, or 0 for the rule",
        ),
        "descent.num_steps": (spec.descent.num_steps >= 1, "at least 1"),
        "descent.save_every": (spec.descent.save_every >= 1, "at least 1"),
        "batch_size": (spec.batch_size >= 0, "positive, or 0 to fit the memory"),
        "memory_limit_gb": (spec.memory_limit_gb > 0, "positive"),
        "probe": (
            {"loss", "gap"} <= set(spec.probe) and _distinct(spec.probe),
            "a list without repeats that holds loss and gap",
        ),
        "target.pixels": (spec.target.pixels in (1, 2, 4, 8), "1, 2, 4 or 8"),
        "target.n": (spec.target.n >= 1, "at least 1"),
    }
    for key, (holds, expected) in rules.items():
        if not holds:
            value: Any = spec
            for part in key.split("."):
                value = getattr(value, part)
            raise ValueError(f"{key} must be {expected}; got {value!r}.")


def _distinct(values: tuple) -> bool:
    return len(values) > 0 and len(set(values)) == len(values)
