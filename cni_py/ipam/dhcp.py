"""Calls of the DHCP daemon, ours (cni_py/dhcp) or the Go plugins': Go's net/rpc over a Unix socket, encoded by gob.

    plugin -> daemon    CONNECT /_goRPC_ HTTP/1.0, an empty line; then for each call a Request and a CmdArgs
    daemon -> plugin    HTTP/1.0 200 Connected to Go RPC, an empty line; then for each call a Response and its result

    DHCP.Allocate   -> Result; the lease that the attachment has, or a new one
    DHCP.Release    -> nothing; success also where there is no lease
    DHCP.Check      -> Result; an error where there is no lease         ours, as are the next two
    DHCP.Collect    -> nothing; releases what is not in cni.dev/valid-attachments
    DHCP.Status     -> nothing

A daemon that does not know a method says so in its answer's Error, and the plugin does without.
"""

import _socket

from cni_py.addr import Address
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, TryAgainLater, os_error
from cni_py.ipam import gob
from cni_py.ipam.gob import BYTES, INT, STRING, UINT, GobError, Slice, Struct
from cni_py.lean import os
from cni_py.protocol import gojson, netconf
from cni_py.protocol.result import DNS, IPConfig, Result, Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call
    from cni_py.attachment.context import Kernel
    from cni_py.ipam.gob import Value

SOCKET = "/run/cni/dhcp.sock"
GREETING = b"CONNECT /_goRPC_ HTTP/1.0\n\n"
WELCOME = b"HTTP/1.0 200 Connected to Go RPC\n\n"
UNKNOWN = "can't find method"  # in the error of a daemon that does not know a method (net/rpc/server.go)
SHORT_S = 30.0  # what a daemon may take for a call that waits for no server
HEAD_MAX = 4096  # bytes of the answer to GREETING
CHUNK = 65536

REQUEST = Struct("Request", ("ServiceMethod", STRING), ("Seq", UINT))
RESPONSE = Struct("Response", ("ServiceMethod", STRING), ("Seq", UINT), ("Error", STRING))
ARGS = Struct(  # skel.CmdArgs
    "CmdArgs",
    *((name, STRING) for name in ("ContainerID", "Netns", "IfName", "Args", "Path", "NetnsOverride")),
    ("StdinData", BYTES),
)
NETWORK = Struct("IPNet", ("IP", BYTES), ("Mask", BYTES))
ADDRESS = Struct("IPConfig", ("Interface", INT), ("Address", NETWORK), ("Gateway", BYTES))
ROUTE = Struct(
    "Route",
    *(
        ("Dst", NETWORK),
        ("GW", BYTES),
        ("MTU", INT),
        ("AdvMSS", INT),
        ("Priority", INT),
        ("Table", INT),
        ("Scope", INT),
    ),
)
RESOLVER = Struct(
    "DNS",
    *(("Nameservers", Slice(STRING)), ("Domain", STRING), ("Search", Slice(STRING)), ("Options", Slice(STRING))),
)
RESULT = Struct(  # types/100.Result; its Interfaces are always empty
    "Result", ("CNIVersion", STRING), ("IPs", Slice(ADDRESS)), ("Routes", Slice(ROUTE)), ("DNS", RESOLVER)
)
NOTHING = Struct("")


class NoDaemon(CniError):
    """Nobody listens at the socket."""


class UnknownMethod(CniError):
    """The daemon does not know the method."""


def socket_path(ipam: gojson.Object) -> str:
    """Where the daemon listens."""
    return netconf.string(ipam, "daemonSocketPath") or SOCKET


def call_for(call: "Call", method: str) -> "dict[str, Value]":
    """A call of the daemon with what the runtime has given the plugin. CniError as call_daemon() says."""
    netns = call.netns
    if netns and not netns.startswith("/"):  # the daemon is in another folder
        netns = f"{os.getcwd()}/{netns}"
    return call_daemon(
        socket_path(call.conf.ipam or gojson.Object()),
        method,
        {
            "ContainerID": call.container_id,
            "Netns": netns,
            "IfName": call.ifname,
            "Args": call.args,
            "Path": ":".join(call.path),
            "StdinData": call.conf.text,
        },
    )


def call_daemon(path: str, method: str, args: "dict[str, Value]") -> "dict[str, Value]":
    """What the daemon at the socket `path` answers.

    NoDaemon, UnknownMethod; CniError with what it says is wrong; TryAgainLater when it says nothing. An Allocate has no limit:
    how long a server is waited for is set in the daemon, which says when it has given up.
    """
    sock = dial(path)
    try:
        sock.settimeout(SHORT_S if method != "DHCP.Allocate" else None)
        greet(sock)
        encoder = gob.Encoder()
        sock.sendall(encoder.encode(REQUEST, {"ServiceMethod": method}) + encoder.encode(ARGS, args))
        return answer(sock, method)
    except TimeoutError:
        raise TryAgainLater(f"the DHCP daemon at {path} has not answered for {SHORT_S:.0f} s") from None
    except OSError as error:
        raise os_error(f"error calling {method}: the DHCP daemon at {path} hung up", error) from error
    except GobError as error:
        raise CniError(f"error calling {method}: what listens at {path} is no DHCP daemon", str(error)) from error
    finally:
        sock.close()


def dial(path: str) -> _socket.socket:
    """A connection. NoDaemon when nobody listens, or the path is none; CniError when somebody may be there."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(SHORT_S)
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
    except (PermissionError, BlockingIOError, TimeoutError) as error:
        sock.close()
        raise os_error(f"error dialing DHCP daemon: cannot connect to {path}", error) from error
    except (OSError, ValueError) as error:
        sock.close()
        why = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise NoDaemon(
            f"error dialing DHCP daemon: nobody listens at {path}: {why.lower()}",
            "start it: `systemctl start cni-dhcp.socket`, or `dhcp daemon`",
        ) from error
    return sock


def greet(sock: _socket.socket) -> None:
    """Begin. Nothing is sent before the answer is there: Go's server loses what it has read too much. OSError, GobError."""
    sock.sendall(GREETING)
    head = b""
    while not head.endswith((b"\n\n", b"\r\n\r\n")):
        head += received(sock)
        if len(head) > HEAD_MAX:
            raise GobError("no answer of HTTP")
    line = head.partition(b"\n")[0]
    if b" 200 " not in line:
        raise GobError(line[:80].decode("utf-8", "replace"))


def answer(sock: _socket.socket, method: str) -> "dict[str, Value]":
    """The result of a call. OSError, GobError; CniError with the text of the daemon."""
    decoder = gob.Decoder()
    found = list(decoder.feed(received(sock)))
    while len(found) < 2 and not (found and found[0].get("Error")):
        found += decoder.feed(received(sock))
    failure = str(found[0].get("Error", ""))
    if UNKNOWN in failure:
        raise UnknownMethod(f"error calling {method}: {failure}")
    if failure:
        raise CniError(f"error calling {method}: {failure}")
    return found[1]


def received(sock: _socket.socket) -> bytes:
    """What has come. OSError when nothing more does."""
    data = sock.recv(CHUNK)
    if not data:
        raise ConnectionResetError(104, "Connection reset by peer")
    return data


# The result, on its way


def to_result(value: "dict[str, Value]") -> Result:
    """The Result that a daemon has answered. CniError for one that cannot be."""
    try:
        ips = [
            IPConfig(address_of(_struct(each, "Address")), ip_of(each, "Gateway")) for each in _structs(value, "IPs")
        ]
        routes = [
            Route(
                address_of(_struct(each, "Dst")),
                ip_of(each, "GW"),
                *(_number(each, name) or 0 for name in ("MTU", "AdvMSS", "Priority")),
                *(_number(each, name) for name in ("Table", "Scope")),
            )
            for each in _structs(value, "Routes")
        ]
        dns = _struct(value, "DNS")
        lists = [[str(each) for each in _list(dns, name)] for name in ("Nameservers", "Search", "Options")]
        return Result(ips=ips, routes=routes, dns=DNS(lists[0], str(dns.get("Domain", "")), lists[1], lists[2]))
    except (ValueError, TypeError) as error:
        raise CniError(f"the DHCP daemon's result cannot be read: {error}") from error


def from_result(result: Result) -> "dict[str, Value]":
    """The Result as the daemon answers it."""
    ips: list[Value] = [
        {"Address": network_of(each.address), "Gateway": each.gateway or b""} for each in result.ips
    ]  # fmt: skip
    routes: list[Value] = [
        {
            "Dst": network_of(each.dst),
            "GW": each.gw or b"",
            "Priority": each.priority,
            "Scope": each.scope or 0,
        }
        for each in result.routes
    ]
    return {"CNIVersion": "1.0.0", "IPs": ips, "Routes": routes}


def network_of(address: Address) -> "dict[str, Value]":
    """Go's net.IPNet."""
    width = 8 * len(address.packed)
    mask = (1 << width) - (1 << width - address.prefixlen)
    return {"IP": address.packed, "Mask": mask.to_bytes(width // 8, "big")}


def address_of(value: "dict[str, Value]") -> Address:
    """The address and prefix of Go's net.IPNet. ValueError."""
    ip, mask = ip_of(value, "IP"), value.get("Mask")
    if ip is None or not isinstance(mask, bytes) or len(mask) not in (4, 16):
        raise ValueError(f"no network: {value}")
    bits = "".join(f"{byte:08b}" for byte in mask[-len(ip) :])
    prefix = len(bits.rstrip("0"))
    if "0" in bits[:prefix]:
        raise ValueError(f"the mask {mask.hex()} has gaps")
    return Address(ip, prefix)


def ip_of(value: "dict[str, Value]", name: str) -> bytes | None:
    """Go's net.IP, in which an IPv4 address may have the 16 bytes of an IPv6 one. ValueError."""
    ip = value.get(name)
    if not ip:
        return None
    if not isinstance(ip, bytes) or len(ip) not in (4, 16):
        raise ValueError(f"no address: {ip!r}")
    return ip[12:] if len(ip) == 16 and ip.startswith(bytes(10) + b"\xff\xff") else ip


def _struct(value: "Value", name: str) -> "dict[str, Value]":
    found = value.get(name, {}) if isinstance(value, dict) else None
    if not isinstance(found, dict):
        raise ValueError(f"{name} is no struct")
    return found


def _list(value: "dict[str, Value]", name: str) -> "list[Value]":
    found = value.get(name, [])
    if not isinstance(found, list):
        raise ValueError(f"{name} is no slice")
    return [each for each in found if not isinstance(each, tuple)]


def _structs(value: "dict[str, Value]", name: str) -> "list[dict[str, Value]]":
    return [each for each in _list(value, name) if isinstance(each, dict)]


def _number(value: "dict[str, Value]", name: str) -> int | None:
    found = value.get(name)
    return found if isinstance(found, int) else None


class HoldLease(Op):
    """The attachment has a lease. Recorded before the daemon is asked for one, so that whoever undoes the record releases it."""

    owned = by_interface = True
    line = "dhcp: a lease for {ifname} from the daemon at {socket}"
    deed = "hold a lease for {ifname}"

    socket: str
    ifname: str

    def apply(self, _kernel: "Kernel") -> None:
        """Nothing: the plugin asks, since the result is what it is about."""

    def undo(self, kernel: "Kernel") -> None:
        """Release the lease. Where no daemon runs there is nobody who could, nor anybody who renews it."""
        key = kernel.key
        ipam = {"type": "dhcp", "daemonSocketPath": self.socket}
        conf = gojson.encode({"cniVersion": "1.0.0", "name": key.network, "type": "dhcp", "ipam": ipam}, None)
        try:
            call_daemon(
                self.socket,
                "DHCP.Release",
                {"ContainerID": key.container_id, "IfName": key.ifname, "StdinData": conf.encode()},
            )
        except NoDaemon:
            pass
