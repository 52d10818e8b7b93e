"""Operations that limit the rate of a container's traffic: token buckets, and the ifb device for what it sends.

The ifb is known as ours by its alias, or without one (the ADD was killed between two requests) by its name in our record.
"""

import errno

from cni_py.attachment.engine import Op
from cni_py.errors import CniError
from cni_py.interface.common import need
from cni_py.kernel import tc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel


def refused(what: str, error: OSError, lacking: int, option: str) -> CniError:
    """What the kernel's refusal means; `lacking` is the errno by which it says that it was built without `option`."""
    if error.errno == lacking:
        return CniError(f"this kernel cannot {what}", f"it lacks {option}")
    return CniError(f"cannot {what}", error.strerror or str(error))


class LimitRate(Op):
    """What leaves by an interface of the host is limited; `rate` in bytes/s, `burst` in bytes."""

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
        well = shown.is_like(tc.TokenBucket(self.rate, self.burst))
        return None if well else f"qdisc tbf on {self.name} has not the limits of the configuration"


class LimitIfb(LimitRate):
    """The same of an ifb: it goes with the device."""

    name: str
    rate: int
    burst: int
    owned = False


class AddIfb(Op):
    """An ifb device on the host."""

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

    def undo(self, kernel: "Kernel") -> None:
        delete_ifb(kernel, self.name, nameless=True)

    def check(self, kernel: "Kernel") -> str | None:
        link = kernel.host.link(self.name)
        if link is None or link.kind != "ifb":
            return f"get ifb device: {self.name} not found"
        return None if link.up else f"ifb {self.name} is down"


def delete_ifb(kernel: "Kernel", name: str, *, nameless: bool) -> None:
    """Delete an ifb that is ours by its alias; one without alias where it is said to be ours."""
    link = kernel.host.link(name)
    if (
        link is not None
        and link.kind == "ifb"
        and (link.alias.startswith(kernel.key.hex) or (nameless and not link.alias))
    ):
        kernel.host.delete_link(link.index)


class RedirectToIfb(Op):
    """What comes in by an interface of the host goes through the ifb."""

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
        ours = {0, ifb.index if ifb is not None else 0}
        if ours.issuperset(tc.redirects(kernel.host, link.index)):
            guarded = tc.guards_loopback(kernel.host, link.index)
            if tc.delete_ingress(kernel.host, link.index) and guarded:
                tc.guard_loopback(kernel.host, link.index, kind="ingress")

    def check(self, kernel: "Kernel") -> str | None:
        ifb = need(kernel.host, self.ifb)
        targets = tc.redirects(kernel.host, need(kernel.host, self.name).index)
        return None if ifb.index in targets else f"what comes in by {self.name} is not led to {self.ifb}"
