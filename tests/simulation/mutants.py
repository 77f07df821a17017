"""Mutants: small changes of parcoll's functions, one at a time. Do the stories tell that something is wrong?

    python tests/simulation/mutants.py evaluation/window.py evaluation/feed.py --seconds 600

Each mutant lives in a fork of this process, whose functions get the changed code, and runs the same stories.
What survives is mostly no fault: a limit that may be another one, a number for a table, a way that is only
faster, or has another behind it, what two threads would have to meet in, or what other tests show. Judge each
by itself: where it is a fault that nothing shows, a story, a check, or a test is missing.
"""

from __future__ import annotations

import argparse
import ast
import collections
import copy
import gc
import importlib
import logging
import os
import random
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from simulate import run

import parcoll

HANGS = 10  # seconds of the processor that a fork may take, beside what its stories take without a change
WAITS = 120.0  # seconds that it may take in all, beside that: one that waits for ever uses no processor
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Break: ast.Continue,
    ast.Continue: ast.Break,
}


class Mutant(NamedTuple):
    """A change of one function."""

    path: str
    function: str
    line: int
    what: str
    number: int  # of the node that is changed, in the order of `_Put`
    choice: int

    def code(self) -> CodeType | None:
        """Compile the function with its change; None if it cannot be found."""
        file = Path(parcoll.__file__).parent / self.path
        tree = ast.parse(file.read_text())
        (place,) = [made for found, made in _functions(tree) if found == self.function][-1:]
        within = "super()" in ast.unparse(place)
        _Put(self.number, self.choice).visit(place)
        if within:  # what calls super() has a cell for its class, and keeps it
            place.body.insert(1, ast.Expr(ast.Name("__class__", ast.Load())))
        ast.fix_missing_locations(tree)
        return _code(compile(tree, str(file), "exec"), self.function)


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Give what may stand in the place of a node."""
    if isinstance(node, ast.Compare):
        made = copy.deepcopy(node)
        made.ops[0] = OTHER[type(node.ops[0])]()  # type: ignore[call-overload]
        yield made
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in OTHER:
        made = copy.deepcopy(node)
        made.op = OTHER[type(node.op)]()  # type: ignore[assignment]
        yield made
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield ast.Constant(node.value + 1)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        for value in (True, False) if not isinstance(node, ast.While) else (False,):
            made = copy.deepcopy(node)
            made.test = ast.Constant(value)
            yield made
    elif isinstance(node, ast.Break | ast.Continue):
        yield OTHER[type(node)]()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    statement = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    if statement or isinstance(node, ast.AugAssign | ast.Delete):
        yield ast.Pass()


class _Put(ast.NodeTransformer):
    """Puts another node in the place of the one with this number, in the order in which they are visited."""

    def __init__(self, number: int, choice: int) -> None:
        self._left = number
        self._choice = choice

    def generic_visit(self, node: ast.AST) -> ast.AST:
        self._left -= 1
        if self._left == -1:
            return ast.copy_location(list(changed(node))[self._choice], node)
        return super().generic_visit(node)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Give all nodes in the order of `_Put`."""
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)


def _functions(tree: ast.AST, around: str = "") -> Iterator[tuple[str, Any]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{around}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield f"{around}{node.name}", node


def mutants_of(path: str) -> Iterator[Mutant]:
    """Give the mutants of a module: of the bodies of its functions."""
    tree = ast.parse((Path(parcoll.__file__).parent / path).read_text())
    for name, function in _functions(tree):
        # Defaults were evaluated when the function was made.
        apart = {id(node) for part in (function.args, *function.decorator_list) for node in ast.walk(part)}
        for number, node in enumerate(_nodes(function)):
            told = isinstance(node, ast.Expr) and "logger" in ast.unparse(node)
            for choice, other in enumerate(changed(node)):
                if told or number == 0 or id(node) in apart or not hasattr(node, "lineno"):
                    continue
                before, after = (ast.unparse(one).split("\n")[0] for one in (node, other))
                yield Mutant(path, name, node.lineno, f"{before}   ->   {after}", number, choice)


def _code(within: CodeType, name: str) -> CodeType | None:
    for constant in within.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == name:
                return constant
            if name.startswith(f"{constant.co_qualname}.") and (found := _code(constant, name)):
                return found
    return None


def functions_of(modules: Iterable[ModuleType]) -> dict[tuple[str, str], list[FunctionType]]:
    """Return the functions of modules, and of the classes in them, by their file and name."""
    files = {str(module.__file__) for module in modules}
    found: dict[tuple[str, str], list[FunctionType]] = {}
    for thing in gc.get_objects():
        if isinstance(thing, FunctionType) and (file := thing.__code__.co_filename) in files:
            found.setdefault((file, thing.__code__.co_qualname), []).append(thing)
    return found


def survives(mutant: Mutant, functions: list[FunctionType], stories: int, usual: float) -> str:
    """Run stories in a fork whose functions are a mutant; return by which it was found, or "" if by none.

    `usual` is how many seconds of the processor the stories take without a change.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        found, seed = "no function has its name", -1
        try:
            most = HANGS + int(3 * usual)
            resource.setrlimit(resource.RLIMIT_CPU, (most, most))
            code = mutant.code()
            for function in functions if code is not None else ():
                function.__code__, found = code, ""
            if not found:
                for seed in range(stories):
                    run(seed)
        except BaseException as error:
            found = f"{seed}: {type(error).__name__} {error}"[:200]
        finally:
            os.write(writing, (found or "survives").encode())
            os._exit(0)
    os.close(writing)
    try:
        there, _, _ = select.select([reading], [], [], WAITS + 40 * usual)
        told = os.read(reading, 1_000).decode() if there else "hangs"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
    return "" if told == "survives" else told or "ends the process"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="+", help="paths below src/parcoll")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--stories", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the order, since not all may have their turn")
    parser.add_argument("--line", type=int, action="append", help="mutants of this line alone")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", RuntimeWarning)  # of clusters that have no worker just now
    modules = {path: importlib.import_module(_name(path)) for path in chosen.modules}
    mutants = [mutant for path in chosen.modules for mutant in mutants_of(path)]
    mutants = [mutant for mutant in mutants if chosen.line is None or mutant.line in chosen.line]
    random.Random(chosen.seed).shuffle(mutants)
    began, computed = time.perf_counter(), time.process_time()
    for seed in range(chosen.stories):
        run(seed)
    usual = time.process_time() - computed
    tried: collections.Counter[str] = collections.Counter()
    left: collections.Counter[str] = collections.Counter()
    functions = functions_of(modules.values())
    gc.collect()
    gc.freeze()  # each story collects garbage, and what was imported is none
    for mutant in mutants:
        if time.perf_counter() - began > chosen.seconds:
            break
        tried[mutant.path] += 1
        named = functions.get((str(modules[mutant.path].__file__), mutant.function), [])
        if not survives(mutant, named, chosen.stories, usual):
            left[mutant.path] += 1
            print(f"{mutant.path}:{mutant.line} {mutant.function}: {mutant.what}", flush=True)
    for path in chosen.modules:
        count = sum(mutant.path == path for mutant in mutants)
        print(f"{path}: {tried[path]} of {count} mutants, {left[path]} survive {chosen.stories} stories")


def _name(path: str) -> str:
    return "parcoll." + path.removesuffix(".py").replace("/", ".")


if __name__ == "__main__":
    main()
