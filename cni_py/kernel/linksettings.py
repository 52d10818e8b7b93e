"""Settings of one interface: MAC address, MTU, promiscuous and all-multicast mode, transmit queue length (netdevice(7)).

Values are text, as JSON has them without quotes: "02:00:00:00:00:01", "true", "1500". A mode is on when it was switched on by
its flag. A packet capture raises a count in the kernel instead, which the flags do not show (dev_get_flags()).
"""

import errno

from cni_py.addr import mac_text, parse_mac
from cni_py.kernel import rtnl
from cni_py.kernel.netlink import attr, u32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Rtnl

SETTINGS = ("mac", "promisc", "mtu", "allmulti", "txQLen")

IFF_ALLMULTI = 0x200  # linux/if.h
IFLA_BR_MULTI_BOOLOPT = 46  # linux/if_link.h
BR_BOOLOPT_NO_LL_LEARN = 1 << 0  # linux/if_bridge.h
_FLAGS = {"promisc": rtnl.IFF_PROMISC, "allmulti": IFF_ALLMULTI}
_NUMBERS = {"mtu": rtnl.IFLA_MTU, "txQLen": rtnl.IFLA_TXQLEN}


def read(side: "Rtnl", name: str) -> dict[str, str] | None:
    """All settings of an interface; None when there is none of that name."""
    link = side.link(name)
    if link is None:
        return None
    return {
        "mac": mac_text(link.mac),
        "promisc": _truth(link.flags & rtnl.IFF_PROMISC),
        "mtu": str(link.mtu),
        "allmulti": _truth(link.flags & IFF_ALLMULTI),
        "txQLen": str(link.tx_queue),
    }


def _truth(bit: int) -> str:
    return "true" if bit else "false"


def write(side: "Rtnl", name: str, setting: str, value: str) -> None:
    """Change one setting. OSError: ENODEV when there is no such interface, EINVAL for a value that cannot be one."""
    flags = change = 0
    given = b""
    if setting in _FLAGS:
        change = _FLAGS[setting]
        flags = change if value == "true" else 0
    else:
        given = _attribute(setting, value)
    side.request(rtnl.RTM_SETLINK, 0, rtnl.ifinfomsg(flags=flags, change=change) + rtnl.name_attr(name) + given)


def _attribute(setting: str, value: str) -> bytes:
    try:
        if setting == "mac":
            return attr(rtnl.IFLA_ADDRESS, parse_mac(value))
        return attr(_NUMBERS[setting], int(value).to_bytes(4, "little"))
    except (KeyError, ValueError, OverflowError) as error:  # a damaged record may name another setting
        raise OSError(errno.EINVAL, f"{setting} cannot be {value}") from error


def stop_link_local_learning(side: "Rtnl", bridge: int) -> None:
    """Keep a bridge from learning addresses from frames to 01:80:c2:00:00:0x (Linux 5.0; older kernels ignore it).

    Such frames pass no prerouting chain (br_handle_frame()), so the spoof check cannot keep a false address from it.
    """
    option = attr(IFLA_BR_MULTI_BOOLOPT, u32(BR_BOOLOPT_NO_LL_LEARN) * 2)  # struct br_boolopt_multi: values, mask
    side.request(rtnl.RTM_NEWLINK, 0, rtnl.ifinfomsg(bridge) + rtnl.linkinfo("bridge", option))
