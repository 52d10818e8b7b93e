"""Write the image of all modules that plugins load, which cni_py/image.py describes, beside their .pyc files."""

import ast
import contextlib
import itertools
import marshal
from collections.abc import Iterable, Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source, find_spec
from pathlib import Path

import cni_py
from cni_py import image
from cni_py.commands.manifest import write
from cni_py.run import MODULES

PACKAGE = Path(cni_py.__file__).resolve().parent
EXTENSIONS = (
    "_json",
    "_ctypes",
    "_socket",
    "_struct",
    "_sha2",
    "_sha256",
    "_sha512",
    "fcntl",
)  # built in on some systems
WITHOUT = (
    "commands",
    "conf",
    "dhcp",
    "doctor",
    "explain",
    "host",
    "restore",
    "show",
)  # folders that no plugin loads anything from
HEAD_MAX = 65536  # bytes that a launcher reads of the file's beginning
VERSION = ("cni_py.run", "cni_py.version")  # loads these alone
EVERY_CALL = (*VERSION, "cni_py.skel", "cni_py.attachment.locks")  # loads these, besides its plugin
FIRST = 12  # bytes before the first marshalled object


def place() -> Path:
    """Where the image of this package for this interpreter is."""
    return Path(cache_from_source(str(PACKAGE / "plugins.py"))).with_suffix(".image")


def install() -> None:
    """Write the image. OSError."""
    path = place()
    path.parent.mkdir(exist_ok=True)
    write(path, made(), 0o644)


def installed() -> list[Path]:
    """The images that there are: also those of interpreters that were upgraded since."""
    return sorted(place().parent.glob("plugins.*.image"))


def made() -> bytes:
    """The image of the sources as they are now."""
    paths = dict(sources())
    entries = {}
    for name, path in paths.items():
        with contextlib.suppress(SyntaxError, ValueError):  # somebody's file that no module of ours imports
            entries[name] = _entry(name, path, paths)
    groups = grouped(entries)
    blocks = [marshal.dumps({name: entries[name] for name in group}) for group in groups]
    # Places are counted from the end of the file, so that the head does not depend on its own length
    starts = list(itertools.accumulate(map(len, blocks), initial=-sum(map(len, blocks))))
    loader = compile(Path(image.__file__).read_bytes(), image.__file__, "exec", dont_inherit=True, optimize=2)
    numbers = {name: number for number, group in enumerate(groups) for name in group}
    head = marshal.dumps((loader, numbers, list(zip(starts, map(len, blocks), strict=False)), extensions()))
    size = FIRST + len(head) - starts[0]
    assert len(head) + FIRST <= HEAD_MAX, "the launchers read too little"
    return MAGIC_NUMBER + size.to_bytes(FIRST - len(MAGIC_NUMBER), "little") + head + b"".join(blocks)


def extensions() -> dict[str, str]:
    """The extension modules of the standard library that plugins import, where they are files of their own."""
    specs = {name: find_spec(name) for name in EXTENSIONS}
    return {
        name: spec.origin
        for name, spec in specs.items()
        if spec and spec.origin and isinstance(spec.loader, ExtensionFileLoader)
    }


def _entry(name: str, path: Path, known: dict[str, Path]) -> "image.Entry":
    state, text = path.stat(), path.read_bytes()
    needed = tuple(dict.fromkeys(imported(ast.parse(text).body, name, known)))
    # Without docstrings (2), which no call reads
    code = compile(text, path, "exec", dont_inherit=True, optimize=2)
    return str(path.relative_to(PACKAGE.parent)), state.st_mtime_ns, state.st_size, needed, code


def grouped(entries: "dict[str, image.Entry]") -> list[list[str]]:
    """The modules in groups: those that the same plugins load are together, and what only some calls load is alone.

    Of packages, which have little text, one module may be loaded and the others not: they are with what every call loads.
    """
    loaded = [closure((f"cni_py.plugins.{module}", *EVERY_CALL), entries) for module in MODULES.values()]
    first, packages = closure(VERSION, entries), [name for name, entry in entries.items() if image.is_package(entry[0])]
    every = tuple(range(len(loaded)))
    groups: dict[object, list[str]] = {}
    for name in entries:
        by = every if name in packages else tuple(number for number in every if name in loaded[number])
        groups.setdefault("VERSION" if name in first else by or name, []).append(name)
    return list(groups.values())


def closure(names: Iterable[str], entries: "dict[str, image.Entry]") -> set[str]:
    """Modules and all that is imported with them."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        if (one := waiting.pop()) in entries and one not in found:
            found.add(one)
            waiting += entries[one][3]
    return found


def sources() -> Iterator[tuple[str, Path]]:
    """The modules of the image by their full names."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        if parts[1] not in WITHOUT:
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imported(body: list[ast.stmt], name: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the image that a module imports when it is loaded, each after the packages that it is in."""
    package = name.rpartition(".")[0]
    yield from _with_packages(package, known)
    for statement in body:
        if isinstance(statement, ast.Import):
            for one in statement.names:
                yield from _with_packages(one.name, known)
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            yield from _with_packages(statement.module, known)
            for one in statement.names:
                yield from _with_packages(f"{statement.module}.{one.name}", known)
        elif isinstance(statement, ast.If):
            if "TYPE_CHECKING" not in ast.unparse(statement.test):
                yield from imported(statement.body, name, known)
            yield from imported(statement.orelse, name, known)
        elif isinstance(statement, ast.Try):
            yield from imported(statement.body, name, known)


def _with_packages(module: str, known: dict[str, Path]) -> Iterator[str]:
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        if (name := ".".join(parts[:end])) in known:
            yield name
