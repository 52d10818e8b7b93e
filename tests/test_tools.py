"""What tools and a reading of the sources can tell: format, lint, types, who imports whom, sizes."""

from __future__ import annotations

import ast
import io
import os
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cni_py.run import MODULES
from tests.lacking import missing

ROOT = Path(__file__).parent.parent
# With plugins/, which is the package cni_py.plugins
CHECKED = (
    "cni_py",
    "portfwd",
    "tests",
    "netns-fixtures",
    "bench",
)
TIMEOUT_S = 300

BANNED = {  # on the direct path: what makes a start slow (python -X importtime)
    *("typing", "dataclasses", "enum", "re", "json", "ipaddress", "socket", "struct", "subprocess", "pathlib"),
    *("collections", "contextlib", "functools", "itertools", "logging", "ctypes", "__future__", "argparse", "hashlib"),
    *("tempfile", "shutil", "importlib", "traceback", "random", "threading", "signal", "nftables", "pyroute2", "yaml"),
}
PURE = (
    "addr",
    "errors",
    "protocol.gojson",
    "protocol.netconf",
    "ports.mapping",
    "ports.config",
    "ports.options",
    "ports.pod_ports",
    "ipam.ranges",
    "protocol.result",
    "sha",
    "version",
)
PURE_PLUGIN_PARTS = ("plugins.bridge_conf",)
PURE_PUBLISHER = (
    "errors",
    "follow",
    "mapping",
    "spec",
    "values",
    "relay.claims",
    "relay.counters",
    "relay.admission",
    "relay.balance",
    "relay.flows",
    "relay.proxyproto",
    "service.requests",
    "cli.metrics",
    "cli.select",
)
EFFECTS = {"os", "posix", "fcntl", "time", "select", "_socket", "_signal", "_ctypes", "subprocess", "pathlib", "shutil"}
ADDRESS_TEXT = {"AF_INET", "AF_INET6", "inet_ntop", "inet_pton"}  # of _socket, and pure
BELOW_KERNEL = ("errors", "addr", "lean", "protocol.result")
FILE_LINES_MAX = 400
PLUGIN_LINES_MAX = 150
FUNCTION_LINES_MAX = 60


def run(*command: str | Path, folder: Path = ROOT) -> None:
    """Fail with all that the tool says."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "MYPYPATH": "bench"},  # whose modules import each other as scripts do
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{Path(command[0]).name}:\n{done.stdout}{done.stderr}"


def tool(name: str) -> Path:
    """A program of the environment that runs the tests; installed there by tools/bootstrap."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        missing(f"{path} is missing")
    return path


def test_sources_are_formatted() -> None:
    run(tool("ruff"), "format", "--no-cache", "--check", ".")


def test_sources_have_no_findings() -> None:
    """A clone has no cni_py/plugins, by which ruff would tell that the package is ours when it looks at the imports' order."""
    run(tool("ruff"), "check", "--no-cache", "--config", 'lint.isort.known-first-party=["cni_py", "portfwd"]', ".")


def unlike_a_clone(folder: str, names: list[str]) -> set[str]:
    """What a checkout in use has beside its sources: caches, and links."""
    return {name for name in names if name == "__pycache__" or Path(folder, name).is_symlink()}


def test_types_hold(tmp_path: Path) -> None:
    """In a copy in which plugins/ lies where the package cni_py.plugins is. What mypy knows of the last run it uses again."""
    for folder in CHECKED:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unlike_a_clone)
    shutil.copytree(ROOT / "plugins", tmp_path / "cni_py" / "plugins", ignore=unlike_a_clone)
    shutil.copy2(ROOT / "setup.cfg", tmp_path)
    plugins = sorted((tmp_path / "cni_py" / "plugins").glob("*.py"))  # by name: setup.cfg leaves the folder out
    run(tool("mypy"), "--cache-dir", ROOT / ".cache/mypy", *CHECKED, *plugins, folder=tmp_path)


# Who imports whom


def source(module: str) -> Path | None:
    """The file of cni_py.<module>, in the checkout; None when it is no module of ours."""
    parts = module.split(".")
    top = ROOT if parts[0] == "plugins" else ROOT / "cni_py"
    for path in (top.joinpath(*parts).with_suffix(".py"), top.joinpath(*parts, "__init__.py")):
        if path.exists():
            return path
    return None


def statements(body: Sequence[ast.AST], lazily: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that run: not those for type checkers, nor (unless `lazily`) those inside functions or for fallbacks."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not is_passed_over(node, lazily):
            yield from statements(list(ast.iter_child_nodes(node)), lazily)


def is_passed_over(node: ast.AST, lazily: bool) -> bool:
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.ExceptHandler) and not lazily


def imports(module: str, *, lazily: bool) -> set[str]:
    """Full names of what a module of ours imports; "a.b" for `from a import b`, whether b is a module or not."""
    path = source(module)
    assert path is not None, module
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text()).body, lazily):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        else:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def ours(names: set[str]) -> set[str]:
    """The modules of ours among imported names, without "cni_py."."""
    found = set()
    for name in names:
        top, _, module = name.partition(".")
        if top == "cni_py" and module:
            found.add(module if source(module) else module.rpartition(".")[0])
    return found - {""}


def others(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] != "cni_py"}


def direct_path() -> set[str]:
    """Every module of ours that some plugin call may load."""
    found: set[str] = set()
    waiting = {"run", *(f"plugins.{module}" for module in MODULES.values())}
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= ours(imports(module, lazily=True)) - found
    return found


def kernel_modules() -> list[str]:
    return sorted(f"kernel.{path.stem}" for path in (ROOT / "cni_py/kernel").glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", kernel_modules())
def test_the_kernel_layer_knows_nothing_above_it(module: str) -> None:
    above = {name for name in ours(imports(module, lazily=True)) if not name.startswith("kernel")}
    assert above <= set(BELOW_KERNEL)


@pytest.mark.parametrize("module", [*PURE, *PURE_PLUGIN_PARTS])
def test_pure_modules_import_no_effects(module: str) -> None:
    names = imports(module, lazily=True) - {f"_socket.{name}" for name in ADDRESS_TEXT}
    assert not {name.partition(".")[0] for name in others(names)} & EFFECTS
    assert ours(names) <= {*PURE, *PURE_PLUGIN_PARTS}


def test_the_direct_path_imports_nothing_slow() -> None:
    modules = direct_path()
    assert {"skel", "attachment.engine", "kernel.rtnl", "plugins.bridge_plan"} <= modules, (
        "the reading of imports is broken"
    )
    assert not any(module.startswith("commands") for module in modules)
    found = {
        module: slow
        for module in sorted(modules)
        if (slow := {name.partition(".")[0] for name in others(imports(module, lazily=False))} & BANNED)
    }
    assert not found


def imported_by(path: Path) -> set[str]:
    """The modules a file names in its imports, wherever they stand, but not those for type checkers alone."""
    found: set[str] = set()
    for node in statements(ast.parse(path.read_text()).body, lazily=True):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_plugins_do_not_need_the_publisher() -> None:
    """portmap talks to it through its socket only."""
    for folder in ("cni_py", "plugins"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {name for name in imported_by(path) if name.partition(".")[0] == "portfwd"}, path


@pytest.mark.parametrize("module", PURE_PUBLISHER)
def test_pure_modules_of_the_publisher_import_no_effects(module: str) -> None:
    names = imported_by(publisher_source(module))
    assert not {name.partition(".")[0] for name in names} & {*EFFECTS, "asyncio", "socket"}
    ours = {name.removeprefix("portfwd.") for name in names if name.startswith("portfwd.")}
    modules = {name if publisher_source(name).exists() else name.rpartition(".")[0] for name in ours}
    assert modules <= set(PURE_PUBLISHER)


def publisher_source(module: str) -> Path:
    """The file of portfwd.<module>."""
    return ROOT.joinpath("portfwd", *module.split(".")).with_suffix(".py")


# Sizes


def lines_of_code(path: Path) -> int:
    """Without blank lines, comments and docstrings."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - documented)


@pytest.mark.parametrize(
    ("folder", "most"), [("cni_py", FILE_LINES_MAX), ("portfwd", FILE_LINES_MAX), ("plugins", PLUGIN_LINES_MAX)]
)
def test_no_file_is_long(folder: str, most: int) -> None:
    lines = {str(path.relative_to(ROOT)): lines_of_code(path) for path in (ROOT / folder).rglob("*.py")}
    assert not {name: number for name, number in lines.items() if number > most}


def test_no_function_is_long() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for folder in ("cni_py", "plugins", "portfwd", "netns-fixtures", "bench", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    ]
    assert not long
