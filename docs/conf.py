"""How Sphinx makes the site: `make docs`."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "_ext")]
# Read by the kernels that run the code of pages.
os.environ |= {"JAX_ENABLE_X64": "1", "OPENBLAS_NUM_THREADS": "1", "EQX_ON_ERROR": "nan"}
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(HERE.parent / ".cache" / "jax" / "docs"))

import bwflow  # noqa: E402

project = "bwflow"
author = "the bwflow authors"
copyright = f"2026, {author}"
version = release = bwflow.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_proof",
    "reference",
    "formulas",
]
exclude_patterns = ["_build", "**/.ipynb_checkpoints", "render.py", "interface.py"]
nitpicky = True
# Types are prose in these docstrings.
nitpick_ignore_regex = [("py:class", ".*")]

# Pages in Markdown; those with a kernel in their header are run, and a failure is a failure.
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE.parent / ".cache" / "docs")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_execution_show_tb = True

# The reference. Docstrings write formulas between single backticks; `formulas` typesets them.
default_role = "formula"
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_param = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
KINDS = ("proposition", "lemma", "corollary", "observation", "example", "conjecture")
prf_realtyp_to_countertyp = dict.fromkeys(KINDS, "theorem")

html_theme = "furo"
html_title = "bwflow"
html_static_path = ["_static"]
html_css_files = ["bwflow.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#0072B2", "color-brand-content": "#0072B2"},
    "dark_css_variables": {"color-brand-primary": "#56B4E9", "color-brand-content": "#56B4E9"},
}
