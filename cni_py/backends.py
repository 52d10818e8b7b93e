"""The two packet filters: which one a plugin is to use, and what an attachment has in iptables, whoever made it.

iptables' part is loaded only where it is asked for, or where one netlink message says that there is something.
"""

from cni_py import records, settings
from cni_py.addr import ip_text
from cni_py.errors import CniError, InvalidNetworkConfig, PluginNotAvailable, warn
from cni_py.kernel import xtables
from cni_py.kernel.nftables import BRIDGE, NftUnavailable, ifname_key
from cni_py.kernel.xtables import CHAIN_MAX, NAT, NFPROTO
from cni_py.result import addresses_of, known_result
from cni_py.sha import sha512_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.addr import Address
    from cni_py.call import Call
    from cni_py.engine import Op
    from cni_py.kernel.context import Kernel

MASQUERADE, PUBLISH, OBSOLETE = "CNI-", "CNI-DN-", "CNI-SN-"  # how the names of an attachment's chains begin
POSTROUTING, ENTRIES = "POSTROUTING", "CNI-HOSTPORT-DNAT"  # what leads to them
NFPROTO_INET = 1  # linux/netfilter.h
GO_MASQUERADE, GO_CHECKS = "cni_plugins_masquerade", "masq_checks"  # newer Go plugins' table and chain for ipMasq
GO_HOSTPORT, GO_HOSTPORTS = "cni_hostport", "hostports"  # and for published ports


def chain_name(prefix: str, network: str, container_id: str) -> str:
    """The chain of an attachment: `prefix` and as many digits as a name may have. It does not tell interfaces apart."""
    return prefix + sha512_hex(network + container_id)[: CHAIN_MAX - len(prefix)]


def concerned(kernel: "Kernel", *chains: str, table: str = NAT, own: str = "") -> list[int]:
    """The families whose iptables may have one of the chains, and can be asked: the others cost no process.

    Where iptables is missing, a family whose chain `own` is seen counts all the same: what runs iptables then says that it is.
    """
    found = []
    for family in (4, 6):
        try:
            there = any(xtables.may_hold(kernel.nft, family, table, chain) for chain in chains)
        except NftUnavailable:  # then only iptables-legacy can have it
            there = table in xtables.legacy_tables(family)
        if there:
            found.append(family)
    if not found:
        return []
    from cni_py import iptables

    return [
        family
        for family in found
        if iptables.is_there(family) or (own and has_chain(kernel, NFPROTO[family], table, own))
    ]


def has_chain(kernel: "Kernel", family: int, table: str, chain: str) -> bool:
    """Whether nftables shows a chain of that table, told in one netlink message."""
    try:
        return kernel.nft.chain_policy(family, table, chain) is not None
    except NftUnavailable:
        return False


def in_use(call: "Call", asked: str, prefix: str, ops: dict[str, str]) -> str:
    """CHECK: the backend that has served the attachment, also if the configuration has changed since, or the plugin."""
    record = records.load(call.key, call.plugin)
    for fields in record.ops if record is not None else ():
        name = fields.get("op") if isinstance(fields, dict) else None
        if name in ops:
            return ops[str(name)]
    chain = chain_name(prefix, call.key.network, call.key.container_id)
    return "iptables" if concerned(call.kernel, chain) else settings.chosen(asked)


def answers(kernel: "Kernel", backend: str) -> None:
    """STATUS: PluginNotAvailable where the backend is not there."""
    try:
        if backend == "iptables":
            from cni_py import iptables

            for tool in iptables.TOOLS.values():
                iptables.find(f"{tool}-restore")
        elif not kernel.nft.has_table():
            from cni_py.kernel import libnftables

            libnftables.binding()
    except CniError as error:
        raise PluginNotAvailable(error.msg, error.details) from error


# Masquerading: ipMasq of the plugins that make the container's interface


def masquerade(addresses: "Iterable[Address]", backend: str) -> "list[Op]":
    """What ipMasq needs for the container's addresses."""
    if backend == "iptables":
        from cni_py.iptablesops import MasqueradeByIptables

        return [MasqueradeByIptables(addresses=" ".join(map(str, addresses)))]
    from cni_py import nftops

    return nftops.masquerade(addresses)


def masquerading(call: "Call", addresses: "Iterable[Address]", asked: str) -> "list[Op]":
    """CHECK: the same by the backend that has served the attachment."""
    ops = {"Masquerade": "nftables", "MasqueradeByIptables": "iptables"}
    return masquerade(addresses, in_use(call, asked, MASQUERADE, ops))


def for_masquerading(asked: str) -> str:
    """The backend for an ipMasqBackend, or the host's. CniError for a name that is none."""
    if asked not in ("", *settings.BACKENDS):
        raise InvalidNetworkConfig(f'unknown ipmasq backend "{asked}": it is nftables or iptables')
    return settings.chosen(asked)


def forget_masquerading(call: "Call") -> None:
    """DEL: take out what masquerades for the attachment, record or not, the Go plugin's too."""
    if not call.is_recorded:
        forget_elements(call)
    chain = chain_name(MASQUERADE, call.key.network, call.key.container_id)
    if concerned(call.kernel, chain):
        from cni_py import iptablesops

        iptablesops.forget_masquerading(call.kernel, call.plugin)
    if has_chain(call.kernel, NFPROTO_INET, GO_MASQUERADE, GO_CHECKS):
        from cni_py import gotables

        gotables.forget_masquerading(call.key)


def forget_elements(call: "Call") -> None:
    """Take out the elements for the attachment's addresses, and its check of the source, that a lost record leaves behind.

    They are asked for by their keys. Where the addresses are not known either, GC finds them by their comments.
    """
    hexed = call.key.hex
    try:
        for ip in known_addresses(call):
            set_name = f"masquerade{4 if len(ip) == 4 else 6}"
            found = call.kernel.nft.get(set_name, (ip,)).get(ip)
            if found is not None and found.comment.startswith(hexed):
                from cni_py import nftops

                nftops.take(call.kernel, set_name, ip)
        checked = call.kernel.nft.get("spoof_checked", (ifname_key(call.key.host_veth),), BRIDGE)
        if any(element.comment.startswith(hexed) for element in checked.values()):
            from cni_py import nftops

            nftops.sweep_one(call.kernel, hexed, "spoof_checked", "spoof_allowed", family=BRIDGE)
    except NftUnavailable:
        pass  # then nothing of ours can be there


def sweep_masquerading(call: "Call") -> None:
    """GC: the same for containers that are not valid."""
    _sweep(call, POSTROUTING)
    valid = call.conf.valid_attachments
    if valid is not None and has_chain(call.kernel, NFPROTO_INET, GO_MASQUERADE, GO_CHECKS):
        from cni_py import gotables

        gotables.sweep_masquerading(
            call.conf.name, {gotables.mark_of(records.Attachment(call.conf.name, *listed)) for listed in valid}
        )


# Published ports


def make_room(call: "Call", ports: str) -> None:
    """ADD by nftables: PortInUse when iptables publishes one of the ports for another container that is known to live."""
    if concerned(call.kernel, ENTRIES):
        from cni_py import iptablesops
        from cni_py.portmappings import parse_mappings

        iptablesops.make_room(call.kernel, parse_mappings(ports))


def oust_strangers(call: "Call", addresses: "Iterable[Address]") -> None:
    """ADD that publishes nothing: take out what still leads to the addresses under the name of another attachment.

    The index of published ports knows of the Go plugins' chains only what there was when it was made.
    """
    packed = {address.packed for address in addresses}
    families = concerned(call.kernel, ENTRIES) if packed else []
    if families and not call.dry_run:
        from cni_py import iptablesops

        try:
            iptablesops.take_out_strangers(call.kernel, families, packed)
        except CniError as error:  # nothing is published: no reason not to connect the container
            warn(f"ports that earlier containers published may lead to {call.key.label}: {error}")


def forget_ports(call: "Call") -> None:
    """DEL: take out what publishes for the attachment by iptables, record or not, the Go plugin's too.

    With it what Go made for the container's interface while the network had another name.
    """
    addresses = known_addresses(call)
    obsolete = chain_name(OBSOLETE, call.key.network, call.key.container_id)
    if concerned(call.kernel, ENTRIES, obsolete, own=chain_name(PUBLISH, call.key.network, call.key.container_id)):
        from cni_py import iptablesops

        iptablesops.forget_ports(call.kernel)
        if addresses or is_gone(call):
            goes: Callable[[bytes], bool] = addresses.__contains__ if addresses else lambda _: True
            iptablesops.withdraw_of_container(call.kernel, call.key, goes)
    for family, number in NFPROTO.items():
        if has_chain(call.kernel, number, GO_HOSTPORT, GO_HOSTPORTS):
            from cni_py import gotables

            gotables.forget_ports(family, call.container_id, set(map(ip_text, addresses)))


def forget_chains(kernel: "Kernel", key: "records.Attachment", goes: "Callable[[bytes], bool]") -> None:
    """Take out what publishes by iptables for an attachment, but for addresses that do not go."""
    chain, obsolete = (chain_name(prefix, key.network, key.container_id) for prefix in (PUBLISH, OBSOLETE))
    if concerned(kernel, chain, obsolete, own=chain):
        from cni_py import iptablesops

        iptablesops.withdraw(kernel, key, lambda ip: not goes(ip))


def known_addresses(call: "Call") -> set[bytes]:
    """DEL: the addresses of the container's interface, by the result that the runtime remembers, else as they are now.

    Where the container is gone, too, host-local's reservations name them.
    """
    earlier = known_result(call.conf)
    if earlier is not None and earlier.ips:
        return {address.packed for address in addresses_of(earlier, call.ifname)}
    try:
        if not call.kernel.has_container:
            return reserved(call)
        link = call.kernel.container.link(call.ifname)
        return (
            {held.address.packed for held in call.kernel.container.addresses(link.index)} if link is not None else set()
        )
    except (CniError, OSError):
        return set()


def reserved(call: "Call") -> set[bytes]:
    """What host-local has reserved for the attachment. CniError."""
    from cni_py.addr import parse_ip
    from cni_py.plugins.host_local import directory_of
    from cni_py.reservations import Pool, is_address

    with Pool(directory_of(call.conf), look=True) as pool:
        names = pool.of_attachment(call.container_id, call.ifname)[1]
    return {parse_ip(name) for name in names if is_address(name)}


def is_gone(call: "Call") -> bool:
    """Whether the container's namespace is: then nothing of it is in use."""
    try:
        return not call.kernel.has_container
    except CniError:
        return False


def sweep_ports(call: "Call") -> None:
    """GC: the same for containers that are not valid."""
    _sweep(call, ENTRIES)


def _sweep(call: "Call", base: str) -> None:
    if call.conf.valid_attachments is not None and concerned(call.kernel, base):
        from cni_py import iptablesops

        valid = {container_id for container_id, _ in call.conf.valid_attachments}
        iptablesops.sweep(call.kernel, call.conf.name, valid, call.plugin, ports=base == ENTRIES)
