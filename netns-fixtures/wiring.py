"""Build the network of a topology: links, addresses, routes and sysctls, with pyroute2 inside the nodes.

All functions but connect() run in a child that has entered the node (see Node.python).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from pyroute2 import IPRoute

if TYPE_CHECKING:
    from lab import Lab
    from topology import Interface, Route

IFA_F_NODAD = 0x02  # linux/if_addr.h


def write_sysctls(settings: dict[str, str]) -> None:
    """Set sysctls. FileNotFoundError for one that this kernel does not have."""
    for name, value in settings.items():
        with open(f"/proc/sys/{name.replace('.', '/')}", "w", encoding="ascii") as file:
            file.write(value)


def add_veth(ifname: str, peer: str, peer_netns: int, mtu: int) -> None:
    with IPRoute() as ipr:
        ipr.link("add", ifname=ifname, kind="veth", mtu=mtu, peer={"ifname": peer, "net_ns_fd": peer_netns, "mtu": mtu})


def add_switch(ports: list[str]) -> None:
    with IPRoute() as ipr:
        ipr.link("add", ifname="switch", kind="bridge", br_mcast_snooping=0)
        (switch,) = ipr.link_lookup(ifname="switch")
        ipr.link("set", index=switch, state="up")
        for port in ports:
            (index,) = ipr.link_lookup(ifname=port)
            ipr.link("set", index=index, master=switch, state="up")


def configure(interfaces: tuple[Interface, ...], routes: tuple[Route, ...], sysctls: dict[str, str]) -> None:
    with IPRoute() as ipr:
        for interface in interfaces:
            (index,) = ipr.link_lookup(ifname=interface.name)
            write_sysctls({f"net.ipv6.conf.{interface.name}.accept_dad": "0"})  # DAD would delay fe80:: by a second
            if interface.mac:
                ipr.link("set", index=index, address=interface.mac)
            ipr.link("set", index=index, state="up")
            for text in interface.addresses:
                address = ipaddress.ip_interface(text)
                flags = {"flags": IFA_F_NODAD} if address.version == 6 else {}
                ipr.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)
        for route in routes:
            ipr.route("add", dst=route.dst, gateway=route.gw)
    write_sysctls(sysctls)


def connect(lab: Lab) -> None:
    """Make every segment: a veth pair for two ends, a bridge in a namespace of its own for any other number.

    One child does it all: forks of a large process are most of what a lab costs.
    """
    for segment in lab.topology.segments:
        if len(lab.topology.ends(segment)) != 2:
            lab.add_switch(segment)
    for anywhere in list(lab.nodes.values())[:1]:
        anywhere.python(connect_nodes, lab)


def connect_nodes(lab: Lab) -> None:
    """Called in a child, which goes from the network namespace of one node to the next."""
    for segment in lab.topology.segments:
        ends = [(lab[name], end) for name, end in lab.topology.ends(segment)]
        if len(ends) == 2:
            (node, end), (other, other_end) = ends
            node.enter_network()
            add_veth(end.name, other_end.name, other.net, end.mtu)
        else:
            lab.switch(segment).enter_network()
            ports = [f"{node.name}-{end.name}"[:15] for node, end in ends]
            for port, (node, end) in zip(ports, ends, strict=True):
                add_veth(port, end.name, node.net, end.mtu)
            add_switch(ports)
    for spec in lab.topology.nodes:
        sysctls = {"net.ipv4.ip_forward": "1", "net.ipv6.conf.all.forwarding": "1"} if spec.role == "router" else {}
        lab[spec.name].enter_network()
        configure(spec.interfaces, spec.routes, {**sysctls, **spec.sysctls})
