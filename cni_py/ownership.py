"""Whether the namespace at CNI_NETNS is the attachment's, when no record of ours tells: the interface in it does.

A DEL needs this after an ADD of the Go plugins, or when the record is lost. The path of a dead container (/proc/<pid>/ns/net)
may lead to a living one by now. The evidence, the strongest first:

    the alias of the link or of its peer on the host     names an attachment of ours: this one, or the same interface of the
                                                         same container when the network had another name
    the peer's name, and the MAC address                 are those in prevResult
    the link's addresses                                 are those in prevResult, or those that host-local has reserved for
                                                         the attachment, or for another one

Without evidence the path counts as right, as with the Go plugins.
"""

from cni_py.addr import ip_text, mac_text
from cni_py.attachment import records
from cni_py.attachment.naming import HEX
from cni_py.errors import CniError
from cni_py.ipam.reservations import Pool, holder
from cni_py.kernel import inet
from cni_py.lean import os
from cni_py.protocol.result import Result, known_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call
    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.kernel.rtnl import Link

HEX_DIGITS = frozenset("0123456789abcdef")


def is_own(call: "Call", kernel: "Kernel") -> bool:
    """Whether the namespace at CNI_NETNS counts as the attachment's."""
    link = kernel.container.link(call.ifname)
    if link is None:
        return True  # it has no interface that a DEL could take for the attachment's
    peer = peer_of(kernel, link)
    for marked in (link, peer):
        if marked is not None and is_marked(marked.alias):
            return is_of_interface(marked.alias, kernel.key)
    earlier = known_result(call.conf) or Result()
    if peer is not None and any(one.name == peer.name and not one.sandbox for one in earlier.interfaces):
        return True
    macs = {one.mac.lower() for one in earlier.interfaces if one.name == call.ifname and one.sandbox and one.mac}
    if mac_text(link.mac) in macs:
        return True
    held = [entry.address.packed for entry in inet.addresses(kernel.container, link.index) if not is_link_local(entry)]
    known = {ip.address.packed for ip in earlier.ips}
    verdict = by_reservations(call, held, known)
    return not macs if verdict is None else verdict


def is_link_local(entry: inet.Addr) -> bool:
    """Whether it is in fe80::/10: every link has such an address."""
    packed = entry.address.packed
    return len(packed) == 16 and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80


def is_marked(alias: str) -> bool:
    """Whether it is an alias of ours (Attachment.comment)."""
    return len(alias) > HEX and alias[HEX] == " " and HEX_DIGITS.issuperset(alias[:HEX])


def former(kernel: "Kernel", ifname: str) -> "Attachment | None":
    """The attachment that the container's link was made for if the network had another name then; else None."""
    link = kernel.container.link(ifname)
    for marked in (link, peer_of(kernel, link)) if link is not None else ():
        if marked is not None and is_marked(marked.alias):
            named = records.attachment_in(marked.alias)[1]
            return named if named is not None and named.hex != kernel.key.hex else None
    return None


def is_of_interface(alias: str, key: "Attachment") -> bool:
    """Whether an alias of ours names the attachment, or one of the same container and interface in another network."""
    hexed, named = records.attachment_in(alias)
    same = named is not None and (named.container_id, named.ifname) == (key.container_id, key.ifname)
    return same or hexed == key.hex


def peer_of(kernel: "Kernel", link: "Link") -> "Link | None":
    """The host's end of a veth pair; None when the link is none, or the other end is in a third namespace."""
    if link.kind != "veth" or not link.link:
        return None
    peer = kernel.host.link(link.link)
    return peer if peer is not None and peer.kind == "veth" and peer.link == link.index else None


def by_reservations(call: "Call", held: list[bytes], known: set[bytes]) -> bool | None:
    """Whether prevResult (`known`) or host-local says that the link's addresses are the attachment's; None: neither tells."""
    from cni_py.ipam.reservations import directory_of

    try:
        directory = directory_of(call.conf)
        with Pool(directory, look=True) as pool:
            names = pool.of_attachment(call.container_id, call.ifname)[1]
        if known.intersection(held) or set(names).intersection(map(ip_text, held)):
            return True
        if held and (known or names):
            return False
        ours = {holder(call.container_id, call.ifname), holder(call.container_id)}
        return False if any(who not in ours for who in holders_of(os.path.dirname(directory), held)) else None
    except CniError:
        return False if held and known else None  # the directory cannot be read


def holders_of(data_dir: str, addresses: list[bytes]) -> list[bytes]:
    """The holders of reservations of these addresses, in all networks of the directory."""
    found = []
    try:
        networks = os.listdir(data_dir) if addresses else []
    except OSError:
        return []
    for network in networks:
        with Pool(f"{data_dir}/{network}", look=True) as pool:
            found += [who for ip in addresses if (who := pool.holder_of(ip))]
    return found
