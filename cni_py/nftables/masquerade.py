"""ipMasq: what the container sends out of its subnet leaves with the host's address."""

from cni_py.addr import Address, parse_address
from cni_py.attachment.engine import Op
from cni_py.kernel.nf_tables import INET, Element
from cni_py.nftables import ruleset
from cni_py.nftables.elements import put, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cni_py.attachment.context import Kernel


def masquerade(addresses: "Iterable[Address]") -> list[Op]:
    """What bridge's ipMasq needs for the container's addresses."""
    return [Masquerade(address=str(address)) for address in addresses]


class Masquerade(Op):
    """What the container sends out of its subnet leaves with the host's address."""

    address: str
    nft_family = INET
    owned = True
    restorable = True
    line = "host: nft: what {address} sends out of its subnet is masqueraded"
    deed = "masquerade what {address} sends (nftables)"

    def validate(self) -> None:
        parse_address(self.address)  # ValueError

    def element(self, kernel: "Kernel") -> tuple[str, Element]:
        """The map, and the element in it."""
        address = parse_address(self.address)
        name = ruleset.chain_name("outside", address)
        return f"masquerade{address.family}", Element(address.packed, name, kernel.key.comment)

    def apply(self, kernel: "Kernel") -> bool:
        set_name, element = self.element(kernel)
        return put(kernel, set_name, element, ruleset.outside_chain(parse_address(self.address)))

    def undo(self, kernel: "Kernel") -> None:
        set_name, element = self.element(kernel)
        take(kernel, set_name, element.key)

    def check(self, kernel: "Kernel") -> str | None:
        set_name, element = self.element(kernel)
        found = kernel.nft.get(set_name, (element.key,)).get(element.key)
        return None if found == element else f"nftables map {set_name} does not masquerade {self.address}"
