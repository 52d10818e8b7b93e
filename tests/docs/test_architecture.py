"""The map in each package's docstring, and what each package says of its floor, against the folders and tests/house.py."""

from __future__ import annotations

import ast
import re

import pytest

from tests import house
from tests.house import House

MAP_BYTES_MAX = (
    7000  # it is read from the .pyc at each start of a plugin: 7 KB more or less cost nothing that can be measured
)
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
    there = {house.inside(name, of) for name, _ in house.modules(of)} - {"", "__main__"}
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
