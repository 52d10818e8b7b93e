"""What the plugins that make the container's interface have in common, a step each: bridge, ptp, macvlan."""

from cni_py import files
from cni_py.addr import ip_text, mac_text
from cni_py.attachment import delegate
from cni_py.attachment.context import NetnsGone
from cni_py.attachment.naming import Attachment
from cni_py.errors import CniError, warn
from cni_py.protocol.netconf import values
from cni_py.protocol.result import Interface, dns_from_json, known_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call
    from cni_py.kernel.rtnl import Link
    from cni_py.protocol.result import Result

PAIRING = ("bridge", "ptp")  # the plugins that make veth pairs


# ADD


def refuse_existing(call: "Call", refusal: str) -> None:
    """An interface of that name belongs to somebody, or to an ADD that still stands: leave it alone."""
    if call.kernel.container.link(call.ifname) is not None and not call.is_unfinished():
        raise CniError(refusal)


def examine_ipam(call: "Call") -> None:
    """What an ADD of the IPAM plugin would refuse in its configuration, before anything is done."""
    if delegate.ipam_type(call):
        delegate.examine(call)


def prefer_own_dns(call: "Call", result: "Result") -> None:
    """The network's `dns` takes the place of IPAM's if it says anything: a domain, or a list, which may be empty."""
    given = call.conf.dns
    if given is None:
        return
    dns = dns_from_json(given)
    if dns.domain or any(values(given, name) is not None for name in ("nameservers", "search", "options")):
        result.dns = dns


# DEL and GC


def delete_interface(call: "Call") -> None:
    """Delete the container's interface by name: one that somebody else's ADD made has no record of ours.

    Not in a namespace that is another's (see Call.owns), and nothing that no plugin can have made.
    """
    if not call.netns:
        return
    try:
        link = call.kernel.container.link(call.ifname)
    except NetnsGone:
        return
    if link is not None and link.kind:
        call.kernel.container.delete_link(link.index)


def forget_marked(call: "Call") -> None:
    """Take away what carries the attachment's mark, where no record lists it: it was lost or damaged.

    Looking through all elements is for when there must have been something: a DEL that comes twice is not to cost that.
    """
    if call.is_recorded:
        return
    from cni_py.interface.common import AddVeth

    mac, left = call.key.mac("container"), call.kernel.host.link(call.key.host_veth)
    AddVeth(name=call.key.host_veth, ifname=call.ifname, mtu=0, host_mac=mac, container_mac=mac).undo(call.kernel)
    if left is None and call.record is None:
        return
    from cni_py.nftables import elements

    elements.sweep(call.kernel, call.conf.name, (), *marked_sets(), only=call.key.hex)


def release_addresses(call: "Call") -> None:
    """DEL: give the addresses back to IPAM."""
    kind = delegate.ipam_type(call)
    try:
        path = delegate.find(kind, call.path)
        plugin = delegate.own_plugin(path)
    except CniError as error:
        release_without_plugin(call, kind, error)
        return
    try:
        delegate.run(call, "DEL", path, plugin)
    except delegate.NotRunnable as error:
        release_without_plugin(call, kind, error)


def release_without_plugin(call: "Call", kind: str, error: CniError) -> None:
    """The same where the IPAM plugin cannot be found or started (`ipam.type` is wrong, unreadable, or no program's name).

    That will have kept the ADD from succeeding, so that it is no error unless prevResult, or a finished record without
    reservations of ours, shows that it did succeed: then addresses would leak. What host-local holds for the attachment is
    released in any case.
    """
    released = release_reservations(call)
    earlier = known_result(call.conf) if kind else None
    left = [ip.address for ip in earlier.ips if ip_text(ip.address.packed) not in released] if earlier else []
    if left:
        raise CniError(f"the IPAM plugin cannot give back {', '.join(map(str, left))}", str(error)) from error
    if kind and call.record is not None and call.record.done and not call.record.damage and not released:
        raise error
    if kind:
        warn(f"nothing is given back to the IPAM plugin: {error}")


def release_reservations(call: "Call") -> set[str]:
    """Release what host-local has reserved for the attachment; returns what the attachment had reserved."""
    from cni_py.plugins import host_local

    ops = call.record.ops if call.record is not None else ()
    held = {str(op.get("address")) for op in ops if isinstance(op, dict) and op.get("op") == "ReserveAddress"}
    return held | set(host_local.release(call))


def collect_addresses(call: "Call") -> None:
    """GC of IPAM, where there is one."""
    if delegate.ipam_type(call):
        delegate.ipam(call, "GC")


def sweep_elements(call: "Call") -> None:
    """GC: take out our nftables elements of stale attachments whose record is lost, and what they publish.

    portmap may not be in the list any more.
    """
    if call.conf.valid_attachments is None:
        return
    from cni_py.nftables import elements
    from cni_py.ports import leftovers

    valid = [Attachment(call.conf.name, *listed) for listed in call.conf.valid_attachments]
    elements.sweep(call.kernel, call.conf.name, valid, *marked_sets())
    leftovers.of_network(call, valid)
    elements.sweep_chains(call.kernel)


def sweep_pairs(call: "Call") -> None:
    """GC: delete the veth pairs of stale attachments whose record is lost: IPAM is about to give their addresses to others.

    The alias of the host's end says of which network it is. An ADD that is under way has a record.
    """
    if call.conf.valid_attachments is None:
        return
    valid = {Attachment(call.conf.name, *listed).hex for listed in call.conf.valid_attachments}
    for link in call.kernel.host.links():
        hexed, _, label = link.alias.partition(" ")
        stale = hexed not in valid and label.startswith(call.conf.name + "/")
        if not stale or link.kind != "veth" or link.name != f"veth{hexed[:8]}":
            continue
        names = files.listed(f"{files.run_dir()}/attachments/{hexed}")
        if not any(name.partition(".")[0] in PAIRING for name in names):
            call.kernel.host.delete_link(link.index)


def marked_sets() -> tuple[tuple[str, int], ...]:
    """The sets of nftables in which these plugins have elements."""
    from cni_py.kernel.nf_tables import BRIDGE, INET

    return ("masquerade4", INET), ("masquerade6", INET), ("spoof_checked", BRIDGE), ("spoof_allowed", BRIDGE)


# CHECK


def in_result(call: "Call", result: "Result") -> Interface:
    """The container's interface as the result has it; CniError where that is in another namespace, or there is none."""
    found = [interface for interface in result.interfaces if interface.name == call.ifname and interface.sandbox]
    container = found[0] if found else Interface("")
    if container.sandbox != call.netns:
        raise CniError(f"Sandbox in prevResult {container.sandbox} doesn't match configured netns: {call.netns}")
    return container


def check_interface(call: "Call", container: Interface, kind: str) -> None:
    """The container's interface is of that kind, with the MAC of the result."""
    link = expect(call.kernel.container.link(container.name) if container.name else None, container.name)
    if link.kind != kind:
        raise CniError(f"Container interface {container.name} is not of type {kind}")
    if container.mac and container.mac.lower() != mac_text(link.mac):
        raise CniError(
            f"Interface {container.name} Mac {container.mac} doesn't match container Mac: {mac_text(link.mac)}"
        )


def expect(link: "Link | None", name: str) -> "Link":
    """The link, or an error that names it."""
    if link is None:
        raise CniError(f"Interface name {name} not found" if name else "Interface name missing ")
    return link
