"""The site: `pip install '.[docs]' && sphinx-build -W docs site`."""

import shutil
from importlib.metadata import version as find_version
from pathlib import Path

from sphinx.application import Sphinx

# The benchmarks' pages lie beside the scripts that make them; Sphinx takes nothing from outside its folder.
_HERE = Path(__file__).parent
_BENCHMARKS = _HERE.parent / "benchmarks"
shutil.copyfile(_BENCHMARKS / "README.md", _HERE / "speed.md")
shutil.copytree(
    _BENCHMARKS / "results",
    _HERE / "results",
    ignore=shutil.ignore_patterns("*.json", "*.csv", "*.svg"),
    dirs_exist_ok=True,
)


def setup(app: Sphinx) -> None:
    """Let pages that link to the benchmarks beside this folder link to their copies."""

    def find_copies(_app: Sphinx, _page: str, source: list[str]) -> None:
        for up in ("../../", "../"):
            to = up.removeprefix("../")
            source[0] = source[0].replace(f"]({up}benchmarks/results/", f"]({to}results/")
            source[0] = source[0].replace(f"]({up}benchmarks/README.md", f"]({to}speed.md")

    app.connect("source-read", find_copies)


project = "fseg_jax"
author = "the fseg_jax developers"
copyright = author
version = release = find_version("fseg-jax")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "site"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # tests/test_notebooks.py runs them; the site shows what is kept in them
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # jaxtyping's shapes are in the signatures
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False  # shapes hold asterisks

html_theme = "pydata_sphinx_theme"
html_title = "fseg_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}
html_show_sourcelink = False
