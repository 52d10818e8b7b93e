"""A healthy host with two containers, as a model; tests change one thing of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from cni_py.attachment.engine import Op
from cni_py.attachment.naming import Attachment as Key
from cni_py.host.model import (
    SCHEMA,
    Address,
    Attachment,
    Host,
    Link,
    Masquerade,
    Namespace,
    Network,
    Operation,
    Pool,
    Port,
    Process,
    Reservation,
    Route,
    Socket,
)
from cni_py.interface.common import AddVeth
from cni_py.ipam.reservations import ReserveAddress
from cni_py.nftables.masquerade import Masquerade as MasqueradeOp
from cni_py.nftables.policy import IsolatePort, KeepApart
from cni_py.nftables.spoof_check import CheckSource
from cni_py.ports.publish import GuardAddress, PublishPorts
from cni_py.ports.relay import Relay, RelayPorts, Target

ROOT = "net:[4026531840]"
TAKEN = 1_790_000_000.0
WEB, DB = Key("lab", "web", "eth0"), Key("lab", "db", "eth0")
FOLDER = "/var/lib/cni/networks/lab"
MAC = bytes.fromhex("020000000001")
GLOBAL = ("permanent",)
ADDRESSES = (("web", "192.0.2.2"), ("db", "192.0.2.3"))


def nftables(*, without: str = "", layout: int = 1) -> str:
    """The ruleset, without rules; without the set or map of a name, or without the whole table ("inet").

    It has the layout of another version, of which nobody knows what belongs into it.
    """
    comment = {"comment": WEB.comment}
    sets: list[tuple[str, str, list[Any]]] = [
        ("inet", "guarded4", [{"elem": {"val": "192.0.2.2", **comment}}]),
        ("inet", "layout", [layout]),
        ("inet", "policed", ["cni0"]),
        ("bridge", "spoof_checked", [WEB.host_veth]),
        ("bridge", "spoof_allowed", [{"concat": [WEB.host_veth, "02:00:00:00:00:01"]}]),
        ("bridge", "isolated", [WEB.host_veth]),
    ]
    entries: list[dict[str, Any]] = [{"table": {"family": family, "name": "cni_py"}} for family in ("inet", "bridge")]
    for family, name, elements in sets:
        entries.append({"set": {"family": family, "table": "cni_py", "name": name, "elem": elements}})
    kept = [
        entry
        for entry in entries
        if without not in ([body["name"] for body in entry.values()] + [body["family"] for body in entry.values()])
    ]
    return json.dumps({"nftables": kept})


def operation(plugin: str, op: Op) -> Operation:
    return Operation(plugin, op.describe(), json.dumps(op.to_json()))


def relayed() -> RelayPorts:
    relay = Relay(
        protocol="tcp", host_ips=["::1"], first=8080, last=8080, targets=[Target(address="192.0.2.2", port=80)],
        allow=[], steer="auto",
    )  # fmt: skip
    return RelayPorts(mappings=[relay], required=True)


def operations(key: Key, address: str) -> tuple[Operation, ...]:
    """What bridge, host-local and portmap noted."""
    veth = AddVeth(name=key.host_veth, ifname="eth0", mtu=0, host_mac=MAC, container_mac=MAC)
    reserve = ReserveAddress(
        directory=FOLDER, range_set=0, address=address, container_id=key.container_id, ifname="eth0"
    )
    found = [
        operation("bridge", veth),
        operation("host-local", reserve),
        operation("bridge", MasqueradeOp(address=f"{address}/24")),
    ]
    if key is WEB:
        ports = PublishPorts(
            ports=[f"tcp 0.0.0.0:8080 to {address}:80"], addresses=[f"{address}/24"], clients="subnet",
            conditions4="", conditions6="",
        )  # fmt: skip
        found += [
            operation("portmap", ports),
            operation("portmap", GuardAddress(address=address)),
            operation("bridge", CheckSource(name=key.host_veth, mac=MAC)),
            operation("firewall", IsolatePort(name=key.host_veth)),
            operation("firewall", KeepApart(bridge="cni0", policy="isolated")),
        ]
    return tuple(found)


def attachment(key: Key, namespace: str, address: str) -> Attachment:
    return Attachment(
        key.network, key.container_id, "eth0", key.hex, f"/run/netns/{key.container_id}", namespace, "alive",
        plugins=("bridge", "portmap"), addresses=(f"{address}/24",), host_links=(key.host_veth,), bridge="cni0",
        operations=operations(key, address), since=TAKEN - 3600,
    )  # fmt: skip


def link(index: int, name: str, kind: str = "", *addresses: Address, **more: Any) -> Link:
    return Link(index, name, kind, f"02:00:00:00:00:{index:02x}", 1500, True, "up", addresses=addresses, **more)


def loopback() -> Link:
    return link(1, "lo", "", Address("127.0.0.1", 8, "host"), Address("::1", 128, "host"), flags=("loopback",))


def container(key: Key, name: str, index: int, address: str) -> Namespace:
    eth0 = link(2, "eth0", "veth", Address(address, 24, flags=GLOBAL), peer_index=index, peer_namespace=ROOT)
    return Namespace(
        name,
        (f"/run/netns/{key.container_id}",),
        index,
        (Process(4000 + index, "nginx", "", 1),),
        1,
        (loopback(), eth0),
        (Route(4, 254, "0.0.0.0/0", gateway="192.0.2.1", link="eth0"),),
        sockets=(Socket("tcp", "0.0.0.0", 80, inode=index, pid=4000 + index, program="nginx"),),
    )


def healthy() -> Host:
    """Containers web, which publishes 8080, and db, on bridge cni0."""
    homes = ["net:[4026532001]", "net:[4026532002]"]
    ends = [
        link(10 + n, key.host_veth, "veth", master="cni0", peer_index=2, peer_namespace=home, alias=key.comment)
        for n, (key, home) in enumerate(zip((WEB, DB), homes, strict=True))
    ]
    root = Namespace(
        ROOT,
        links=(
            loopback(),
            link(2, "lan0", "", Address("198.51.100.1", 24, flags=GLOBAL)),
            link(3, "cni0", "bridge", Address("192.0.2.1", 24, flags=GLOBAL)),
            *ends,
        ),
        sysctls=(("net.ipv4.ip_forward", "1"), ("net.ipv6.conf.all.forwarding", "1")),
        nftables=nftables(),
    )
    port = Port(
        "tcp", "0.0.0.0", 8080, 8080, "192.0.2.2", 80, "nat", "cni-py", "nftables", "lab", "web", "eth0",
        place="inet cni_py any4",
    )  # fmt: skip
    return Host(
        SCHEMA,
        "0.1.0",
        TAKEN,
        "host",
        "6.1",
        (root, container(WEB, homes[0], 10, "192.0.2.2"), container(DB, homes[1], 11, "192.0.2.3")),
        networks=(Network("lab", "/etc/cni/net.d/lab.conflist", "1.0.0", ("bridge", "portmap"), "cni0", ("192.0.2.0/24",)),),
        attachments=(attachment(WEB, homes[0], "192.0.2.2"), attachment(DB, homes[1], "192.0.2.3")),
        ports=(port,),
        masquerades=tuple(
            Masquerade(address, "cni-py", "nftables", "lab", name) for name, address in ADDRESSES
        ),
        pools=(
            Pool(
                "lab", FOLDER, ("192.0.2.1-192.0.2.254",), (253,), 253,
                tuple(Reservation(address, name, "eth0", TAKEN, "alive") for name, address in ADDRESSES),
            ),
        ),
        portfwd="not running",
    )  # fmt: skip


def with_link(host: Host, name: str, **changes: Any) -> Host:
    """The host with another link of that name."""
    links = tuple(replace(one, **changes) if one.name == name else one for one in host.root.links)
    return with_root(host, links=links)


def with_root(host: Host, **changes: Any) -> Host:
    return replace(host, namespaces=(replace(host.root, **changes), *host.namespaces[1:]))


def with_container(host: Host, number: int, **changes: Any) -> Host:
    """The host with another namespace of its first or second container (1, 2)."""
    spaces = list(host.namespaces)
    spaces[number] = replace(spaces[number], **changes)
    return replace(host, namespaces=tuple(spaces))


def with_attachment(host: Host, **changes: Any) -> Host:
    """The host with another attachment of web."""
    return replace(host, attachments=(replace(host.attachments[0], **changes), *host.attachments[1:]))
