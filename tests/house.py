"""How the sources are laid out: packages on floors, and the imports between their modules, read with `ast`.

A floor imports from the floors below it alone. Rooms of one floor (packages, or single modules) do not import each other; what
a room's modules import of each other forms no circle. Imports count wherever they stand: at the top of a module, inside a
function, for type checkers. tests/test_floors.py holds the sources to it, tests/docs/test_architecture.py the documents.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import itertools
import re
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
BASE = "base"  # the room of modules that stand beside the packages and below them
AT_TOP, LAZILY, FOR_TYPES, BY_NAME = "", " inside a function", " for types", " by its name in a text"


@dataclass(frozen=True, eq=False)
class House:
    """A top package: which rooms stand on which floor, lowest first, and what may be done all the same, with the reason."""

    package: str
    floors: tuple[str, ...]  # names of rooms, separated by spaces
    base: str  # the modules of the room "base"
    elsewhere: Mapping[str, str] = field(default_factory=dict)  # package: its folder, where that is not below `package`
    exempt: Mapping[tuple[str, str], str] = field(default_factory=dict)  # (importer, imported): reason
    by_name: Mapping[str, str] = field(default_factory=dict)  # modules that may name others in a text: reason

    def room(self, module: str) -> str:
        """The room of a module of this house, named without the house's name."""
        return BASE if module in ("", *self.base.split()) else module.partition(".")[0]

    def folder(self, room: str = "") -> Path:
        """Where the files of a package are, below the root."""
        return Path(self.elsewhere.get(room) or f"{self.package}/{room}")

    def level(self, room: str) -> int:
        """The floor of a room, 1 for the lowest; 0 when it stands on none."""
        return next((number for number, rooms in enumerate(self.floors, 1) if room in rooms.split()), 0)


CNI_PY = House(
    "cni_py",
    (
        "base",
        "kernel",
        "protocol",
        "backend",
        "attachment",
        "nftables firewalld ipam interface",
        "iptables",
        "ports",
        "skel ownership",
        "plugins",
        "host",
        "show explain doctor restore",
        "commands serve dhcp",
    ),
    base="errors addr sha version files run image lean os_lean warm",
    elsewhere={"plugins": "plugins"},
    exempt={
        (
            "run",
            "skel",
        ): "a process begins in run, which installers and delegation read, too; skel is loaded by a call alone",
        ("run", "attachment.call"): "for types: what run loads is a Plugin",
        ("attachment.gc", "attachment.call"): "for types: GC is a part of Call that few calls load",
        ("dhcp.daemon", "serve.sockets"): "it is given its socket as the warm service is: by systemd, or makes it",
        ("ports.listener_owners", "ports.host_listeners"): "for types: it finds the owners of what host_listeners saw",
    },
    by_name={
        "run": "finds the module of the plugin that it is asked for",
        "attachment.engine": "loads the module of an operation that a record names",
        "attachment.call": "loads what few calls need of the floors above",
    },
)
PORTFWD = House(
    "portfwd",
    ("base", "netns", "steering", "relay", "service", "cli docker __main__"),
    base="errors follow mapping no_tls rights spec values",
    exempt={
        ("__main__", "cli.command"): "`python3 -m portfwd` is the command",
        ("relay.connection", "relay.tcp"): "for types: a connection belongs to the TCP side of a mapping",
    },
)
HOUSES = (CNI_PY, PORTFWD)  # one imports from those before it


@dataclass(frozen=True)
class Import:
    """One module of ours that imports another; both with full names."""

    importer: str
    line: int
    imported: str
    kind: str


@dataclass(frozen=True)
class Sources:
    """The modules of a house by their full names, and what they import of ours."""

    root: Path
    paths: Mapping[str, Path]
    imports: tuple[Import, ...]

    @classmethod
    def of(cls, houses: Iterable[House], root: Path = ROOT) -> Sources:
        paths = {name: path for house in houses for name, path in modules(house, root)}
        return cls(root, paths, tuple(one for name, path in paths.items() for one in imports(name, path, paths)))


def modules(house: House, root: Path = ROOT) -> Iterator[tuple[str, Path]]:
    """Full names and files; a package has the name of its folder."""
    for package, folder in (("", house.package), *house.elsewhere.items()):
        for path in sorted((root / folder).rglob("*.py")):
            parts = (house.package, package, *path.relative_to(root / folder).with_suffix("").parts)
            yield ".".join(part for part in parts if part and part != "__init__"), path


def imports(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[Import]:
    """What a file imports of the known modules, in the order of its lines."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node, kind in statements(ast.parse(path.read_text()), AT_TOP):
        for imported in named(node, package):
            module = imported if imported in known else imported.rpartition(".")[0]
            if module in known and module != name:
                yield Import(name, node.lineno, module, kind)


def statements(tree: ast.AST, kind: str) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Constant, str]]:
    """Import statements and texts, with the kind of import that they are."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, kind
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, BY_NAME
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(node, LAZILY)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node, FOR_TYPES)
        else:
            yield from statements(node, kind)


def named(node: ast.Import | ast.ImportFrom | ast.Constant, package: str) -> list[str]:
    """Full names; "a.b" for `from a import b`, whether b is a module or not. A text that is "a.b" or "a.b:C" names a.b."""
    if isinstance(node, ast.Constant):
        return [str(node.value).partition(":")[0]] if "." in str(node.value) else []
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    source = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{source}.{alias.name}" for alias in node.names]


# The rules


def breaches(sources: Sources, houses: tuple[House, ...]) -> list[str]:
    """A sentence for each import that is against the rules, each circle, each room without a floor and each idle exemption."""
    found = against_the_rules(sources, houses)
    for house in houses:
        rooms = {house.room(inside(name, house)) for name in sources.paths if house_of(name, houses) is house}
        stood = {room for floor in house.floors for room in floor.split()}
        idle = [pair for pair in house.exempt if is_idle(pair, house, sources, houses)]
        found += [
            f"{house.package}: {room} stands on no floor: give it one in tests/house.py" for room in rooms - stood
        ]
        found += [f"{house.package}: {room} has a floor in tests/house.py, and is not there" for room in stood - rooms]
        found += [
            f"{house.package}: that {one} imports {two} needs no exemption in tests/house.py" for one, two in idle
        ]
    return sorted(found)


def against_the_rules(sources: Sources, houses: tuple[House, ...]) -> list[str]:
    """Imports from floors above, and circles."""
    upwards = {one: text for one in sources.imports if (text := breach(one, sources, houses))}
    return [*upwards.values(), *circles(sources, houses, set(upwards))]


def is_idle(pair: tuple[str, str], house: House, sources: Sources, houses: tuple[House, ...]) -> bool:
    """Whether nothing would be against the rules without the exemption."""
    if exempted(pair, house) not in {(one.importer, one.imported) for one in sources.imports}:
        return True
    stricter = replace(house, exempt={other: why for other, why in house.exempt.items() if other != pair})
    without = tuple(stricter if one is house else one for one in houses)
    return against_the_rules(sources, without) == against_the_rules(sources, houses)


def house_of(module: str, houses: tuple[House, ...]) -> House:
    return next(house for house in houses if module.partition(".")[0] == house.package)


def inside(module: str, house: House) -> str:
    """The name of a module without its house's."""
    return module.removeprefix(house.package).removeprefix(".")


def exempted(pair: tuple[str, str], house: House) -> tuple[str, str]:
    """The full names of a key of `exempt`."""
    return f"{house.package}.{pair[0]}", f"{house.package}.{pair[1]}"


def breach(one: Import, sources: Sources, houses: tuple[House, ...]) -> str:
    """What is wrong with an import, in one sentence; "" when nothing is."""
    ours, theirs = house_of(one.importer, houses), house_of(one.imported, houses)
    what = f"{described(one, sources)}: "
    if ours is not theirs:
        above = houses.index(theirs) > houses.index(ours)
        return f"{what}{ours.package} does not know {theirs.package}" if above else ""
    names = inside(one.importer, ours), inside(one.imported, ours)
    here, there = (ours.room(name) for name in names)
    level, imported_level = ours.level(here), ours.level(there)
    if here == there or imported_level < level or names in ours.exempt:
        return ""
    if one.kind == BY_NAME and names[0] in ours.by_name:
        return ""
    if level == imported_level:
        return f"{what}{here} and {there} stand on the same floor, {level}, and do not import each other"
    return f"{what}{there} stands on floor {imported_level}, above {here} on floor {level}"


def described(one: Import, sources: Sources) -> str:
    """The file, the line, and what is imported there."""
    return f"{sources.paths[one.importer].relative_to(sources.root)}:{one.line} imports {one.imported}{one.kind}"


def circles(sources: Sources, houses: tuple[House, ...], upwards: set[Import]) -> list[str]:
    """A sentence for each circle of imports that the floors permit; a name in a text makes none."""
    exempt = {exempted(pair, house) for house in houses for pair in house.exempt}
    edges = {(one.importer, one.imported): one for one in sources.imports if one.kind != BY_NAME and one not in upwards}
    left = sorted(edges.keys() - exempt)
    found = []
    while circle := first_circle(left):
        steps = list(itertools.pairwise(circle))
        found.append("a circle: " + ", ".join(described(edges[step], sources) for step in steps))
        left.remove(steps[0])
    return found


def first_circle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """The modules of a circle, each importing the next, the first again at the end; [] when there is none."""
    graph: dict[str, list[str]] = {}
    for importer, imported in edges:
        graph.setdefault(importer, []).append(imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found[::-1]
    return []


# The map in a package's docstring


@dataclass(frozen=True)
class Line:
    """A line of the map: a room, or a module of the room above it. `module` has the name without the house's."""

    module: str
    is_folder: bool
    text: str


def the_map(docstring: str) -> list[Line]:
    """The lines `room/   text` and `  module   text`, whose columns are two spaces apart or more."""
    found: list[Line] = []
    room = ""
    for indent, name, slash, text in re.findall(r"^(  )?(\w+)(/?) {2,}(\S.*)$", docstring, re.MULTILINE):
        if not indent:
            room = f"{name}." if slash else ""
        if indent or name != BASE:
            found.append(Line(f"{room if indent else ''}{name}", bool(slash), text))
    return found


def places(docstring: str) -> set[str]:
    """The modules and rooms that a text points at: `room/module`, with or without a name inside it, and `room/`."""
    return {f"{room}.{name}".rstrip(".") for room, name in re.findall(r"(?<![\w/])([a-z]\w*)/(\w*)", docstring)}


# What documents show of the floors; `python3 -m tests.house` writes it anew


@dataclass(frozen=True)
class Size:
    """Lines of some files: a line with code and a comment counts as both."""

    code: int = 0
    comments: int = 0
    docstrings: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.code + other.code, self.comments + other.comments, self.docstrings + other.docstrings)


DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def size_of(path: Path) -> Size:
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            documented.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.string.strip():
            found = comments if token.type == tokenize.COMMENT else code
            found.update(range(token.start[0], token.end[0] + 1))
    return Size(len(code - documented), len(comments), len(documented))


@functools.cache
def sizes(of: House) -> dict[str, Size]:
    """By room."""
    found: dict[str, Size] = {}
    for name, path in modules(of):
        room = of.room(inside(name, of))
        found[room] = found.get(room, Size()) + size_of(path)
    return found


PICTURE = re.compile(r"(?<=<!-- floors: )(\w+)(, sizes)? -->\n```\n(.*?)```\n(?=<!-- end -->)", re.DOTALL)
ABOUT = 50  # lines by which a figure may be wrong before it is written anew


def with_pictures(text: str) -> str:
    """A document with each picture of floors as it is now. A figure that is still about right stays."""
    return PICTURE.sub(_picture, text)


def _picture(match: re.Match[str]) -> str:
    of = next(house for house in HOUSES if house.package == match[1])
    lines = _rows(of, match[3]) if match[2] else _short(of)
    return f"{match[1]}{match[2] or ''} -->\n```\n{''.join(line.rstrip() + chr(10) for line in lines)}```\n"


def _short(of: House) -> Iterator[str]:
    """A line for each floor, the highest first."""
    for floor in reversed(of.floors):
        yield f"{of.level(floor.split()[0]):5}   {'   '.join(floor.split())}"


def _rows(of: House, before: str) -> Iterator[str]:
    """A line for each room, the highest floor first, with its size and what the map says of it."""
    stated = {name: int(lines.replace(",", "")) for name, lines in re.findall(r"(\w+) +([\d,]+)(?=  )", before)}
    texts = {line.module: line.text for line in the_map(ast.get_docstring(_init(of)) or "")}
    measured, total = sizes(of), 0
    yield "floor                  lines"
    for floor in reversed(of.floors):
        for place, room in enumerate(floor.split()):
            lines, number = measured[room].code, "" if place else of.level(room)
            known = stated.get(room, 0)
            shown = known if known and abs(known - lines) <= ABOUT else round(lines, -1)
            total += shown
            yield f"{number:>5}  {room:<13}{shown:>7,}  {texts.get(room, 'modules that all others may import')}"
    yield f"{'':>7}{'all':<13}{total:>7,}"


def _init(of: House) -> ast.Module:
    return ast.parse((ROOT / of.folder() / "__init__.py").read_text())


def main() -> None:
    """Write the pictures in the documents anew, and print the lines of each room."""
    for document in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        document.write_text(with_pictures(document.read_text()))
    for of in HOUSES:
        print(f"{of.package:<13}{'code':>7}{'comments':>10}{'docstrings':>12}")
        for room, size in sizes(of).items():
            print(f"  {room:<11}{size.code:>7}{size.comments:>10}{size.docstrings:>12}")


if __name__ == "__main__":
    main()
