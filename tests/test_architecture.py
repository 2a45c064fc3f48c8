"""The rooms of ARCHITECTURE.md: imports go down only. And what `import tiledblend` may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tiledblend

PACKAGE = Path(tiledblend.__file__).parent

TABLE_ROW = re.compile(r"^\| (\d+) \| ([^|]+) \|", re.MULTILINE)
FLOORS = {
    name: int(number)
    for number, names in TABLE_ROW.findall((PACKAGE.parent / "ARCHITECTURE.md").read_text("utf-8"))
    for name in re.findall(r"`(\w+)`", names)
} | {"": 99}  # the package itself, whose exports are lazy
SEPARATE = [("compose.render", "compose.lazy"), ("sources", "containers.omezarr")]
HEAVY = ("dask", "distributed", "zarr", "cv2", "scipy", "tifffile", "imagecodecs", "PIL", "numpy", "rich", "yaml")


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imported(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, anywhere but under TYPE_CHECKING."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    ignored = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in ignored:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] != "tiledblend":
                continue
            inner_name = name.partition(".")[2]
            while inner_name and inner_name not in known:
                inner_name = inner_name.rpartition(".")[0]
            found.add(inner_name)
    return found


def floor(module: str) -> int:
    name = module
    while name and name not in FLOORS:
        name = name.rpartition(".")[0]
    assert name or not module, f"{module} has no floor: add it to the table of ARCHITECTURE.md"
    return FLOORS[name]


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


MODULES = modules()
GRAPH = {name: imported(path, set(MODULES)) - {name} for name, path in MODULES.items()}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_down_only(module: str) -> None:
    # `tiledblend.__version__` is the one thing that lower floors may take from the package itself
    upward = sorted(target for target in GRAPH[module] if target and floor(target) > floor(module))
    assert not upward, f"{module or 'tiledblend'} imports {upward} from a floor above"


@pytest.mark.parametrize(("one", "other"), SEPARATE)
def test_parts_that_never_meet(one: str, other: str) -> None:
    crossing = [
        (module, target)
        for module, targets in GRAPH.items()
        for target in targets
        if (is_under(module, one) and is_under(target, other)) or (is_under(module, other) and is_under(target, one))
    ]
    assert not crossing


def test_the_table_names_only_what_exists() -> None:
    assert {name for name in FLOORS if name} == {name.split(".")[0] for name in MODULES if name}


def test_no_cycles() -> None:
    """Module-level and late imports together: a package's own __init__ counts as one of its modules."""
    done: set[str] = set()
    trail: list[str] = []

    def visit(module: str) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done or not module:
            return
        trail.append(module)
        for target in sorted(module_level(MODULES[module])):
            visit(target)
        trail.pop()
        done.add(module)

    for name in MODULES:
        visit(name)


def module_level(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    found: set[str] = set()
    for node in top.body:
        names = [f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            inner = name.partition(".")[2] if name.startswith("tiledblend.") else ""
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found - {""}


def test_kernels_know_neither_dask_nor_files() -> None:
    for module, path in MODULES.items():
        if is_under(module, "kernels"):
            names = {
                name.split(".")[0]
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                for name in (
                    [a.name for a in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                    if isinstance(node, ast.ImportFrom)
                    else []
                )
            }
            assert not names & {"dask", "distributed", "zarr", "tifffile", "os", "pathlib", "io"}, module


def test_import_is_light() -> None:
    """`import tiledblend` and `tiledblend blend -h` load none of the heavy libraries: that is what keeps them fast."""
    code = (
        "import sys, tiledblend.cli.main as c; c.run_command(['--help']); c.run_command(['blend', '-h']);"
        f"print('LOADED', sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "LOADED []"


def test_every_export_exists_and_is_typed() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text("utf-8"))
    typed = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    typed |= {
        target.id
        for node in stub.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert {name for name in typed if name and not name.startswith("_")} == set(tiledblend.__all__) - {"__version__"}
    for name in tiledblend.__all__:
        assert getattr(tiledblend, name) is not None
    assert set(tiledblend.__all__) <= set(dir(tiledblend))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tiledblend.nothing
