"""rtnetlink: whether a bridge tells VLANs apart, and which ones a port of it carries. What changes a port's: kernel/rtnl.py.

Sources: Linux include/uapi/linux/{if_bridge,if_link}.h, net/bridge/br_vlan.c (br_vlan_rtm_dump()), br_netlink.c.
"""

import _struct
import errno

from cni_py.kernel.netlink import NLM_F_DUMP, attr, attrs, iter_attrs, number
from cni_py.kernel.rtnl import (
    AF_BRIDGE,
    BRIDGE_VLAN_INFO_PVID,
    BRIDGE_VLAN_INFO_UNTAGGED,
    IFLA_BR_VLAN_FILTERING,
    RTM_NEWLINK,
    ifinfomsg,
    linkinfo,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Link, Rtnl

IFLA_BR_VLAN_DEFAULT_PVID = 39
RTM_NEWVLAN, RTM_GETVLAN = 112, 114
BRIDGE_VLANDB_ENTRY = 1
BRIDGE_VLANDB_ENTRY_INFO, BRIDGE_VLANDB_ENTRY_RANGE = 1, 2

_BR_VLAN_MSG = _struct.Struct("=BxxxI")  # family, index
_VLAN_INFO = _struct.Struct("=HH")  # flags, VLAN ID
FLAGS = {BRIDGE_VLAN_INFO_PVID: " pvid", BRIDGE_VLAN_INFO_UNTAGGED: " untagged"}
OWN = BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED  # of the VLAN of a port's untagged frames, in and out


def turn_on_filtering(host: "Rtnl", bridge: int) -> None:
    """Let the bridge with this index tell VLANs apart. EOPNOTSUPP: a kernel without CONFIG_BRIDGE_VLAN_FILTERING."""
    body = ifinfomsg(bridge) + linkinfo("bridge", attr(IFLA_BR_VLAN_FILTERING, b"\1"))
    host.request(RTM_NEWLINK, 0, body)


def default_vlan(bridge: "Link") -> int:
    """The VLAN into which the bridge puts a new port; 0 for none."""
    return number(bridge.data.get(IFLA_BR_VLAN_DEFAULT_PVID))


def of_port(host: "Rtnl", port: int) -> dict[int, int] | None:
    """The VLANs of the port with this index, each with its flags. None where the kernel does not tell: it has no filtering."""
    try:
        answers = host.request(RTM_GETVLAN, NLM_F_DUMP, _BR_VLAN_MSG.pack(AF_BRIDGE, port))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return None
        raise
    found = {}
    for kind, body in answers:
        for entry, payload in iter_attrs(body[_BR_VLAN_MSG.size :]) if kind == RTM_NEWVLAN else ():
            if entry == BRIDGE_VLANDB_ENTRY:
                parts = attrs(payload)
                flags, first = _VLAN_INFO.unpack(parts[BRIDGE_VLANDB_ENTRY_INFO])
                last = number(parts.get(BRIDGE_VLANDB_ENTRY_RANGE)) or first
                found.update(dict.fromkeys(range(first, last + 1), flags & OWN))
    return found


def shown(vlans: dict[int, int]) -> str:
    """As people write them: "7-9, 100 pvid untagged"; "none"."""
    spans: list[list[int]] = []
    for vid, flags in sorted(vlans.items()):
        if spans and spans[-1][1:] == [vid - 1, flags]:
            spans[-1][1] = vid
        else:
            spans.append([vid, vid, flags])
    texts = []
    for first, last, flags in spans:
        span = f"{first}-{last}" if last > first else str(first)
        texts.append(span + "".join(word for bit, word in FLAGS.items() if flags & bit))
    return ", ".join(texts) or "none"
