"""Programs that run inside a node: a small server, a client for it, and a capture of frames.

    serve NAME PROTOCOL PORT [ADDRESS]    answer "NAME peer-address local-address": TCP and SCTP as a web page, UDP as a datagram
    capture IFNAME                        collect frames; at the end print a line "in|out HEX" for each

Both print "ready" first and end when stdin ends. Standard library only, so that a node needs only an interpreter.
"""

import contextlib
import select
import socket
import struct
import sys
import time

ETH_P_ALL = 0x0003  # linux/if_ether.h
PACKET_OUTGOING = 4  # linux/if_packet.h
IP_PKTINFO = 8  # linux/in.h
FRAMES = 20000  # the limit of a capture
SOCKETS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
PATIENCE_S = 3.0  # the limit for a client that sends nothing


def plain(address: str) -> str:
    """A socket's address without the zone of a link-local one."""
    return address.partition("%")[0]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# Server


def listeners(protocol: str, port: int, address: str) -> list[socket.socket]:
    found = []
    for text in [address] if address else ["0.0.0.0", "::"]:
        family = family_of(text)
        listener = socket.socket(family, *SOCKETS[protocol])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            listener.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        listener.bind((text, port))
        if protocol != "udp":
            listener.listen(64)
        found.append(listener)
    return found


def answer_tcp(listener: socket.socket, name: str) -> None:
    connection, peer = listener.accept()
    with connection:
        connection.settimeout(PATIENCE_S)
        connection.recv(4096)
        body = f"{name} {plain(peer[0])} {plain(connection.getsockname()[0])}\n".encode()
        connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + body)


def answer_udp(listener: socket.socket, name: str) -> None:
    """Answer from the address that the client asked: a socket bound to 0.0.0.0 or :: would choose by route."""
    _, information, _, peer = listener.recvmsg(4096, 256)
    for level, kind, data in information:
        if level == socket.IPPROTO_IP:  # struct in_pktinfo: index, local address, header's destination
            local = socket.inet_ntop(socket.AF_INET, data[8:12])
            source = struct.pack("=I", 0) + data[8:12] + bytes(4)
        else:  # struct in6_pktinfo: address, index
            local = socket.inet_ntop(socket.AF_INET6, data[:16])
            source = data[:20]
        listener.sendmsg([f"{name} {plain(peer[0])} {local}\n".encode()], [(level, kind, source)], 0, peer)


def serve(name: str, protocol: str, port: int, address: str = "") -> None:
    sockets = listeners(protocol, port, address)
    answer = answer_udp if protocol == "udp" else answer_tcp
    print("ready", flush=True)
    waiting: list[socket.socket | int] = [0, *sockets]  # 0: stdin
    while 0 not in (readable := select.select(waiting, [], [])[0]):
        for listener in sockets:
            if listener not in readable:
                continue
            with contextlib.suppress(OSError):  # the client is gone
                answer(listener, name)


# Client


def fetch(
    address: str, port: int, protocol: str, timeout_s: float, source: str = "", source_port: int = 0
) -> tuple[str, str]:
    """The server's answer and the client's own address. OSError."""
    deadline = time.monotonic() + timeout_s
    with socket.socket(family_of(address), *SOCKETS[protocol]) as client:
        client.settimeout(timeout_s)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source or source_port:
            client.bind((source or ("::" if ":" in address else "0.0.0.0"), source_port))
        client.connect((address, port))
        host = f"[{address}]" if ":" in address else address
        client.sendall(f"GET / HTTP/1.0\r\nHost: {host}:{port}\r\n\r\n".encode())
        text = b""
        while chunk := client.recv(4096):
            text += chunk
            if protocol == "udp" or time.monotonic() > deadline:
                break
        return text.decode().rpartition("\r\n\r\n")[2], plain(client.getsockname()[0])


# Frames


def send(ifname: str, *frames: bytes) -> None:
    """Send frames as they are (AF_PACKET)."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packets:
        packets.bind((ifname, 0))
        for frame in frames:
            packets.send(frame)


def capture(ifname: str) -> None:
    # Of no protocol until it is bound: else it would hear every interface until then (packet(7)).
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as packets:
        packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        packets.bind((ifname, ETH_P_ALL))
        packets.setblocking(False)
        print("ready", flush=True)
        frames: list[str] = []
        ended = False
        while not ended:
            wanted: list[socket.socket | int] = [0] if len(frames) >= FRAMES else [0, packets]
            ended = 0 in select.select(wanted, [], [])[0]  # 0: stdin
            with contextlib.suppress(BlockingIOError):
                while len(frames) < FRAMES:
                    data, (_, _, kind, _, _) = packets.recvfrom(65536)
                    frames.append(f"{'out' if kind == PACKET_OUTGOING else 'in'} {data.hex()}")
        print("\n".join(frames))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", name, protocol, port, *address]:
            serve(name, protocol, int(port), *address)
        case ["capture", ifname]:
            capture(ifname)
