"""The steps that bridge, ptp and macvlan share: the plugins that make a container's interface.

In the order of the verbs: ADD, CHECK, DEL and GC. Each step takes the call; those of DEL and GC raise CniError or OSError, and
Call.run_all() goes on with the next.
"""

from cni_py import files
from cni_py.addr import interface_mac, ip_text, mac_text
from cni_py.attachment import delegate
from cni_py.attachment.call import collect_garbage
from cni_py.attachment.context import NetnsGone
from cni_py.errors import CniError, InvalidNetworkConfig, warn
from cni_py.interface.common import AddVeth, pair_exists
from cni_py.protocol.netconf import CHAIN, values
from cni_py.protocol.result import Interface, Result, dns_from_json, known_result, prev_result

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.attachment.call import Call
    from cni_py.kernel.rtnl import Link
    from cni_py.protocol.result import IPConfig

PAIRING = ("bridge", "ptp")  # the plugins that make veth pairs


# ADD


def container_mac(call: "Call", wanted: str) -> bytes:
    """The MAC of the container's interface: `wanted` by the configuration or the runtime, or ("") one of our own."""
    try:
        return interface_mac(wanted) if wanted else call.key.mac("container")
    except ValueError as error:
        raise InvalidNetworkConfig(f"{call.ifname} cannot have the MAC address that was asked for: {error}") from error


def refuse_existing(call: "Call", refusal: CniError) -> None:
    """Raise `refusal` if the container has an interface of that name: somebody else's, or that of an ADD that succeeded."""
    if call.kernel.container.link(call.ifname) is not None and not call.is_unfinished():
        raise refusal


def refuse_existing_pair(call: "Call") -> None:
    """The same for the plugins that make veth pairs."""
    refuse_existing(call, pair_exists(call.ifname, call.key.host_veth))


def examine_ipam(call: "Call") -> None:
    """Raise what the IPAM plugin's ADD would refuse in its configuration, before anything is done."""
    if delegate.ipam_type(call):
        delegate.examine(call)


def ipam_result(call: "Call") -> Result:
    """The IPAM plugin's result; an empty one where no IPAM plugin is configured. CniError for one without addresses."""
    if not delegate.ipam_type(call):
        return Result()
    result = delegate.ipam_add(call)
    if not result.ips:
        raise CniError("IPAM plugin returned missing IP config: its result has no address")
    return result


def prefer_own_dns(call: "Call", result: Result) -> None:
    """Put the network's `dns` in place of IPAM's if it has a domain, or any list, even an empty one."""
    given = call.conf.dns
    if given is None:
        return
    dns = dns_from_json(given)
    if dns.domain or any(values(given, name) is not None for name in ("nameservers", "search", "options")):
        result.dns = dns


# CHECK


def checked_result(call: "Call") -> Result:
    """prevResult, which there must be, once the IPAM plugin's CHECK has passed."""
    ask_ipam(call, "CHECK")
    result = prev_result(call.conf)
    if result is None:
        raise InvalidNetworkConfig("Required prevResult missing")
    return result


def in_result(call: "Call", result: Result) -> Interface:
    """The container's interface in the result. CniError where there is none, or one in another namespace."""
    found = [interface for interface in result.interfaces if interface.name == call.ifname and interface.sandbox]
    container = found[0] if found else Interface("")
    if container.sandbox != call.netns:
        raise CniError(f"Sandbox in prevResult {container.sandbox} doesn't match configured netns: {call.netns}")
    return container


def ips_of(result: Result, interface: Interface) -> "list[IPConfig]":
    """The addresses that the result has for an interface, or for none."""
    return [ip for ip in result.ips if ip.interface in (None, result.interfaces.index(interface))]


def check_interface(call: "Call", container: Interface, kind: str = "") -> None:
    """CniError unless the container's interface is of that kind ("": any) and has the MAC of the result."""
    link = expect(call.kernel.container.link(container.name) if container.name else None, container.name)
    if kind and link.kind != kind:
        raise CniError(f"Container interface {container.name} is not of type {kind}")
    if container.mac and container.mac.lower() != mac_text(link.mac):
        raise CniError(
            f"Interface {container.name} Mac {container.mac} doesn't match container Mac: {mac_text(link.mac)}"
        )


def expect(link: "Link | None", name: str) -> "Link":
    """The link, or CniError with its name where there is none."""
    if link is None:
        raise CniError(f"Interface name {name} not found" if name else "Interface name missing ")
    return link


# DEL


def detach(call: "Call", *steps: "Callable[[Call], object]") -> None:
    """All steps of a DEL, and the addresses given back: after them, or before, where that is done by the interface. CniError."""
    early = delegate.by_interface(call)
    call.finish_delete(call.run_all(*((release_addresses, *steps) if early else (*steps, release_addresses))))


def collect(call: "Call", *steps: "Callable[[Call], object]") -> None:
    """All steps of a GC, after those by the records, and the IPAM plugin's GC, in the same order. CniError."""
    early, late = ([collect_addresses], []) if delegate.by_interface(call) else ([], [collect_addresses])
    call.finish_delete(call.run_all(*early) + collect_garbage(call) + call.run_all(*steps, *late))


def delete_interface(call: "Call") -> None:
    """Delete the container's interface by its name: an interface that the Go plugin made has no record of ours.

    Not in a namespace that is no longer the attachment's (see Call.owns), and not a hardware interface or lo, which have no
    kind: no plugin has made those.
    """
    try:
        link = call.kernel.container.link(call.ifname) if call.netns else None
    except NetnsGone:
        return
    if link is not None and link.kind:
        call.kernel.container.delete_link(link.index)


def forget_marked(call: "Call") -> None:
    """Without a whole record (lost, damaged): delete the veth pair and the nftables elements that carry the attachment's mark.

    The elements are only looked for where the pair, or half a record, shows that there was an ADD: a DEL that comes a second
    time should not cost a dump of all elements.
    """
    if call.is_recorded:
        return
    mac, left = call.key.mac("container"), call.kernel.host.link(call.key.host_veth)
    AddVeth(name=call.key.host_veth, ifname=call.ifname, mtu=0, host_mac=mac, container_mac=mac).undo(call.kernel)
    if left is None and call.record is None:
        return
    from cni_py.nftables import elements

    elements.sweep(call.kernel, call.conf.name, (), *marked_sets(), only=call.key.hex)


def release_addresses(call: "Call") -> None:
    """Give the addresses back to IPAM: DEL of the IPAM plugin, or release_without_plugin() where it cannot be run."""
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
    """Release what host-local holds, where the IPAM plugin of type `kind` cannot be found or started (`error` says why).

    The same will have kept the ADD from succeeding, so it is only a warning. But where prevResult has addresses that
    host-local does not hold, or a finished record has no reservations of ours, ADD did succeed: then another IPAM plugin holds
    addresses that nobody gives back, and that is an error.
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
    """Release what host-local has reserved for the attachment. Returns these addresses, and those that the record lists."""
    from cni_py.plugins import host_local

    ops = call.record.ops if call.record is not None else ()
    held = {str(op.get("address")) for op in ops if isinstance(op, dict) and op.get("op") == "ReserveAddress"}
    return held | set(host_local.release(call))


# GC, where a record is lost


def sweep_elements(call: "Call") -> None:
    """Delete the nftables elements of stale attachments, and withdraw what they publish: portmap may have left the list."""
    valid = call.valid_attachments
    if valid is None:
        return
    from cni_py.nftables import elements
    from cni_py.ports import leftovers

    elements.sweep(call.kernel, call.conf.name, valid, *marked_sets())
    leftovers.of_network(call, valid)
    elements.sweep_chains(call.kernel)


def sweep_pairs(call: "Call") -> None:
    """Delete the veth pairs of stale attachments, since IPAM is about to give their addresses to others.

    The alias of the host's end names the network. An ADD that is under way has a record, so its pair stays.
    """
    if call.conf.valid_attachments is None:
        return
    is_stale = call.stale_marks()
    stale = []
    for link in call.kernel.host.links():
        hexed = link.alias.partition(" ")[0]
        if link.kind != "veth" or link.name != f"veth{hexed[:8]}" or not is_stale(link.alias):
            continue
        names = files.listed(f"{files.run_dir()}/attachments/{hexed}")
        if not any(name.partition(".")[0] in (*PAIRING, CHAIN) for name in names):
            stale.append(link.index)
    call.kernel.host.delete_links(stale)


def marked_sets() -> tuple[tuple[str, int], ...]:
    """The sets of nftables in which these plugins have elements."""
    from cni_py.kernel.nf_tables import BRIDGE, INET

    return ("masquerade4", INET), ("masquerade6", INET), ("spoof_checked", BRIDGE), ("spoof_allowed", BRIDGE)


# All verbs


def ask_ipam(call: "Call", verb: str) -> None:
    """CHECK, GC or STATUS of the IPAM plugin, if one is configured."""
    if delegate.ipam_type(call):
        delegate.ipam(call, verb)


def collect_addresses(call: "Call") -> None:
    """GC of the IPAM plugin."""
    ask_ipam(call, "GC")
