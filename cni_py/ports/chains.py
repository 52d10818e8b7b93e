"""Questions that portmap asks of iptables with either backend: are there chains that publish ports, and whose are they?

by_iptables is loaded only where a netlink message says that there is such a chain.
"""

from cni_py.attachment import naming, records
from cni_py.iptables.names import (
    ENTRIES,
    GO_HOSTPORT,
    GO_HOSTPORTS,
    OBSOLETE,
    PUBLISH,
    chain_name,
    concerned,
    has_chain,
)
from cni_py.kernel.xtables import NFPROTO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cni_py.attachment.call import Call
    from cni_py.attachment.context import Kernel
    from cni_py.ports.mapping import Mapping


# Published ports


def clear_ports(kernel: "Kernel", wanted: "Sequence[Mapping]") -> None:
    """ADD by nftables: PortInUse if iptables publishes one of the ports for another container that is known to live."""
    if concerned(kernel, ENTRIES):
        from cni_py.ports import by_iptables

        by_iptables.clear_ports(kernel, wanted)
    clear_go_tables(kernel, {mapping.container_ip for mapping in wanted})


def forget_ports(call: "Call") -> None:
    """DEL: take out what publishes for the attachment by iptables, record or not, the Go plugin's too.

    With it what Go made for the container's interface while the network had another name.
    """
    from cni_py.ipam.leaving import is_gone, known_addresses

    addresses = known_addresses(call)
    obsolete = chain_name(OBSOLETE, call.key.network, call.key.container_id)
    if concerned(call.kernel, ENTRIES, obsolete, own=chain_name(PUBLISH, call.key.network, call.key.container_id)):
        from cni_py.ports import by_iptables

        by_iptables.forget_ports(call.kernel)
        if addresses or is_gone(call):
            goes: Callable[[bytes], bool] = addresses.__contains__ if addresses else lambda _: True
            by_iptables.withdraw_of_container(call.kernel, call.key, goes)
    forget_go_tables(call.kernel, call.container_id, addresses.__contains__ if addresses else None)


def forget_go_tables(kernel: "Kernel", container_id: str, goes: "Callable[[bytes], bool] | None") -> None:
    """Take out what newer Go plugins publish by nftables for those addresses of a container that go; None: for all."""
    for family, number in NFPROTO.items():
        if has_chain(kernel, number, GO_HOSTPORT, GO_HOSTPORTS):
            from cni_py.ports import go_tables

            go_tables.forget(kernel, family, container_id, goes)


def clear_go_tables(kernel: "Kernel", addresses: "Collection[bytes]") -> None:
    """ADD: take out what newer Go plugins publish by nftables for a container that had one of the addresses before."""
    families = {4 if len(address) == 4 else 6 for address in addresses}
    if any(has_chain(kernel, NFPROTO[family], GO_HOSTPORT, GO_HOSTPORTS) for family in families):
        from cni_py.ports import go_tables

        go_tables.clear(kernel, addresses)


def of_go_tables(call: "Call") -> "list[Mapping]":
    """CHECK: what newer Go plugins have published by nftables for a container that has no record of ours."""
    kernel = call.kernel
    if records.load(call.key, call.plugin) is not None:
        return []
    if not any(has_chain(kernel, number, GO_HOSTPORT, GO_HOSTPORTS) for number in NFPROTO.values()):
        return []
    from cni_py.ports import go_tables

    return [mapping for owner, mapping in go_tables.everything(kernel) if owner == call.container_id]


def forget_chains(kernel: "Kernel", key: "naming.Attachment", goes: "Callable[[bytes], bool]") -> None:
    """Take out what publishes by iptables for an attachment, but for addresses that do not go.

    The key without a network stands for what newer Go plugins made for the container.
    """
    if not key.network:
        forget_go_tables(kernel, key.container_id, goes)
        return
    chain, obsolete = (chain_name(prefix, key.network, key.container_id) for prefix in (PUBLISH, OBSOLETE))
    if concerned(kernel, chain, obsolete, own=chain):
        from cni_py.ports import by_iptables

        by_iptables.withdraw(kernel, key, lambda ip: not goes(ip))
