"""Write the image of all modules that plugins load, which cni_py/image.py describes, beside their .pyc files."""

import ast
import marshal
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER, cache_from_source
from pathlib import Path

import cni_py
from cni_py import image
from cni_py.commands.manifest import write

PACKAGE = Path(cni_py.__file__).resolve().parent
WITHOUT = ("commands", "conf")  # folders that no plugin loads anything from
HEAD_MAX = 65536  # bytes that a launcher reads of the file's beginning
FIRST = 12  # bytes before the first marshalled object


def place() -> Path:
    """Where the image of this package for this interpreter is."""
    return Path(cache_from_source(str(PACKAGE / "plugins.py"))).with_suffix(".image")


def install() -> Path:
    """Write the image. OSError."""
    path = place()
    path.parent.mkdir(exist_ok=True)
    write(path, made(), 0o644)
    return path


def made() -> bytes:
    """The image of the sources as they are now."""
    paths = dict(sources())
    entries: dict[str, image.Entry] = {}
    codes: list[bytes] = []
    end = 0
    for name, path in paths.items():
        state, text = path.stat(), path.read_bytes()
        # Without docstrings (2), which no call reads
        codes.append(marshal.dumps(compile(text, path, "exec", dont_inherit=True, optimize=2)))
        needed = tuple(dict.fromkeys(imported(ast.parse(text).body, name, paths)))
        where = str(path.relative_to(PACKAGE.parent))
        entries[name] = (where, state.st_mtime_ns, state.st_size, end, len(codes[-1]), needed)
        end += len(codes[-1])
    loader = compile(Path(image.__file__).read_bytes(), image.__file__, "exec", dont_inherit=True, optimize=2)
    # Places in the file are counted from its end, so that the head does not depend on its own length
    head = marshal.dumps((loader, {name: (*one[:3], one[3] - end, *one[4:]) for name, one in entries.items()}))
    size = FIRST + len(head) + end
    assert len(head) + FIRST <= HEAD_MAX, "the launchers read too little"
    return MAGIC_NUMBER + size.to_bytes(FIRST - len(MAGIC_NUMBER), "little") + head + b"".join(codes)


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
