"""Pages of the reference, one for each public room, from the list of what is public."""

import inspect
from importlib import import_module
from pathlib import Path

import interface

FIRST = """\
Reference
=========

What is public, and stays: names, parameters, meanings. A change of one of these is announced in the
changelog, with a warning for one minor release before it takes effect.

.. toctree::
   :maxdepth: 1

   bwflow
"""


def write_pages(app):
    """Write `api/*.rst` anew where it changed."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    rooms = [f"bwflow.{room}" for room in interface.ROOMS]
    pages = {"index": FIRST + "".join(f"   {room}\n" for room in rooms)}
    pages["bwflow"] = page("bwflow", list(interface.bwflow._ROOMS))
    pages |= {room: page(room, import_module(room).__all__) for room in rooms}
    for name, text in pages.items():
        path = folder / f"{name}.rst"
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def page(room, names):
    """The page of a room: what it is, then its names."""
    module = import_module(room)
    parts = [f"{room}\n{'=' * len(room)}", f".. automodule:: {room}\n   :no-members:"]
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value):
            parts.append(f".. autoclass:: {room}.{name}\n   :members:")
        elif callable(value):
            parts.append(f".. autofunction:: {room}.{name}")
        else:
            parts.append(f".. py:data:: {name}\n\n   {described(value)}")
    return "\n\n".join(parts) + "\n"


def described(value):
    """A constant in words: what may be chosen, where that is all."""
    if isinstance(value, dict):
        return "By name: " + ", ".join(f"``{name}``" for name in value) + "."
    if isinstance(value, (tuple, frozenset)):
        return ", ".join(f"``{item!r}``" for item in value) + "."
    return f"``{value}``"


def skipped(app, what, name, object_, skip, options):
    """What scikit-learn makes of its own accord is described there."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def linked(app, docname, source):
    """Links between folders of the repository lead to pages of the site."""
    source[0] = source[0].replace("](../../benchmarks/README.md", "](../benchmarks.md")


def setup(app):
    """Before pages are read."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skipped)
    app.connect("source-read", linked)
    return {"parallel_read_safe": True}
