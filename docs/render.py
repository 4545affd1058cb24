"""Run notebooks and write them, with what they print and draw, to docs/notebooks.

Arguments are the numbers of notebooks, such as `05 07`; without any, all are run.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RENDERED = ROOT / "docs" / "notebooks"
LARGEST = 150_000  # bytes of a picture


def render(source: Path) -> None:
    """Run a notebook and write its Markdown and pictures."""
    notebook = jupytext.read(source)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=None, kernel_name="python3").execute(cwd=folder)
    note = f"*Written by `make notebooks ONLY={source.stem[:2]}` from"
    parts = [f"{note} [notebooks/{source.name}](../../notebooks/{source.name}).*"]
    for cell in notebook.cells:
        parts += [cell.source] if cell.cell_type == "markdown" else shown(cell)
    (RENDERED / f"{source.stem}.md").write_text("\n\n".join(parts) + "\n")


def shown(cell) -> list[str]:
    """A code cell, what it printed and the pictures that it saved."""
    parts = [f"```python\n{cell.source}\n```"]
    # Warnings name files of the machine: they belong on its screen.
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    texts = [output.get("text") or output["data"]["text/plain"] for output in outputs]
    if texts:
        parts.append("```text\n" + "".join(texts).rstrip() + "\n```")
    for name in re.findall(r'FIGURES / "(.+?\.png)"', cell.source):
        shrink(RENDERED / name)
        parts.append(f"![{Path(name).stem}]({name})")
    return parts


def shrink(picture: Path) -> None:
    """Colours from a palette take a third of the room."""
    with Image.open(picture) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(picture, optimize=True)
    if (size := picture.stat().st_size) > LARGEST:
        raise SystemExit(f"{picture.name} has {size} bytes, more than {LARGEST}.")


if __name__ == "__main__":
    # Pictures are those that the notebooks save, so none need be shown.
    os.environ |= {"BWFLOW_FIGURES": str(RENDERED), "MPLBACKEND": "Agg"}
    os.environ |= {"OPENBLAS_NUM_THREADS": "1"}
    RENDERED.mkdir(exist_ok=True)
    for source in sorted((ROOT / "notebooks").glob("[0-9]*.py")):
        if not sys.argv[1:] or source.stem[:2] in sys.argv[1:]:
            print(source.name, flush=True)
            render(source)
