"""The map, what each package says of its floor, and what documents show of the code: against the code and tests/house.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests import house
from tests.house import House

# A start of the interpreter reads the map from the .pyc: 16 KB take 0.04 ms.
MAP_BYTES_MAX = 16_000
FLOOR = re.compile(r"^Floor (\d+) of (\d+)\. May import: ([\w, \n]+)\.$", re.MULTILINE)


def opening(of: House, room: str = "") -> str:
    """The docstring of a package."""
    return ast.get_docstring(ast.parse((house.ROOT / of.folder(room) / "__init__.py").read_text())) or ""


def packages(of: House) -> list[str]:
    """The rooms that are packages."""
    return [room for floor in of.floors for room in floor.split() if (house.ROOT / of.folder(room)).is_dir()]


@pytest.mark.parametrize("of", house.HOUSES, ids=lambda of: of.package)
def test_the_map_has_every_module_once(of: House) -> None:
    lines = house.the_map(opening(of))
    listed = [line.module for line in lines]
    there = {house.inside(name, of) for name, _ in house.modules(of)} - {""}
    assert sorted(listed) == sorted(there)
    assert {line.module for line in lines if line.is_folder} == set(packages(of))
    assert len(opening(of).encode()) <= MAP_BYTES_MAX


@pytest.mark.parametrize("of", house.HOUSES, ids=lambda of: of.package)
def test_the_map_goes_from_the_lowest_floor_up(of: House) -> None:
    levels = [of.level(of.room(line.module)) for line in house.the_map(opening(of))]
    assert levels == sorted(levels)


@pytest.mark.parametrize("of", house.HOUSES, ids=lambda of: of.package)
def test_the_map_points_at_what_is_there(of: House) -> None:
    there = {house.inside(name, of) for name, _ in house.modules(of)}
    pointed = {place for place in house.places(opening(of)) if place.partition(".")[0] in there}
    assert pointed, "the reading of the map is broken"
    assert pointed <= there


@pytest.mark.parametrize(("of", "room"), [(of, room) for of in house.HOUSES for room in packages(of)])
def test_a_package_says_on_which_floor_it_stands(of: House, room: str) -> None:
    said = FLOOR.search(opening(of, room))
    assert said is not None, f"{of.package}.{room} does not say on which floor it stands"
    below = [name for floor in reversed(of.floors[: of.level(room) - 1]) for name in floor.split()]
    assert (int(said[1]), int(said[2])) == (of.level(room), len(of.floors))
    assert re.split(r",\s+", said[3]) == below


DOCUMENTS = [house.ROOT / "README.md", *sorted((house.ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_pictures_of_the_floors_are_up_to_date(document: Path) -> None:
    text = document.read_text()
    assert house.with_pictures(text) == text, f"{document.name}: write it anew by `python3 -m tests.house`"


def test_the_documents_that_show_the_floors_do() -> None:
    shown = {path.name: [match[1] for match in house.PICTURE.finditer(path.read_text())] for path in DOCUMENTS}
    packages_ = [of.package for of in house.HOUSES]
    assert (shown["README.md"], shown["architecture.md"]) == (["cni_py"], packages_)


def defined(tree: ast.Module | ast.ClassDef, above: str = "") -> set[str]:
    """Names of the functions and classes of a module, with those of their classes before them."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(above + node.name)
            found |= defined(node, f"{above}{node.name}.") if isinstance(node, ast.ClassDef) else set()
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_functions_that_a_document_names_are_there(document: Path) -> None:
    """Written as `path/to/file.py:Class.method`."""
    named = re.findall(r"`([\w/-]+\.py):([\w.]+)`", document.read_text())
    assert named or document.name != "architecture.md", "the reading of the documents is broken"
    lost = [
        f"{path}:{name}"
        for path, name in named
        if not (house.ROOT / path).exists() or name not in defined(ast.parse((house.ROOT / path).read_text()))
    ]
    assert not lost


def test_figures_are_kept_while_they_are_about_right() -> None:
    """So that a change of ten lines does not have to touch a document."""
    text = (house.ROOT / "docs" / "architecture.md").read_text()
    row = next(line for line in text.splitlines() if re.match(r" +8  ports ", line))
    stated = int(row.split()[2].replace(",", ""))
    lines = house.sizes(house.CNI_PY)["ports"].code
    for figure in (lines + house.ABOUT, lines + house.ABOUT + 1):
        changed = text.replace(row, row.replace(f"{stated:>7,}", f"{figure:>7,}"))
        assert (f"{figure:,}  " in house.with_pictures(changed)) == (figure - lines <= house.ABOUT)


EXAMPLES = {"app.py"}  # in sentences about processes of the host


def test_files_that_comments_name_are_there() -> None:
    """`claims.py`, `ports/claims.py`: a file that was renamed is not looked for under its old name."""
    sources = [path for name in ("cni_py", "plugins", "portfwd") for path in sorted((house.ROOT / name).rglob("*.py"))]
    tested = [path for name in ("tests", "bench", "netns-fixtures") for path in (house.ROOT / name).rglob("*.py")]
    there = {f"/{path.relative_to(house.ROOT)}" for path in [*sources, *tested]}
    named = {
        (path.name, name)
        for path in sources
        for name in re.findall(r"(?<![\w/<>*-])((?:[a-z]\w+/)*[a-z]\w+\.py)\b", path.read_text())
    }
    assert named, "the reading of the sources is broken"
    lost = [pair for pair in named if not any(path.endswith(f"/{pair[1]}") for path in there)]
    assert sorted(pair for pair in lost if pair[1].rpartition("/")[2] not in EXAMPLES) == []
