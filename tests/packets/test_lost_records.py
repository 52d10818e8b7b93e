"""A DEL takes away what it published although its record is damaged or lost, and flows that a killed DEL has left."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conversation import CLIENT, HOST
from lab import Lab
from runtime import Network, Plugins, mapping

from tests.packets.test_stale_ports import PORTS, Renamed, RenamedNetwork, published
from tests.portfwd.publisher import Publisher

pytestmark = pytest.mark.ours_alone

BACKENDS = pytest.mark.parametrize("backend", ["nftables", "iptables"])
DNS, WEB = 8053, 8080
CLIENT_PORT = 40055
ATTACHMENTS = "/run/cni-py/attachments"


def damage(how: str, plugin: str) -> None:
    """Runs on the host."""
    for path in Path("/run/cni-py/attachments").glob(f"*/{plugin}.json"):
        fields = json.loads(path.read_text())
        if how == "lost":
            path.unlink()
        elif how == "cut":
            path.write_text(path.read_text()[:40])
        elif how == "empty":
            path.write_text("")
        elif how == "unknown operation":
            fields["ops"] = [op for op in fields["ops"] if op["op"] == "ListPublication"] + [{"op": "Nonsense"}]
            path.write_text(json.dumps(fields))
        elif how == "wrong values":
            fields["ops"] = [
                {**op, **{key: "x y z" for key in op if key in ("ports", "mappings")}} for op in fields["ops"]
            ]
            path.write_text(json.dumps(fields))
        else:
            fields["ops"] = how
            path.write_text(json.dumps(fields))


DAMAGES = pytest.mark.parametrize("how", ["lost", "cut", "empty", "unknown operation", "wrong values", "no list"])


@BACKENDS
@DAMAGES
def test_del_withdraws_what_its_record_does_not_say(lab: Lab, plugins: Plugins, backend: str, how: str) -> None:
    """By the index, so neither the result nor the port mappings are needed."""
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", *PORTS)
    lab["host"].python(damage, how, plugins.keeper("portmap"))
    network.ports["c1"] = []
    network.call("DEL", "portmap", "c1", known=False)
    assert not published(lab)


def test_del_withdraws_by_the_result_where_the_index_is_lost_too(lab: Lab, plugins: Plugins) -> None:
    network = RenamedNetwork(lab, plugins)
    network.attach("c1", *PORTS)
    lab["host"].run(["sh", "-c", f"rm -r {ATTACHMENTS}/*; rm -r /run/cni-py/published/*"], check=True)
    network.call("DEL", "portmap", "c1")
    assert not published(lab)


@pytest.fixture
def service(lab: Lab) -> Iterator[Publisher]:
    publisher = Publisher(lab["host"])
    yield publisher
    publisher.end()


@pytest.mark.parametrize("use", ["auto", "always"])
@DAMAGES
def test_del_withdraws_from_portfwd(lab: Lab, plugins: Plugins, service: Publisher, use: str, how: str) -> None:
    network = RenamedNetwork(lab, plugins, userlandProxy=use)
    network.attach("c1", mapping(WEB, 80))
    assert service.ask("list")["mappings"]
    lab["host"].python(damage, how, plugins.keeper("portmap"))
    network.call("DEL", "portmap", "c1", known=False)
    assert not service.ask("list")["mappings"]


def test_next_network_of_the_container_takes_over_from_a_lost_record(lab: Lab, plugins: Plugins) -> None:
    network = RenamedNetwork(lab, plugins)
    network.attach("c1", mapping(WEB, 80))
    lab.serve("c1", 80)
    static = {"type": "static", "addresses": [{"address": "203.0.113.9/24"}]}
    second = {
        "cniVersion": "1.0.0",
        "name": "second",
        "type": "bridge",
        "bridge": "br2",
        "isGateway": True,
        "ipam": static,
    }
    outcome = plugins.run(lab, "ADD", "bridge", second, "c1", ifname="eth1")
    assert outcome.status == 0, outcome.stdout
    waiting = {**network.portmap("c1"), "name": "second", "prevResult": outcome.json}
    assert plugins.run(lab, "ADD", "portmap", waiting, "c1", ifname="eth1").status == 0
    first = next(
        path
        for path in paths(lab, f"{plugins.keeper('portmap')}.json")
        if "heirs" in names_in(lab, path.rpartition("/")[0])
    )
    lab["host"].run(["rm", first], check=True)
    network.call("DEL", "portmap", "c1")
    assert lab.fetch("client", HOST[4], WEB).name == "c1"
    assert plugins.run(lab, "DEL", "portmap", waiting, "c1", ifname="eth1").status == 0
    assert not published(lab)


def paths(lab: Lab, name: str) -> list[str]:
    return lab["host"].run(["sh", "-c", f"ls {ATTACHMENTS}/*/{name}"], check=True).stdout.split()


def names_in(lab: Lab, folder: str) -> list[str]:
    return lab["host"].run(["ls", folder], check=True).stdout.split()


# Masquerading, and the check of the source


class Checked(Renamed):
    def __init__(self, lab: Lab, plugins: Plugins) -> None:
        super().__init__(lab, plugins, "old")
        self.keys = {}
        self.ipam = None

    def bridge(self, ips: list[str] | None = None) -> dict[str, object]:
        return {**super().bridge(ips), "macspoofchk": True}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("how", ["lost", "cut", "no list"])
def test_del_takes_out_masquerading_and_the_check_of_the_source(
    lab: Lab, plugins: Plugins, known: bool, how: str
) -> None:
    network = Checked(lab, plugins)
    network.attach("c1")
    lab["host"].python(damage, how, "bridge")
    network.call("DEL", "bridge", "c1", known=known)
    assert "c1" not in lab["host"].run(["nft", "list", "ruleset"], check=True).stdout


# Flows


def is_stuck(lab: Lab) -> bool:
    """Whether the client's UDP flow still goes to the container that is gone, instead of the host."""
    lab.serve("host", DNS, "udp")
    try:
        return lab.fetch("client", HOST[4], DNS, "udp", source_port=CLIENT_PORT).name != "host"
    except TimeoutError:
        return True


@pytest.fixture
def flowing(lab: Lab, plugins: Plugins, backend: str) -> Network:
    """A UDP flow of the client goes to c1."""
    network = RenamedNetwork(lab, plugins, backend=backend)
    network.attach("c1", mapping(DNS, 53, "udp"))
    lab.serve("c1", 53, "udp")
    assert lab.fetch("client", HOST[4], DNS, "udp", source_port=CLIENT_PORT).name == "c1"
    return network


@BACKENDS
def test_a_del_after_a_killed_one_forgets_the_flows(lab: Lab, flowing: Network, backend: str) -> None:
    """The first has taken out the rules, and was killed before it came to the flows."""
    if backend == "nftables":
        command = "nft flush map inet cni_py any4; nft flush map inet cni_py claims4"
    else:
        chains_of = "iptables-save -t nat | sed -n 's/^:\\(CNI-DN-[^ ]*\\) .*/\\1/p'"
        each = "do iptables -t nat -F $chain; iptables -t nat -X $chain; done"
        command = f"iptables -t nat -F CNI-HOSTPORT-DNAT; for chain in $({chains_of}); {each}"
    lab["host"].run(["sh", "-c", command], check=True)
    flowing.detach("c1")
    assert not is_stuck(lab)


@BACKENDS
@pytest.mark.parametrize("how", ["lost record", "renamed", "GC"])
def test_flows_end_however_the_ports_go(lab: Lab, plugins: Plugins, flowing: Any, backend: str, how: str) -> None:
    if how != "renamed":
        lab["host"].run(["sh", "-c", f"rm {ATTACHMENTS}/*/{plugins.keeper('portmap')}.json"], check=True)
    if how == "GC":
        conf = {**flowing.portmap("c1"), "cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
        assert plugins.run(lab, "GC", "portmap", conf, CNI_NETNS=None).status == 0
    else:
        flowing.rename("new" if how == "renamed" else "old")
        flowing.call("DEL", "portmap", "c1")
    assert not is_stuck(lab)


# Chains


def chains(lab: Lab) -> set[str]:
    """Those that are made when they are first needed."""
    words = lab["host"].run(["nft", "list", "table", "inet", "cni_py"], check=True).stdout.split()
    names = {after for before, after in itertools.pairwise(words) if before in ("chain", "map")}
    return {
        name
        for name in names
        if name.startswith(("inside_", "outside_", "conditions", "shared", "any4_", "specific6_"))
    }


@pytest.mark.parametrize("plugin", ["bridge", "portmap"])
def test_gc_removes_chains_that_nothing_leads_to(lab: Lab, plugins: Plugins, plugin: str) -> None:
    ports = {f"{WEB}/tcp": {"share": True}, f"{DNS}/udp": {"allow": [f"{CLIENT[4]}/24", f"{CLIENT[6]}/64"]}}
    network = RenamedNetwork(lab, plugins, ports=ports)
    for name in ("c1", "c2"):
        network.attach(name, mapping(WEB, 80))
    network.detach("c2")
    network.attach("c2", mapping(DNS, 53, "udp"))
    made = chains(lab)
    collect(lab, network, plugin, "c1", "c2")
    assert chains(lab) == made
    network.detach("c2")
    collect(lab, network, plugin, "c1")
    assert not {name for name in chains(lab) if name.startswith(("conditions", "any4_", "specific6_"))}
    assert {name for name in chains(lab) if name.startswith(("inside_", "outside_", "shared"))}
    network.detach("c1")
    collect(lab, network, plugin)
    assert not chains(lab)
    network.attach("c1", mapping(WEB, 80))
    lab.serve("c1", 80)
    assert lab.fetch("client", HOST[4], WEB).name == "c1"


def collect(lab: Lab, network: Renamed, plugin: str, *names: str) -> None:
    conf = network.bridge() if plugin == "bridge" else {**network.portmap("c1")}
    valid = [{"containerID": name, "ifname": "eth0"} for name in names]
    outcome = network.plugins.run(
        lab, "GC", plugin, {**conf, "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid}, CNI_NETNS=None
    )
    assert outcome.status == 0, outcome.stdout
