"""The documents for those who work on parcoll: each function, module, file and command they name exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest
from test_architecture import MODULES, ORDER, ROOT, room_of

PROJECT = Path(__file__).parents[1]
DOCUMENTS = ("docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md")
ARCHITECTURE, GLOSSARY, CONTRIBUTING = ((PROJECT / name).read_text(encoding="utf-8") for name in DOCUMENTS)
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
# `evaluation/window.py: Window._fill`: a file of src/parcoll, and a qualified name.
CODE_NAME = re.compile(r"`([a-z_/]+\.py): ([\w.]+)`")
JOURNEYS = {  # with how many functions at least
    "An element's journey": 60,
    "A fold's journey": 15,
    "A failing element's journey": 15,
    "The journey of a failure that is raised": 12,
    "A worker's death": 35,
}


def section(text: str, title: str) -> str:
    """Return what stands under a heading, up to the next one of the same level."""
    (level,) = re.findall(rf"^(#+) {re.escape(title)}$", text, flags=re.MULTILINE)
    behind = text.split(f"\n{level} {title}\n", 1)[1]
    return re.split(rf"^{level} ", behind, maxsplit=1, flags=re.MULTILINE)[0]


@functools.cache
def tree_of(file: str) -> ast.Module:
    # Parsed, not imported: to import `local.host_main` is to be a host process.
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def names_in(node: ast.AST) -> dict[str, ast.AST]:
    """Return what a module, a class or a function defines, by name; of a class what it sets on `self` too."""
    names: dict[str, ast.AST] = {}
    for inner in ast.walk(node) if isinstance(node, FUNCTIONS) else ast.iter_child_nodes(node):
        if isinstance(inner, ast.ClassDef | FUNCTIONS):
            names.setdefault(inner.name, inner)
        for target in getattr(inner, "targets", [getattr(inner, "target", None)]):
            if isinstance(target, ast.Name):
                names.setdefault(target.id, inner)
    if isinstance(node, ast.ClassDef):
        for inner in ast.walk(node):
            if isinstance(inner, ast.Attribute) and ast.unparse(inner) == f"self.{inner.attr}":
                names.setdefault(inner.attr, inner)
    return names


def found(file: str, qualified: str) -> ast.AST | None:
    """Return what a code name leads to; None where that is nowhere."""
    node: ast.AST | None = tree_of(file) if (ROOT / file).is_file() else None
    for name in qualified.split("."):
        node = names_in(node).get(name) if node is not None else None
    return node


def missing(text: str) -> list[str]:
    """Return the code names of a text that lead nowhere."""
    return [f"{file}: {name}" for file, name in CODE_NAME.findall(text) if found(file, name) is None]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_name_in_the_code_exists(document: str):
    assert missing((PROJECT / document).read_text(encoding="utf-8")) == []


def test_a_name_that_leads_nowhere_is_found():
    text = "`evaluation/window.py: Window._fill` `evaluation/window.py: Window.fill` `window.py: Window`"
    assert missing(text) == ["evaluation/window.py: Window.fill", "window.py: Window"]


@pytest.mark.parametrize("title", JOURNEYS)
def test_a_journey_is_a_list_of_functions(title: str):
    stops = re.findall(r"^1\. (.*)$", section(ARCHITECTURE, title), flags=re.MULTILINE)
    assert len(stops) >= JOURNEYS[title]
    for stop in stops:
        name = CODE_NAME.match(stop)
        assert name is not None, f"not the name of a function: {stop}"
        assert isinstance(found(*name.groups()), FUNCTIONS), stop


def test_rooms_are_drawn_in_the_order_of_their_imports():
    picture = section(ARCHITECTURE, "The rooms").split("```")[1]
    rooms = "|".join(sorted(set().union(*ORDER)))
    rows = [set(re.findall(rf"(?<!\S)({rooms})(?:/|(?=  ))", line)) for line in picture.splitlines()]
    assert [row for row in reversed(rows) if row] == ORDER


def test_each_module_has_its_line_in_its_room():
    answers = section(ARCHITECTURE, "What each module answers")
    of_rooms = re.split(r"^### (.+)$", answers, flags=re.MULTILINE)[1:]
    told = {
        room.rstrip("/"): re.findall(r"^\* `(\w+)`: .*[.?]$", text, flags=re.MULTILINE)
        for room, text in zip(of_rooms[::2], of_rooms[1::2], strict=True)
    }
    are: dict[str, list[str]] = {"ground": ["__init__"]}
    for name in MODULES:
        are.setdefault(room_of(name), []).append(name.rpartition(".")[2])
    assert {room: sorted(names) for room, names in told.items()} == {
        room: sorted(names) for room, names in are.items()
    }


def test_the_glossary_is_in_order_and_has_one_line_a_word():
    words = re.findall(r"^- \*\*(.+?)\*\*: .+\.( `[a-z_/]+\.py: [\w.]+`)?$", GLOSSARY, flags=re.MULTILINE)
    assert len(words) == GLOSSARY.count("\n- ")
    plain = [word.partition(" (")[0] for word, _ in words]
    assert plain == sorted(plain)
    assert len(set(plain)) == len(plain)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_links_lead_somewhere(document: str):
    text = (PROJECT / document).read_text(encoding="utf-8")
    files = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.\w+)`", text)
    assert [name for name in files if not any((top / name).exists() for top in (PROJECT, ROOT))] == []
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (PROJECT / document).parent.joinpath(link).exists()] == []


def test_sessions_of_nox_exist():
    tree = ast.parse((PROJECT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and "nox.session" in map(_decorator, node.decorator_list)
    }
    told = set(re.findall(r"nox -s (\w+)", CONTRIBUTING))
    assert told == sessions


def _decorator(node: ast.expr) -> str:
    return ast.unparse(node.func if isinstance(node, ast.Call) else node)


def test_the_readme_leads_to_them_and_the_source_package_has_them():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert [name for name in DOCUMENTS if f"]({name})" not in readme] == []
    assert '"/CONTRIBUTING.md"' in (PROJECT / "pyproject.toml").read_text(encoding="utf-8")
