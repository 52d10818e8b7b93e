"""The configuration of tuning: conf/tuning.conflist.

A value in args.cni comes before one in the plugin's own object; a MAC address may also be in runtimeConfig or CNI_ARGS, which
come between the two. Wrong types are refused at once. What only ADD and STATUS refuse is in check_add(); what CHECK refuses,
too, is raised by the properties.
"""

from cni_py import files
from cni_py.addr import interface_mac, mac_text
from cni_py.errors import InvalidNetworkConfig, IOFailure
from cni_py.protocol import netconf
from cni_py.protocol.netconf import child, optional_boolean, optional_integer, optional_string, parse_cni_args, string

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call
    from cni_py.protocol.gojson import Object

DATA_DIR = "/run/cni/tuning"
ALLOW_LIST = "/etc/cni/tuning/allowlist.conf"
SWAP = {ord("."): "/", ord("/"): "."}


class TuningConf:
    """What to set: `sysctls` by their keys as written; None, "" and 0 in the other fields leave a setting as it is.

    `saved_path` is the file for the earlier settings, the Go plugin's. `duplicate`: a sysctl is there twice.
    """

    __slots__ = ("allmulti", "duplicate", "ifname", "mac", "mtu", "promisc", "saved_path", "sysctls", "tx_queue_len")

    def __init__(self, call: "Call") -> None:
        raw, runtime = call.conf.raw, call.conf.runtime_config
        cni = child(call.conf.args, "cni") if call.conf.args is not None else None
        sources = [raw, cni] if cni is not None else [raw]  # the last one wins
        _ = call.conf.prev_result  # read, so that one of a wrong type is refused like any other key
        self.ifname = call.ifname
        self.saved_path = saved_path(call)
        self.mac = string(raw, "mac")
        self.mac = parse_cni_args(call.args, ("MAC",)).get("MAC") or self.mac
        if runtime is not None:
            self.mac = string(runtime, "mac") or self.mac
        if cni is not None:
            self.mac = optional_string(cni, "mac") or self.mac
        self.sysctls: dict[str, str] = {}
        self.duplicate = False
        self.mtu = 0  # bytes
        self.promisc = False
        self.allmulti: bool | None = None
        self.tx_queue_len: int | None = None  # packets
        for source in sources:
            self._read(source)

    def _read(self, source: "Object") -> None:
        """Take over the keys that the plugin's own object and args.cni may have."""
        self._read_sysctls(source)
        for name, value in (("mtu", optional_integer(source, "mtu")), ("promisc", optional_boolean(source, "promisc"))):
            if value is not None:
                setattr(self, name, value)
        allmulti, length = optional_boolean(source, "allmulti"), optional_integer(source, "txQLen")
        self.allmulti = self.allmulti if allmulti is None else allmulti
        self.tx_queue_len = self.tx_queue_len if length is None else length

    def _read_sysctls(self, source: "Object") -> None:
        written = child(source, "sysctl")
        if written is None:
            return
        self.duplicate = self.duplicate or len(written.pairs) != len(written)
        for key, value in written.pairs:
            if not isinstance(value, str | None):
                raise netconf.undecodable(value, f"sysctl {key}", "a text in quotes")
            if value is not None:
                self.sysctls[key] = value

    def check_add(self) -> None:
        """InvalidNetworkConfig or IOFailure for what only ADD and STATUS refuse."""
        if self.duplicate:
            raise InvalidNetworkConfig("duplicated sysctl keys are not allowed")
        check_allowed(list(self.sysctls))

    @property
    def sysctl_paths(self) -> list[tuple[str, str]]:
        """Each sysctl as a path below net/, and its value. InvalidNetworkConfig for a key outside net.

        STATUS has no interface.
        """
        return [(sysctl_path(key, self.ifname or "IFNAME"), value) for key, value in self.sysctls.items()]

    @property
    def settings(self) -> dict[str, str]:
        """What to set the interface to: names, values and order as in kernel/linksettings.py. InvalidNetworkConfig."""
        wanted: dict[str, str] = {}
        if self.mac:
            try:
                wanted["mac"] = mac_text(interface_mac(self.mac))
            except ValueError as error:
                where = f"{self.ifname} cannot have the MAC address that was asked for"
                raise InvalidNetworkConfig(f"{where}: {error}") from error
        if self.promisc:
            wanted["promisc"] = "true"
        for name, number in (("mtu", self.mtu), ("txQLen", self.tx_queue_len or 0)):
            if number < 0:
                raise InvalidNetworkConfig(f"invalid {name}: {number} (it cannot be negative)")
        if self.mtu:
            wanted["mtu"] = str(self.mtu)
        if self.allmulti is not None:
            wanted["allmulti"] = str(self.allmulti).lower()
        if self.tx_queue_len is not None:
            wanted["txQLen"] = str(self.tx_queue_len)
        return wanted


def saved_path(call: "Call") -> str:
    """The file for the settings before the ADD."""
    folder = string(call.conf.raw, "dataDir")
    if "\0" in folder:
        folder = ""  # with a NUL it is no path, so no ADD can have written there
    return f"{folder or DATA_DIR}/{call.container_id}_{call.ifname}.json"


def sysctl_path(key: str, ifname: str) -> str:
    """The path below net/ of a key such as `net.ipv4.conf.IFNAME.arp_filter`, in which IFNAME stands for the interface.

    As in sysctl(8), the first of . and / in the key is the separator, so that an interface's name may contain the other.
    InvalidNetworkConfig for a path that does not stay below net/, where all sysctls are the namespace's own.
    """
    dots_first = "." in key.partition("/")[0]
    path = (key.translate(SWAP) if dots_first else key).replace("IFNAME", ifname, 1)
    top, _, rest = path.partition("/")
    if top != "net" or not rest or any(part in ("", ".", "..") or "\0" in part for part in rest.split("/")):
        raise InvalidNetworkConfig(f'invalid net sysctl key: "{key}" (only those below net. are the container\'s own)')
    return rest


def check_allowed(keys: list[str]) -> None:
    """InvalidNetworkConfig for a key that no line (a regular expression) of ALLOW_LIST matches. No file: all are."""
    if not keys:
        return
    try:
        lines = [line.strip() for line in files.read(ALLOW_LIST, follow=True).decode().splitlines()]
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise IOFailure(f"cannot read {ALLOW_LIST}", str(error)) from error
    import re  # it takes 12 ms, so only where there is a list

    lines = [line for line in lines if line]
    for key in keys:
        try:
            allowed = any(re.search(line, key, re.ASCII) for line in lines)
        except re.error as error:
            raise InvalidNetworkConfig(f"{ALLOW_LIST}: error parsing regexp", str(error)) from error
        if not allowed:
            message = f"Sysctl {key} is not allowed by {ALLOW_LIST}. Only the following sysctls are allowed"
            raise InvalidNetworkConfig(message, f"[{' '.join(lines)}]")
