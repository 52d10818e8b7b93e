"""The table of known keys against what the plugins read, and the notes made from it."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import cni_py
import cni_py.plugins
from cni_py.commands import keys
from cni_py.plugins import known_keys
from cni_py.plugins.known_keys import COMMON, IPAM, PLUGINS, Keys
from cni_py.protocol import conflist
from cni_py.run import MODULES

CORE = Path(cni_py.__file__).parent
FOLDER = Path(str(cni_py.plugins.__file__)).parent
READERS = {
    *("string", "boolean", "integer", "child", "values", "strings", "objects", "lookup", "unsigned", "_vlan_id"),
    *("optional_string", "optional_boolean", "optional_integer", "_optional_ip", "_one_of", "_ip"),
}
SOURCES = {  # where the keys of each plugin are read, beside <plugin>*.py
    "dhcp": ("ipam/dhcp.py", "ipam/dhcp_options.py"),
    "host-local": ("ipam/ranges.py",),
    "portmap": ("ports/config.py", "ports/mapping.py"),
}
RUNTIMES = {  # read there too, but of what a runtime sends: runtimeConfig, args.cni, prevResult
    *("portMappings", "containerPort", "hostPort", "protocol", "hostIP", "ipRanges", "ips", "bandwidth", "cni"),
    *("io.kubernetes.cri.pod-annotations", "runtimeConfig", "mac", "deviceID"),
}
OF_THE_REFERENCE = {"name"}  # accepted without being read, as by the Go plugins


def modules_of(plugin: str) -> list[Path]:
    """The files in which a plugin reads its configuration."""
    name = MODULES[plugin]
    return [
        *FOLDER.glob(f"{name}.py"),
        *FOLDER.glob(f"{name}_*.py"),
        *(CORE / file for file in SOURCES.get(plugin, ())),
        *(FOLDER.glob("device_conf.py") if plugin == "host-device" else ()),
    ]


def reads(plugin: str) -> set[str]:
    """The keys that stand literally where a value is read."""
    found = set()
    for path in modules_of(plugin):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in READERS and isinstance(node.args[1].value, str):
                    found.add(node.args[1].value)
    return found


def literals(plugin: str) -> set[str]:
    """Every text in the files, those made of a number at their end included."""
    found = set()
    for path in [*modules_of(plugin), CORE / "protocol/result.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {node.value, f"{node.value}4", f"{node.value}6"}
    return found


def flat(known: Keys) -> Iterator[str]:
    for name, inner in known.items():
        yield name
        yield from flat(inner or {})


def known_to(plugin: str) -> set[str]:
    return set(flat(PLUGINS[plugin] if plugin in PLUGINS else IPAM[plugin]))


@pytest.mark.parametrize("plugin", sorted(MODULES))
def test_the_table_has_what_the_plugin_reads_and_nothing_else(plugin: str) -> None:
    known = known_to(plugin)
    assert reads(plugin) <= known | RUNTIMES | set(flat(COMMON))
    assert known - OF_THE_REFERENCE - {"type", "hostListener"} <= literals(plugin)


def test_every_plugin_is_in_the_table() -> None:
    assert {*PLUGINS, *IPAM} == set(MODULES)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[3] / "conf").glob("*.conflist")), ids=lambda path: path.name
)
def test_our_own_configurations_have_known_keys_alone(path: Path) -> None:
    assert keys.unknown(conflist.read(path)) == []


def noted(plugin: dict[str, object], **top: object) -> list[str]:
    text = json.dumps({"cniVersion": "1.0.0", "name": "n", "plugins": [plugin], **top}, indent=1)
    return keys.unknown(conflist.parse(text.encode(), "a.conflist"))


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        ({"isGatway": True}, "bridge does not know the key isGatway; did you mean isGateway? (a.conflist, line "),
        ({"brigde": "x"}, "did you mean bridge?"),
        ({"quux": 1}, "bridge does not know the key quux (a.conflist, line "),
        ({"vlanTrunk": [{"id": 5}, {"minId": 5, "maxIDs": 7}]}, "bridge, vlanTrunk: does not know the key maxIDs"),
        ({"dns": {"nameserver": []}}, "did you mean nameservers?"),
        ({"capabilities": {"portMaping": True}}, "bridge's capabilities does not know the key portMaping"),
        ({"ipam": {"type": "host-local", "range": []}}, "host-local (ipam of bridge) does not know the key range;"),
        ({"ipam": {"type": "host-local", "ranges": [[{"subnt": "x"}]]}}, "did you mean subnet?"),
        (
            {"type": "chain", "plugins": [{"type": "portmap", "snatt": 1}]},
            "portmap does not know the key snatt; did you mean",
        ),
        ({"ipam": {"type": "static", "addresses": [{"adress": "x"}]}}, "did you mean address?"),
    ],
)
def test_a_key_that_is_not_known_is_noted(plugin: dict[str, object], says: str) -> None:
    found = noted({"type": "bridge", **plugin})
    assert len(found) == 1
    assert says in found[0]


def test_a_key_of_the_list_is_noted_where_it_is_like_a_known_one() -> None:
    assert "did you mean disableCheck?" in noted({"type": "bridge"}, disableChek=True)[0]
    assert noted({"type": "bridge"}, nerdctlID="0123", nerdctlLabels={}) == []


@pytest.mark.parametrize(
    "plugin",
    [
        {
            "type": "bridge",
            "ISGATEWAY": True,
            "x-mine": 1,
            "_comment": "",
            "args": {"cni": {"any": 1}},
            "log": "journal",
        },
        {"type": "tuning", "sysctl": {"net.core.somaxconn": "1"}},
        {"type": "portmap", "ports": {"8080/tcp": {"share": True}}},
        {"type": "somebody", "isGatway": True},
        {"type": "bridge", "capabilities": {"deviceID": True}},
        {"type": "bridge", "ipam": {"type": "whereabouts", "rnge": "x"}},
        {"type": "bridge", "dns": "x"},  # the plugin's own affair
    ],
)
def test_what_may_be_there_is_not_noted(plugin: dict[str, object]) -> None:
    assert noted(plugin) == []


def test_no_plugin_loads_the_table() -> None:
    name = known_keys.__name__.rpartition(".")[2]
    for path in [*CORE.glob("*.py"), *FOLDER.glob("*.py")]:
        assert f"import {name}" not in path.read_text(), path
        assert f"{name} import" not in path.read_text(), path
