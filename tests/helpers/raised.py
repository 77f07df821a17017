"""The messages of parcoll's errors and warnings, read from its source: what users may see, with … for values.

`python tests/helpers/raised.py` prints them, by module.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "parcoll"
FEWEST = 3  # words of a message; what has fewer is a mark within parcoll, or a part of a message
# Functions that make an error of a text.
MAKERS = {"lost_for_good", "refusal", "wrong", "_error", "fails", "late", "_lost", "cannot_send", "too_large"}
MAKERS |= {"_refuse"}

# What users never see: parcoll raises it for itself, catches it, or has made a mistake of its own.
WITHIN = {
    "module … has no attribute …",  # Python's own words
    "… is no PerWorker here, as it is in the script",  # makes the worker take the script's module
    "… holds elements and has no stream()",  # for who writes a step
    "… waits for calls and has no flow()",
    "too many brackets",  # a damaged file, which is told
    "a name occurs twice",
    "… in the failed elements of a checkpoint",
    "… in a table of a checkpoint",
    "its address is …",  # is quoted in the message of a scheduler file
    "a partition of a bag was cut short",
    "it would become …",  # parts of messages of columns
    "there are values that are … and …",
    "the segment of this partition has been given to another one",  # sent again
    "cannot pickle a thread",  # then the value stays as the import made it
    "another run of this task has put its results here",
    "cannot pickle a worker",  # of the object that stands for dask's
    "it closed the connection",
}


def messages() -> dict[str, str]:
    """Return each message, with the module that it is in."""
    found: dict[str, str] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = _Module(ast.parse(path.read_text(encoding="utf-8")))
        for text in module.messages():
            found.setdefault(text, str(path.relative_to(SOURCE)))
    return found


class _Module:
    """One module, and the names that stand for texts in it."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.texts: dict[str, ast.expr] = {}

    def messages(self) -> Iterator[str]:
        """Return the texts that are raised, or warned of."""
        yield from self._within(self.tree, {})

    def _within(self, scope: ast.AST, outer: dict[str, ast.expr]) -> Iterator[str]:
        names = dict(outer)
        inner = []
        for node in _own_nodes(scope):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner.append(node)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and _is_text(node.value):
                target = node.targets[0]
                if isinstance(target, ast.Name):
                    names[target.id] = node.value
        for node in _own_nodes(scope):
            for text in _raised(node):
                message = re.sub(r"\s+", " ", _shown(text, names)).strip()
                message = re.sub(r"…(\W?…)+", "…", message)
                if len(re.findall(r"[a-z]{2,}", message)) >= FEWEST:
                    yield message
        for node in inner:
            yield from self._within(node, names)


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """Return the nodes of a scope, and of those within it only the heads."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            waiting = list(ast.iter_child_nodes(node)) + waiting


def _raised(node: ast.AST) -> Iterator[ast.expr]:
    """Return the texts that are in a `raise`, in a warning, or in a call that makes an error."""
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call):
        return
    name = _name(call)
    makes_one = name in MAKERS | {"warn"} or re.fullmatch(r"_?[A-Z]\w*(Error|Warning)", name)
    if isinstance(node, ast.Raise) or makes_one:
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            if _is_text(argument) or isinstance(argument, ast.Name):
                yield argument


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _shown(node: ast.expr, names: dict[str, ast.expr], depth: int = 0) -> str:
    """Return a text as its users see it, with … for each value that is only known when it is made."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_shown(value, names, depth) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return _shown(node.value, names, depth)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _shown(node.left, names, depth) + _shown(node.right, names, depth)
    if isinstance(node, ast.Name) and node.id in names and depth < 3:
        return _shown(names[node.id], names, depth + 1)
    return "…"


if __name__ == "__main__":
    for text, module in messages().items():
        print(f"{module}: {text}")
