"""The options of DHCP that a configuration provides to the server, or requests from it (`provide`, `request`). Pure.

Names: dhcp-options(5). Numbers and formats: RFC 2132.
"""

from cni_py.errors import InvalidNetworkConfig
from cni_py.protocol.gojson import Object
from cni_py.protocol.netconf import boolean, objects, string

SUBNET_MASK, ROUTER = 1, 3
BY_NAME = {
    "dhcp-client-identifier": 61,
    "subnet-mask": SUBNET_MASK,
    "routers": ROUTER,
    "host-name": 12,
    "user-class": 77,
    "vendor-class-identifier": 60,
}
PROTOCOL = (0, 50, 52, 53, 54, 255)  # padding, requested address, overload, message type, server, end: the client's own
VALUE_MAX = 255  # bytes
DIGITS_MAX = 3
DEFAULT = (ROUTER, SUBNET_MASK)  # requested without being named


def provided(ipam: Object, cni_args: str) -> dict[int, bytes]:
    """`provide`: options for the server. A value from CNI_ARGS, where there is one, goes before that of the configuration.

    An empty value is none: nerdctl gives an empty host name to a container without one. InvalidNetworkConfig.
    """
    args = dict(part.split("=", 1) for part in cni_args.split(";") if "=" in part)
    found = {}
    for entry in objects(ipam, "provide"):
        name = string(entry, "option")
        option = number_of(name)
        if option in PROTOCOL:
            raise InvalidNetworkConfig(f'provide: the option "{name}" is set by the protocol itself')
        for value in (string(entry, "value"), args.get(string(entry, "fromArg"), "")):
            body = value.encode("utf-8", "surrogateescape")
            if len(body) > VALUE_MAX:
                raise InvalidNetworkConfig(f'value too long for option "{name}": "{value}" ({VALUE_MAX} bytes at most)')
            if body:
                found[option] = body
    return found


def requested(ipam: Object) -> list[int]:
    """`request`: options that the server is asked for, each once. InvalidNetworkConfig."""
    entries = objects(ipam, "request")
    asked = [number_of(name) for entry in entries if (name := string(entry, "option"))]
    defaults = () if any(boolean(entry, "skipDefault") for entry in entries) else DEFAULT
    return list(dict.fromkeys([*asked, *defaults]))


def number_of(name: str) -> int:
    """The number of an option that is given by its name or its number. InvalidNetworkConfig."""
    if name in BY_NAME:
        return BY_NAME[name]
    if not (name.isascii() and name.isdecimal() and len(name) <= DIGITS_MAX and int(name) <= VALUE_MAX):
        known = ", ".join(BY_NAME)
        raise InvalidNetworkConfig(f'Can not parse option "{name}": a number from 0 to 255, or one of {known}')
    return int(name)
