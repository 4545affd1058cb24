"""Records of plain data that bring their fields to the declared types and hold them to rules."""

import contextlib
import contextvars
import dataclasses
import difflib
import functools
import json
import math
import struct
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any, ClassVar, Literal, TypeVar

_S = TypeVar("_S")

Rules = dict[str, tuple[bool, str]]
"""Per field: whether its rule holds, and what is expected."""


_RULED = contextvars.ContextVar("_RULED", default=True)


@contextlib.contextmanager
def without_rules() -> Iterator[None]:
    """Records made here are of the declared types, but held to no rules."""
    token = _RULED.set(False)
    try:
        yield
    finally:
        _RULED.reset(token)


@dataclasses.dataclass(frozen=True)
class Spec:
    """Base of the records, which are frozen dataclasses."""

    _table: ClassVar[str] = ""
    """What stands before the names of the fields in a message, such as `target.`."""

    def __post_init__(self):
        for name, hint in _hints(type(self)).items():
            value = _convert(hint, getattr(self, name), self._table + name)
            object.__setattr__(self, name, value)
        for name, (holds, expected) in self._rules().items() if _RULED.get() else ():
            if not holds:
                got = getattr(self, name)
                raise ValueError(f"{self._table}{name} must be {expected}; got {got!r}.")

    @classmethod
    def from_dict(cls: type[_S], data: dict[str, Any]) -> _S:
        """The record that `to_dict` or a TOML file describes."""
        return build(cls, data, "")

    @classmethod
    def from_json(cls: type[_S], text: str) -> _S:
        """The record that `to_json` wrote."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the spec is not valid JSON: {error}.") from None
        return build(cls, data, "")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict of every field."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces; equal for equal records."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def _rules(self) -> Rules:
        """The rules of the fields; those that concern several fields are raised here."""
        raise NotImplementedError


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted keys."""
    found = {}
    for key, value in data.items():
        nested = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def _fields(hint: Any) -> Collection[str]:
    return _hints(hint) if isinstance(hint, type) and issubclass(hint, Spec) else ()


def build(kind: type, data: Any, where: str) -> Any:
    """An instance of a spec class from plain data; unknown keys get the nearest known one."""
    if not isinstance(data, dict):
        raise ValueError(
            f"{where.rstrip('.') or 'the spec'} must be a table of keys; got {data!r}."
        )
    hints = _hints(kind)
    for key in data:
        if key not in hints:
            near = [where + name for name in difflib.get_close_matches(str(key), hints, 1)]
            near += [f"{name}.{key}" for name, h in hints.items() if key in _fields(h)]
            advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}."
            raise ValueError(f"unknown key {where + str(key)!r}; {advice}")
    return kind(**{key: _convert(hints[key], value, where + key) for key, value in data.items()})


def nearest(name: Any, known: Any) -> str:
    """A question naming the nearest of the known names; empty if none is near."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def _convert(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type that a field declares."""
    if hasattr(value, "tolist"):
        value = value.tolist()  # numbers and arrays of numpy or jax
    if isinstance(hint, type) and issubclass(hint, Spec):
        return value if isinstance(value, hint) else build(hint, value, where + ".")
    if typing.get_origin(hint) is tuple:
        values = value if isinstance(value, (list, tuple, range)) else [value]
        return tuple(_convert(typing.get_args(hint)[0], item, where) for item in values)
    if typing.get_origin(hint) is Literal:
        return _chosen(typing.get_args(hint), value, where)
    if hint is str and isinstance(value, PurePath):
        value = str(value)
    if hint is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"{where} must be of type {hint.__name__}; got {value!r}.")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number; got {value}.")
    if hint is float and value and not 1e-30 <= abs(value) <= 1e30:  # single precision holds these
        raise ValueError(f"{where} must be 0 or between 1e-30 and 1e30 in size; got {value}.")
    if hint is int and abs(value) >= 2**31:
        raise ValueError(f"{where} must be an integer below 2^31; got {value}.")
    if hint is str and not _is_text(str(value)):
        raise ValueError(f"{where} must be text; got {value!r}.")
    return value + 0.0 if hint is float else value  # no negative zero, which JSON would tell apart


def _chosen(choices: tuple[str, ...], value: Any, where: str) -> str:
    if value in choices:
        return value
    advice = nearest(value, choices)
    end = f"; {advice}" if advice else "."
    raise ValueError(f"{where} must be one of {', '.join(choices)}; got {value!r}{end}")


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def rounded(values: tuple[float, ...], precision: str) -> tuple[float, ...]:
    """The numbers as that precision holds them."""
    code = "d" if precision == "float64" else "f"
    return tuple(struct.unpack(code, struct.pack(code, value))[0] for value in values)


def distinct(values: tuple) -> bool:
    """Whether there are values and none is repeated."""
    return len(values) > 0 and len(set(values)) == len(values)
