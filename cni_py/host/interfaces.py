"""Links, addresses, VLANs and forwarding tables of a namespace: from the messages that pyroute2 decodes, to values of the model.

Sources of the numbers: Linux include/uapi/linux/{if,if_link,if_addr,if_bridge,neighbour,rtnetlink}.h.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from cni_py.host.dumps import text
from cni_py.host.model import Address, FdbEntry, Link, Vlan

IFF_UP = 0x1
FLAGS = {0x8: "loopback", 0x10: "pointopoint", 0x80: "noarp", 0x100: "promisc", 0x200: "allmulti"}  # IFF_*
ADDRESS_FLAGS = {
    0x04: "optimistic",
    0x08: "dadfailed",
    0x20: "deprecated",
    0x40: "tentative",
    0x80: "permanent",
}  # IFA_F_*
SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}  # RT_SCOPE_*
STP_STATES = ("disabled", "listening", "learning", "forwarding", "blocking")  # BR_STATE_*
VLAN_PVID, VLAN_UNTAGGED, VLAN_BEGIN, VLAN_END = 1 << 1, 1 << 2, 1 << 3, 1 << 4  # BRIDGE_VLAN_INFO_*
VID_MAX = 4094
NUD_PERMANENT = 0x80
NTF_SELF = 0x02  # an entry of the device's own table, not of its bridge
AF_BRIDGE = 7


def flags_of(value: int, names: Mapping[int, str]) -> tuple[str, ...]:
    """The names of the bits that are set."""
    return tuple(name for bit, name in names.items() if value & bit)


def links(
    messages: Iterable[Any], addresses: Mapping[int, list[Address]], vlans: Mapping[int, list[Vlan]]
) -> tuple[list[Link], dict[int, int]]:
    """The links; and by index the number that the kernel has here for the namespace of a link's other end.

    Where the other end is in this namespace the link has no such number; where its namespace is ending it is -1.
    """
    listed = list(messages)
    names = {one["index"]: text(one, "IFLA_IFNAME") for one in listed}
    found, abroad = [], {}
    for one in listed:
        index = one["index"]
        found.append(_link(one, names, tuple(addresses.get(index, ())), tuple(vlans.get(index, ()))))
        number = one.get_attr("IFLA_LINK_NETNSID")
        if number is not None:
            abroad[index] = -1 if number >= 1 << 31 else number
    return found, abroad


def _link(one: Any, names: Mapping[int, str], addresses: tuple[Address, ...], vlans: tuple[Vlan, ...]) -> Link:
    info = one.get_attr("IFLA_LINKINFO")
    kind = text(info, "IFLA_INFO_KIND")
    data = info.get_attr("IFLA_INFO_DATA") if info else None
    is_port = text(info, "IFLA_INFO_SLAVE_KIND") == "bridge"
    port = info.get_attr("IFLA_INFO_SLAVE_DATA") if is_port else None
    state = _of(port, "IFLA_BRPORT_STATE", -1)
    return Link(
        index=one["index"],
        name=names[one["index"]],
        kind=kind,
        mac=one.get_attr("IFLA_ADDRESS") or "",
        mtu=one.get_attr("IFLA_MTU") or 0,
        up=bool(one["flags"] & IFF_UP),
        operstate=(one.get_attr("IFLA_OPERSTATE") or "unknown").lower(),
        master=names.get(one.get_attr("IFLA_MASTER") or 0, ""),
        peer_index=one.get_attr("IFLA_LINK") or 0,
        alias=text(one, "IFLA_IFALIAS"),
        group=one.get_attr("IFLA_GROUP") or 0,
        addresses=addresses,
        vlans=vlans,
        vlan_filtering=kind == "bridge" and bool(_of(data, "IFLA_BR_VLAN_FILTERING", 0)),
        stp_state=STP_STATES[state] if 0 <= state < len(STP_STATES) else "",
        hairpin=bool(_of(port, "IFLA_BRPORT_MODE", 0)),
        isolated=bool(_of(port, "IFLA_BRPORT_ISOLATED", 0)),
        flags=flags_of(one["flags"], FLAGS),
        vlan_id=_of(data, "IFLA_VLAN_ID", 0) if kind == "vlan" else 0,
    )


def _of(attributes: Any, name: str, otherwise: int) -> int:
    """A number among nested attributes; pyroute2 gives bytes for those of kinds that it does not know."""
    value = attributes.get_attr(name) if hasattr(attributes, "get_attr") else None
    return value if isinstance(value, int) else otherwise


def addresses(messages: Iterable[Any]) -> dict[int, list[Address]]:
    """The addresses by index of their links."""
    found: dict[int, list[Address]] = defaultdict(list)
    for one in messages:
        # IFA_ADDRESS is the other end's of a point-to-point address, whose own is IFA_LOCAL; plain IPv6 ones have no IFA_LOCAL
        address = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS") or ""
        flags = one.get_attr("IFA_FLAGS") or one["flags"]  # the header has 8 bits for them
        scope = SCOPES.get(one["scope"], str(one["scope"]))
        found[one["index"]].append(Address(address, one["prefixlen"], scope, flags_of(flags, ADDRESS_FLAGS)))
    return found


def vlans(messages: Iterable[Any]) -> dict[int, list[Vlan]]:
    """The VLANs of bridges and their ports, by index of the link: IFLA_BRIDGE_VLAN_INFO, ranges as two entries."""
    found: dict[int, list[Vlan]] = {}
    for one in messages:
        nested = one.get_attr("IFLA_AF_SPEC")
        entries = nested.get_attrs("IFLA_BRIDGE_VLAN_INFO") if hasattr(nested, "get_attrs") else []
        pairs = [(int(entry["flags"]), int(entry["vid"])) for entry in entries if "vid" in entry]
        if pairs:
            found[one["index"]] = vlan_list(pairs)
    return found


def vlan_list(pairs: Iterable[tuple[int, int]]) -> list[Vlan]:
    """Flags and ID of each entry, as VLANs: an entry with BEGIN and the next, with END, are a range."""
    found: list[Vlan] = []
    begin = 0
    for flags, vid in pairs:
        if flags & VLAN_BEGIN:
            begin = vid
            continue
        first = begin if flags & VLAN_END and begin else vid
        vids = range(first, min(vid, VID_MAX) + 1)
        found += [Vlan(each, bool(flags & VLAN_PVID), bool(flags & VLAN_UNTAGGED)) for each in vids]
        begin = 0
    return found


def fdb(messages: Iterable[Any], links: Iterable[Link]) -> list[FdbEntry]:
    """The forwarding tables of bridges; the devices' own lists of addresses are left out."""
    by_index = {one.index: one for one in links}
    found = []
    for one in messages:
        port = by_index.get(one["ifindex"])
        if port is None or one["family"] != AF_BRIDGE or one["flags"] & NTF_SELF:
            continue
        master = by_index.get(one.get_attr("NDA_MASTER") or 0)
        bridge = port.name if port.kind == "bridge" else master.name if master is not None else port.master
        permanent = bool(one["state"] & NUD_PERMANENT)
        vid = one.get_attr("NDA_VLAN") or 0
        found.append(FdbEntry(one.get_attr("NDA_LLADDR") or "", port.name, bridge, vid, permanent))
    return found
