"""Who imports whom: the layers of the package, lowest first, and no import against their order or in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import monai_anomaly

PACKAGE = Path(monai_anomaly.__file__).parent
LAYERS = (
    "exceptions",
    "discovery",
    "calibration",
    "networks",
    "losses",
    "transforms",
    "metrics",
    "io",
    "data",
    "report",
    "engines",
    "bundle",
    "packaging",
    "benchmarks",
    "__main__",
)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules of the package that a file imports, and whether that happens within a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    relative = path.relative_to(PACKAGE.parent).with_suffix("").parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [] if not node.level else list(relative[: -node.level])
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "monai_anomaly":
                yield name, id(node) in inside


def layer(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.slow
def test_each_layer_imports_lower_ones_alone() -> None:
    wrong = []
    for path in FILES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for name, _ in imports(path):
            other = layer(name)
            if own in LAYERS and other in LAYERS and LAYERS.index(other) > LAYERS.index(own):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


@pytest.mark.slow
def test_modules_import_each_other_in_no_circle() -> None:
    known = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        found = set()
        for name, _ in imports(path):
            while name and name not in known and f"{name}.__init__" not in known:
                name = name.rpartition(".")[0]
            target = name if name in known else f"{name}.__init__"
            # a module's package is imported before it in any case
            if target in known and not module.startswith(target.removesuffix("__init__")):
                found.add(target)
        graph[module] = found
    TopologicalSorter(graph).prepare()


@pytest.mark.slow
def test_no_function_hides_an_import_of_the_package() -> None:
    """But for the command line, whose commands load what they need."""
    lazy = {"__main__.py", "benchmarks/cli.py", "io/__init__.py"}
    hidden = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in FILES
        for name, inside in imports(path)
        if inside and path.relative_to(PACKAGE).as_posix() not in lazy
    ]
    assert hidden == []
