"""Choose nftables or iptables, and find the iptables rules of an attachment, ours or the Go plugins'.

iptables' modules are loaded only where the configuration names that backend, or a netlink message says that a chain is there.
"""

from cni_py.attachment import records
from cni_py.backend import BACKENDS, chosen
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable, warn
from cni_py.iptables.names import (
    ENTRIES,
    GO_CHECKS,
    GO_MASQUERADE,
    MASQUERADE,
    NFPROTO_INET,
    POSTROUTING,
    chain_name,
    concerned,
    has_chain,
)
from cni_py.kernel.nf_tables import BRIDGE, NftUnavailable, ifname_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.addr import Address
    from cni_py.attachment.call import Call
    from cni_py.attachment.context import Kernel
    from cni_py.attachment.engine import Op


def serving(call: "Call", asked: str, prefix: str, ops: dict[str, str]) -> str:
    """CHECK: the backend that serves the attachment, by its record or its chain, whatever the configuration says now."""
    record = records.load(call.key, call.plugin)
    for fields in record.ops if record is not None else ():
        name = fields.get("op") if isinstance(fields, dict) else None
        if name in ops:
            return ops[str(name)]
    chain = chain_name(prefix, call.key.network, call.key.container_id)
    return "iptables" if concerned(call.kernel, chain) else chosen(asked)


def require(kernel: "Kernel", backend: str) -> None:
    """STATUS: raise PluginNotAvailable if the backend is missing."""
    try:
        if backend == "firewalld":
            require_firewalld()
            return
        if backend == "iptables":
            from cni_py.iptables.tool import TOOLS, find

            for tool in TOOLS.values():
                find(f"{tool}-restore")
            return
        from cni_py.nftables.ruleset import has_table

        if not has_table(kernel.nft):
            from cni_py.kernel import libnftables

            libnftables.binding()
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error


def require_firewalld() -> None:
    """CniError unless firewalld runs."""
    from cni_py.firewalld import zones

    with zones.needed():
        pass


# Masquerading: ipMasq of the plugins that make the container's interface


def masquerade(addresses: "Iterable[Address]", backend: str) -> "list[Op]":
    """What ipMasq needs for the container's addresses."""
    if backend == "iptables":
        from cni_py.iptables.masquerade import MasqueradeByIptables

        return [MasqueradeByIptables(addresses=list(map(str, addresses)))]
    from cni_py.nftables import masquerade as nftables_masquerade

    return nftables_masquerade.masquerade(addresses)


def masquerading(call: "Call", addresses: "Iterable[Address]", asked: str) -> "list[Op]":
    """CHECK: the same by the backend that has served the attachment."""
    ops = {"Masquerade": "nftables", "MasqueradeByIptables": "iptables"}
    return masquerade(addresses, serving(call, asked, MASQUERADE, ops))


def for_masquerading(asked: str) -> str:
    """The backend for an ipMasqBackend, or the host's. CniError for a name that is none."""
    if asked not in ("", *BACKENDS):
        raise InvalidNetworkConfig(f'unknown ipmasq backend "{asked}": it is nftables or iptables')
    return chosen(asked)


def forget_masquerading(call: "Call") -> None:
    """DEL: take out what masquerades for the attachment, record or not, the Go plugin's too."""
    if not call.is_recorded:
        forget_elements(call)
    chain = chain_name(MASQUERADE, call.key.network, call.key.container_id)
    if concerned(call.kernel, chain):
        from cni_py.iptables import masquerade as iptables_masquerade

        iptables_masquerade.forget_masquerading(call.kernel, call.plugin)
    if has_chain(call.kernel, NFPROTO_INET, GO_MASQUERADE, GO_CHECKS):
        from cni_py.iptables import goplugins

        goplugins.forget_masquerading(call.key)


def forget_elements(call: "Call") -> None:
    """Take out the elements for the attachment's addresses, and its check of the source, that a lost record leaves behind.

    They are asked for by their keys. Where the addresses are not known either, GC finds them by their comments.
    """
    from cni_py.ipam.leaving import known_addresses

    hexed = call.key.hex
    try:
        for ip in known_addresses(call):
            set_name = f"masquerade{4 if len(ip) == 4 else 6}"
            found = call.kernel.nft.get(set_name, (ip,)).get(ip)
            if found is not None and found.comment.startswith(hexed):
                from cni_py.nftables import elements

                elements.take(call.kernel, set_name, ip)
        checked = call.kernel.nft.get("spoof_checked", (ifname_key(call.key.host_veth),), BRIDGE)
        if any(element.comment.startswith(hexed) for element in checked.values()):
            from cni_py.nftables import elements

            elements.sweep_one(call.kernel, hexed, "spoof_checked", "spoof_allowed", family=BRIDGE)
    except NftUnavailable:
        pass  # then nothing of ours can be there


def sweep_masquerading(call: "Call") -> None:
    """GC: the same for containers that are not valid."""
    _sweep(call, POSTROUTING)
    valid = call.valid_attachments
    if valid is not None and has_chain(call.kernel, NFPROTO_INET, GO_MASQUERADE, GO_CHECKS):
        from cni_py.iptables import goplugins

        goplugins.sweep_masquerading(call.conf.name, set(map(goplugins.mark_of, valid)))


def take_out_unrecorded(call: "Call", addresses: "Iterable[Address]") -> None:
    """ADD that publishes nothing: remove rules of attachments without a record that lead to these addresses.

    The index of published ports knows of the Go plugins' chains only what there was when it was made.
    """
    packed = {address.packed for address in addresses}
    if not packed or call.dry_run:
        return
    from cni_py.ports import chains

    try:
        families = concerned(call.kernel, ENTRIES)
        if families:
            from cni_py.ports import by_iptables

            by_iptables.take_out_unrecorded_of(call.kernel, families, packed)
        chains.clear_go_tables(call.kernel, packed)
    except CniError as error:  # nothing is published: no reason not to connect the container
        warn(f"ports that earlier containers published may lead to {call.key.label}: {error}")


def sweep_ports(call: "Call") -> None:
    """GC: the same for containers that are not valid."""
    _sweep(call, ENTRIES)


def _sweep(call: "Call", base: str) -> None:
    valid = call.valid_attachments
    if valid is not None and concerned(call.kernel, base):
        from cni_py.ports import by_iptables

        living = {key.container_id for key in valid}
        by_iptables.sweep(call.kernel, call.conf.name, living, call.plugin, ports=base == ENTRIES)
