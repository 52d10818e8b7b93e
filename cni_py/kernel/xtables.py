"""What netlink and /proc tell about iptables' chains, without running it."""

from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.nf_tables import Nft

NAT, FILTER = "nat", "filter"
CHAIN_MAX = 28  # XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
NFPROTO = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6: linux/netfilter.h


def may_hold(nft: "Nft", family: int, table: str, *chains: str) -> bool:
    """Whether iptables may have one of the chains. False is certain: running iptables would find none.

    Chains of iptables-nft are nf_tables chains, which netlink shows. Those of iptables-legacy are told by its program alone,
    so a table of it is a maybe.
    """
    return nft.chain_policy(NFPROTO[family], table, *chains) is not None or table in legacy_tables(family)


def legacy_tables(family: int) -> list[str]:
    """The tables that iptables-legacy has in this network namespace: xt_proto_init(), net/netfilter/x_tables.c.

    Naming a table to iptables-legacy makes it, with hooks that every packet then passes; reading this file does not.
    """
    try:
        fd = os.open(f"/proc/thread-self/net/{'ip' if family == 4 else 'ip6'}_tables_names", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []  # its module is not loaded
    try:
        return os.read(fd, 4096).decode().split()
    except OSError:
        return []
    finally:
        os.close(fd)


def is_chain_name(text: str) -> bool:
    """Whether iptables takes it as the name of a chain."""
    return 0 < len(text) <= CHAIN_MAX and NAME_CHARACTERS.issuperset(text) and text[0] != "-"
