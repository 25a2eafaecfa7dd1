"""The rules of the house: which way imports run, what files are called, how long they may be."""

import ast
import platform
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each folder, and the others that it may import.
ALLOWED = {
    "train_fn": set[str](),
    "tune_spaces": {"train_fn"},
    "cluster": {"train_fn"},
    "platform": {"train_fn", "tune_spaces", "cluster"},
}
FILES = sorted(path for folder in ALLOWED for path in (ROOT / folder).rglob("*.py"))
MOST_FILE_LINES, MOST_FUNCTION_LINES = 300, 50
# The worker function reads from top to bottom like the steps of a recipe.
LONGER = {("train_fn/worker.py", "run_recipe"): 80}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), named(path))


def modules_of(statement: ast.AST) -> list[str]:
    """What an import statement names; of `from a import b` both `a` and `a.b`, which may be a module."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.module:
        return [statement.module, *(f"{statement.module}.{alias.name}" for alias in statement.names)]
    return []


def all_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        yield from modules_of(node)


def imports_at_import_time(body: list[ast.stmt]) -> Iterator[str]:
    """Those that run when the module is imported: not in functions, not for type checkers alone."""
    for node in body:
        yield from modules_of(node)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports_at_import_time(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for name in ("body", "orelse", "finalbody"):
                yield from imports_at_import_time(getattr(node, name, []))
            for handler in getattr(node, "handlers", []):
                yield from imports_at_import_time(handler.body)


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_run_one_way(path: Path) -> None:
    here = path.relative_to(ROOT).parts[0]
    theirs = {name.split(".")[1] for name in all_imports(path) if name.startswith("sftray.")}
    assert theirs - {here} <= ALLOWED[here]
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(parse(path)))


def test_only_the_door_of_train_fn_knows_ray_train() -> None:
    knowing = {
        named(path)
        for path in FILES
        if path.is_relative_to(ROOT / "train_fn")
        and any(name == "ray.train" or name.startswith("ray.train.") for name in all_imports(path))
    }
    assert knowing == {"train_fn/worker.py"}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    names = {path: "sftray." + ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    known = set(names.values())
    graph = {name: known & set(imports_at_import_time(parse(path).body)) for path, name in names.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_no_file_is_named_like_a_module_of_the_standard_library() -> None:
    named_alike = {named(path) for path in FILES if path.stem in sys.stdlib_module_names}
    assert named_alike == set()
    # With one, the folder would be Python's own `platform` wherever the root is on sys.path.
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_pythons_own_platform_module_is_found_from_the_root() -> None:
    code = "import platform; print(platform.system()); import sftray.platform.cli"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == platform.system()


@pytest.mark.parametrize("folder", ALLOWED)
def test_type_checkers_find_the_folders(folder: str) -> None:
    link = ROOT / "typings" / "sftray" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("../..", folder)
    assert link.resolve() == ROOT / folder


def read_requirements() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    return {normalize(requirement) for requirement in [*project["dependencies"], *extras]}


def normalize(requirement: str) -> str:
    """`Ray[default]>=2.60` -> `ray`"""
    name = requirement
    for mark in "[<>=!~;@ ":
        name = name.partition(mark)[0]
    return name.lower().replace("_", "-")


def test_what_is_imported_is_declared() -> None:
    declared, distributions = read_requirements(), packages_distributions()
    imported = {(name.split(".")[0], named(path)) for path in FILES for name in all_imports(path)}
    foreign = {pair for pair in imported if pair[0] not in {*sys.stdlib_module_names, "sftray"}}
    undeclared = {
        pair for pair in foreign if declared.isdisjoint(map(normalize, [*distributions.get(pair[0], []), pair[0]]))
    }
    assert undeclared == set()


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_FILE_LINES
    too_long = {
        node.name: length
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := count_lines(node)) > LONGER.get((named(path), node.name), MOST_FUNCTION_LINES)
    }
    assert too_long == {}


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1
