"""Settings of the documentation site; `make docs` builds it."""

import os
import sys
from importlib import import_module
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]
# The gallery starts the console scripts of this environment.
os.environ["PATH"] = os.pathsep.join(
    [str(Path(sys.executable).parent), os.environ["PATH"]]
)

project = "trajstore"
author = "the trajstore developers"
project_copyright = author
release = version = version_of("trajstore")

extensions = [
    "generated_pages",
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "_ext", "_templates", "gallery", "snippets"]
templates_path = ["_templates"]

# Inventories of other projects are downloaded: only `make docs ONLINE=1` links to them.
if os.environ.get("TRAJSTORE_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "dask": ("https://docs.dask.org/en/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "python": ("https://docs.python.org/3/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
    "xarray": ("https://docs.xarray.dev/en/stable/", None),
    "zarr": ("https://zarr.readthedocs.io/en/stable/", None),
}

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
default_role = "py:obj"  # names in single backticks link to their page
autodoc_typehints = "none"  # the docstrings say types
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
# Optional packages that this environment lacks; their users are documented nevertheless.
optional = (
    *("accelerate", "curvlinops", "lightning", "mlflow", "pytorch_lightning"),
    *("tensorboard", "trackio", "transformers", "wandb"),
)
autodoc_mock_imports = [name for name in optional if find_spec(name) is None]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "auto_gallery",
    "filename_pattern": r"/plot_",
    "within_subsection_order": "gallery_order.GalleryOrder",
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "capture_repr": ("_repr_html_",),
    "show_signature": False,
    "min_reported_time": 1e9,
    "matplotlib_animations": False,
    "image_srcset": ["2x"],
    "write_computation_times": False,
}

html_theme = "furo"
html_title = "trajstore"
mathjax = import_module("sphinx-mathjax-offline").__file__
html_static_path = [
    "_static",
    str(Path(mathjax).parent / "static/mathjax/tex-svg.js"),
]
mathjax_path = "tex-svg.js"  # formulas are shown without a network
html_css_files = ["site.css"]
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_show_sphinx = False
html_show_sourcelink = False
html_copy_source = False
pygments_dark_style = "monokai"
html_theme_options = {"navigation_with_keys": True}
