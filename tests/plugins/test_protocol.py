"""What all executables answer to a well or badly formed call, before they do anything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from lab import Lab
from runtime import ALL, Outcome, Plugins
from snapshot import difference

from cni_py.version import spoken_by
from tests.plugins.bridge_network import Conf, ours_alone

EXECUTABLES = (
    "bandwidth",
    "bridge",
    "chain",
    "dhcp",
    "firewall",
    "host-device",
    "host-local",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "sbr",
    "static",
    "tuning",
    "vrf",
)
CONF: Conf = {"cniVersion": "1.0.0", "name": "net", "type": "any", "plugins": [{"type": "loopback"}]}  # for chain
pytestmark = pytest.mark.unchained
every = pytest.mark.parametrize("name", EXECUTABLES)

Env = dict[str, str | None]


@pytest.fixture(autouse=True, scope="module")
def unchanged(shared_lab: Lab) -> Iterator[None]:
    """None of these leaves a trace on the host or in the container, the folders for locks and for what is published aside."""
    make = "umask 077; mkdir -p /run/cni-py/lock /run/cni-py/published; : >/run/cni-py/lock/nftables"
    shared_lab["host"].run(["sh", "-c", make], check=True)

    def state() -> dict[str, object]:
        return {node: shared_lab.snapshot(node) for node in ("host", "c1")}

    before = state()
    yield
    assert not difference(before, state())


def run(
    lab: Lab,
    plugins: Plugins,
    verb: str,
    name: str,
    conf: Mapping[str, object] | str = CONF,
    *,
    env: Mapping[str, str | None] | None = None,
) -> Outcome:
    return plugins.run(lab, verb, name, conf, "c1", None, "eth0", **(env or {}))


def spoken(plugins: Plugins, name: str) -> tuple[str, ...]:
    """The versions of the specification that the plugin knows."""
    return tuple(each for each in plugins.versions if each in spoken_by(name))


def refused(outcome: Outcome, code: int, text: str = "") -> dict[str, Any]:
    """The error object: alone on stdout, its text in msg or details, no traceback."""
    assert (outcome.status, outcome.json["code"]) == (1, code), outcome
    assert text in f"{outcome.json['msg']} {outcome.json.get('details', '')}"
    assert set(outcome.json) <= {"cniVersion", "code", "msg", "details"}
    assert "Traceback" not in outcome.stderr
    return outcome.json


# Without a configuration


@every
def test_version_lists_what_it_speaks_on_one_line_without_reading_stdin(
    shared_lab: Lab, plugins: Plugins, name: str
) -> None:
    nothing_else = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"))
    for conf in ("", "no JSON", CONF):
        outcome = run(shared_lab, plugins, "VERSION", name, conf, env=nothing_else)
        assert (outcome.status, outcome.stdout.count("\n")) == (0, 1)
        assert outcome.json == {"cniVersion": plugins.versions[-1], "supportedVersions": [*spoken(plugins, name)]}


@every
def test_without_a_verb_it_says_what_it_is_on_stderr(shared_lab: Lab, plugins: Plugins, name: str) -> None:
    for verb in (None, ""):
        outcome = run(shared_lab, plugins, "", name, "", env={"CNI_COMMAND": verb})
        assert (outcome.status, outcome.stdout) == (0, "")
        first, second = outcome.stderr.splitlines()
        assert re.match(rf"CNI {name} plugin", first)
        assert second == f"CNI protocol versions supported: {', '.join(spoken(plugins, name))}"


# The environment

MISSING = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
}


@every
@pytest.mark.parametrize(("verb", "value"), [("ADD", None), ("ADD", ""), ("CHECK", None), ("DEL", "")])
def test_all_variables_that_are_missing_are_named_together(
    shared_lab: Lab, plugins: Plugins, name: str, verb: str, value: str | None
) -> None:
    variables = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"), value)
    answer = refused(run(shared_lab, plugins, verb, name, env=variables), 4)
    assert answer["msg"] == f"required env variables [{','.join(MISSING[verb])}] missing"


@pytest.mark.ours_alone
@every
@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_verbs_of_a_network_need_the_path_alone(shared_lab: Lab, plugins: Plugins, name: str, verb: str) -> None:
    nothing = dict.fromkeys(("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"))
    answer = refused(run(shared_lab, plugins, verb, name, env=nothing), 4)
    assert answer["msg"] == "required env variables [CNI_PATH] missing"


BAD_VALUES: dict[str, tuple[Env, str]] = {
    "a container ID that is a path": ({"CNI_CONTAINERID": "../x"}, "invalid characters in containerID"),
    "a container ID with a blank": ({"CNI_CONTAINERID": "a b"}, "invalid characters in containerID"),
    "a container ID with a line feed": ({"CNI_CONTAINERID": "a\n"}, "invalid characters in containerID"),
    "a container ID with a dot first": ({"CNI_CONTAINERID": ".a"}, "invalid characters in containerID"),
    "a container ID that is not ASCII": ({"CNI_CONTAINERID": "ü"}, "invalid characters in containerID"),
    "an interface name too long": ({"CNI_IFNAME": "e" * 16}, "interface name is too long"),
    "an interface name too long in bytes": ({"CNI_IFNAME": "ü" * 8}, "interface name is too long"),
    "an interface called .": ({"CNI_IFNAME": "."}, "interface name is . or .."),
    "an interface called ..": ({"CNI_IFNAME": ".."}, "interface name is . or .."),
    "an interface name with a slash": (
        {"CNI_IFNAME": "a/b"},
        "interface name contains / or : or whitespace characters",
    ),
    "an interface name with a colon": (
        {"CNI_IFNAME": "a:b"},
        "interface name contains / or : or whitespace characters",
    ),
    "an interface name with a blank": (
        {"CNI_IFNAME": "a b"},
        "interface name contains / or : or whitespace characters",
    ),
    "an interface name with a wide blank": ({"CNI_IFNAME": "a\u2003b"}, "interface name contains / or : or whitespace"),
    "the first of two": ({"CNI_CONTAINERID": "a b", "CNI_IFNAME": "a b"}, "invalid characters in containerID"),
}
BOTH_WRONG: dict[str, tuple[Env, str]] = {  # Debian's Go plugins have another order
    "a bad one before a missing one": ({"CNI_IFNAME": "a b", "CNI_PATH": None}, "interface name contains"),
    "a missing one before a bad one": ({"CNI_CONTAINERID": None, "CNI_IFNAME": "a b"}, "interface name contains"),
}


@pytest.mark.parametrize("what", [*BAD_VALUES, *map(ours_alone, BOTH_WRONG)])
def test_a_malformed_variable_is_refused_for_every_verb_that_needs_it(
    shared_lab: Lab, plugins: Plugins, what: str
) -> None:
    env, text = {**BAD_VALUES, **BOTH_WRONG}[what]
    for verb in ("ADD", "CHECK", "DEL"):
        refused(run(shared_lab, plugins, verb, "bridge", env=env), 4, text)


@pytest.mark.ours_alone
@every
def test_a_del_of_a_name_that_no_interface_can_have_succeeds(shared_lab: Lab, plugins: Plugins, name: str) -> None:
    """The rules for CNI_IFNAME let it pass, the kernel does not: no ADD can have made it."""
    assert run(shared_lab, plugins, "DEL", name, env={"CNI_IFNAME": "eth%d"}).status == 0


@every
def test_an_unknown_verb_is_refused_after_the_configuration_was_read(
    shared_lab: Lab, plugins: Plugins, name: str
) -> None:
    for verb, conf in (("add", CONF), ("ADD ", CONF), ("FOO", {"cniVersion": "9.9.9", "name": "net"})):
        refused(run(shared_lab, plugins, verb, name, conf), 4, f"unknown CNI_COMMAND: {verb}")
    refused(run(shared_lab, plugins, "FOO", name, "no JSON"), 6)
    refused(run(shared_lab, plugins, "FOO", name, {"cniVersion": "1.0.0"}), 7)


# The configuration

BAD_CONFS: dict[str, tuple[str, int, str]] = {
    "nothing": ("", 6, ""),
    "text": ("no JSON", 6, ""),
    "half an object": ('{"cniVersion": "1.0.0", "name": "net"', 6, ""),
    "two objects": (json.dumps(CONF) * 2, 6, ""),
    "a list": ("[]", 6, ""),
    "a number": ("1", 6, ""),
    "no number": ('{"cniVersion": "1.0.0", "name": "net", "x": NaN}', 6, ""),
    "a version that is a number": ('{"cniVersion": 1, "name": "net"}', 6, ""),
    "a name that is a number": ('{"cniVersion": "1.0.0", "name": 1}', 6, ""),
    "no name": ('{"cniVersion": "1.0.0"}', 7, "missing network name"),
    "an empty name": ('{"cniVersion": "1.0.0", "name": ""}', 7, "missing network name"),
    "null": ("null", 7, "missing network name"),
    "a name that is a path": ('{"cniVersion": "1.0.0", "name": "../x"}', 7, "invalid characters found in network name"),
    "a name with a blank": ('{"cniVersion": "1.0.0", "name": "a b"}', 7, "invalid characters found in network name"),
    "an unknown version": ('{"cniVersion": "9.9.9", "name": "net"}', 1, ""),
    "half a version": ('{"cniVersion": "1.0", "name": "net"}', 1, ""),
}


@pytest.mark.parametrize("what", BAD_CONFS)
def test_a_configuration_that_is_none_is_refused(shared_lab: Lab, plugins: Plugins, what: str) -> None:
    text, code, part = BAD_CONFS[what]
    for verb in ("ADD", "DEL"):
        refused(run(shared_lab, plugins, verb, "bridge", text), code, part)


@every
def test_an_unknown_version_is_told_the_known_ones(shared_lab: Lab, plugins: Plugins, name: str) -> None:
    answer = refused(run(shared_lab, plugins, "DEL", name, {**CONF, "cniVersion": "0.9.0"}), 1)
    listed = " ".join(f'"{each}"' for each in spoken(plugins, name))
    assert answer["msg"] == "incompatible CNI versions"
    assert answer["details"] == f'config is "0.9.0", plugin supports [{listed}]'


SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
TOO_OLD = [(verb, version) for verb, since in SINCE.items() for version in ALL if version < since]


@pytest.mark.parametrize(
    ("verb", "version"), [pair if pair[0] == "CHECK" else ours_alone(*pair) for pair in [*TOO_OLD, ("CHECK", "")]]
)
def test_a_verb_that_the_configurations_version_does_not_have_is_refused(
    shared_lab: Lab, plugins: Plugins, verb: str, version: str
) -> None:
    refused(run(shared_lab, plugins, verb, "bridge", {**CONF, "cniVersion": version}), 1, f"does not allow {verb}")


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.ours_alone
def test_a_deeply_nested_configuration_is_refused(shared_lab: Lab, plugins: Plugins) -> None:
    refused(run(shared_lab, plugins, "ADD", "bridge", f'{{"cniVersion": "1.0.0", "name": "net", "x": {NESTED}}}'), 6)


@pytest.mark.parametrize("name", ["bridge", "host-local"])
@pytest.mark.parametrize("args", ["K", "K=1=2", "=;", "K=1;"])
def test_cni_args_that_are_no_pairs_are_refused(shared_lab: Lab, plugins: Plugins, name: str, args: str) -> None:
    conf = {**CONF, "bridge": "br0", "ipam": {"type": "host-local", "subnet": "192.0.2.0/24"}}
    code = 4 if plugins.whose == "ours" else 999
    refused(run(shared_lab, plugins, "ADD", name, conf, env={"CNI_ARGS": args}), code, "ARGS: ")
    if plugins.whose == "ours":
        assert run(shared_lab, plugins, "DEL", name, conf, env={"CNI_ARGS": args}).status == 0


# The namespace


@pytest.mark.ours_alone
@every
def test_the_plugins_own_namespace_is_refused_before_anything_is_done(
    shared_lab: Lab, plugins: Plugins, name: str
) -> None:
    """The Go plugins notice it afterwards, and print two objects. A DEL leaves it alone and releases the rest."""
    conf = {**CONF, "ipam": {"type": "host-local", "subnet": "192.0.2.0/24"}}
    outcome = run(shared_lab, plugins, "ADD", name, conf, env={"CNI_NETNS": "/proc/self/ns/net"})
    refused(outcome, 8, "plugin's netns and netns from CNI_NETNS should not be the same")
    assert run(shared_lab, plugins, "DEL", name, conf, env={"CNI_NETNS": "/proc/self/ns/net"}).status == 0
