"""DEL whose CNI_NETNS leads elsewhere by now: what is the attachment's goes, the other is left alone, and the call succeeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lab import Lab
from runtime import Outcome, Plugins, mapping
from snapshot import difference

from tests.conftest import GO, OURS
from tests.plugins.bridge_network import BridgeNetwork, Conf, ours_alone

pytestmark = pytest.mark.ours_alone

ODD = {
    "an ordinary file": "touch /run/odd/path",
    "a FIFO": "mkfifo /run/odd/path",
    "a directory": "mkdir /run/odd/path",
    "a dangling link": "ln -s nowhere /run/odd/path",
    "a link to itself": "ln -s path /run/odd/path",
    "a device": "mknod /run/odd/path c 1 5",
    "another namespace": "ln -s /proc/self/ns/uts /run/odd/path",
    "nothing": "true",
}
PATHS = {
    "a path through a file": "/run/odd/file/ns/net",
    "a long path": "/run/" + "x" * 300,
    "a longer one": "/a" * 3000,
}


class Chain:
    """A network of several plugins, called as libcni does: DEL in reverse order, to the first that fails."""

    def __init__(self, net: BridgeNetwork, *confs: Conf) -> None:
        self.net = net
        self.confs = confs
        self.result: dict[str, Any] = {}

    def call(self, verb: str, conf: Conf, container_id: str, netns: str | None) -> Outcome:
        outcome = self.net.plugins.run(self.net.lab, verb, conf["type"], conf, container_id, netns)
        assert outcome.status == 0, f"{verb} {conf['type']}: {outcome.stdout}{outcome.stderr}"
        return outcome

    def add(self, container_id: str) -> None:
        earlier: Conf = {}
        for conf in self.confs:
            earlier = {"prevResult": self.call("ADD", {**conf, **earlier}, container_id, None).json}
        self.result = earlier

    def delete(self, container_id: str, netns: str | None = None) -> None:
        for conf in self.confs[::-1]:
            self.call("DEL", {**conf, **self.result}, container_id, netns)


def whole_chain(net: BridgeNetwork) -> Chain:
    common = {"cniVersion": "1.0.0", "name": net.name}
    ports = {"runtimeConfig": {"portMappings": [mapping(20000 + net.number, 80)]}}
    rates = {"ingressRate": 1_000_000, "ingressBurst": 800_000}
    return Chain(
        net,
        net.conf(ipMasq=True),
        {**common, "type": "portmap", **ports},
        {**common, "type": "firewall"},
        {**common, "type": "bandwidth", **rates},
        {**common, "type": "tuning", "mac": "c2:11:22:33:44:55", "mtu": 1400, "sysctl": {"net.core.somaxconn": "500"}},
        {**common, "type": "loopback"},
    )


@pytest.fixture
def living(net: BridgeNetwork) -> Iterator[str]:
    """A container in use, of the same network but without ports."""
    chain = Chain(net, net.conf(ipMasq=True), {"cniVersion": "1.0.0", "name": net.name, "type": "loopback"})
    chain.add(net.b)
    yield net.b
    chain.delete(net.b)


def released(before: dict[str, object], after: dict[str, object], *, but: str) -> str:
    """What differs, but for the namespace of a container that the DEL could not reach."""
    return difference({**before, but: None}, {**after, but: None})


@pytest.mark.parametrize("again", [False, True], ids=["once", "twice"])
def test_the_namespace_of_another_container(net: BridgeNetwork, living: str, again: bool) -> None:
    chain = whole_chain(net)
    chain.add(net.a)
    chain.delete(net.a)
    before = net.state()
    chain.add(net.a)
    for _ in range(1 + again):
        chain.delete(net.a, f"/run/netns/{living}")
    assert not released(before, net.state(), but=net.a)


def test_the_hosts_own_namespace(net: BridgeNetwork, living: str) -> None:
    del living  # keeps the bridge's state as it is
    chain = whole_chain(net)
    chain.add(net.a)
    chain.delete(net.a)
    before = net.state()
    chain.add(net.a)
    chain.delete(net.a, "/proc/self/ns/net")
    assert not released(before, net.state(), but=net.a)


@pytest.mark.parametrize("what", [*ODD, *PATHS])
def test_what_is_no_namespace(net: BridgeNetwork, what: str) -> None:
    net.lab["host"].run(["sh", "-c", "rm -rf /run/odd; mkdir /run/odd; touch /run/odd/file"], check=True)
    net.lab["host"].run(["sh", "-c", ODD.get(what, "true")], check=True)
    path = PATHS.get(what, "/run/odd/path")
    chain = whole_chain(net)
    refused = net.run("ADD", chain.confs[0], netns=path)
    assert refused.code in (3, 4, 8, 999)
    assert not net.reservations()
    chain.add(net.a)
    for _ in range(2):
        chain.delete(net.a, path)
    assert not net.reservations()
    assert not net.records()
    assert not [name for name in net.links("host") if name.startswith("veth" + net.attachment(net.a)[:8])]
    net.lab["host"].run(["rm", "-rf", "/run/odd"], check=True)


IPAM = {"type": "host-local", "ranges": [[{"subnet": "10.250.0.0/24"}]]}
ALONE: dict[str, Conf] = {
    "ptp": {"ipam": IPAM},
    "macvlan": {"master": "lan0", "ipam": IPAM},
    "bridge": {"bridge": "br-alone", "isGateway": True, "ipam": IPAM},
}


@pytest.mark.parametrize("whose", [OURS, GO])
@pytest.mark.parametrize("told", [True, False], ids=["prevResult", "no prevResult"])
@pytest.mark.parametrize("plugin", ALONE)
def test_without_a_record_the_interface_tells_whose_it_is(
    lab: Lab, plugins: Plugins, theirs: Plugins, plugin: str, told: bool, whose: str
) -> None:
    maker = plugins if whose == OURS else theirs
    conf: Conf = {"cniVersion": "0.4.0", "name": "alone", "type": plugin, **ALONE[plugin]}
    results = {}
    for name in ("c1", "c2"):
        outcome = maker.run(lab, "ADD", plugin, conf, name)
        assert outcome.status == 0, outcome
        results[name] = outcome.json
    lab["host"].run(["rm", "-rf", "/run/cni-py/attachments"], check=True)
    keys = {"prevResult": results["c1"]} if told else {}
    for _ in range(2):
        outcome = plugins.run(lab, "DEL", plugin, {**conf, **keys}, "c1", "/run/netns/c2")
        assert outcome.status == 0, outcome
        assert interface(lab, "c2")
    for name in ("c1", "c2"):
        outcome = plugins.run(lab, "DEL", plugin, {**conf, "prevResult": results[name]}, name)
        assert outcome.status == 0, outcome
        assert not interface(lab, name)


def interface(lab: Lab, name: str) -> bool:
    return lab[name].run(["ip", "link", "show", "eth0"]).returncode == 0


@pytest.mark.parametrize("whose", [ours_alone(OURS), ours_alone(GO)])
def test_lo_of_another_container_stays_up(lab: Lab, plugins: Plugins, theirs: Plugins, whose: str) -> None:
    maker = plugins if whose == OURS else theirs
    conf: Conf = {"cniVersion": "0.3.1", "name": "cni-loopback", "type": "loopback"}
    for name in ("c1", "c2"):
        assert maker.run(lab, "ADD", "loopback", conf, name, ifname="lo").status == 0
    for _ in range(2):
        assert plugins.run(lab, "DEL", "loopback", conf, "c1", "/run/netns/c2", "lo").status == 0
        assert "UP" in lab["c2"].run(["ip", "link", "show", "lo"]).stdout.partition(">")[0]


def test_gc_does_not_look_into_a_namespace_that_took_the_path(lab: Lab, plugins: Plugins) -> None:
    conf: Conf = {"cniVersion": "1.1.0", "name": "alone", "type": "macvlan", **ALONE["macvlan"]}
    for name in ("c1", "c2"):
        assert plugins.run(lab, "ADD", "macvlan", conf, name).status == 0
    lab["host"].run(["sh", "-c", "umount /run/netns/c1; mount --bind /run/netns/c2 /run/netns/c1"], check=True)
    keys = {"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}
    assert plugins.run(lab, "GC", "macvlan", {**conf, **keys}).status == 0
    assert interface(lab, "c2")
    lab["host"].run(["umount", "/run/netns/c1"], check=True)
