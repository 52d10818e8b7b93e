"""Masquerading by iptables' nat table: the operation, and what DEL and GC take out."""

from cni_py.addr import by_family
from cni_py.attachment import records
from cni_py.attachment.engine import Op, split_texts
from cni_py.iptables import masquerade_rules, tool
from cni_py.iptables.names import MASQUERADE, chain_name, concerned
from cni_py.iptables.tool import Rules
from cni_py.kernel.xtables import NAT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.attachment.records import Record


class MasqueradeByIptables(Op):
    """What the container sends out of its subnets leaves with the host's address."""

    addresses: list[str]
    owned = True
    restorable = True
    line = "host: iptables: what {addresses} sends out of its subnet is masqueraded"
    deed = "masquerade what {addresses} sends (iptables)"

    def validate(self) -> None:
        by_family(self.addresses)  # ValueError

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        return split_texts(fields, "addresses")  # the version before: "192.0.2.2/24 2001:db8::2/64"

    def apply(self, kernel: "Kernel") -> bool:
        chain, label = own_chain(kernel.key, MASQUERADE), own_label(kernel.key)
        found = by_family(self.addresses)
        return tool.change(
            found, (NAT,), lambda rules: masquerade_rules.masquerade(rules, chain, label, found[rules.family])
        )

    def undo(self, kernel: "Kernel") -> None:
        gone = {address.packed for each in by_family(self.addresses).values() for address in each}
        unmasquerade(kernel, lambda ip: ip not in gone)

    def check(self, kernel: "Kernel") -> str | None:
        chain, label = own_chain(kernel.key, MASQUERADE), own_label(kernel.key)
        for family, addresses in by_family(self.addresses).items():
            rules = Rules.read(family, NAT)
            for address in addresses:
                if not masquerade_rules.is_masqueraded(rules, chain, label, address):
                    return f"iptables' chain {chain} does not masquerade {address}"
        return None


def own_chain(key: "Attachment", prefix: str) -> str:
    """The chain of an attachment."""
    return chain_name(prefix, key.network, key.container_id)


def own_label(key: "Attachment") -> str:
    """Whose the rules are."""
    return masquerade_rules.label(key.network, key.container_id)


def siblings(key: "Attachment", plugin: str) -> set[bytes]:
    """The packed addresses of the container's other interfaces in the network, from our records: they share its chain."""
    found = set()
    for record in records_of(key.network, key.container_id, plugin):
        if record.key.ifname != key.ifname:
            for fields in record.ops:
                if isinstance(fields, dict) and fields.get("op") in ("MasqueradeByIptables", "PublishByIptables"):
                    found |= packed_in(split_texts(fields, "addresses").get("addresses"))
    return found


def packed_in(addresses: object) -> set[bytes]:
    """The addresses in a list from a record; none in one that is damaged."""
    try:
        texts = map(str, addresses) if isinstance(addresses, list) else ()
        return {address.packed for each in by_family(texts).values() for address in each}
    except ValueError:
        return set()


def records_of(network: str, container_id: str, plugin: str) -> "list[Record]":
    """The plugin's records of a container in a network."""
    return [
        record
        for record in records.all_records(plugin)
        if (record.key.network, record.key.container_id) == (network, container_id)
    ]


def unmasquerade(kernel: "Kernel", stays: "Callable[[bytes], bool]") -> None:
    """Take out the attachment's masquerading, but for addresses that stay."""
    chain = own_chain(kernel.key, MASQUERADE)
    tool.change(concerned(kernel, chain), (NAT,), lambda rules: masquerade_rules.unmasquerade(rules, chain, stays))


def forget_masquerading(kernel: "Kernel", plugin: str) -> None:
    """DEL: whatever masquerades for the attachment, record or not, the Go plugin's too."""
    unmasquerade(kernel, Siblings(kernel.key, plugin).__contains__)


class Siblings:
    """siblings(), read when first asked for: most DELs find nothing to take out."""

    __slots__ = ("_found", "_key", "_plugin")

    def __init__(self, key: "Attachment", plugin: str) -> None:
        self._key = key
        self._plugin = plugin
        self._found: set[bytes] | None = None

    def __contains__(self, ip: bytes) -> bool:
        if self._found is None:
            self._found = siblings(self._key, self._plugin)
        return ip in self._found
