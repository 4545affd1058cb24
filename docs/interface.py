"""What is public: the names of each public room, and their signatures as text.

Printed by `python docs/interface.py`. Public is what `bwflow` offers itself, and what is in the
`__all__` of a room that it offers.
"""

import dataclasses
import functools
import inspect
from importlib import import_module

import bwflow

ROOMS = (
    *(name for name in bwflow._MODULES if name != "experimental"),
    "experimental.semirandom",
)


def described(name: str, value: object) -> list[str]:
    """A line for a function or a constant; of a class, its constructor and what it offers."""
    if inspect.isclass(value):
        return [f"{name}{signature(value)}", *(f"    {line}" for line in sorted(members(value)))]
    return [f"{name}{signature(value)}" if callable(value) else name]


def members(kind: type) -> list[str]:
    """Public methods and attributes of a class, without what it inherits from elsewhere."""
    lines = []
    own = [base for base in kind.__mro__ if base.__module__.startswith("bwflow")]
    for base in own:
        for name, value in vars(base).items():
            value = inspect.unwrap(getattr(value, "__func__", value))
            if not name.startswith("_") and inspect.isfunction(value):
                lines.append(f"{name}{signature(value)}")
            elif not name.startswith("_") and not inspect.isclass(value):
                lines.append(name)
    if dataclasses.is_dataclass(kind):
        lines += [field.name for field in dataclasses.fields(kind)]
    return list(dict.fromkeys(line for line in lines if not line.startswith("_")))


def signature(value: object) -> str:
    """Parameters with their defaults, without annotations, which jax's versions spell anew."""
    try:
        found = inspect.signature(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return ""
    plain = [
        p.replace(annotation=p.empty, default=_Shown(p.default))
        if p.default is not p.empty
        else p.replace(annotation=p.empty)
        for p in found.parameters.values()
    ]
    return str(found.replace(parameters=plain, return_annotation=found.empty))


class _Shown:
    """A default as one would write it, functions and classes by their names."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        return getattr(self.value, "__name__", None) or repr(self.value)


def interface() -> str:
    """All of it, a paragraph for each room."""
    parts = [["bwflow", *(line for name in bwflow._ROOMS for line in _top(name))]]
    for room in ROOMS:
        module = import_module(f"bwflow.{room}")
        names = sorted(module.__all__, key=str.lower)
        parts.append(
            [
                f"bwflow.{room}",
                *(x for name in names for x in described(name, getattr(module, name))),
            ]
        )
    return "\n\n".join(
        "\n".join([title, *(f"    {line}" for line in lines)]) for title, *lines in parts
    )


@functools.cache
def full_names() -> frozenset[str]:
    """Dotted names of all that is public, methods and attributes among them."""
    found = {"bwflow", *(f"bwflow.{name}" for name in bwflow._ROOMS)}
    for room in ROOMS:
        module = import_module(f"bwflow.{room}")
        found.add(f"bwflow.{room}")
        for name in module.__all__:
            found.add(f"bwflow.{room}.{name}")
    return frozenset(found)


def _top(name: str) -> list[str]:
    return described(name, getattr(bwflow, name))[:1]


if __name__ == "__main__":
    print(interface())
