"""Sphinx's configuration of the documentation: `make docs` builds it, without a network."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))
from docs.reference.generate.parts import expanded
from fastpsl import __version__

REPOSITORY = "https://github.com/fastpsl/fastpsl"

project = "fastpsl"
author = copyright = "fastpsl contributors"
version = release = __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_design",
    "sphinx_copybutton",
]
exclude_patterns = ["**/__pycache__", "runs"]
default_role = "py:obj"
napoleon_use_ivar = True
nb_execution_mode = "off"  # the notebooks' outputs are stored; tests/test_notebooks.py runs them
myst_enable_extensions = ["attrs_inline", "colon_fence"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
copybutton_prompt_text = "$ "
suppress_warnings = ["config.cache"]

html_theme = "furo"
html_title = f"fastpsl {__version__}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["narrow.js", "messages.js"]
html_extra_path = ["llms.txt"]
html_show_sphinx = False
html_domain_indices = False
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#\"\\]+|[\w./-]+\.(?:py|json))([#)])")


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Return the address of a Python object's source in the repository, or None if it has no lines there."""
    try:
        found: Any = importlib.import_module(info["module"])
        for name in info["fullname"].split("."):
            found = getattr(found, name)
        found = inspect.unwrap(found)
        path = Path(inspect.getsourcefile(found) or "").resolve()
        lines, first = inspect.getsourcelines(found)
    except (AttributeError, ImportError, OSError, TypeError, ValueError):
        return None
    if not path.is_relative_to(ROOT):
        return None
    return f"{REPOSITORY}/blob/main/{path.relative_to(ROOT)}#L{first}-L{first + len(lines) - 1}"


def _lead_to_repository(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn links to files that are no pages into addresses of the repository."""
    folder = Path(app.env.doc2path(name)).parent

    def address(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        is_page = target.is_relative_to(DOCS) and target.suffix in (".md", ".ipynb")
        if is_page or target.suffix in (".png", ".svg") or not target.exists():
            return match[0]
        return f"{match[1]}{REPOSITORY}/blob/main/{target.relative_to(ROOT)}{match[3]}"

    source[0] = LINK.sub(address, source[0])


def _add_parts(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the lists of messages and commands onto their pages."""
    text = expanded(source[0])
    if text != source[0]:
        app.env.note_reread()  # what they are made of is no file that Sphinx knows
    source[0] = text


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", _add_parts)
    app.connect("source-read", _lead_to_repository)
