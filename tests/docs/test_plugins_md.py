"""docs/plugins.md names every key that our plugins read, in the section of the plugin, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cni_py.plugins.known_keys import COMMON, IPAM, LIST, PLUGINS, Keys
from cni_py.run import MODULES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/plugins.md").read_text()
SECTIONS = {
    re.sub(r" \(IPAM\)$", "", title): text
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
}


def documented(plugin: str) -> set[str]:
    """The words in backquotes of the first column of the section's tables."""
    rows = re.findall(r"^\| (`[^|]*)\|", SECTIONS[plugin], re.MULTILINE)
    return {word for first in rows for word in re.findall(r"`([^`]+)`", first)}


def mentioned(plugin: str) -> set[str]:
    """Every word in backquotes of the section, objects taken apart."""
    quoted = re.findall(r"`([^`]+)`", SECTIONS[plugin])
    return {word for text in quoted for word in re.findall(r"[A-Za-z][A-Za-z0-9_]*", text)}


def flat(keys: Keys) -> set[str]:
    return set(keys) | {name for below in keys.values() if below for name in flat(below)}


@pytest.mark.parametrize("plugin", [*PLUGINS, *IPAM])
def test_every_key_of_a_plugin_is_documented(plugin: str) -> None:
    keys = PLUGINS[plugin] if plugin in PLUGINS else IPAM[plugin]
    assert flat(keys) - {"type"} <= mentioned(plugin)


@pytest.mark.parametrize("plugin", [*PLUGINS, *IPAM])
def test_what_is_documented_as_a_key_is_one(plugin: str) -> None:
    keys = PLUGINS[plugin] if plugin in PLUGINS else IPAM[plugin]
    assert documented(plugin) <= flat(keys)


def test_common_keys_are_documented() -> None:
    introduction = TEXT.partition("\n## ")[0]
    words = set(re.findall(r"`([A-Za-z]+)`", introduction))
    assert set(COMMON) | set(LIST) <= words


def test_each_plugin_has_a_section() -> None:
    assert set(SECTIONS) == set(MODULES)
