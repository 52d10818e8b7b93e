"""iptables' FORWARD chain lets the containers' traffic pass.

The rules' text, and what runs iptables, are loaded where there is a chain to change: on most hosts there is none.
"""

from cni_py.addr import Address, by_family
from cni_py.attachment import records
from cni_py.attachment.context import Kernel
from cni_py.attachment.engine import Op, listed, split_texts
from cni_py.iptables import names
from cni_py.kernel.nf_tables import NF_DROP
from cni_py.kernel.xtables import FILTER, NFPROTO, is_chain_name, legacy_tables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from cni_py.iptables.tool import Rules
    from cni_py.nftables.policy import KeepApart
    from cni_py.protocol.result import Result


PLUGIN = "firewall"  # whose records they are


def drops(kernel: Kernel, family: int) -> bool:
    """Whether iptables' FORWARD drops what no rule accepts, as Docker and careful administrators have it."""
    if kernel.nft.chain_policy(NFPROTO[family], FILTER, names.FORWARD) == NF_DROP:
        return True
    if FILTER not in legacy_tables(family):
        return False
    from cni_py.iptables import tool

    return tool.is_there(family) and tool.Rules.read(family, FILTER).policies.get((FILTER, names.FORWARD)) == "DROP"


class PassForwarded(Op):
    """iptables' FORWARD lets pass what the container sends, the answers, and what comes by its published ports.

    With `always` as the Go plugin does, and keeping its `bridge` apart if there is a `policy`; else where FORWARD drops by
    policy alone. By iptables also then: nothing that an nftables table of ours accepts is safe from the drop of another
    table, and one of iptables' own stays readable to it only if iptables wrote it.
    """

    addresses: list[str]
    admin_chain: str
    bridge: str
    policy: str
    always: bool
    owned = True
    restorable = True

    deed = "let the traffic of {addresses} pass the host's FORWARD chain (iptables)"

    def validate(self) -> None:
        by_family(self.addresses)  # ValueError

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        return split_texts(fields, "addresses")  # the version before: "192.0.2.2/24 2001:db8::2/64"

    def describe(self) -> str:
        when = "" if self.always else ", where the policy of FORWARD is DROP"
        apart = f"; {self.bridge} is {self.policy}" if self.policy else ""
        what = f"the traffic of {' '.join(self.addresses)}, and to its published ports"
        return f"host: iptables: FORWARD accepts {what}{when}{apart}"

    def needed(self, kernel: Kernel) -> dict[int, list[Address]]:
        """The addresses that need rules, by family."""
        found = by_family(self.addresses)
        return found if self.always else {family: each for family, each in found.items() if drops(kernel, family)}

    def apply(self, kernel: Kernel) -> bool:
        needed = self.needed(kernel)
        if not needed:
            return False
        from cni_py.iptables import forward_rules, tool

        def decide(rules: "Rules") -> None:
            forward_rules.accept(rules, needed[rules.family], self.admin_chain)
            if self.policy:
                forward_rules.police(rules, self.bridge, self.policy)

        return tool.change(needed, (FILTER,), decide)

    def undo(self, kernel: Kernel) -> None:
        found = by_family(self.addresses)
        if not is_chain_name(self.admin_chain):
            return

        families = concerned(kernel, (4, 6) if self.policy else found)  # who left before may have had both
        if not families:
            return
        used = False
        if self.policy:
            from cni_py.nftables.bridge_users import Users

            used = Users(kernel, self.bridge, lambda _: False).need(self)
        from cni_py.iptables import forward_rules, tool

        def decide(rules: "Rules") -> None:
            own = found.get(rules.family, [])
            forward_rules.refuse(rules, own, self.admin_chain)
            if self.policy and not used:
                forward_rules.release(rules, self.bridge, self.policy, own)

        tool.change(families, (FILTER,), decide)

    def check(self, kernel: Kernel) -> str | None:
        from cni_py.iptables import forward_rules
        from cni_py.iptables.tool import Rules

        for family, addresses in self.needed(kernel).items():
            rules = Rules.read(family, FILTER)
            for address in addresses:
                if not forward_rules.is_accepted(rules, address):
                    return f"iptables' FORWARD does not accept what {address.host()} sends and is sent"
            if self.policy and not forward_rules.is_policed(rules, self.bridge, self.policy):
                return f"iptables' FORWARD does not keep {self.bridge} apart (ingressPolicy {self.policy})"
        return None


def concerned(kernel: Kernel, found: "Container[int]") -> list[int]:
    """The families of whose iptables a chain of the plugin is there: the others cost no process."""
    there = names.concerned(kernel, names.ACCEPTED, names.STAGE_1, table=FILTER)
    return [family for family in there if family in found]


def without_kept(kernel: Kernel, plan: "Sequence[Op]") -> list[Op]:
    """CHECK: the plan without what keeps a bridge apart that nftables does not, and the Go plugin's rules do."""
    from cni_py.nftables.policy import KeepApart

    return [op for op in plan if not (isinstance(op, KeepApart) and op.check(kernel) and is_policed(kernel, op))]


def is_policed(kernel: Kernel, op: "KeepApart") -> bool:
    """Whether iptables keeps the op's bridge apart."""
    families = names.concerned(kernel, names.STAGE_1, table=FILTER)
    if not families:
        return False
    from cni_py.iptables import forward_rules
    from cni_py.iptables.tool import Rules

    return any(forward_rules.is_policed(Rules.read(family, FILTER), op.bridge, op.policy) for family in families)


def forget_addresses(kernel: Kernel, earlier: "Result", admin_chain: str, bridges: "Sequence[str]") -> None:
    """Take out the rules of iptables that the Go plugin made for the addresses of a result.

    They do not say whose they are: what a living attachment of ours has meanwhile stays.
    """
    found = by_family(str(ip.address) for ip in earlier.ips)
    families = concerned(kernel, found) if is_chain_name(admin_chain) else []
    if not families:
        return
    from cni_py.iptables import forward_rules, tool
    from cni_py.nftables.policy import POLICIES

    taken = addresses_in_use()

    def decide(rules: "Rules") -> None:
        gone = [address for address in found[rules.family] if address.packed not in taken]
        forward_rules.refuse(rules, gone, admin_chain)
        for bridge in bridges if gone else ():
            for policy in POLICIES:
                forward_rules.release(rules, bridge, policy, gone)

    tool.change(families, (FILTER,), decide)


def addresses_in_use() -> set[bytes]:
    """Those that records of the plugin name."""
    ops = [op for record in records.all_records(PLUGIN) for op in listed(record, PassForwarded)]
    return {address.packed for op in ops for each in by_family(op.addresses).values() for address in each}
