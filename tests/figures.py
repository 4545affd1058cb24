"""Figures of long runs, kept in a document between two marks, so that a new run replaces them."""

import fcntl
import json
import platform
import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "soak.md"


def table(rows):
    """A table in Markdown of pairs."""
    return "\n".join(["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)])


def versions():
    """What the numbers of a run depend on, in a line."""
    from bwflow import store

    found = ", ".join(f"{name} {version}" for name, version in store.versions().items())
    return f"Python {platform.python_version()} on {platform.machine()}; {found}."


def keep(name, text, document=DOCUMENT):
    """Put a text where the document has that of the last run."""
    with document.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _replace(name, text, document)
    document.with_suffix(".lock").unlink(missing_ok=True)


def _replace(name, text, document):
    marks = f"<!-- {name} -->", f"<!-- end of {name} -->"
    old = document.read_text(encoding="utf-8") if document.exists() else "\n".join(marks) + "\n"
    pattern = f"({re.escape(marks[0])}\n).*?({re.escape(marks[1])})"
    if not re.search(pattern, old, re.DOTALL):
        raise ValueError(f"{document} has no place for {name}: {json.dumps(marks)}")
    new = re.sub(
        pattern, lambda found: f"{found[1]}{text.strip()}\n{found[2]}", old, flags=re.DOTALL
    )
    document.write_text(new, encoding="utf-8")
