"""The executable static: it answers with what it is told, and keeps nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from runtime import ALL, REFUSALS, Plugins
from snapshot import difference

from tests.plugins.bridge_network import BridgeNetwork, Conf

if TYPE_CHECKING:
    from lab import Lab

    from tests.conftest import Cni

FOUR = {"address": "10.1.2.3/24", "gateway": "10.1.2.1"}
SIX = {"address": "fd00:1:2::3/64", "gateway": "fd00:1:2::1"}
ROUTES = [{"dst": "0.0.0.0/0"}, {"dst": "fd00:9::/64", "gw": "fd00:1:2::9"}]
DNS = {"nameservers": ["10.1.2.53"], "domain": "example.test", "search": ["a.test"], "options": ["ndots:2"]}


@pytest.fixture(scope="module")
def lab(shared_lab: Lab) -> Lab:
    """The same for all tests: the plugin changes nothing on its host."""
    return shared_lab


def conf(ipam: Mapping[str, object], version: str = "1.0.0", **keys: object) -> Conf:
    return {"cniVersion": version, "name": "net1", "type": "bridge", "ipam": {"type": "static", **ipam}, **keys}


@pytest.mark.parametrize("version", ALL)
def test_every_version_gets_what_is_configured_in_its_own_form(cni: Cni, plugins: Plugins, version: str) -> None:
    if version not in plugins.versions:
        pytest.skip(f"these plugins do not know {version}")
    asked = conf({"addresses": [FOUR, SIX], "routes": ROUTES, "dns": DNS}, version)
    result = cni("ADD", "static", asked).json
    assert (result["cniVersion"], result["dns"]) == (version, DNS)
    if version < "0.3.0":
        blocks = [{"ip": ip["address"], "gateway": ip["gateway"]} for ip in (FOUR, SIX)]
        assert result["ip4"] == {**blocks[0], "routes": ROUTES[:1]}
        assert result["ip6"] == {**blocks[1], "routes": ROUTES[1:]}
        return
    families = [{"version": text} if version < "1.0.0" else {} for text in "46"]
    assert result["ips"] == [{**FOUR, **families[0]}, {**SIX, **families[1]}]
    assert result["routes"] == ROUTES
    if version >= "0.4.0":
        assert cni("CHECK", "static", {**asked, "prevResult": result}).status == 0


WISHES: dict[str, tuple[Conf, str, list[Conf]]] = {
    "none": ({}, "", [FOUR]),
    "CNI_ARGS are added": (
        {},
        "IP=10.5.5.5/24, fd00::5/64",
        [FOUR, {"address": "10.5.5.5/24"}, {"address": "fd00::5/64"}],
    ),
    "a gateway for what CNI_ARGS add": (
        {},
        "IgnoreUnknown=1;K8S=1;IP=10.5.5.5/24,10.6.6.6/24;GATEWAY=10.6.6.1",
        [FOUR, {"address": "10.5.5.5/24"}, {"address": "10.6.6.6/24", "gateway": "10.6.6.1"}],
    ),
    "args replace": ({"args": {"cni": {"ips": ["10.5.5.5/24"]}}}, "IP=10.7.7.7/24", [{"address": "10.5.5.5/24"}]),
    "an empty list replaces nothing": ({"args": {"cni": {"ips": []}}}, "", [FOUR]),
    "runtimeConfig replaces those": (
        {"args": {"cni": {"ips": ["10.5.5.5/24"]}}, "runtimeConfig": {"ips": ["10.6.6.6/24", "FD00:0::6/64"]}},
        "",
        [{"address": "10.6.6.6/24"}, {"address": "fd00::6/64"}],
    ),
}
WITHOUT_PREFIX: dict[str, tuple[Conf, str, list[Conf]]] = {
    "in CNI_ARGS": ({}, "IP=10.1.2.7", [FOUR, SIX, {**FOUR, "address": "10.1.2.7/24"}]),
    "two in CNI_ARGS": (
        {},
        "IP=fd00:1:2::7, 10.1.2.7/25;GATEWAY=fd00:1:2::9",
        [FOUR, SIX, {"address": "fd00:1:2::7/64", "gateway": "fd00:1:2::9"}, {"address": "10.1.2.7/25"}],
    ),
    "in args": ({"args": {"cni": {"ips": ["10.1.2.7"]}}}, "", [{**FOUR, "address": "10.1.2.7/24"}]),
    "in runtimeConfig": (
        {"runtimeConfig": {"ips": ["FD00:1:2::7", "10.1.2.8", "10.6.6.6/24"]}},
        "",
        [{**SIX, "address": "fd00:1:2::7/64"}, {**FOUR, "address": "10.1.2.8/24"}, {"address": "10.6.6.6/24"}],
    ),
}


@pytest.mark.parametrize("wish", WISHES)
def test_the_runtime_may_ask_for_other_addresses(cni: Cni, wish: str) -> None:
    keys, cni_args, expected = WISHES[wish]
    outcome = cni("ADD", "static", conf({"addresses": [FOUR]}, **keys), CNI_ARGS=cni_args)
    assert outcome.json["ips"] == expected


@pytest.mark.ours_alone
@pytest.mark.parametrize("wish", WITHOUT_PREFIX)
def test_an_address_without_prefix_length_is_one_of_its_configured_subnet(cni: Cni, wish: str) -> None:
    keys, cni_args, expected = WITHOUT_PREFIX[wish]
    asked = conf({"addresses": [FOUR, SIX]}, **keys)
    outcome = cni("ADD", "static", asked, CNI_ARGS=cni_args)
    assert outcome.json["ips"] == expected
    checked = cni("CHECK", "static", {**asked, "prevResult": outcome.json}, CNI_ARGS=cni_args)
    assert checked.status == 0


@pytest.mark.ours_alone
@pytest.mark.parametrize("text", ["10.1.2.1", "10.5.5.5", "fd00:9::1", "10.1.2", "10.1.2.7/", ""])
def test_an_address_that_has_no_subnet_or_is_its_gateway_is_refused(cni: Cni, text: str) -> None:
    outcome = cni("ADD", "static", conf({"addresses": [FOUR, SIX]}, runtimeConfig={"ips": [text]}))
    assert outcome.code == 7
    assert (f"'{text}'" if text != "10.1.2.1" else "requested ip 10.1.2.1 is subnet's gateway") in outcome.json["msg"]


@pytest.mark.parametrize(
    ("ipam", "keys", "cni_args", "complaint"),
    [
        ({"addresses": [{"address": "10.1.2.3"}]}, {}, "", "'address' field is expected to be in CIDR notation, got: '10.1.2.3'"),
        ({"addresses": [{"gateway": "10.1.2.1"}]}, {}, "", "'address' field is expected to be in CIDR notation, got: ''"),
        ({"addresses": [{"address": "10.1.2.3/24", "gateway": "x"}]}, {}, "", "invalid IP address: x"),
        ({"addresses": [FOUR], "routes": [{"dst": "x"}]}, {}, "", "invalid CIDR address: x"),
        ({"addresses": [FOUR]}, {}, "IP=10.5.5.5", "'ip' field is expected to be in CIDR notation, got: '10.5.5.5'"),
        ({"addresses": [FOUR]}, {}, "GATEWAY=x", "invalid gateway address: x"),
        ({"addresses": [FOUR]}, {}, "MAC=02:00:00:00:00:01", "ARGS: unknown args"),
        ({}, {"runtimeConfig": {"ips": ["10.6.6.6"]}}, "", "10.6.6.6"),
        ({"addresses": [FOUR, FOUR]}, {"cniVersion": "0.2.0"}, "", "does not support more than 1 address per family"),
        ({"addresses": "x"}, {}, "", "addresses"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_add_and_not_by_del(
    cni: Cni, ipam: Conf, keys: Conf, cni_args: str, complaint: str
) -> None:
    asked = {**conf(ipam), **keys}
    outcome = cni("ADD", "static", asked, CNI_ARGS=cni_args)
    assert outcome.code in REFUSALS
    assert complaint in outcome.json["msg"]
    deleted = cni("DEL", "static", asked, CNI_ARGS=cni_args)
    assert (deleted.status, deleted.stdout) == (0, "")


@pytest.mark.parametrize("netns", ["", "/run/netns/never-was"])
def test_del_needs_no_namespace(cni: Cni, netns: str) -> None:
    assert cni("DEL", "static", conf({"addresses": [FOUR]}), netns=netns).status == 0


@pytest.mark.parametrize(
    ("held", "well"),
    [
        ([FOUR], True),
        ([{"address": "10.1.2.9/24"}, FOUR], True),
        ([{"address": "10.1.2.9/24"}], True),
        ([{**FOUR, "gateway": "10.1.2.9"}], False),
        ([{"address": "10.1.2.3/24"}], False),
        (None, False),
    ],
    ids=["the same", "one more", "another", "another gateway", "no gateway", "no prevResult"],
)
def test_check_compares_gateways(cni: Cni, held: list[Conf] | None, well: bool) -> None:
    earlier: Conf = {} if held is None else {"prevResult": {"cniVersion": "1.0.0", "ips": held}}
    assert (cni("CHECK", "static", conf({"addresses": [FOUR]}, **earlier)).status == 0) == well


@pytest.mark.ours_alone
def test_status_tells_whether_add_would_succeed_and_gc_has_nothing_to_do(cni: Cni, lab: Lab) -> None:
    good, bad = ({"addresses": [address]} for address in (FOUR, {"address": "10.1.2.3"}))
    before = lab.snapshot("host")
    assert cni("STATUS", "static", conf(good, "1.1.0")).status == 0
    assert cni("STATUS", "static", conf(bad, "1.1.0")).code in REFUSALS
    assert cni("GC", "static", conf(bad, "1.1.0", **{"cni.dev/valid-attachments": []})).status == 0
    assert not difference(before, lab.snapshot("host"))


@pytest.mark.ours_alone
@pytest.mark.parametrize("version", ["0.2.0", "1.0.0", "1.1.0"])
def test_bridge_takes_its_addresses_and_its_dns(net: BridgeNetwork, version: str) -> None:
    """Versions without fields of a route do without them. Go's bridge of 1.1.1 drops the DNS settings and the priority."""
    address, gateway = f"{net.address(4, 77)}/24", net.address(4, 1)
    route: dict[str, Any] = {"dst": "192.0.2.0/24", "priority": 5}
    ipam = {"type": "static", "addresses": [{"address": address, "gateway": gateway}], "routes": [route], "dns": DNS}
    asked = net.conf(version)
    asked["ipam"] = ipam
    net.warm(asked)
    before = net.state()
    result = net.well("ADD", asked).json
    assert (net.held(net.a, "eth0"), result["dns"]) == ([address], DNS)
    shown = net.lab[net.a].run(["ip", "route", "show", "192.0.2.0/24"], check=True).stdout
    assert ("metric 5" in shown) == (version >= "0.3.0")
    if version >= "0.4.0":
        assert net.check(asked, result).status == 0
    net.well("DEL", asked)
    assert not difference(before, net.state())
