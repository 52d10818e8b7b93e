"""The schemas in conf/schemas against the plugins' own readers, the table of known keys, and docs/plugins.md.

For every key at every place of the schemas, each of a set of values (all JSON types, limits and one beyond them, members of an
enumeration and others, examples, defaults) is put into a configuration that is right otherwise. Schema and reader must agree.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema
import pytest
from hypothesis import strategies

from cni_py import backend
from cni_py.doctor import parsers, schemas
from cni_py.errors import CniError
from cni_py.plugins.known_keys import CAPABILITIES, COMMON, IPAM, LIST, PLUGINS, Keys
from cni_py.protocol import conflist
from cni_py.version import SUPPORTED

ROOT = Path(__file__).parents[3]
PLUGIN_SCHEMA = json.loads(schemas.text(schemas.PLUGIN))
NETWORK_SCHEMA = json.loads(schemas.text(schemas.NETWORK))
DEFINITIONS = PLUGIN_SCHEMA["definitions"]

# A right configuration of each plugin, in which every other key has an effect.
RIGHT: dict[str, dict[str, Any]] = {
    "bandwidth": {"ingressRate": 8000, "ingressBurst": 8000, "egressRate": 8000, "egressBurst": 8000},
    "bridge": {"ipMasq": True},
    "chain": {"plugins": [{"type": "loopback"}]},
    "dummy": {"ipam": {"type": "static"}},
    "firewall": {},
    "host-device": {"device": "eth1"},
    "ipvlan": {},
    "loopback": {},
    "macvlan": {},
    "portmap": {"snat": True},
    "ptp": {"ipMasq": True},
    "sbr": {},
    "tap": {},
    "tuning": {},
    "vlan": {"master": "eth0", "ipam": {"type": "static"}},
    "vrf": {"vrfname": "blue"},
}
RIGHT_IPAM: dict[str, dict[str, Any]] = {
    "dhcp": {"type": "dhcp"},
    "host-local": {"type": "host-local", "subnet": "192.0.2.0/24"},
    "static": {"type": "static", "addresses": [{"address": "192.0.2.2/24"}]},
}
NEEDED: dict[str, dict[str, Any]] = {  # of an element of that list
    "routes": {"dst": "203.0.113.0/24"},
    "ranges": {"subnet": "203.0.113.0/24"},
    "addresses": {"address": "203.0.113.2/24"},
    "provide": {"option": "12", "value": "web"},
    "request": {"option": "121"},
    "vlanTrunk": {"minID": 1, "maxID": 4094},
}
PATTERNED = {  # keys whose texts have a form
    "option",
    *("bridge", "vrfname", "dataDir", "iptablesAdminChainName", "externalSetMarkChain", "firewalldZone", "mac", "name"),
    *("subnet", "rangeStart", "rangeEnd", "gateway", "dst", "gw", "address"),
}
ANYTHING: list[Any] = [
    *(
        True,
        False,
        0,
        1,
        -1,
        2,
        1.5,
        "",
        "x",
        "eth0",
        "true",
        "a b",
        "../x",
        "\ud800",
        "\0",
        [],
        {},
        [1],
        ["x"],
        [{}],
        [[]],
        {"x": 1},
    ),
    *(
        {"x": True},
        {"x": "y"},
        "02:00:00:00:00:01",
        "01:00:00:00:00:01",
        "192.0.2.9",
        "192.0.2.9/24",
        65536,
        1 << 32,
        1 << 64,
    ),
]
# Where the schema allows less than the plugin reads without an error: it says what makes sense.
STRICTER = {
    "mtu": "the kernel refuses it, or (negative) the plugin takes it as 0, as the Go plugin does",
    "txQLen": "the kernel refuses it",
    "backend": "firewall takes a name that is none as not given, as the Go plugin does",
    "type": "a plugin that is not ours may have any name, and is not looked at",
    "name": "the runtime overwrites it",
    "cniVersion": "the runtime overwrites it",
    "cniVersions": "versions that nobody knows are passed over",
    "runtimeConfig": "the runtime overwrites it",
    "prevResult": "the runtime overwrites it",
    "master": "a text of an interface that is not there",
}
# Where the plugin refuses more: what a text means is not for a schema.
LOOSER = {
    "option",  # a number up to 255, and none that the protocol sets itself
    "gateways",  # must be addresses
    *("subnet", "rangeStart", "rangeEnd", "gateway", "exclude", "ranges"),  # must fit each other
    *(
        "gw",
        "dst",
        "address",
        "addresses",
        "allow",
        "conditionsV4",
        "conditionsV6",
    ),  # an address; one of the other family
    *("resolvConf", "sysctl", "externalSetMarkChain", "mac"),
    *("disableContainerInterface",),
}


def resolved(schema: Any) -> Any:
    """The schema with its reference to a definition followed."""
    if "$ref" in schema and schema["$ref"].startswith("#/definitions/"):
        return DEFINITIONS[schema["$ref"].rpartition("/")[2]]
    return schema


def candidates(schema: Any) -> list[Any]:
    """The values to be tried for a key."""
    found = [*ANYTHING, *schema.get("enum", ()), *schema.get("examples", ())]
    found += [schema["default"]] if "default" in schema else []
    for limit, step in (("minimum", -1), ("maximum", 1)):
        if limit in schema:
            found += [schema[limit], schema[limit] + step]
    found += [value.upper() for value in schema.get("enum", ()) if value]
    return [value for n, value in enumerate(found) if repr(value) not in map(repr, found[:n])]


def places(schema: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, schema) of each key; an index of 0 stands for the elements of a list."""
    schema = resolved(schema)
    for name, inner in schema.get("properties", {}).items():
        key = resolved(inner)
        yield (*path, name), key
        yield from places(key, (*path, name))
    items = schema.get("items")
    if isinstance(items, dict) and "allOf" not in items:
        yield from places(items, (*path, 0))


def put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with the value at a place, and with what leads there: elements of lists have what they need."""
    made = copy.deepcopy(document)
    at = made
    names = [step for step in path if isinstance(step, str)]
    for step, after in itertools.pairwise(path):
        in_element = isinstance(step, int) and isinstance(after, str)
        empty: Any = [] if isinstance(after, int) else dict(NEEDED.get(names[-2], {})) if in_element else {}
        if isinstance(step, int):
            at += [] if at else [empty]
        else:
            at.setdefault(step, empty)
        at = at[step]
    at[path[-1]] = value
    return made


def in_list(plugin: dict[str, Any]) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": "net", "plugins": [plugin]}


def refusal(document: object) -> str:
    """Why the readers refuse a list; "" if they take it."""
    try:
        network = conflist.parse(json.dumps(document).encode(), "x.conflist")
        if not network.plugins:
            return "no plugins"
        return "; ".join(f"{one.plugin}: {one.error}" for one in parsers.refusals(network))
    except CniError as error:
        return str(error)


def disagreement(name: str, document: dict[str, Any], value: object = "") -> str:
    """How schema and readers differ over a list; "" if they agree."""
    found = "; ".join(f"{one.place}: {one.what}" for one in schemas.violations(schemas.NETWORK, document))
    refused = refusal(document)
    if (
        bool(found) == bool(refused)
        or (name in STRICTER and found)
        or (name in LOOSER and refused and '"' in json.dumps(value))
    ):
        return ""
    return f"{json.dumps(document['plugins'][0])}\n  schema: {found or 'right'}\n  plugin: {refused or 'right'}"


@pytest.mark.parametrize("plugin", sorted(set(PLUGINS) - {"dummy"}))  # it has no keys of its own
def test_schema_and_plugin_agree_on_every_key(plugin: str) -> None:
    right = {"type": plugin, **RIGHT[plugin]}
    assert refusal(in_list(right)) == ""
    assert [*schemas.violations(schemas.NETWORK, in_list(right))] == []
    wrong = []
    tried = 0
    common = places({"properties": PLUGIN_SCHEMA["properties"]}) if plugin == "loopback" else ()  # once for all plugins
    for path, schema in [*places(DEFINITIONS[plugin]), *common]:
        base = right | ({"ipam": {}} if path[0] == "ipam" else {})
        for value in candidates(schema):
            wrong.append(disagreement(path[-1], in_list(put(base, path, value)), value))
            tried += 1
    assert [*filter(None, wrong)][:3] == []
    assert tried > 60


@pytest.mark.parametrize("plugin", sorted(set(PLUGINS) - {"dummy", "loopback"}))
def test_schema_and_plugin_agree_on_several_keys_at_once(plugin: str) -> None:
    exact = [
        (path, candidates(schema))
        for path, schema in places(DEFINITIONS[plugin])
        # ipMasqBackend is not looked at while ipMasq is off
        if len(path) == 1 and path[0] not in (*STRICTER, *LOOSER, "ipMasqBackend")
    ]

    @hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
    @hypothesis.given(strategies.data())
    def agree(data: strategies.DataObject) -> None:
        document = in_list({"type": plugin, **RIGHT[plugin]})
        for path, values in data.draw(strategies.lists(strategies.sampled_from(exact), max_size=4)):
            document["plugins"][0][path[0]] = data.draw(strategies.sampled_from(values))
        assert disagreement("", document) == ""

    agree()


@pytest.mark.parametrize("kind", sorted(IPAM))
def test_schema_and_ipam_plugin_agree_on_every_key(kind: str) -> None:
    wrong = []
    base = {"type": "bridge", "ipam": RIGHT_IPAM[kind]}
    for path, schema in places(DEFINITIONS[kind]):
        wrong += [
            disagreement(path[-1], in_list(put(base, ("ipam", *path), value)), value) for value in candidates(schema)
        ]
    assert [*filter(None, wrong)][:3] == []


@pytest.mark.parametrize(
    ("plugin", "right"),
    [
        ({"type": "dummy"}, False),
        ({"type": "dummy", "ipam": {}}, False),
        ({"type": "vlan", "master": "eth0"}, False),
        ({"type": "vlan", "ipam": {"type": "static"}}, False),
        ({"type": "ptp", "ipam": {"type": "host-local"}}, False),
        ({"type": "ptp", "ipam": {"type": "host-local"}, "capabilities": {"ipRanges": False}}, False),
        ({"type": "ptp", "ipam": {"type": "host-local"}, "capabilities": {"ipRanges": True}}, True),
        ({"type": "ptp", "ipam": {"type": "host-local", "ranges": [[]]}, "capabilities": {"ipRanges": True}}, False),
        ({"type": "bridge", "hairpinMode": True, "promiscMode": True}, False),
        ({"type": "bridge", "hairpinMode": True, "promiscMode": False}, True),
        (
            {
                "type": "bridge",
                "disableContainerInterface": True,
                "ipam": {"type": "host-local", "subnet": "192.0.2.0/24"},
            },
            False,
        ),
        ({"type": "bridge", "disableContainerInterface": True, "ipam": {}}, True),
        ({"type": "bridge", "vlanTrunk": [{"minID": 5}]}, False),
        ({"type": "bridge", "vlanTrunk": [{"minID": 5, "maxID": 7}, {"id": 9}]}, True),
        ({"type": "bridge", "ipam": {"type": "host-local"}}, False),
        ({"type": "bridge", "ipam": {"type": "host-local", "ranges": []}}, False),
        ({"type": "bridge", "ipam": {"type": "host-local", "subnet": "192.0.2.0/24", "ranges": []}}, True),
        ({"type": "bridge", "ipam": {"type": "host-local", "ranges": [{"subnet": "192.0.2.0/24"}]}}, False),
        ({"type": "portmap", "markMasqBit": 3, "externalSetMarkChain": "X"}, False),
        ({"type": "portmap", "backend": "nftables", "externalSetMarkChain": "X"}, False),
        ({"type": "portmap", "ports": {"65535/TCP": {"share": True}}}, True),
        ({"type": "portmap", "ports": {"65536/tcp": {"share": True}}}, False),
        ({"type": "portmap", "ports": {"0/tcp": {}}}, False),
        ({"type": "portmap", "ports": {"80/icmp": {}}}, False),
        ({"type": "portmap", "ports": {"80/tcp": {"shar": True}}}, False),
        ({"type": "portmap", "ports": {"80/tcp": {"allow": []}}}, False),
        ({"type": "portmap", "ports": {"80/tcp": {"allow": ["192.0.2.0/24", "2001:db8::7"]}}}, True),
        ({"type": "firewall", "backend": "firewalld", "firewalldZone": "trusted"}, True),
        ({"type": "firewall", "backend": "firewalld", "firewalldZone": "no zone"}, False),
        ({"type": "bandwidth", "ingressRate": 8}, False),
        ({"type": "bandwidth", "ingressBurst": 8}, False),
        ({"type": "bandwidth", "ingressRate": 7, "ingressBurst": 80}, False),
        ({"type": "bandwidth", "ingressRate": 0, "ingressBurst": 0}, True),
        ({"type": "bandwidth", "egressRate": 8, "egressBurst": 34359738360}, False),
        ({"type": "tuning", "sysctl": {"kernel.panic": "1"}}, False),
        ({"type": "tuning", "sysctl": {"net/ipv4/conf/IFNAME/arp_filter": "1"}}, True),
        ({"type": "chain", "plugins": []}, False),
        ({"type": "chain"}, False),
        ({"type": "chain", "plugins": [{"type": "chain", "plugins": [{"type": "loopback"}]}]}, False),
        ({"type": "chain", "plugins": [{"type": "bridge", "vlan": 4095}]}, False),
        ({"type": "chain", "plugins": [{}]}, False),
        ({"type": "chain", "plugins": [{"type": "somebodys", "isGatway": 5}]}, True),
        ({"TYPE": "bridge", "ISGATEWAY": 5}, False),
        ({"TYPE": "bridge", "isgateway": True, "mtu": None, "dns": None}, True),
        ({"type": "somebodys", "vlan": "x"}, True),
        ({}, False),
    ],
)
def test_schema_and_plugin_agree_on_keys_that_belong_together(plugin: dict[str, Any], right: bool) -> None:
    document = in_list(plugin)
    assert (refusal(document) == "") is right, refusal(document)
    assert ([*schemas.violations(schemas.NETWORK, document)] == []) is right


def test_schema_and_reader_agree_on_the_keys_of_a_list() -> None:
    wrong = []
    for name, schema in NETWORK_SCHEMA["properties"].items():
        values = [*candidates(schema), *SUPPORTED, "True", "FALSE"] if name != "plugins" else [[], {}, "x", [{}], [1]]
        for value in values:
            document = {**in_list({"type": "loopback"}), name: value}
            found = [*schemas.violations(schemas.NETWORK, document)]
            refused = refusal(document)
            # 0.1.0 to 0.3.1 are right for the list; that of an unknown version, an error of each plugin
            if bool(found) != bool(refused) and not (name in STRICTER and name != "name" and found):
                wrong.append((name, value, found, refused))
    assert wrong == []


def test_a_single_plugin_needs_a_name() -> None:
    right = {"cniVersion": "1.0.0", "name": "lo", "type": "loopback"}
    assert [*schemas.violations(schemas.CONF, right)] == []
    for document in (
        {**right, "name": "a/b"},
        {"type": "loopback"},
        {"name": "lo"},
        {**right, "type": "bridge", "vlan": -1},
    ):
        assert [*schemas.violations(schemas.CONF, document)], document
        assert refusal(document), document


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "backend: nftables", "backend: iptables\nhostListener: refuse", "hostListener: warn"),
        *("backend: nft", "backend: 5", "backend:", "backend: [nftables]", "backends: nftables", "- backend", "x"),
        *("hostListener: true", "hostListener: {}", "backend: iptables\nx: 1"),
    ],
)
def test_schema_and_reader_agree_on_the_settings_of_the_host(text: str) -> None:
    import yaml

    try:
        backend.parse(text)
        refused = ""
    except CniError as error:
        refused = str(error)
    # Unlike Go's JSON, null is no value here: not plain()
    found = [*schemas.validator(schemas.CONFIG).iter_errors(yaml.safe_load(text))]
    assert bool(found) == bool(refused), (found, refused)


@pytest.mark.parametrize("name", schemas.NAMES)
def test_the_schemas_are_schemas_and_every_key_is_described(name: str) -> None:
    document = json.loads(schemas.text(name))
    jsonschema.Draft7Validator.check_schema(document)
    assert document["$id"].endswith(f"/{name}.schema.json")
    for path, schema in [
        *places(document),
        *(one for part in document.get("definitions", {}).values() for one in places(part)),
    ]:
        if schema != {"const": path[-2] if len(path) > 1 else schema.get("const")}:
            assert schema.get("description", "").endswith("."), path
        assert {"type", "anyOf", "const", "enum"} & schema.keys(), path
    assert all(len(text) <= 200 for text in described(document))


def test_texts_that_have_a_form_are_held_to_it() -> None:
    top = [*places(NETWORK_SCHEMA), *(one for part in DEFINITIONS.values() for one in places(part))]
    forms = [(path[-1], schema["pattern"]) for path, schema in top if "pattern" in schema and path[-1] != "plugins"]
    assert {name for name, _ in forms} == PATTERNED
    assert all(re.search(form, "a \0/b") is None for _, form in forms)


def described(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("description"), str):
            yield schema["description"]
        for part in schema.values():
            yield from described(part)
    if isinstance(schema, list):
        for part in schema:
            yield from described(part)


def keys_of(schema: Any) -> Keys:
    """The keys of a schema in the form of the table."""
    found: Keys = {}
    for name, inner in resolved(schema).get("properties", {}).items():
        key = resolved(inner)
        while key.get("type") == "array" and "allOf" not in key["items"]:
            key = resolved(key["items"])
        found[name] = keys_of(key) or None
    return found


def test_the_schemas_have_the_keys_of_the_table_and_no_others() -> None:
    common = keys_of(PLUGIN_SCHEMA)
    assert common.pop("capabilities") == CAPABILITIES
    assert common.pop("ipam") == {"type": None}
    assert common == {name: keys for name, keys in COMMON.items() if name not in ("capabilities", "ipam")}
    assert keys_of(NETWORK_SCHEMA) == LIST
    assert {name: keys_of(DEFINITIONS[name]) for name in PLUGINS} == PLUGINS
    assert {name: keys_of(DEFINITIONS[name]) for name in IPAM} == IPAM
    assert set(keys_of(json.loads(schemas.text(schemas.CONFIG)))) == set(backend.VALUES)


def test_every_key_of_the_documentation_is_in_the_schemas_and_the_reverse() -> None:
    sections = re.split(r"^## ", (ROOT / "docs/plugins.md").read_text(), flags=re.MULTILINE)
    head, *rest = sections
    in_tables = {part.split()[0]: rows(part) for part in rest}
    for plugin in PLUGINS:
        assert in_tables[plugin] == set(PLUGINS[plugin]), plugin
    for kind in IPAM:
        flat = set(IPAM[kind]) - {"type"}
        assert in_tables[kind] == flat, kind
    assert rows(head) == {*LIST, *COMMON}


def rows(section: str) -> set[str]:
    """The keys in the first column of a section's tables."""
    found = set()
    for line in section.splitlines():
        if line.startswith("| `"):
            found |= set(re.findall(r"`([A-Za-z0-9]+)`", line.split("|")[1]))
    return found


def test_own_defaults_are_those_of_the_readers() -> None:
    """A key that has its default's value is as good as no key: it makes no reader refuse a right configuration."""
    for plugin in PLUGINS:
        for path, schema in places(DEFINITIONS[plugin]):
            if "default" in schema and len(path) == 1 and plugin != "bandwidth":
                document = in_list({"type": plugin, **RIGHT[plugin], path[0]: schema["default"]})
                if (plugin, path[0]) != ("portmap", "markMasqBit"):
                    assert refusal(document) == "", (plugin, path)


# Recorded configurations that the Go plugins and ours take, although the schema says that something in them is wrong.
TAKEN = {
    "protocol/version ADD: empty": "no version is an old one; runtimes write one",
    "ipMasq/unknown backend without ipMasq": "the key is not read then",
    "ADD/mtu negative": "as 0",
    "config ADD/mtu negative": "as 0",
    "ADD/table negative": "the kernel chooses a table, which is empty",
    "ADD/table 0": "the same",
    "config ADD/txQLen negative": "the kernel's own value is kept",
    "config ADD/backend unknown": "as if not given",
    "config ADD/route without dst": "the result has a route to <nil>, which runtimes cannot read",
}


def test_recorded_configurations_that_are_taken_are_right() -> None:
    wrong = set()
    tried = 0
    for path in sorted((ROOT / "tests/golden").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            case = json.loads(line)
            if (case["exit"], case["env"].get("CNI_COMMAND")) != (0, "ADD") or not isinstance(case["stdin"], dict):
                continue
            document = json.loads(json.dumps(case["stdin"]).replace("{DATADIR}", "/d"))
            known = {name.lower() for name in document}
            tried += 1
            if [*schemas.violations(schemas.CONF, document if "type" in known else document | {"type": path.stem})]:
                wrong.add(case["name"])
    assert wrong == set(TAKEN)
    assert tried > 700


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.conflist")), ids=lambda path: path.name)
def test_our_examples_are_right(path: Path) -> None:
    document = json.loads(path.read_text())
    assert [*schemas.violations(schemas.NETWORK, document)] == []
    assert refusal(document) == ""
    assert "$schema" not in document  # some runtimes refuse keys that they do not know


def test_a_document_that_is_too_deep_is_told() -> None:
    document: Any = {}
    for _ in range(5000):
        document = {"plugins": [document]}
    assert "deep" in next(schemas.violations(schemas.NETWORK, document)).what
