"""portfwd-docker-proxy: what dockerd starts for each published port instead of docker-proxy (--userland-proxy-path).

    portfwd-docker-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 172.17.0.2 -container-port 80

dockerd's side (moby, libnetwork/portmapper/proxy_linux.go): descriptor 3 is a pipe that gets "0\\n" when the port is
open, or "1\\n" and a sentence, within 16 s; with -use-listen-fd descriptor 4 is the bound socket. dockerd stops the
proxy by SIGINT, and the kernel by SIGTERM when dockerd dies; dockerd expects exit status 0 both times.

Where the portfwd service runs in this network namespace, this process hands the port to it and becomes a waiter
(waiter.py); the service watches the process and closes the port when it ends. Without the service the process relays by
itself. There is one per port and address family, so the way to the service imports next to nothing.
"""

import _socket
import errno
import os
import sys
from _signal import SIG_BLOCK, SIG_UNBLOCK, pthread_sigmask

from cni_py import __version__
from cni_py.errors import CniError
from cni_py.files import run_dir
from cni_py.protocol import gojson
from portfwd.docker.waiter import STOP_SIGNALS, become_waiter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cni_py.protocol.gojson import Encodable

STATUS_FD, LISTEN_FD = 3, 4
PORT_MAX = 65535
PROTOCOLS = {"tcp": _socket.SOCK_STREAM, "udp": _socket.SOCK_DGRAM}
ANSWER_S = 10  # for the service; dockerd gives the whole start 16 s
ANSWER_MAX = 1 << 20
IN_USE = "address already in use"  # of bind(2); people and programs look for these words in Docker's errors

USAGE = """\
usage: portfwd-docker-proxy [options], as dockerd starts it
  -proto tcp|udp          protocol (default tcp)
  -host-ip IP             address of the host (default 0.0.0.0)
  -host-port N            port of the host
  -container-ip IP        address of the container
  -container-port N       port of the container
  -use-listen-fd          descriptor 4 is the bound socket
  -v, -version            print the version
"""
TRUE = ("1", "t", "T", "true", "TRUE", "True")  # Go's strconv.ParseBool
FALSE = ("0", "f", "F", "false", "FALSE", "False")
SWITCHES = ("use-listen-fd", "v", "version", "h", "help")


class Failed(Exception):
    """A sentence for dockerd, and the exit status."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class Options:
    """What to publish. Addresses are in the form of inet_ntop(3); IPv4-mapped IPv6 ones are IPv4, as in Go."""

    __slots__ = ("container_ip", "container_port", "host_ip", "host_port", "protocol", "use_listen_fd")

    def __init__(self, given: "dict[str, str]") -> None:
        self.protocol = given.get("proto", "tcp")
        if self.protocol == "sctp":
            raise Failed(
                "portfwd does not relay SCTP: start dockerd with userland-proxy=false to publish it by NAT alone"
            )
        if self.protocol not in PROTOCOLS:
            raise Failed(f"unsupported protocol {self.protocol}")
        self.host_ip = address("host-ip", given.get("host-ip", "0.0.0.0"))  # noqa: S104  docker-proxy's default
        self.host_port = port("host-port", given.get("host-port", "-1"))
        self.container_ip = address("container-ip", given.get("container-ip", ""))
        self.container_port = port("container-port", given.get("container-port", "-1"))
        self.use_listen_fd = given.get("use-listen-fd") in TRUE

    def mapping(self) -> "dict[str, Encodable]":
        """The mapping as JSON. It ends with this process, so the pid makes its id unique."""
        return {
            "id": f"docker-{self.protocol}-{self.host_port}-{os.getpid():04x}",
            "protocol": self.protocol,
            "host_ips": [self.host_ip],
            "first": self.host_port,
            "last": self.host_port,
            "targets": [{"address": self.container_ip, "port": self.container_port}],
            "owner": "pid",
            "label": "docker",
        }


def main() -> int:
    """Publish the port until a signal; returns the exit status. Does not return where the service has the port."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        from cni_py.skel import fill_closed_streams

        fill_closed_streams()
    try:
        given = parse(sys.argv[1:])
    except Failed as failure:
        say(2, f"{failure}\n{USAGE}")
        return report(failure)
    if "h" in given or "help" in given:
        return say(2, USAGE)
    if "v" in given or "version" in given:
        return say(1, f"portfwd-docker-proxy version {__version__}\n")
    if not is_open(STATUS_FD):
        say(2, "portfwd-docker-proxy: descriptor 3 is not open: dockerd starts this program, people do not\n")
        return 1
    try:
        options = Options(given)
        sock = listening_socket(options)
        pthread_sigmask(SIG_BLOCK, STOP_SIGNALS)  # a stop signal from here on is taken by the waiter
        if not hand_over(options, sock):
            pthread_sigmask(SIG_UNBLOCK, STOP_SIGNALS)
            return serve(options, sock)
    except Failed as failure:
        return report(failure)
    report(None)
    return become_waiter(sys.argv)


def say(fd: int, text: str) -> int:
    """Write a text; returns the exit status, 1 if it could not be written."""
    try:
        os.write(fd, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        if fd == 1 and error.errno != errno.EPIPE:
            say(2, f"portfwd-docker-proxy: cannot write to stdout: {error.strerror}\n")
        return 1
    return 0


def parse(arguments: "Sequence[str]") -> "dict[str, str]":
    """Options as Go's package flag reads them: one dash or two, `=` or the next argument, the last one counts. Failed."""
    found: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
        if not argument.startswith("-") or argument in ("-", "--"):
            break
        if name in SWITCHES:
            value = value if equals else "true"
            if value not in TRUE + FALSE:
                raise Failed(f"invalid value {value!r} for -{name}: true or false", 2)
        elif name not in ("proto", "host-ip", "host-port", "container-ip", "container-port"):
            raise Failed(f"unknown option {argument!r}", 2)
        elif not equals:
            value = next_of(rest, name)
        if name in SWITCHES[1:] and value in FALSE:
            continue
        found[name] = value
    return found


def next_of(rest: "Iterator[str]", name: str) -> str:
    """The next argument."""
    for value in rest:
        return value
    raise Failed(f"option -{name} needs a value", 2)


def address(name: str, text: str) -> str:
    """An address in canonical form. Failed for anything else."""
    family = _socket.AF_INET6 if ":" in text else _socket.AF_INET
    try:
        raw = _socket.inet_pton(family, text)
    except OSError:
        raise Failed(f"-{name}: {text!r} is not an IP address") from None
    if raw.startswith(bytes(10) + b"\xff\xff"):
        family, raw = _socket.AF_INET, raw[12:]
    return _socket.inet_ntop(family, raw)


def port(name: str, text: str) -> int:
    """A port as a number. Failed for anything else."""
    try:
        number = int(text, 0)
    except ValueError:
        raise Failed(f"-{name}: {text!r} is not a number", 2) from None
    if not 1 <= number <= PORT_MAX:
        raise Failed(f"-{name}: {number} is not between 1 and {PORT_MAX}")
    return number


def is_open(fd: int) -> bool:
    """Whether there is such a descriptor."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def listening_socket(options: Options) -> _socket.socket | None:
    """The socket that dockerd bound; None when it passed none. Failed."""
    if not options.use_listen_fd:
        return None
    try:
        os.set_inheritable(LISTEN_FD, False)
        sock = _socket.socket(fileno=LISTEN_FD)
    except OSError as error:
        raise Failed(f"-use-listen-fd: descriptor {LISTEN_FD} is not a socket: {error.strerror}") from None
    if sock.type != PROTOCOLS[options.protocol]:
        raise Failed(f"-use-listen-fd: descriptor {LISTEN_FD} is not a {options.protocol} socket")
    return sock


def report(failure: Failed | None) -> int:
    """Tell dockerd that the port is open, or why not. Returns the exit status."""
    text = "0\n" if failure is None else f"1\n{failure}"
    try:
        os.write(STATUS_FD, text.encode("utf-8", "replace"))
        os.close(STATUS_FD)
    except OSError:
        pass  # dockerd has ended, or did not start this program
    return 0 if failure is None else failure.status


# With the service


def hand_over(options: Options, sock: _socket.socket | None) -> bool:
    """Have the service publish the port. False when none runs in this network namespace. Failed when it refuses."""
    control = connect()
    if control is None:
        return False
    request = gojson.encode({"verb": "publish", "mappings": [options.mapping()]}, None).encode() + b"\n"
    given = [] if sock is None else [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, LISTEN_FD.to_bytes(4, sys.byteorder))]
    try:
        control.sendmsg([request], given)
        answer = read_line(control)
    except OSError as error:
        raise Failed(f"the portfwd service does not answer: {error.strerror}") from None
    finally:
        control.close()
    return is_published(answer, options)


def connect() -> _socket.socket | None:
    """A connection to the service of this network namespace; None without one."""
    control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    # The kernel's own time limits: see connected() in portfwd/service/client.py.
    limit = ANSWER_S.to_bytes(8, sys.byteorder) + bytes(8)  # struct timeval
    for option in (_socket.SO_SNDTIMEO, _socket.SO_RCVTIMEO):
        control.setsockopt(_socket.SOL_SOCKET, option, limit)
    try:
        control.connect(run_dir() + "/portfwd.sock")
    except OSError:
        control.close()
        return None
    if same_network(control):
        return control
    control.close()
    return None


def same_network(control: _socket.socket) -> bool:
    """Whether the service is in this network namespace: rootless Docker may see the host's socket, too."""
    credentials = control.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    pid = int.from_bytes(credentials[:4], sys.byteorder)
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/ns/net"), os.stat("/proc/self/ns/net"))
    except OSError:
        return False


def read_line(control: _socket.socket) -> bytes:
    """The service's answer; the part that came, if the service hangs up. OSError."""
    answer = b""
    while not answer.endswith(b"\n") and len(answer) < ANSWER_MAX:
        piece = control.recv(65536)
        if not piece:
            break
        answer += piece
    return answer


def is_published(answer: bytes, options: Options) -> bool:
    """True for a port that is published. Failed otherwise; for a port in use with docker-proxy's words and the holder."""
    try:
        reply = gojson.decode(answer)
    except CniError:
        reply = None
    if not isinstance(reply, gojson.Object):
        raise Failed("the portfwd service ended in the middle of a request: its log may say why")
    if reply.get("ok") is True:
        return True
    error = reply.get("error")
    if not isinstance(error, gojson.Object):
        error = gojson.Object()
    text = ": ".join(str(error[key]) for key in ("msg", "details") if error.get(key))
    if error.get("kind") == "in-use":
        raise in_use(options, text)
    raise Failed(f"the portfwd service: {text}")


def in_use(options: Options, text: str) -> Failed:
    """The failure of bind(2) in docker-proxy's words, and the holder of the port."""
    family, host = ("6", f"[{options.host_ip}]") if ":" in options.host_ip else ("4", options.host_ip)
    return Failed(f"listen {options.protocol}{family} {host}:{options.host_port}: bind: {IN_USE}: {text}")


# Without the service


def serve(options: Options, sock: _socket.socket | None) -> int:
    """Relay the port in this process until a signal. Failed when it cannot be opened."""
    from portfwd import no_tls

    no_tls.without_tls()
    import socket  # from here on this is an ordinary long-lived process

    from portfwd.errors import PortfwdError, PortInUse
    from portfwd.mapping import Mapping
    from portfwd.relay.runtime import Runtime, raise_limit

    raise_limit()
    mapping = Mapping.from_json({**options.mapping(), "owner": ""})
    runtime = Runtime()
    try:
        try:
            runtime.relay.publish(mapping, [socket.socket(fileno=sock.detach())] if sock is not None else [])
        except PortInUse as error:
            raise in_use(options, str(error)) from None
        except PortfwdError as error:
            raise Failed(str(error)) from None
        for number in STOP_SIGNALS:
            runtime.loop.add_signal_handler(number, runtime.end)
        report(None)
        runtime.run()
    finally:
        runtime.close()
    return 0
