"""Which ports of a bridge need its policy: what is asked before the elements or rules of a policy are taken out.

A list on disk of who needs them may have lost an entry, and taking them out then would open a bridge with containers on it.
The kernel knows the bridge's ports; the alias of a port names the attachment, whose record says whether it has the policy:

    the record lists it                            needed
    it lists other things                          not needed: also that it is in another VLAN of the bridge
    it cannot be read                              in doubt: needed
    the plugin has none, but other plugins have    not needed: its firewall is DELed, and its bridge not yet; or it never had one.
                                                   An isolated port is needed
    nobody has a record, or the port has no alias  in doubt: needed
"""

from cni_py import files
from cni_py.attachment import naming, records
from cni_py.attachment.holders import HEX
from cni_py.errors import CniError
from cni_py.kernel.nf_tables import BRIDGE, NftUnavailable, ifname_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link

    class Policy(Protocol):
        """An operation that keeps a bridge apart: of nftables or of iptables."""

        bridge: str
        policy: str


PLUGIN = "firewall"  # whose records say it
HEXDIGITS = frozenset("0123456789abcdef")


class Users:
    """Containers on a bridge other than the call's own. `is_gone`: see ports(), which are read when first asked for."""

    __slots__ = ("_bridge", "_is_gone", "_kernel", "_ports")

    def __init__(self, kernel: "Kernel", bridge: str, is_gone: "Callable[[str], bool]") -> None:
        self._kernel = kernel
        self._bridge = bridge
        self._is_gone = is_gone
        self._ports: list[Link] | None = None

    def need(self, op: "Policy") -> bool:
        """Whether one of them needs the policy of `op`, or may."""
        if self._ports is None:
            found = ports(self._kernel, self._bridge, self._is_gone)
            self._ports = [port for port in found if not is_own(self._kernel, port)]
        return any(may_need(self._kernel, port, op) and self._is_there(port) for port in self._ports)

    def _is_there(self, port: "Link") -> bool:
        """Whether a port is still there: another DEL may have removed it, and then its record, since the ports were read."""
        link = self._kernel.host.link(port.name)
        return link is not None and link.index == port.index


def ports(kernel: "Kernel", name: str, is_gone: "Callable[[str], bool]") -> "list[Link]":
    """The ports of a bridge that lead to containers, but for those of which `is_gone` says so by their alias.

    A container's is a veth whose peer is in another namespace: not the way out, the tap of a machine, or a VLAN's gateway. Of the
    gateway's interface in a VLAN (interface/vlan_gateway.py) they are the ports of its bridge that are in that VLAN.
    """
    link = kernel.host.link(name)
    bridge = bridge_of(kernel, link) if link is not None else 0
    found = kernel.host.links(bridge) if bridge else []
    found = [port for port in found if port.kind == "veth" and port.netns_id >= 0 and not is_gone(port.alias)]
    vlan = name.rpartition(".")[2]
    if link is None or link.index == bridge or not vlan.isdigit():
        return found
    from cni_py.kernel import vlans

    members = [(port, vlans.of_port(kernel.host, port.index)) for port in found]
    return [port for port, carried in members if carried is None or int(vlan) in carried]


def bridge_of(kernel: "Kernel", link: "Link") -> int:
    """The index of the bridge that the link is, or whose gateway's interface in a VLAN it is; 0: of none."""
    if link.kind == "bridge":
        return link.index
    below = kernel.host.link(link.link) if link.link and link.netns_id < 0 else None
    if below is None:
        return 0
    # A veth's peer, which is a port; or the bridge itself, where people have made a VLAN device
    return below.master if link.kind == "veth" else below.index


def is_own(kernel: "Kernel", port: "Link") -> bool:
    """Whether it leads to the container of this call; of a port that another plugin has made its peer must say so."""
    if port.alias.startswith(kernel.key.hex) or port.name == kernel.key.host_veth:
        return True
    try:
        record = records.load(kernel.key, PLUGIN)
        if port.alias or record is None or not kernel.has_container:
            return False
        if record.container_cookie != kernel.container_cookie:
            return False
        inside = kernel.container.link(kernel.key.ifname)
    except CniError:  # CNI_NETNS is something else by now
        return False
    return inside is not None and (inside.link, port.link) == (port.index, inside.index)


def is_isolated(kernel: "Kernel", op: "Policy", port: "Link") -> bool:
    """Whether the port is among the isolated ones."""
    if op.policy != "isolated":
        return False
    try:
        return bool(kernel.nft.get("isolated", (ifname_key(port.name),), BRIDGE))
    except NftUnavailable:
        return False


def may_need(kernel: "Kernel", port: "Link", op: "Policy") -> bool:
    """Whether the attachment of a port may need the policy: by its records, and where none says by the port's isolation."""
    hexed = port.alias[:HEX]
    if len(hexed) != HEX or not HEXDIGITS.issuperset(hexed):
        return True
    key = naming.Attachment("", "", "")
    key.hex = hexed
    try:
        record = records.load(key, PLUGIN)
    except CniError:
        return True
    if record is None:
        return not _entries(hexed) or is_isolated(kernel, op, port)
    wanted = (type(op).__name__, op.bridge, op.policy)
    found = [fields for fields in record.ops if isinstance(fields, dict)]
    return not found or any(
        tuple(fields.get(name) for name in ("op", "bridge", "policy")) == wanted for fields in found
    )


def has_record(hexed: str) -> bool:
    """Whether the plugin has a record of the attachment, or half of one."""
    key = naming.Attachment("", "", "")
    key.hex = hexed
    return any(entry.startswith(f"{PLUGIN}.") for entry in _entries(hexed)) or records.load(key, PLUGIN) is not None


def has_port(kernel: "Kernel", name: str, hexed: str, is_gone: "Callable[[str], bool]") -> bool:
    """Whether the bridge has a port of the attachment, or one that may be its own."""
    return any(port.alias[:HEX] in ("", hexed) for port in ports(kernel, name, is_gone))


def _entries(hexed: str) -> list[str]:
    from cni_py.files import listed

    return listed(f"{files.run_dir()}/attachments/{hexed}")
