"""How the site is built: `nox -s docs` makes it of these pages and of the public docstrings."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Unpack, get_args, get_origin

from sphinx.pycode import ModuleAnalyzer

from parcoll import __version__, parallel

ROOT = Path(__file__).parents[1]

project = "parcoll"
author = copyright = "the parcoll developers"
release = __version__
html_title = f"parcoll {release}"
html_theme = "furo"
html_static_path, html_css_files = ["_static"], ["site.css"]
html_show_sourcelink = html_copy_source = html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
# A name in backticks leads to its place in the reference, where it is a public one, and is code elsewhere.
default_role = "py:obj"
autodoc_member_order = "bysource"
autoclass_content = "class"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
pygments_style, pygments_dark_style = "tango", "github-dark"

# Pages of the site whose text is a file outside of this folder, by that file.
OUTSIDE = {"CONTRIBUTING.md": "contributing", "CHANGELOG.md": "changelog", "tests/README.md": "tests"}


def lead_to_pages(app: Any, page: str, source: list[str]) -> None:
    """Have links that are for who reads the files lead to pages of the site."""
    up = "../" * (page.count("/") + 1)
    for outside, inside in OUTSIDE.items():
        if page == inside:
            source[0] = (ROOT / outside).read_text(encoding="utf-8")
            source[0], up = source[0].replace("](docs/", "]("), ""
    for outside, inside in OUTSIDE.items():
        source[0] = source[0].replace(f"]({up}{outside})", f"]({up.removeprefix('../')}{inside}.md)")


def readable_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str, str] | None:
    """Give a function's arguments with their defaults, and the settings that it takes by name.

    The types are in the code, where type checkers find them; what an argument may be is in its sentence.
    """
    if signature is None:
        return None
    if what not in ("function", "method"):
        return "", ""
    arguments: list[str] = []
    defaults = {name: parameter.default for name, parameter in inspect.signature(parallel).parameters.items()}
    for parameter in inspect.signature(obj).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_KEYWORD and parameter.annotation is not parameter.empty:
            arguments += [] if "*" in arguments else ["*"]
            told = defaults if name.startswith("parcoll.read_") else {}
            arguments += [f"{setting}={told.get(setting)!r}" for setting in settings_of(obj)]
            continue
        text = str(parameter.replace(annotation=parameter.empty))
        if parameter.kind is parameter.KEYWORD_ONLY and not any(a.startswith("*") for a in arguments):
            arguments.append("*")
        arguments.append(text)
    text = re.sub(r"=<class '(?:\w+\.)*(\w+)'>", r"=\1", ", ".join(arguments))
    text = re.sub(r", (\w+)=<none>|(\w+)=<none>", _optional, text)
    return f"({text})", ""


def _optional(found: re.Match[str]) -> str:
    """Write what may be left out, and has no default that could be shown, as Python's own documents do."""
    return f"[, {found[1]}]" if found[1] else f"[{found[2]}]"


def settings_of(function: Any) -> list[str]:
    """Return the names of what a function takes as `**settings`, which its annotation says."""
    function = inspect.unwrap(function)
    settings = inspect.getfullargspec(function).varkw
    found = eval(function.__annotations__[settings], {**function.__globals__, "Unpack": Unpack})
    names = list(get_args(found)[0].__annotations__) if get_origin(found) is Unpack else []
    return sorted(names, key="on_error".__ne__)  # what is looked for most often, first


def without_overloads(analyze: Any) -> Any:
    """Have autodoc show one signature of a function, `readable_signature`, and not one for each overload."""

    def analyzed(analyzer: Any) -> None:
        analyze(analyzer)
        analyzer.overloads.clear()

    return analyzed


ModuleAnalyzer.analyze = without_overloads(ModuleAnalyzer.analyze)  # type: ignore[method-assign]


def end_names(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Let a letter follow a name in backticks, which docutils does not: `ElementError`s."""
    lines[:] = [re.sub(r"(`[^`]+`)(?=[a-z])", r"\1\\ ", line) for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", end_names)
    app.connect("source-read", lead_to_pages)
    app.connect("autodoc-process-signature", readable_signature)
