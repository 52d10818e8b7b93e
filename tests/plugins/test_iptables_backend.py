"""The iptables backend of ipMasq and portmap: what is reached, what is left behind, and who shares a host with whom.

The Go plugins make the same chains, so that either side's DEL must clean up after the other's ADD.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conversation import CLIENT, HOST
from lab import Lab
from runtime import ALL, GATEWAY, SUBNETS, Outcome, Plugins, mapping

from tests.conftest import GO, OURS, need_root
from tests.lacking import unavailable

pytestmark = pytest.mark.xdist_group("iptables-backend")

Conf = dict[str, Any]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
SHARED = ("CNI-HOSTPORT-", "-A PREROUTING -m addrtype", "-A OUTPUT -m addrtype", "CNI portfwd requiring masquerade")
OWN = ("CNI-DN-", "CNI-SN-", ' id: "')  # what speaks of one attachment
CONFIG = "/etc/cni-py/config.yaml"


@dataclass
class Site:
    """A host on a LAN, with containers that a chain of bridge (or ptp) and portmap attaches by iptables."""

    lab: Lab
    plugins: Plugins
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    results: dict[tuple[str, str, str], Conf] = field(default_factory=dict)

    def container(self) -> str:
        """A new one, and a host port that nobody has."""
        name = f"k{next(self.numbers)}"
        self.lab.add_container(name)
        return name

    def port(self) -> int:
        return 8000 + next(self.numbers)

    def bridge(self, network: str = "lab", **keys: object) -> Conf:
        subnets = SUBNETS if network == "lab" else {4: "203.0.113.0/24", 6: "2001:db8:77::/64"}
        ranges = [[{"subnet": subnet}] for subnet in subnets.values()]
        ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
        bridge = {"type": "bridge", "bridge": f"br-{network}", "isGateway": True, "hairpinMode": True, "ipam": ipam}
        return {"cniVersion": "1.0.0", "name": network, "ipMasq": True, "ipMasqBackend": "iptables", **bridge, **keys}

    def portmap(self, published: list[Conf], network: str = "lab", **keys: object) -> Conf:
        runtime = {"portMappings": published}
        conf = {
            "cniVersion": "1.0.0",
            "name": network,
            "type": "portmap",
            "backend": "iptables",
            "runtimeConfig": runtime,
        }
        return {**conf, **keys}

    def run(
        self, verb: str, conf: Conf, name: str, ifname: str = "eth0", by: Plugins | None = None, **env: Any
    ) -> Outcome:
        result = self.results.get((conf["name"], name, ifname))
        with_result = {**conf, "prevResult": result} if result is not None and "prevResult" not in conf else conf
        given = {key: value for key, value in with_result.items() if value is not None}
        return (by or self.plugins).run(
            self.lab, verb, conf["type"], given, name, env.pop("netns", None), ifname, **env
        )

    def well(
        self, verb: str, conf: Conf, name: str, ifname: str = "eth0", by: Plugins | None = None, **env: Any
    ) -> Outcome:
        outcome = self.run(verb, conf, name, ifname, by, **env)
        assert outcome.status == 0, f"{verb} {conf['type']}: {outcome.stdout}{outcome.stderr}"
        if verb == "ADD":
            self.results[conf["name"], name, ifname] = outcome.json
        return outcome

    def attach(
        self, name: str, *ports: Conf, network: str = "lab", ifname: str = "eth0", by: Plugins | None = None
    ) -> None:
        self.well("ADD", self.bridge(network), name, ifname, by)
        self.well("ADD", self.portmap(list(ports), network), name, ifname, by)

    def detach(
        self, name: str, *ports: Conf, network: str = "lab", ifname: str = "eth0", by: Plugins | None = None
    ) -> None:
        self.well("DEL", self.portmap(list(ports), network), name, ifname, by)
        self.well("DEL", self.bridge(network), name, ifname, by)
        self.results.pop((network, name, ifname), None)

    def address(self, name: str, family: int, network: str = "lab", ifname: str = "eth0") -> str:
        texts = [str(ip["address"]).partition("/")[0] for ip in self.results[network, name, ifname]["ips"]]
        return next(text for text in texts if (":" in text) == (family == 6))

    def shell(self, command: str) -> str:
        return self.lab["host"].run(["sh", "-c", command], check=True).stdout

    def rules(self) -> list[str]:
        """Of both families."""
        saved = self.shell("iptables-save -t nat | sed 's/^/4 /'; ip6tables-save -t nat | sed 's/^/6 /'")
        return [line for line in saved.splitlines() if line[2:3] in ("-", ":")]

    def of(self, name: str, network: str = "lab") -> list[str]:
        """The rules that speak of a container."""
        return [line for line in self.rules() if f'name: \\"{network}\\" id: \\"{name}\\"' in line]

    def left(self) -> list[str]:
        """What belongs to any attachment."""
        lines = [line for line in self.rules() if not any(shared in line for shared in SHARED)]
        return [line for line in lines if "CNI-" in line]

    def reach(self, source: str, address: str, port: int, protocol: str = "tcp") -> str:
        """Who answers. Where nobody does, that is refused at once."""
        try:
            return self.lab.fetch(source, address, port, protocol).name
        except OSError:
            return "nobody"


@pytest.fixture(scope="module")
def site(our_bin_dir: Path) -> Iterator[Site]:
    need_root()
    with Lab.from_yaml("lan.yaml") as lab:
        found = Site(lab, Plugins(OURS, our_bin_dir, ALL))
        lab.serve("client", 80)
        yield found


@pytest.fixture(scope="module")
def web(site: Site) -> dict[str, Any]:
    """A container with published ports, and one beside it."""
    name, other = site.container(), site.container()
    ports = [mapping(7080, 80), mapping(7053, 53, "udp"), mapping(7081, 80, host_ip="127.0.0.1")]
    site.attach(name, *ports)
    site.attach(other)
    site.lab.serve(name, 80)
    site.lab.serve(name, 53, "udp")
    return {"name": name, "other": other, "ports": ports}


# What is reached


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_is_reached_from_everywhere(site: Site, web: Conf, family: int, protocol: str) -> None:
    name, port = web["name"], {"tcp": 7080, "udp": 7053}[protocol]
    sources = {"client": HOST[family], "host": HOST[family], web["other"]: GATEWAY[family], name: GATEWAY[family]}
    if family == 4:
        sources |= {"host ": "127.0.0.1"}
    answers = {source: site.reach(source.strip(), address, port, protocol) for source, address in sources.items()}
    assert answers == dict.fromkeys(sources, name)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_published_port_of_the_ipv6_loopback_is_refused_at_once(site: Site, web: Conf, protocol: str) -> None:
    """The kernel forwards nothing that ::1 has sent. (SCTP: tests/packets/test_sctp.py.)"""
    port = {"tcp": 7080, "udp": 7053}[protocol]
    with pytest.raises(ConnectionRefusedError):
        site.lab.fetch("host", "::1", port, protocol)


def test_a_port_of_one_address_is_not_reached_at_another(site: Site, web: Conf) -> None:
    assert site.reach("host", "127.0.0.1", 7081) == web["name"]
    assert site.reach("client", HOST[4], 7081) == "nobody"


@FAMILIES
def test_what_the_container_sends_leaves_with_the_hosts_address(site: Site, web: Conf, family: int) -> None:
    assert site.lab.fetch(web["name"], CLIENT[family], 80).peer == HOST[family]
    inside = site.address(web["name"], family)
    assert site.lab.fetch(web["other"], inside, 80).peer == site.address(web["other"], family)


def test_the_hosts_loopback_is_guarded_where_route_localnet_opens_it(site: Site, web: Conf) -> None:
    assert site.shell("cat /proc/sys/net/ipv4/conf/br-lab/route_localnet").strip() == "1"
    assert site.shell("nft list set inet cni_py local_links").count("br-lab") == 1


def test_ptp_masquerades_by_iptables(site: Site) -> None:
    name = site.container()
    ranges = [[{"subnet": "203.0.113.128/25"}], [{"subnet": "2001:db8:99::/64"}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
    conf = {
        "cniVersion": "1.0.0",
        "name": "pair",
        "type": "ptp",
        "ipMasq": True,
        "ipMasqBackend": "iptables",
        "ipam": ipam,
    }
    site.well("ADD", conf, name)
    assert {family: site.lab.fetch(name, CLIENT[family], 80).peer for family in (4, 6)} == HOST
    site.well("CHECK", conf, name)
    site.well("DEL", conf, name, netns="")
    assert site.of(name, "pair") == []


def test_a_udp_exchange_follows_the_port(site: Site) -> None:
    """What the kernel still knows of it would lead to the container before, for half a minute."""
    first, second, port = site.container(), site.container(), site.port()
    reached = []
    for name in (first, second):
        site.attach(name, mapping(port, 53, "udp"))
        site.lab.serve(name, 53, "udp")
        reached.append(site.lab.fetch("client", HOST[4], port, "udp", source_port=40404).name)
        site.detach(name)
    assert reached == [first, second]


# What is left behind


@pytest.mark.parametrize(
    ("adds", "dels", "known"),
    [(OURS, GO, True), (GO, OURS, True), (OURS, OURS, True), (GO, OURS, False), (OURS, OURS, False)],
)
def test_a_del_leaves_nothing_whoever_added(site: Site, theirs: Plugins, adds: str, dels: str, *, known: bool) -> None:
    """Also one that has neither namespace nor prevResult nor portMappings; then the Go plugins leave everything."""
    by = {OURS: site.plugins, GO: theirs}
    name, port = site.container(), site.port()
    ports = [mapping(port, 80), mapping(port, 80, "udp")]
    before = site.left()
    site.attach(name, *ports, by=by[adds])
    assert site.left() != before
    if known:
        site.detach(name, *ports, by=by[dels])
    else:
        for conf in (site.portmap([]), site.bridge()):
            site.well("DEL", {**conf, "prevResult": None}, name, by=by[dels], netns="")
    assert site.left() == before
    site.detach(name)  # of a Go DEL our records know nothing


def test_go_and_we_make_the_same_rules(site: Site, theirs: Plugins) -> None:
    name = site.container()
    ports = [mapping(7301, 80), mapping(7302, 53, "udp", "127.0.0.1"), *(mapping(7310 + n, 80) for n in range(16))]
    found = []
    for by in (site.plugins, theirs):
        site.attach(name, *ports, by=by)
        for conf in (site.bridge(), site.portmap(ports)):
            site.well("CHECK", conf, name)  # whoever made them
        addresses = {site.address(name, 4): "v4", site.address(name, 6): "v6"}
        text = "\n".join(site.rules())
        for address, word in addresses.items():
            text = text.replace(f"{address}:", word).replace(f"{address}]", word).replace(f"{address}/", f"{word}/")
        found.append(text)
        site.detach(name, *ports)
    assert found[0] == found[1]


def test_another_add_changes_nothing(site: Site) -> None:
    name, port = site.container(), site.port()
    ports = [mapping(port, 80), mapping(port, 53, "udp")]
    options: Conf = {
        "conditionsV4": ["!", "-d", "192.0.2.77/32"],
        "conditionsV6": ["-m", "conntrack", "--ctstate", "NEW"],
    }
    site.well("ADD", site.bridge(), name)
    site.well("ADD", site.portmap(ports, **options), name)
    before = site.rules()
    site.well("ADD", site.portmap(ports, **options), name)
    assert sorted(site.rules()) == sorted(before)
    site.well("CHECK", site.portmap(ports, **options), name)
    fewer = site.portmap(ports[:1], **options)
    site.well("ADD", fewer, name)
    assert not [line for line in site.of(name) if "udp" in line]
    site.detach(name)
    assert site.of(name) == []


def test_a_dead_adds_rules_are_replaced(site: Site, theirs: Plugins) -> None:
    """A chain of the same name, left with an older address."""
    name, port = site.container(), site.port()
    site.attach(name, mapping(port, 80), by=theirs)
    older = site.address(name, 4)
    site.well("DEL", site.bridge(), name, by=theirs)
    site.attach(name, mapping(port, 80))
    assert site.address(name, 4) != older
    site.lab.serve(name, 80)
    assert site.reach("client", HOST[4], port) == name
    assert not [line for line in site.rules() if f"{older}:" in line]
    site.detach(name)


def test_a_switch_of_the_backend_leaves_nothing(site: Site) -> None:
    name, port = site.container(), site.port()
    before = site.left()
    site.attach(name, mapping(port, 80))
    for conf in (site.bridge(ipMasqBackend="nftables"), site.portmap([mapping(port, 80)], backend="nftables")):
        site.well("CHECK", conf, name)
    site.well("DEL", site.portmap([], backend="nftables"), name)
    site.well("DEL", site.bridge(ipMasqBackend="nftables"), name)
    assert site.left() == before


def test_gc_takes_out_what_is_stale_in_its_network_alone(site: Site, theirs: Plugins) -> None:
    stale, valid, elsewhere = (site.container() for _ in range(3))
    for name, network in ((stale, "lab"), (valid, "lab"), (elsewhere, "other")):
        site.attach(name, mapping(site.port(), 80), network=network, by=theirs)
    others = {name for _, name, _ in site.results} - {stale}
    attachments = [{"containerID": name, "ifname": ifname} for _, name, ifname in site.results if name in others]
    for conf in (site.portmap([]), site.bridge()):
        site.well(
            "GC", {**conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": attachments, "prevResult": None}, ""
        )
    assert site.of(stale) == []
    assert len(site.of(valid)) == len(site.of(elsewhere, "other")) > 0
    site.detach(stale)
    site.detach(valid)
    site.detach(elsewhere, network="other")


# What newer Go plugins have in nftables tables of their own. c: the container; a, b: its addresses; h: network and attachment
NEWER = """
table ip cni_hostport {
    chain hostports { tcp dport 8080 dnat to A:80 comment "C"; tcp dport 8080 dnat to 203.0.113.9:80 comment "C"; }
    chain masquerading { ip saddr A ip daddr A masquerade comment "C"; ip saddr 192.0.2.99 masquerade comment "other"; }
}
table ip6 cni_hostport {
    chain hostports { tcp dport 8080 dnat to [B]:80 comment "C"; }
}
table inet cni_plugins_masquerade {
    chain masq_checks {
        ip saddr A ip daddr != 192.0.2.0/24 masquerade comment "H, net: lab, if: eth0, id: C"
        ip saddr 192.0.2.99 masquerade comment "STALE, net: lab, if: eth0, id: gone"
        ip saddr 203.0.113.9 masquerade comment "0123456789abcdef-0123456789abcdef, net: other, if: eth0, id: C"
    }
}
"""


def test_what_newer_go_plugins_made_goes_with_its_container(site: Site) -> None:
    name = site.container()
    site.attach(name, mapping(site.port(), 80))
    lab, own, gone = (hashlib.sha512(text.encode()).hexdigest()[:16] for text in ("lab", f"eth0:{name}", "eth0:gone"))
    text = NEWER.replace("STALE", f"{lab}-{gone}").replace("H,", f"{lab}-{own},").replace('"C"', f'"{name}"')
    text = (
        text.replace(" A", f" {site.address(name, 4)}")
        .replace("[B]", f"[{site.address(name, 6)}]")
        .replace("id: C", f"id: {name}")
    )
    site.lab["host"].run(["nft", "-f", "-"], input=text, check=True)
    site.detach(name)
    left = site.shell(
        "for t in 'ip cni_hostport' 'ip6 cni_hostport' 'inet cni_plugins_masquerade'; do nft list table $t; done"
    )
    comments = [line.partition("comment ")[2] for line in left.splitlines() if "comment" in line]
    assert len(comments) == 4, left
    assert not [line for line in left.splitlines() if f"{lab}-{own}" in line or "2001:db8:42" in line]
    site.well("DEL", {**site.portmap([]), "prevResult": None}, name, netns="")
    conf = {**site.bridge(), "cniVersion": "1.1.0", "prevResult": None}
    valid = [{"containerID": key[1], "ifname": key[2]} for key in site.results]
    site.well("GC", {**conf, "cni.dev/valid-attachments": valid}, "")
    left = site.shell("nft list table ip cni_hostport; nft list table inet cni_plugins_masquerade")
    assert [line.partition("comment ")[2][:8] for line in left.splitlines() if "comment" in line] == [
        '"other"',
        '"0123456',
    ]
    for table in ("ip cni_hostport", "ip6 cni_hostport", "inet cni_plugins_masquerade"):
        site.shell(f"nft delete table {table}")


def test_check_accepts_what_go_built_on_a_host_that_has_nothing_of_ours(our_bin_dir: Path, theirs: Plugins) -> None:
    with Lab.from_yaml("lan.yaml") as lab:
        fresh = Site(lab, Plugins(OURS, our_bin_dir, ALL))
        ports = [mapping(8080, 80), mapping(8053, 53, "udp")]
        fresh.attach("c1", *ports, by=theirs)
        for backend in ("iptables", "nftables"):
            fresh.well("CHECK", fresh.bridge(ipMasqBackend=backend), "c1")
            fresh.well("CHECK", fresh.portmap(ports, backend=backend), "c1")
        assert fresh.run("CHECK", fresh.portmap([mapping(8081, 80)]), "c1").status == 1


# Who shares


def test_two_interfaces_in_one_network_share_a_chain(site: Site) -> None:
    name, first, second = site.container(), site.port(), site.port()
    before = site.left()
    site.attach(name, mapping(first, 80))
    site.attach(name, mapping(second, 80), ifname="eth1")
    site.lab.serve(name, 80)
    site.detach(name, ifname="eth0")
    assert (site.reach("client", HOST[4], first), site.reach("client", HOST[4], second)) == ("nobody", name)
    site.well("CHECK", site.portmap([mapping(second, 80)]), name, "eth1")
    site.well("CHECK", site.bridge(), name, "eth1")
    site.detach(name, ifname="eth0")  # runtimes do that twice
    assert site.reach("client", HOST[4], second) == name
    site.detach(name, ifname="eth1")
    assert site.left() == before


def test_a_container_publishes_a_port_on_its_next_network_when_the_first_is_left(site: Site) -> None:
    name, port = site.container(), site.port()
    before = site.left()
    site.attach(name, mapping(port, 80))
    site.attach(name, mapping(port, 80), network="other", ifname="eth1")
    site.lab.serve(name, 80)
    assert site.lab.fetch("client", HOST[4], port).local == site.address(name, 4)
    site.detach(name)
    site.lab[name].run(["ip", "route", "replace", "default", "via", "203.0.113.1"], check=True)
    assert site.lab.fetch("client", HOST[4], port).local == site.address(name, 4, "other", "eth1")
    site.detach(name, network="other", ifname="eth1")
    assert site.left() == before


@pytest.mark.parametrize("holder", [OURS, GO])
def test_a_port_of_another_container_is_refused(site: Site, theirs: Plugins, holder: str) -> None:
    first, second, port = site.container(), site.container(), site.port()
    site.attach(first, mapping(port, 80), by={OURS: site.plugins, GO: theirs}[holder])
    site.well("ADD", site.bridge("other"), second)
    before = site.rules()
    outcome = site.run("ADD", site.portmap([mapping(port, 80, host_ip=HOST[4])], "other"), second)
    assert outcome.code == 110
    assert f"lab/{first}" in outcome.json["msg"]
    assert site.rules() == before
    site.well("ADD", site.portmap([mapping(port, 80, "udp"), mapping(port + 1000, 80)], "other"), second)
    site.detach(second, network="other")
    site.detach(first)


@pytest.mark.parametrize(
    ("backends", "held_ports", "wanted_ports"),
    [
        (("iptables", "nftables"), 1, 1),
        (("nftables", "iptables"), 1, 1),
        (("iptables", "nftables"), 100, 1),
        (("nftables", "iptables"), 100, 1),
        (("iptables", "nftables"), 1, 100),
        (("nftables", "iptables"), 1, 100),
        (("iptables", "iptables"), 100, 1),
    ],
)
def test_a_port_is_taken_whatever_the_backend(
    site: Site, backends: tuple[str, str], held_ports: int, wanted_ports: int
) -> None:
    first, second, port = site.container(), site.container(), 20_050

    def row(count: int, backend: str) -> Conf:
        """The port, in the middle of a row."""
        numbers = range(port - count // 2, port - count // 2 + count)
        return site.portmap([mapping(number, number) for number in numbers], backend=backend)

    held, wanted = row(held_ports, backends[0]), row(wanted_ports, backends[1])
    for name in (first, second):
        site.well("ADD", site.bridge(), name)
    site.well("ADD", held, first)
    refused = site.run("ADD", wanted, second)
    assert refused.code == 110
    assert f"lab/{first}" in refused.json["msg"]
    site.lab.remove(first)
    site.well("ADD", wanted, second)
    site.lab.serve(second, port)
    assert site.reach("client", HOST[4], port) == second
    for conf in (held, site.bridge()):
        site.well("DEL", conf, first, netns="")
    site.detach(second)


def test_what_a_stranger_left_does_not_keep_a_port_from_nftables(site: Site, theirs: Plugins) -> None:
    first, second, port = site.container(), site.container(), site.port()
    site.attach(first, mapping(port, 80), by=theirs)
    site.well("DEL", site.bridge(), first, by=theirs)
    for conf in (site.bridge(), site.portmap([mapping(port, 80)], backend="nftables")):
        site.well("ADD", conf, second)
    site.lab.serve(second, 80)
    site.detach(first)
    assert site.reach("client", HOST[4], port) == second
    site.detach(second)


def test_a_dead_containers_port_is_free(site: Site) -> None:
    first, second, port = site.container(), site.container(), site.port()
    site.attach(first, mapping(port, 80))
    site.lab.remove(first)
    site.attach(second, mapping(port, 80))
    site.lab.serve(second, 80)
    assert site.reach("client", HOST[4], port) == second
    site.well("DEL", site.portmap([]), first, netns="")
    assert site.reach("client", HOST[4], port) == second
    site.well("DEL", site.bridge(), first, netns="")
    site.detach(second)


def test_ports_of_different_addresses_do_not_meet(site: Site) -> None:
    first, second, port = site.container(), site.container(), site.port()
    site.attach(first, mapping(port, 80, host_ip="127.0.0.1"))
    site.attach(second, mapping(port, 80, host_ip=HOST[4]))
    for name in (first, second):
        site.lab.serve(name, 80)
    assert (site.reach("host", "127.0.0.1", port), site.reach("client", HOST[4], port)) == (first, second)
    for name in (first, second):
        site.detach(name)


# What is refused, and what is noticed


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"conditionsV4": ["-j", "ACCEPT"]}, "conditionsV4"),
        ({"conditionsV4": ["-d", "192.0.2.1", "--jum", "ACCEPT"]}, "conditionsV4"),
        ({"conditionsV6": ["!", "-d", "::1\nCOMMIT"]}, "conditionsV6"),
        ({"conditionsV4": ["-m", "../../../tmp/x"]}, "conditionsV4"),
        ({"externalSetMarkChain": "a b"}, "externalSetMarkChain"),
        ({"ports": {"7999/tcp": {"share": True}}}, "share"),
        ({"ports": {"7999/tcp": {"allow": ["192.0.2.0/24"]}}}, "choose its clients"),
    ],
)
def test_what_iptables_cannot_do_is_said_before_anything_is_done(
    site: Site, web: Conf, keys: Conf, complaint: str
) -> None:
    before = site.rules()
    outcome = site.run("ADD", site.portmap([mapping(7999, 80)], **keys), web["other"])
    assert outcome.code == 7
    assert complaint in outcome.json["msg"]
    assert site.rules() == before


def test_conditions_that_iptables_refuses_leave_nothing(site: Site, web: Conf) -> None:
    before = site.rules()
    outcome = site.run("ADD", site.portmap([mapping(7999, 80)], conditionsV6=["-d", "192.0.2.1"]), web["other"])
    assert outcome.status == 1
    assert "ip6tables-restore failed" in json.dumps(outcome.json)
    assert site.rules() == before


def test_check_notices_a_rule_that_is_gone(site: Site) -> None:
    name, port = site.container(), site.port()
    site.attach(name, mapping(port, 80))
    portmap, bridge = site.portmap([mapping(port, 80)]), site.bridge()
    for conf in (portmap, bridge):
        site.well("CHECK", conf, name)
    number = site.shell(f"iptables -t nat -L CNI-HOSTPORT-DNAT --line-numbers | grep {name} | cut -d' ' -f1").strip()
    site.shell(f"iptables -t nat -D CNI-HOSTPORT-DNAT {number}; ip6tables -t nat -F POSTROUTING")
    for conf in (portmap, bridge):
        assert site.run("CHECK", conf, name).status == 1
    site.well("ADD", portmap, name)
    site.well("CHECK", portmap, name)
    site.detach(name)


def test_restore_puts_back_what_was_flushed(site: Site) -> None:
    name, port = site.container(), site.port()
    ports = [mapping(port, 80), mapping(port, 53, "udp")]
    site.attach(name, *ports)
    site.lab.serve(name, 80)
    site.shell("for tool in iptables ip6tables; do $tool -t nat -F; $tool -t nat -X; done")
    assert site.reach("client", HOST[4], port) == "nobody"
    site.shell(f"{Path(sys.executable).with_name('cni-py')} restore")
    for conf in (site.bridge(), site.portmap(ports)):
        site.well("CHECK", conf, name)
    assert site.reach("client", HOST[4], port) == name
    assert site.lab.fetch(name, CLIENT[6], 80).peer == HOST[6]
    site.detach(name)
    assert site.of(name) == []


def test_the_hosts_backend_holds_where_nothing_is_said(site: Site) -> None:
    name, port = site.container(), site.port()
    site.shell(f"mkdir -p /etc/cni-py; echo 'backend: iptables' >{CONFIG}")
    try:
        site.well("ADD", {**site.bridge(), "ipMasqBackend": None}, name)
        site.well("ADD", {**site.portmap([mapping(port, 80)]), "backend": None}, name)
        assert len(site.of(name)) > 2
        for conf in (site.portmap([]), site.bridge()):
            site.well("STATUS", {**conf, "backend": None, "ipMasqBackend": None, "cniVersion": "1.1.0"}, name)
    finally:
        site.shell(f"rm -f {CONFIG}")
    site.detach(name)
    assert site.of(name) == []


def test_without_nf_tables_del_has_nothing_to_look_for(site: Site, without_nftables: Plugins) -> None:
    name = site.container()
    site.well("DEL", site.portmap([]), name, by=without_nftables)


@pytest.mark.parametrize("record", ["with a record", "without"])
def test_a_port_that_nothing_is_there_to_take_away_is_an_error(site: Site, record: str) -> None:
    """With iptables gone, success would let the port lead to the next container that has the address."""
    name, port = site.container(), site.port()
    site.attach(name, mapping(port, 80))
    if record == "without":
        site.shell("rm -rf /run/cni-py/attachments /run/cni-py/published")
    hidden = site.shell("readlink -f $(command -v iptables-save) $(command -v ip6tables-save) | sort -u").split()
    try:
        site.shell("".join(f"mount --bind /dev/null {path};" for path in hidden))
        outcome = site.run("DEL", site.portmap([]), name)
        assert (outcome.status, "iptables-save is needed" in outcome.stdout) == (1, True)
    finally:
        site.shell("".join(f"umount {path};" for path in hidden))
    site.detach(name)
    assert site.of(name) == []


@pytest.mark.debian_kernel
@pytest.mark.parametrize("kernel", ["with nf_tables", "without"])
def test_the_legacy_variant_serves_as_well(site: Site, without_nftables: Plugins, tmp_path: Path, kernel: str) -> None:
    by = without_nftables if kernel == "without" else site.plugins
    name, port = site.container(), site.port()
    for tool in ("iptables", "ip6tables"):
        for suffix in ("-save", "-restore"):
            (tmp_path / f"{tool}{suffix}").symlink_to(f"/usr/sbin/{tool}-legacy{suffix}")
    if site.lab["host"].run([str(tmp_path / "iptables-save"), "-t", "nat"]).returncode != 0:
        unavailable("this kernel has no iptables-legacy")
    path = f"{tmp_path}:/usr/bin:/bin"
    for conf in (site.bridge(), site.portmap([mapping(port, 80)])):
        site.well("ADD", conf, name, by=by, PATH=path)
    site.lab.serve(name, 80)
    assert (site.reach("client", HOST[4], port), site.reach("host", "127.0.0.1", port)) == (name, name)
    assert len([line for line in site.shell("iptables-legacy-save").splitlines() if name in line]) > 2
    for conf in (site.portmap([]), site.bridge()):
        checked = {**conf, "runtimeConfig": {"portMappings": [mapping(port, 80)]}}
        site.well("CHECK", checked, name, by=by, PATH=path)
        site.well("DEL", conf, name, by=by, netns="", PATH=path)
    assert name not in site.shell("iptables-legacy-save; ip6tables-legacy-save")
