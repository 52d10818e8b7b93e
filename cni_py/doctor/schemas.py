"""The JSON Schemas that ship in conf/schemas, and what of a document they do not allow.

    cni-network.schema.json     *.conflist
    cni-conf.schema.json        *.conf, *.json: a single plugin
    cni-plugin.schema.json      a plugin, which both refer to
    cni-py-config.schema.json   /etc/cni-py/config.yaml

They are of draft-07, the last one that editors know whole: Visual Studio Code warns of later ones and passes over a part of them.
As in Go, null is a key that is not there, and keys match without regard to case: `plain` makes a document so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from cni_py.plugins.known_keys import COMMON, IPAM, LIST, PLUGINS, Keys

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

NETWORK, CONF, PLUGIN, CONFIG = "cni-network", "cni-conf", "cni-plugin", "cni-py-config"
NAMES = (NETWORK, CONF, PLUGIN, CONFIG)
DEPTH_MAX = 40  # of lists and objects in each other; a chain in a list has 9
SHOWN_MAX = 60  # characters of a value that a message shows


@dataclass(frozen=True, slots=True)
class Violation:
    """A place in a document, and what is wrong there."""

    place: str  # "plugins[0].vlan"
    what: str


def text(name: str) -> str:
    """A schema as it is shipped."""
    return resources.files("cni_py.conf").joinpath(f"schemas/{name}.schema.json").read_text(encoding="utf-8")


def paths() -> list[str]:
    """Where the schemas are, for editors."""
    return [str(resources.files("cni_py.conf").joinpath(f"schemas/{name}.schema.json")) for name in NAMES]


@functools.cache
def validator(name: str) -> Validator:
    """The validator of a schema; references lead to the other files."""
    from jsonschema import Draft7Validator
    from referencing import Registry, Resource

    documents = [json.loads(text(one)) for one in NAMES]
    registry: Registry[Any] = Registry().with_resources(
        [(document["$id"], Resource.from_contents(document)) for document in documents]
    )
    found: Validator = Draft7Validator(documents[NAMES.index(name)], registry=registry)
    return found


def violations(name: str, document: object) -> Iterator[Violation]:
    """What the schema does not allow, the innermost reason of each."""
    if depth(document) > DEPTH_MAX:
        yield Violation("", f"lists and objects are in each other more than {DEPTH_MAX} deep")
        return
    for error in validator(name).iter_errors(plain(document)):
        while error.context and error.validator in ("anyOf", "oneOf"):
            error = max(error.context, key=lambda one: len(one.absolute_path))  # noqa: PLW2901
        yield Violation(place(error.absolute_path), sentence(error))


def depth(document: object) -> int:
    """How deep lists and objects are in each other, up to DEPTH_MAX + 1."""
    level, found = [document], 0
    while level and found <= DEPTH_MAX:
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [part for parts in inner for part in parts]
        found += bool(inner)
    return found


def place(path: Any) -> str:
    """["plugins", 0, "vlan"] as "plugins[0].vlan"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def sentence(error: Any) -> str:
    """A violation in words; jsonschema's repeat the whole value, and name regular expressions."""
    shown = json.dumps(error.instance)
    shown = shown if len(shown) <= SHOWN_MAX else f"{shown[:SHOWN_MAX]}..."
    rule, wanted = error.validator, error.validator_value
    words: dict[str, Callable[[], str]] = {
        "type": lambda: f"{shown} is not of the type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}",
        "enum": lambda: f"{shown} is none of {', '.join(json.dumps(one) for one in wanted if one != '')}",
        "minimum": lambda: f"{shown} is below {wanted}",
        "maximum": lambda: f"{shown} is above {wanted}",
        "required": lambda: f"it lacks {next(one for one in wanted if one not in error.instance)}",
        "additionalProperties": lambda: f"{shown} has a key that is not known there",
        "minItems": lambda: f"it has fewer than {wanted} elements",
        "maxItems": lambda: f"it has more than {wanted} elements",
        "minLength": lambda: "it is empty",
        "not": lambda: f"{shown} has keys that exclude each other",
        "dependencies": lambda: "it has one of two keys that go together",
        "const": lambda: f"{shown} is not {json.dumps(wanted)}",
    }
    example = next(iter(error.schema.get("examples", ())), None) if isinstance(error.schema, dict) else None
    such = f" (such as {json.dumps(example)})" if example is not None and rule == "pattern" else ""
    return str(words[rule]()) if rule in words else f"{shown} is not of the form that this key has{such}"


def plain(value: object, *, spelt: bool = True) -> Any:
    """The document as Go reads it: without keys that are null, and each key as it is spelt in the schemas."""
    if isinstance(value, list):
        return [plain(one, spelt=spelt) for one in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for key, part in value.items():
        name = SPELT.get(str(key).lower(), key) if spelt else key
        if part is not None:
            found[name] = plain(part, spelt=spelt and name not in FREE)
    return found


def names(*tables: Keys) -> Iterator[str]:
    """The keys in tables, at every depth."""
    for table in tables:
        yield from table
        yield from names(*(inner for inner in table.values() if inner))


FREE = ("sysctl", "ports", "args", "runtimeConfig", "prevResult", "capabilities")  # whose own keys are not ours
SPELT = {name.lower(): name for name in names(LIST, COMMON, *PLUGINS.values(), *IPAM.values())}
