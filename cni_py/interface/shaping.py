"""Operations that limit the rate of a container's traffic.

A queueing discipline delays only what leaves by an interface. What the container receives leaves by the host's end of its veth
pair, where a token bucket (tbf) limits it. What the container sends comes in there, so it is redirected through an ifb device,
from which it "leaves" through a token bucket before the host takes it in.

The ifb is ours if its alias says so. An ADD killed before it set the alias leaves one that is known by its name in our record.
"""

import errno

from cni_py.attachment.engine import Op
from cni_py.errors import CniError
from cni_py.interface.common import need
from cni_py.kernel import tc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel
    from cni_py.kernel.rtnl import Link


def refused(what: str, error: OSError, lacking: int, option: str) -> CniError:
    """The error "cannot `what`"; `lacking` is the errno by which the kernel says that it was built without `option`."""
    if error.errno == lacking:
        return CniError(f"this kernel cannot {what}", f"it lacks {option}")
    return CniError(f"cannot {what}", error.strerror or str(error))


class LimitRate(Op):
    """A token bucket at the root of an interface of the host limits what leaves by it. `rate` in bytes/s, `burst` in bytes."""

    name: str
    rate: int
    burst: int
    owned = True
    line = "host: limit {name} to {rate} bytes/s, bursts of {burst} bytes (qdisc tbf)"
    deed = "limit {name} to {rate} bytes/s (qdisc tbf)"

    def apply(self, kernel: "Kernel") -> None:
        link = need(kernel.host, self.name)
        try:
            tc.add_tbf(kernel.host, link.index, tc.TokenBucket(self.rate, self.burst))
        except OSError as error:
            raise refused(f"limit the rate of {self.name}", error, errno.ENOENT, "tbf (CONFIG_NET_SCH_TBF)") from error

    def undo(self, kernel: "Kernel") -> None:
        link = kernel.host.link(self.name)
        if link is not None:
            tc.delete_tbf(kernel.host, link.index)

    def check(self, kernel: "Kernel") -> str | None:
        shown = tc.tbf(kernel.host, need(kernel.host, self.name).index)
        if shown is None:
            return f"Failed to find qdisc tbf on {self.name}"
        if shown.is_like(tc.TokenBucket(self.rate, self.burst)):
            return None
        return f"qdisc tbf on {self.name} does not have the limits of the configuration"


class LimitIfb(LimitRate):
    """The same for an ifb device, with which it goes: not owned."""

    name: str
    rate: int
    burst: int
    owned = False


class AddIfb(Op):
    """An ifb device on the host, up. `mtu` in bytes, that of the veth."""

    name: str
    mac: bytes
    mtu: int
    owned = True
    line = "host: add ifb {name} ({mac}), MTU {mtu}"
    deed = "add the ifb device {name}"

    def apply(self, kernel: "Kernel") -> None:
        try:
            tc.add_ifb(kernel.host, self.name, self.mac, self.mtu)
        except OSError as error:
            what = f"make the ifb device {self.name}, by which what a container sends is limited"
            raise refused(what, error, errno.EOPNOTSUPP, "ifb (CONFIG_IFB)") from error
        kernel.host.set_link(self.name, alias=kernel.key.comment, up=True)

    def own_link(self, kernel: "Kernel") -> "Link | None":
        return own_ifb(kernel, self.name, nameless=True)

    def undo(self, kernel: "Kernel") -> None:
        delete_ifb(kernel, self.name, nameless=True)

    def check(self, kernel: "Kernel") -> str | None:
        link = kernel.host.link(self.name)
        if link is None or link.kind != "ifb":
            return f"get ifb device: {self.name} not found"
        return None if link.up else f"ifb {self.name} is down"


def own_ifb(kernel: "Kernel", name: str, *, nameless: bool) -> "Link | None":
    """The ifb device of that name if its alias is ours, or with `nameless` if it has none."""
    link = kernel.host.link(name)
    if link is None or link.kind != "ifb":
        return None
    return link if link.alias.startswith(kernel.key.hex) or (nameless and not link.alias) else None


def delete_ifb(kernel: "Kernel", name: str, *, nameless: bool) -> None:
    """Delete it."""
    link = own_ifb(kernel, name, nameless=nameless)
    if link is not None:
        kernel.host.delete_link(link.index)


class RedirectToIfb(Op):
    """What comes in by an interface of the host is redirected through the ifb: qdisc ingress, filter u32, action mirred."""

    name: str
    ifb: str
    owned = True
    line = "host: lead what comes in by {name} through {ifb} (qdisc ingress, filter u32, action mirred)"
    deed = "lead what comes in by {name} through {ifb}"

    def apply(self, kernel: "Kernel") -> None:
        link, ifb = need(kernel.host, self.name), need(kernel.host, self.ifb)
        what = f"lead the traffic of {self.name} to {self.ifb}"
        try:
            tc.add_ingress(kernel.host, link.index)
        except FileExistsError as error:
            # An interface has one ingress. One that holds only the guard of the host's loopback (kernel/tc.py) is shared.
            if tc.has_ingress(kernel.host, link.index):
                raise refused(what, error, 0, "") from error
        except OSError as error:
            raise refused(what, error, errno.ENOENT, "ingress (CONFIG_NET_SCH_INGRESS)") from error
        try:
            tc.add_redirect(kernel.host, link.index, ifb.index)
        except OSError as error:
            lacks = "u32 or mirred (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED)"
            raise refused(what, error, errno.ENOENT, lacks) from error

    def undo(self, kernel: "Kernel") -> None:
        link, ifb = kernel.host.link(self.name), kernel.host.link(self.ifb)
        if link is None:
            return
        # Other redirects are somebody else's. 0: to an ifb that is gone already, deleted before its veth.
        ours = {0, ifb.index if ifb is not None else 0}
        if ours.issuperset(tc.redirects(kernel.host, link.index)):
            # Deleting the ingress deletes all its filters, the guard of the host's loopback among them: it is put back.
            guarded = tc.guards_loopback(kernel.host, link.index)
            if tc.delete_ingress(kernel.host, link.index) and guarded:
                tc.guard_loopback(kernel.host, link.index, kind="ingress")

    def check(self, kernel: "Kernel") -> str | None:
        ifb = need(kernel.host, self.ifb)
        targets = tc.redirects(kernel.host, need(kernel.host, self.name).index)
        return None if ifb.index in targets else f"what comes in by {self.name} is not led to {self.ifb}"
