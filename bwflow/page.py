"""A study as one web page that needs nothing else: pictures and tables that answer to filters.

The page holds its data, its styles and its script, and fetches nothing: it says so to the browser
by a policy that also keeps any other script from running.
"""

import base64
import hashlib
import html
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from bwflow import _page_data, store

__all__ = ["render", "write"]

_SCRIPTS = ("estimates.js", "charts.js", "views.js", "tables.js", "controls.js")


def render(path: str | Path) -> str:
    """The page of a stored study, finished or not, as HTML.

    It shows the gap to the known optimum against time, the share of runs that have not arrived, a
    map of either over two axes, the convergence statistics of `bwflow.report.table`, and the runs
    that failed with the commands that compute them again. All of it answers to filters over the
    axes, which the address of the page keeps, so that a view can be sent on.

    Parameters
    ----------
    path
        The store.

    Returns
    -------
    str
        The page. The same store gives the same bytes.

    Raises
    ------
    ValueError
        If there is no store of a study, it is damaged, or it has more than 20,000 combinations of
        dynamics, depth, bottleneck and smoothing.

    Notes
    -----
    A page takes at most some 5 MB: of up to 20,000 runs, those of the first seeds, it keeps the gap
    at 60 records, to 0.12 %, and what the statistics need, to six digits. The table is of all runs.
    The store is read block by block; in memory there are its block and some 45 bytes a run.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> store = bw.stored.create(bw.Experiment(seeds=2), f"{tempfile.mkdtemp()}/mine")
    >>> text = bw.page.render(store)
    >>> text[:15], "0 of 4 runs are done" in text, "http://" in text
    ('<!doctype html>', True, False)
    """
    data = _page_data.gathered(store.check_store(path))
    style = _file("page.css")
    script = '(() => {\n"use strict";\n' + "".join(map(_file, _SCRIPTS)) + "})();\n"
    parts = {
        "title": html.escape(data["slug"]),
        "store": html.escape(data["store"]),
        "facts": _facts(data),
        "counts": _counts(data),
        "unfinished": _unfinished(data),
        "spec": html.escape(_page_data.spec(Path(path)).to_toml()),
        "data": _inert(data),
        "style": style,
        "script": script,
        "style_hash": _hash(style),
        "script_hash": _hash(script),
    }
    # In one pass, so that nothing in the data is taken for a place to be filled.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _file("page.html"))


def write(path: str | Path, file: str | Path) -> Path:
    """Write the page of a stored study to a file; one that is there is replaced.

    Parameters
    ----------
    path
        The store, finished or not.
    file
        The file, such as `report.html`; its folder is made.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        As `render`; if `file` is a folder or its folder cannot be made.
    OSError
        If the file cannot be written. As after every other error, what was there before stays.

    Examples
    --------
    >>> import tempfile
    >>> import bwflow as bw
    >>> folder = tempfile.mkdtemp()
    >>> store = bw.stored.create(bw.Experiment(seeds=2), f"{folder}/mine")
    >>> bw.page.write(store, f"{folder}/report.html").name
    'report.html'
    """
    file = store.file_place(file)
    text = render(path)
    with store.replacing(file) as draft:
        draft.write_text(text, encoding="utf-8")
    return file


def _file(name: str) -> str:
    return (resources.files("bwflow") / "_page" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a page's policy names what may run in it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _inert(data: Any) -> str:
    """JSON in which no browser sees a tag or the end of a script."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _facts(data: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    facts = {
        "Store": data["store"],
        "Target": data["target"],
        "Minimised": data["minimised"],
        "Versions": versions,
    }
    return "".join(
        f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in facts.items()
    )


def _counts(data: dict[str, Any]) -> str:
    done, arrived, failed = (sum(data["cells"][name]) for name in ("runs", "arrived", "failed"))
    of = "" if done == data["runs"] else f" of {data['runs']:,}"
    told = (("runs done", f"{done:,}{of}"), ("arrived", f"{arrived:,}"), ("failed", f"{failed:,}"))
    return "".join(f"<div><dt>{name}</dt><dd>{text}</dd></div>" for name, text in told)


def _unfinished(data: dict[str, Any]) -> str:
    done = sum(data["cells"]["runs"])
    if done == data["runs"]:
        return ""
    return (
        f'<p class="notice"><strong>Unfinished:</strong> {done} of {data["runs"]} runs are done; '
        "all figures are of these.</p>"
    )
