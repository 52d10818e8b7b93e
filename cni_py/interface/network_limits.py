"""Operations that limit the rate of a container's traffic with some networks, or with all but some (kernel/htb.py).

They take the place of the token buckets of interface/shaping.py, which says what is limited where.
"""

import errno

from cni_py.addr import parse_address
from cni_py.attachment.engine import Op
from cni_py.interface.common import need
from cni_py.interface.shaping import refused
from cni_py.kernel import htb, tc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.addr import Address
    from cni_py.attachment.context import Kernel


class LimitNetworks(Op):
    """Of what leaves by an interface of the host, that of `networks` is limited, or (`exempt`) all but that.

    A packet's source counts on the way to the container, its destination on the way from there: the other end in both cases.
    """

    name: str
    rate: int
    burst: int
    networks: list[str]
    exempt: bool
    source: bool
    owned = True
    deed = "limit {name} to {rate} bytes/s (qdisc htb)"

    def validate(self) -> None:
        for text in self.networks:
            parse_address(text)  # ValueError

    def describe(self) -> str:
        which = "all but" if self.exempt else "alone"
        networks = f"{which} {' '.join(self.networks)}"
        return f"host: limit {self.name} to {self.rate} bytes/s, bursts of {self.burst} bytes, {networks} (qdisc htb)"

    def addresses(self) -> "list[Address]":
        """The networks as values."""
        return [parse_address(text) for text in self.networks]

    def apply(self, kernel: "Kernel") -> None:
        index = need(kernel.host, self.name).index
        bucket = tc.TokenBucket(self.rate, self.burst)
        try:
            htb.add(kernel.host, index, bucket, self.addresses(), exempt=self.exempt, source=self.source)
        except OSError as error:
            lacks = "htb or u32 (CONFIG_NET_SCH_HTB, CONFIG_NET_CLS_U32)"
            raise refused(f"limit the rate of {self.name}", error, errno.ENOENT, lacks) from error

    def undo(self, kernel: "Kernel") -> None:
        link = kernel.host.link(self.name)
        if link is not None:
            htb.delete(kernel.host, link.index)

    def check(self, kernel: "Kernel") -> str | None:
        side, index = kernel.host, need(kernel.host, self.name).index
        default = htb.default_class(side, index)
        if default is None:
            return f"Failed to find qdisc htb on {self.name}"
        if default != (htb.LIMITED if self.exempt else htb.UNLIMITED):
            return f"qdisc htb on {self.name}: the default class does not match"
        found = htb.classes(side, index)
        rates = {minor: rate for minor, (rate, _) in found.items()}
        if rates != {htb.LIMITED: self.rate, htb.UNLIMITED: htb.UNLIMITED_RATE}:
            return f"classes of qdisc htb on {self.name}: the rates do not match"
        if found[htb.LIMITED][1] != htb.ticks(tc.TokenBucket(self.rate, self.burst)):
            return f"class of qdisc htb on {self.name}: the burst does not match"
        wanted = htb.wanted_filters(self.addresses(), exempt=self.exempt, source=self.source)
        if htb.filters(side, index) != set(wanted):
            return f"filters of qdisc htb on {self.name}: they are not those of {' '.join(self.networks)}"
        return None


class LimitIfbNetworks(LimitNetworks):
    """The same for an ifb device, with which it goes: not owned."""

    owned = False
