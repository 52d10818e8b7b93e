"""What netlink and /proc tell about iptables' chains, without running it."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.nf_tables import Nft

NAT, FILTER = "nat", "filter"
CHAIN_MAX = 28  # XT_EXTENSION_MAXNAMELEN, linux/netfilter/x_tables.h
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
NFPROTO = {4: 2, 6: 10}  # NFPROTO_IPV4, NFPROTO_IPV6: linux/netfilter.h


def may_hold(nft: "Nft", family: int, table: str, chain: str) -> bool:
    """Whether iptables may have that chain. False is certain: running iptables would find none.

    Chains of iptables-nft are nf_tables chains, which netlink shows. Those of iptables-legacy are told by its program alone,
    so a table of it is a maybe.
    """
    if nft.chain_policy(NFPROTO[family], table, chain) is not None:
        return True
    return table in legacy_tables(family)


def legacy_tables(family: int) -> list[str]:
    """The tables that iptables-legacy has in this network namespace: xt_proto_init(), net/netfilter/x_tables.c.

    Naming a table to iptables-legacy makes it, with hooks that every packet then passes; reading this file does not.
    """
    try:
        with open(f"/proc/self/net/{'ip' if family == 4 else 'ip6'}_tables_names") as file:
            return file.read().split()
    except OSError:
        return []  # its module is not loaded


def is_chain_name(text: str) -> bool:
    """Whether iptables takes it as the name of a chain."""
    return 0 < len(text) <= CHAIN_MAX and NAME_CHARACTERS.issuperset(text) and text[0] != "-"
