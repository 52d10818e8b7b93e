"""One namespace seen from inside: rulesets that are there, and none that asking would make; names that are no text."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from cni_py.host import inside, rulesets
from cni_py.host.model import Rule
from cni_py.host.spaces import own_key
from cni_py.kernel.netlink import attr
from cni_py.kernel.rtnl import IFLA_IFALIAS, RTM_SETLINK, Rtnl, ifinfomsg
from tests import lacking

TABLES = [Path(f"/proc/thread-self/net/{kind}_tables_names") for kind in ("ip", "ip6")]


def run(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


def look() -> inside.Seen:
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        return inside.look(own_key(), fd)
    finally:
        os.close(fd)


def legacy() -> list[str]:
    return [path.read_text() if path.exists() else "" for path in TABLES]


@pytest.mark.netns
def test_an_empty_namespace_stays_empty() -> None:
    before = legacy()
    seen = look()
    assert (seen.namespace.nftables, seen.namespace.iptables, seen.gaps) == (rulesets.EMPTY, (), [])
    assert legacy() == before == ["", ""]
    assert subprocess.check_output(["nft", "list", "ruleset"]) == b""


@pytest.mark.debian_kernel
@pytest.mark.netns
def test_both_variants_of_iptables_are_read() -> None:
    run("iptables-nft -t mangle -A PREROUTING -p tcp --dport 80 -j MARK --set-mark 7")
    tried = subprocess.run(["iptables-legacy", "-t", "nat", "-N", "MINE"], check=False, capture_output=True, text=True)
    if tried.returncode:
        lacking.unavailable(f"iptables-legacy: {tried.stderr.strip()}")
    before = legacy()
    found = dict(look().namespace.iptables)
    assert found.keys() == {"iptables-nft", "iptables-legacy"}
    assert "*mangle\n" in found["iptables-nft"]
    assert ":MINE - [0:0]\n" in found["iptables-legacy"]
    assert "# " not in "".join(found.values())  # the time of day
    assert legacy() == before


@pytest.mark.netns
def test_a_table_of_somebody_elses_does_not_start_iptables() -> None:
    run("nft add table inet mine", "nft add chain inet mine c")
    seen = look()
    assert '"mine"' in seen.namespace.nftables
    assert seen.namespace.iptables == ()


@pytest.mark.netns
def test_names_and_aliases_need_not_be_text() -> None:
    side = Rtnl()
    side.add_veth("a\udcff\x1b[1m", "b<i>")
    index = side.index("b<i>")
    side.request(RTM_SETLINK, 0, ifinfomsg(index) + attr(IFLA_IFALIAS, b"\xff<script>\x1b[31m"))
    found = {link.name: link for link in look().namespace.links}
    assert found.keys() == {"lo", "a\udcff\x1b[1m", "b<i>"}
    assert found["b<i>"].alias == "\udcff<script>\x1b[31m"
    assert found["b<i>"].peer_index == found["a\udcff\x1b[1m"].index


@pytest.mark.netns
def test_routes_and_rules_of_every_kind() -> None:
    run(
        "ip link add v1 type veth peer name v2", "ip link set v1 up", "ip link set v2 up",
        "ip addr add 192.0.2.1/24 dev v1", "ip addr add 198.51.100.1 peer 203.0.113.1/32 dev v1",
        "ip route add 10.9.0.0/16 nexthop via 192.0.2.5 dev v1 nexthop via 192.0.2.6 dev v1",
        "ip route add blackhole 10.8.0.0/16 metric 7", "ip route add 10.7.0.0/16 via inet6 fe80::1 dev v1",
        "ip route add unreachable 10.6.0.0/16 table 1000 proto static", "ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev v1",
        "ip rule add pref 100 from 192.0.2.0/24 fwmark 0x10/0xff iif v1 table 1000",
    )  # fmt: skip
    seen = look()
    routes = {one.destination: one for one in seen.namespace.routes if one.table != 255}
    assert (routes["10.9.0.0/16"].gateway, routes["10.9.0.0/16"].link) == ("192.0.2.5", "v1")
    assert (routes["10.8.0.0/16"].kind, routes["10.8.0.0/16"].metric) == ("blackhole", 7)
    assert routes["10.7.0.0/16"].gateway == "fe80::1"
    assert (routes["10.6.0.0/16"].kind, routes["10.6.0.0/16"].table, routes["10.6.0.0/16"].protocol) == (
        "unreachable", 1000, "static",
    )  # fmt: skip
    (v1,) = [link for link in seen.namespace.links if link.name == "v1"]
    assert ("198.51.100.1", 32) in [(one.address, one.prefix) for one in v1.addresses]
    assert ("192.0.2.7", "02:00:00:00:00:07", "permanent") in [
        (one.address, one.mac, one.state) for one in seen.namespace.neighbours
    ]
    assert Rule(4, 100, "lookup", 1000, "192.0.2.0/24", "", "v1", "", 0x10, 0xFF) in seen.namespace.rules


@pytest.mark.netns
@pytest.mark.parametrize("words", ["ipproto tcp dport 80", "suppress_ifgroup 7", "uidrange 0-9"])
def test_a_rule_that_asks_for_more_says_so(words: str) -> None:
    run(f"ip rule add pref 100 {words} table 1000")
    found = [one.other for one in look().namespace.rules if one.priority == 100]
    assert found == [True]


@pytest.mark.netns
def test_the_rules_of_wg_quick() -> None:
    run("ip rule add pref 99 lookup main suppress_prefixlength 0", "ip rule add pref 100 not fwmark 7 table 1000")
    seen = look().namespace.rules
    assert Rule(4, 99, "lookup", 254, suppress=0) in seen
    assert Rule(4, 100, "lookup", 1000, mark=7, mask=0xFFFFFFFF, inverted=True) in seen


def test_a_namespace_of_others_is_an_error_of_its_own(tmp_path: Path) -> None:
    """What is no namespace is not entered."""
    with open(tmp_path / "file", "w") as file, pytest.raises(OSError, match=r"Invalid argument|not permitted"):
        inside.look("net:[1]", file.fileno(), file.fileno())


@pytest.mark.netns
def test_a_sleeping_table_and_the_device_of_a_chain_are_told() -> None:
    """nft 1.0.6 says neither, and its JSON of a table with flags may end in the middle: a drop out of force would be believed."""
    run("ip link add lan0 type veth peer name lan1")
    run("nft add table inet asleep { flags dormant; chain f { type filter hook forward priority 0; policy drop; }; }")
    run("nft add table netdev early { chain i { type filter hook ingress device lan0 priority 0; }; }")
    run("nft add table inet awake { chain f { type filter hook forward priority 0; policy drop; }; }")
    for _ in range(20):  # what it prints is by chance
        objects = json.loads(rulesets.collect().nftables)["nftables"]
        tables = {one["table"]["name"]: one["table"].get("flags") for one in objects if "table" in one}
        assert tables == {"asleep": "dormant", "early": None, "awake": None}
        chains = {one["chain"]["table"]: one["chain"] for one in objects if "chain" in one}
        assert set(chains) == {"early", "awake"}
        assert chains["early"]["dev"] in ("lan0", ["lan0"])  # the text is nft 1.1's
