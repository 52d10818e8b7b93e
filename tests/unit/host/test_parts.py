"""Parts of collecting that decide something by themselves: SCTP, VLANs, modules, relays, networks and pools, makers of links."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cni_py.host import interfaces, makers, networks, owners, relays, sockets, sysctls
from cni_py.host.model import Network, Reservation, Socket, Vlan
from cni_py.ipam import reservations
from cni_py.kernel import modules
from cni_py.protocol.gojson import Object, decode
from tests.unit.host import worlds

NOBODY = owners.of([], [])


def test_sctp_listeners() -> None:
    text = (
        " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n"
        "ffff8881 ffff8882 2   10  14   132     0 4711 192.0.2.2 2001:db8::2 \n"
        "ffff8881 ffff8882 2   7   14   133     0 4712 0.0.0.0 \n"
        "damaged\n"
    )
    assert list(sockets.sctp(text)) == [
        Socket("sctp", "192.0.2.2", 132, inode=4711),
        Socket("sctp", "2001:db8::2", 132, inode=4711),
    ]


def test_a_range_of_vlans_is_two_entries() -> None:
    """BRIDGE_VLAN_INFO_RANGE_BEGIN is 8, _END 16; PVID 2, UNTAGGED 4."""
    assert interfaces.vlan_list([(6, 1), (8, 10), (16, 12), (4, 20)]) == [
        Vlan(1, pvid=True, untagged=True), Vlan(10), Vlan(11), Vlan(12), Vlan(20, untagged=True),
    ]  # fmt: skip
    assert interfaces.vlan_list([(16, 3), (8, 5)]) == [Vlan(3)]  # half a range


def test_dots_in_names_of_links_are_slashes() -> None:
    assert sysctls.named("ipv4/conf/eth0.10/rp_filter") == "net.ipv4.conf.eth0/10.rp_filter"


@pytest.mark.parametrize(
    ("loaded", "built_in", "expected"),
    [
        ("nf_tables 1 0\n", "", False),
        ("", "kernel/net/netfilter/nf_tables.ko\nkernel/net/sctp/sctp.ko\n", False),
        ("nf_tables_set 1 0\n", "kernel/net/sctp/sctp.ko\n", True),
        (None, "", False),  # a kernel without modules
        ("", None, False),  # nothing tells: a container without /lib/modules
    ],
)
def test_asking_is_known_to_load_a_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, loaded: str | None, built_in: str | None, expected: bool
) -> None:
    folder = tmp_path / "lib" / __import__("os").uname().release
    folder.mkdir(parents=True)
    monkeypatch.setattr(modules, "MODULES", str(tmp_path / "modules"))
    monkeypatch.setattr(modules, "FOLDER", str(tmp_path / "lib"))
    if loaded is not None:
        (tmp_path / "modules").write_text(loaded)
    if built_in is not None:
        (folder / "modules.builtin").write_text(built_in)
    assert modules.would_load("nf_tables") is expected


def mapping(**changes: object) -> Object:
    fields = {
        "id": "web", "protocol": "tcp", "host_ips": ["127.0.0.1", "::1"], "first": 80, "last": 80,
        "targets": [{"address": "127.0.0.1", "port": 8080, "path": "/run/netns/web"}], "label": "lab/web/eth0",
        "state": {"active": 3, "dead_targets": []}, **changes,
    }  # fmt: skip
    found = decode(json.dumps(fields).encode())
    assert isinstance(found, Object)
    return found


def test_a_mapping_of_portfwd_for_each_address() -> None:
    four, six = relays.relays([mapping()])
    assert (four.listen, six.listen) == ("127.0.0.1:80/tcp", "[::1]:80/tcp")
    assert (four.target, four.owner, four.active, four.problem) == (
        "127.0.0.1:8080 in /run/netns/web",
        "lab/web/eth0",
        3,
        "",
    )
    assert [(one.host_address, one.target, one.source) for one in relays.ports([mapping()], NOBODY)] == [
        ("127.0.0.1", "", "portfwd"), ("::1", "", "portfwd"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        ({"waiting": "port 80 is held by nginx (pid 7)"}, "port 80 is held by nginx (pid 7)"),
        ({"dead_targets": ["192.0.2.2:80"]}, "no answer from 192.0.2.2:80"),
        ({"refused": {"192.0.2.9": "in use"}}, "it does not listen on 192.0.2.9"),
        ("nonsense", ""),
    ],
)
def test_what_portfwd_says_is_wrong(state: object, problem: str) -> None:
    assert {one.problem for one in relays.relays([mapping(state=state)])} == {problem}


@pytest.mark.parametrize(
    "place",
    [{"path": "/proc/self/ns/net"}, {"pid": os.getpid()}, {"container": "3f2a"}],
    ids=lambda one: next(iter(one)),
)
def test_a_mapping_into_a_namespace_is_of_the_container_in_it(place: dict[str, object]) -> None:
    key = os.readlink("/proc/self/ns/net")
    known = replace(NOBODY, containers={"net:[1]": "4444", key: "3f2a5f3c"})
    one = next(relays.ports([mapping(targets=[{"address": "::1", "port": 8080, **place}])], known))
    assert (one.namespace, one.container_id, one.target, one.inside) == (key, "3f2a5f3c", "", "::1")


def test_a_mapping_that_waits_is_no_port() -> None:
    assert list(relays.ports([mapping(state={"waiting": "x"})], NOBODY)) == []


@pytest.mark.parametrize(
    "fields", [{"targets": 7}, {"host_ips": None}, {"first": "80"}, {"state": None, "targets": [7]}]
)
def test_damaged_mappings_are_no_traceback(fields: dict[str, Any]) -> None:
    list(relays.relays([mapping(**fields)]))
    list(relays.ports([mapping(**fields)], NOBODY))


# Networks and pools


def conf(name: str, **ipam: object) -> str:
    plugin = {"type": "bridge", "bridge": "br1", "ipam": {"type": "host-local", **ipam}}
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [plugin, {"type": "portmap"}]})


def test_networks_of_a_folder_and_of_nerdctls_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    monkeypatch.setattr(reservations, "DATA_DIR", str(data))
    top = tmp_path / "net.d"
    (top / "default").mkdir(parents=True)
    (top / "10-lab.conflist").write_text(conf("lab", ranges=[[{"subnet": "192.0.2.0/29", "exclude": ["192.0.2.6"]}]]))
    (top / "20-broken.conflist").write_text("{")
    (top / "default" / "nerdctl.conflist").write_text(
        conf("bridge", subnet="192.0.3.0/24", dataDir=str(tmp_path / "own"))
    )
    (top / "default" / "drop-in.conf").write_text('{"type": "tuning"}')
    (data / "lab").mkdir(parents=True)
    (data / "lab" / "192.0.2.2").write_text("c1\r\neth0")
    (data / "lab" / "192.0.2.10").write_text("c2")
    (data / "lab" / "192.0.2.3").write_text("")
    (data / "lab" / "lock").write_text("")
    (data / "lab" / "last_reserved_ip.0").write_text("192.0.2.2")
    (data / "forgotten").mkdir()

    found, ranges, gaps = networks.networks([str(top), str(tmp_path / "nowhere")])
    assert gaps == []
    lab, broken, nested = found
    assert (lab.bridge, lab.types, lab.subnets) == ("br1", ("bridge", "portmap"), ("192.0.2.0/29",))
    assert (broken.name, "20-broken.conflist" in broken.problem) == ("20-broken", True)
    assert nested == Network(
        "bridge", str(top / "default/nerdctl.conflist"), "1.0.0", ("bridge", "portmap"), "br1", ("192.0.3.0/24",)
    )

    pools, gaps = networks.pools(ranges, {("lab", "c1", "eth0"): ("alive", "")})
    assert gaps == []
    by_name = {pool.network: pool for pool in pools}
    assert by_name.keys() == {"bridge", "forgotten", "lab"}
    pool = by_name["lab"]
    assert (pool.ranges, pool.sizes, pool.last) == (("192.0.2.1-192.0.2.6",), (4,), ("192.0.2.2",))
    assert [(one.address, one.container_id, one.ifname, one.live) for one in pool.reservations] == [
        ("192.0.2.2", "c1", "eth0", "alive"),
        ("192.0.2.3", "", "", "dead"),
        ("192.0.2.10", "c2", "", "unknown"),
    ]
    assert isinstance(pool.reservations[0], Reservation)
    assert by_name["bridge"].folder == str(tmp_path / "own/bridge")
    assert not (tmp_path / "own").exists()  # looking makes nothing


def test_names_tell_who_made_a_link() -> None:
    host = worlds.healthy()
    added = [
        worlds.link(30 + n, name, "bridge")
        for n, name in enumerate(("docker0", "br-0123456789ab", "podman1", "mybridge"))
    ]
    port = worlds.link(40, "veth0a1b2c3", "veth", master="docker0")
    found = makers.with_makers(worlds.with_root(host, links=(*host.root.links, *added, port)))
    made = {link.name: link.source for link in found.root.links}
    assert made == {
        "lo": "", "lan0": "", "cni0": "cni-py", worlds.WEB.host_veth: "cni-py", worlds.DB.host_veth: "cni-py",
        "docker0": "docker", "br-0123456789ab": "docker", "podman1": "podman", "mybridge": "", "veth0a1b2c3": "docker",
    }  # fmt: skip
    assert [link.source for link in found.namespaces[1].links] == ["", "cni-py"]
    assert found == makers.with_makers(found)
