"""How Sphinx builds this site: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``.

Nothing is downloaded. Links into the documentation of torch, zennit and Captum need their inventories: with the
environment variable ``DOCS_ONLINE`` set, Sphinx fetches them.
"""

import os

import canon_bridge

project = "canon_bridge"
author = "the authors of canon_bridge"
release = version = canon_bridge.__version__
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "gallery", "sg_execution_times.rst"]

if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "zennit": ("https://zennit.readthedocs.io/en/latest", None),
        "captum": ("https://captum.ai/api", None),
    }

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "none"  # numpydoc sections have the types
autodoc_class_signature = "mixed"
autosummary_generate = True
autosummary_ignore_module_all = False
numpydoc_show_class_members = True
numpydoc_show_inherited_class_members = False
numpydoc_class_members_toctree = False
numpydoc_validation_checks = {"GL01", "GL03", "GL06", "GL07", "PR02", "PR05", "RT02", "RT05", "SS01", "SS02"}

sphinx_gallery_conf = {
    "examples_dirs": ["gallery"],
    "gallery_dirs": ["examples"],
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "abort_on_example_error": True,
    "capture_repr": (),
    "write_computation_times": False,
    "reset_modules": (),
    "default_thumb_file": os.path.join(os.path.dirname(__file__), "densenet_in_both.png"),
}
suppress_warnings = ["config.cache", "toc.empty_glob"]

copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_title = "canon_bridge"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "header_links_before_dropdown": 9,
    "show_toc_level": 2,
    # Pages of wide tables have the room to themselves.
    "secondary_sidebar_items": {"**": ["page-toc"], "coverage": [], "operations": [], "parity": [], "speed": []},
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}
html_sidebars = {page: [] for page in ("index", "why", "mathematics", "examples/*")}
html_copy_source = False
copyright = "the authors of canon_bridge; BSD-3-Clause"
