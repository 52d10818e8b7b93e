"""What one interface is set to: MAC address, MTU, promiscuous and all-multicast mode, transmit queue length (netdevice(7)).

Values are text, as JSON has them without quotes: "02:00:00:00:00:01", "true", "1500". A mode is what was asked for by name:
packet captures that make an interface promiscuous for themselves do not show.
"""

import _struct
import errno

from cni_py.addr import mac_text, parse_mac
from cni_py.kernel import rtnl
from cni_py.kernel.netlink import attr, attrs, nested

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.rtnl import Rtnl

SETTINGS = ("mac", "promisc", "mtu", "allmulti", "txQLen")

IFF_ALLMULTI = 0x200  # linux/if.h
IFLA_TXQLEN, IFLA_BR_MULTI_BOOLOPT = 13, 46  # linux/if_link.h
BR_BOOLOPT_NO_LL_LEARN = 1 << 0  # linux/if_bridge.h
_FLAGS = {"promisc": rtnl.IFF_PROMISC, "allmulti": IFF_ALLMULTI}
_NUMBERS = {"mtu": rtnl.IFLA_MTU, "txQLen": IFLA_TXQLEN}
_IFINFOMSG = _struct.Struct("=BxHiII")  # family, hardware type, index, flags, mask of flags to change


def read(side: "Rtnl", name: str) -> dict[str, str] | None:
    """All settings of an interface; None when there is none of that name."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _name(name)
    try:
        answer = side.request(rtnl.RTM_GETLINK, 0, body)[0][1]
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    flags = _IFINFOMSG.unpack_from(answer)[3]
    found = attrs(answer[_IFINFOMSG.size :])
    values = {"mac": mac_text(found.get(rtnl.IFLA_ADDRESS, b""))}
    values.update((setting, "true" if flags & bit else "false") for setting, bit in _FLAGS.items())
    values.update((setting, str(int.from_bytes(found[kind], "little"))) for setting, kind in _NUMBERS.items())
    return {setting: values[setting] for setting in SETTINGS}


def write(side: "Rtnl", name: str, setting: str, value: str) -> None:
    """Change one setting. OSError: ENODEV when there is no such interface, EINVAL for a value that cannot be one."""
    flags = change = 0
    given = b""
    if setting in _FLAGS:
        change = _FLAGS[setting]
        flags = change if value == "true" else 0
    else:
        given = _attribute(setting, value)
    side.request(rtnl.RTM_SETLINK, 0, _IFINFOMSG.pack(0, 0, 0, flags, change) + _name(name) + given)


def _attribute(setting: str, value: str) -> bytes:
    try:
        if setting == "mac":
            return attr(rtnl.IFLA_ADDRESS, parse_mac(value))
        return attr(_NUMBERS[setting], int(value).to_bytes(4, "little"))
    except (ValueError, OverflowError) as error:
        raise OSError(errno.EINVAL, f"{setting} cannot be {value}") from error


def _name(name: str) -> bytes:
    return attr(rtnl.IFLA_IFNAME, rtnl.check_name(name) + b"\0")


def stop_link_local_learning(side: "Rtnl", bridge: int) -> None:
    """A bridge learns no address from frames to 01:80:c2:00:00:0x (Linux 5.0; older kernels ignore it)."""
    option = attr(IFLA_BR_MULTI_BOOLOPT, _struct.pack("=II", BR_BOOLOPT_NO_LL_LEARN, BR_BOOLOPT_NO_LL_LEARN))
    kind = attr(rtnl.IFLA_INFO_KIND, b"bridge\0")
    info = nested(rtnl.IFLA_LINKINFO, kind, nested(rtnl.IFLA_INFO_DATA, option))
    side.request(rtnl.RTM_NEWLINK, 0, _IFINFOMSG.pack(0, 0, bridge, 0, 0) + info)
