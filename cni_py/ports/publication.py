"""An attachment that publishes ports, as the index lists it."""

from cni_py.addr import ip_text, parse_ip
from cni_py.attachment import naming
from cni_py.attachment.naming import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Publication:
    """An entry: an attachment that publishes ports, and the container's addresses.

    `key` is None where only the hex of the attachment is known: a comment in the kernel is cut to 128 bytes. The ifname in it is
    empty for what the Go plugins made, since their rules do not name it.
    """

    __slots__ = ("addresses", "hex", "key")

    def __init__(self, hexed: str, key: Attachment | None, addresses: "Iterable[str]") -> None:
        self.hex = hexed
        self.key = key
        self.addresses = set(addresses)

    @property
    def names(self) -> list[str]:
        """The folders that the entry is in."""
        return [*([] if self.key is None else [naming.interface_name(self.key)]), *sorted(self.addresses)]


def is_address(text: str) -> bool:
    """Whether it is an address in its canonical form, as folders are named."""
    try:
        return ip_text(parse_ip(text)) == text
    except ValueError:
        return False
