"""Names of iptables' chains, and whether the kernel may have one of them: told without a process."""

from cni_py.kernel import xtables
from cni_py.kernel.nf_tables import NftUnavailable
from cni_py.kernel.xtables import CHAIN_MAX, NAT, NFPROTO
from cni_py.sha import sha512_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel

MASQUERADE, PUBLISH, OBSOLETE = "CNI-", "CNI-DN-", "CNI-SN-"  # how the names of an attachment's chains begin
POSTROUTING, ENTRIES = "POSTROUTING", "CNI-HOSTPORT-DNAT"  # what leads to them
FORWARD, ACCEPTED, STAGE_1 = "FORWARD", "CNI-FORWARD", "CNI-ISOLATION-STAGE-1"  # of the table filter
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
            there = xtables.may_hold(kernel.nft, family, table, *chains)
        except NftUnavailable:  # then only iptables-legacy can have it
            there = table in xtables.legacy_tables(family)
        if there:
            found.append(family)
    if not found:
        return []
    from cni_py.iptables import tool

    return [
        family for family in found if tool.is_there(family) or (own and has_chain(kernel, NFPROTO[family], table, own))
    ]


def has_chain(kernel: "Kernel", family: int, table: str, chain: str) -> bool:
    """Whether nftables shows a chain of that table, told in one netlink message."""
    try:
        return kernel.nft.chain_policy(family, table, chain) is not None
    except NftUnavailable:
        return False
