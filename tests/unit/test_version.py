"""Order and families of the versions of the specification."""

import pytest

from cni_py import version
from cni_py.errors import DecodingFailure


def test_the_supported_versions_are_in_order_and_each_in_one_family() -> None:
    assert sorted(version.SUPPORTED, key=version.parse) == list(version.SUPPORTED)
    assert sum(version.FAMILIES, ()) == version.SUPPORTED


@pytest.mark.parametrize(
    ("text", "floor", "holds"),
    [
        ("1.1.0", "1.1.0", True),
        ("1.0.0", "1.1.0", False),
        ("0.10.0", "0.4.0", True),
        ("0.3.1", "0.4.0", False),
        ("9.9.9", "1.1.0", True),
        ("1", "1.0.0", True),
        ("1.1", "1.1.0", True),
        ("", "0.1.0", True),
        ("", "0.4.0", False),
    ],
)
def test_order(text: str, floor: str, holds: bool) -> None:
    assert version.at_least(text, floor) is holds


@pytest.mark.parametrize("text", ["abc", "1.x", "1.0.0.0", ".", "-1", "1..0", " 1", "٣", "1.0.0-rc1", "1" * 20])
def test_what_is_no_version_has_code_6(text: str) -> None:
    with pytest.raises(DecodingFailure) as caught:
        version.at_least(text, "0.4.0")
    assert (caught.value.code, f'"{text}"' in caught.value.msg) == (6, True)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", ("0.1.0", "0.2.0")),
        ("0.2.0", ("0.1.0", "0.2.0")),
        ("0.3.1", ("0.3.0", "0.3.1", "0.4.0")),
        ("1.0.0", ("1.0.0", "1.1.0")),
        ("1.0", ()),
        ("9.9.9", ()),
    ],
)
def test_families(text: str, members: tuple[str, ...]) -> None:
    assert version.family(text) == members
