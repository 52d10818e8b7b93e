"""What the plugins that make the container's interface have in common, a step each: bridge, ptp, macvlan."""

from cni_py import invoke
from cni_py.addr import mac_text
from cni_py.errors import CniError
from cni_py.kernel.context import NetnsGone
from cni_py.records import Attachment
from cni_py.result import Interface, dns_from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.call import Call
    from cni_py.kernel.rtnl import Link
    from cni_py.result import Result


# ADD


def refuse_existing(call: "Call", refusal: str) -> None:
    """An interface of that name belongs to somebody, or to an ADD that still stands: leave it alone."""
    if call.kernel.container.link(call.ifname) is not None and not call.is_unfinished():
        raise CniError(refusal)


def examine_ipam(call: "Call") -> None:
    """What an ADD of the IPAM plugin would refuse in its configuration, before anything is done."""
    if invoke.ipam_type(call):
        invoke.examine(call)


def prefer_own_dns(call: "Call", result: "Result") -> None:
    """The network's `dns` comes before IPAM's, but an empty object says nothing."""
    if call.conf.dns is None:
        return
    dns = dns_from_json(call.conf.dns)
    if dns.nameservers or dns.domain or dns.search or dns.options:
        result.dns = dns


# DEL and GC


def delete_interface(call: "Call") -> None:
    """Delete the container's interface by name: one that somebody else's ADD made has no record of ours."""
    if not call.netns:
        return
    try:
        link = call.kernel.container.link(call.ifname)
    except NetnsGone:
        return
    if link is not None:
        call.kernel.container.delete_link(link.index)


def release_addresses(call: "Call") -> None:
    """Give the addresses back to IPAM, where there is one."""
    if invoke.ipam_type(call):
        invoke.ipam(call, "DEL")


def collect_addresses(call: "Call") -> None:
    """GC of IPAM, where there is one."""
    if invoke.ipam_type(call):
        invoke.ipam(call, "GC")


def sweep_elements(call: "Call") -> None:
    """GC: take out our nftables elements of stale attachments whose record is lost."""
    if call.conf.valid_attachments is None:
        return
    from cni_py import nftops
    from cni_py.kernel.nftables import BRIDGE, INET

    valid = [Attachment(call.conf.name, *listed) for listed in call.conf.valid_attachments]
    sets = (("masquerade4", INET), ("masquerade6", INET), ("spoof_checked", BRIDGE), ("spoof_allowed", BRIDGE))
    nftops.sweep(call.kernel, call.conf.name, valid, *sets)


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
