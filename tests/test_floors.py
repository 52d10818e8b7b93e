"""No module imports from a floor above its own, and no imports form a circle. The floors are in tests/house.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import house
from tests.house import House, Sources


def test_the_sources_keep_to_the_floors() -> None:
    sources = Sources.of(house.HOUSES)
    assert len(sources.paths) > 100, "the reading of the sources is broken"
    found = house.breaches(sources, house.HOUSES)
    assert not found, "\n".join(found)


def test_no_call_of_a_plugin_has_what_stands_above_the_plugins() -> None:
    """Neither the image of the plugins' modules, nor the warm service, which needs none of the packages that those import."""
    from cni_py.commands import images
    from cni_py.serve import package

    above = {room for floor in house.CNI_PY.floors[house.CNI_PY.level("plugins") :] for room in floor.split()}
    assert above - {"serve"} <= set(images.WITHOUT)
    assert above <= set(package.NOT_FOR_CALLS)


# That the test above can fail: a made-up tree, well built, and one fault at a time

LOWER = House("lower", ("base", "kernel ipam", "plugins"), base="errors addr", elsewhere={"plugins": "plugins"})
UPPER = House("upper", ("base",), base="relay")
WELL = {
    "lower/__init__.py": "",
    "lower/addr.py": "from lower.errors import E\n",
    "lower/errors.py": "",
    "lower/kernel/__init__.py": "",
    "lower/kernel/links.py": "import os\nfrom lower import addr\n",
    "lower/ipam/__init__.py": "",
    "lower/ipam/ranges.py": "from lower.addr import parse\n",
    "plugins/__init__.py": "",
    "plugins/bridge.py": "from lower.kernel import links\nfrom lower.ipam import ranges\n",
    "upper/__init__.py": "",
    "upper/relay.py": "from lower.kernel import links\n",
}


def judge(root: Path, files: dict[str, str], lower: House = LOWER) -> list[str]:
    for name, text in {**WELL, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    houses = (lower, UPPER)
    return house.breaches(Sources.of(houses, root), houses)


def test_a_tree_that_keeps_to_the_floors_is_passed(tmp_path: Path) -> None:
    assert judge(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "lower/errors.py",
            "\nfrom lower.kernel.links import up\n",
            "lower/errors.py:2 imports lower.kernel.links: kernel stands on floor 2, above base on floor 1",
        ),
        (
            "lower/errors.py",
            "async def say():\n    import lower.plugins.bridge\n",
            "lower/errors.py:2 imports lower.plugins.bridge inside a function: plugins stands on floor 3, above base on floor 1",
        ),
        (
            "lower/kernel/links.py",
            "TYPE_CHECKING = False\nif TYPE_CHECKING:\n    from ..plugins import bridge\n",
            "lower/kernel/links.py:3 imports lower.plugins.bridge for types: plugins stands on floor 3, above kernel on floor 2",
        ),
        (
            "lower/kernel/links.py",
            'HOME = "lower.plugins.bridge:Op"\n',
            "lower/kernel/links.py:1 imports lower.plugins.bridge by its name in a text: "
            "plugins stands on floor 3, above kernel on floor 2",
        ),
        (
            "lower/kernel/links.py",
            "from lower.ipam import ranges\n",
            "lower/kernel/links.py:1 imports lower.ipam.ranges: "
            "kernel and ipam stand on the same floor, 2, and do not import each other",
        ),
        (
            "lower/kernel/links.py",
            "try:\n    import upper\nexcept ImportError:\n    pass\n",
            "lower/kernel/links.py:2 imports upper: lower does not know upper",
        ),
        (
            "lower/errors.py",
            "def late():\n    from lower import addr\n",
            "a circle: lower/addr.py:1 imports lower.errors, lower/errors.py:2 imports lower.addr inside a function",
        ),
        ("lower/attic.py", "", "lower: attic stands on no floor: give it one in tests/house.py"),
    ],
    ids=["above", "in a function", "for types", "by name", "same floor", "other package", "circle", "no floor"],
)
def test_a_breach_is_named(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    assert judge(tmp_path, {name: text}) == [sentence]


def test_an_exemption_holds_as_long_as_it_is_needed(tmp_path: Path) -> None:
    exempt = {("errors", "kernel.links"): "made up"}
    lower = House(LOWER.package, LOWER.floors, LOWER.base, LOWER.elsewhere, exempt)
    assert judge(tmp_path, {"lower/errors.py": "from lower.kernel import links\n"}, lower) == []
    idle = judge(tmp_path, {}, lower)
    assert idle == ["lower: that errors imports kernel.links needs no exemption in tests/house.py"]


def test_a_floor_without_a_room_is_named(tmp_path: Path) -> None:
    lower = House(LOWER.package, (*LOWER.floors, "roof"), LOWER.base, LOWER.elsewhere)
    assert judge(tmp_path, {}, lower) == ["lower: roof has a floor in tests/house.py, and is not there"]
