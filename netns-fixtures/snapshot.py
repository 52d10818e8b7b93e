"""The comparable state of a namespace: what an ADD may change and a DEL must restore.

Left out is what the kernel itself counts or changes: interface indexes, carrier and operational state, statistics, link-local
addresses (they come after DAD) and their routes, the local routing table (it follows the addresses), learned neighbours, and the
flag "tentative" of an address.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import shutil
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from node import START_S, LabError
from pyroute2.netlink.rtnl.marshal import MarshalRtnl

TREES = ("/run", "/var/lib/cni", "/var/lib/cni-py", "/etc/cni", "/etc/cni-py")
IGNORED_FILES = ("/run/xtables.lock",)  # iptables never removes it
IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200  # linux/if.h
NUD_PERMANENT = 0x80  # linux/neighbour.h
IFA_F_TENTATIVE, IFA_F_PERMANENT = 0x40, 0x80  # linux/if_addr.h
LOCAL_TABLE = 255  # RT_TABLE_LOCAL
NLMSG_ERROR, NLMSG_DONE = 2, 3  # linux/netlink.h
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
RTM_NEWNSID, RTM_GETNSID = 88, 90
NETNSA_NSID, NETNSA_FD = 1, 3  # linux/net_namespace.h
RTM_GETLINK, RTM_GETADDR, RTM_GETROUTE, RTM_GETNEIGH = 18, 22, 26, 30  # linux/rtnetlink.h
SIZES = {RTM_GETLINK: 16, RTM_GETADDR: 8, RTM_GETROUTE: 12, RTM_GETNEIGH: 12}  # bytes of what follows the header
ANSWER_MAX = 1 << 18  # bytes; the kernel sends no more at once
GLOBAL_SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)
INTERFACE_SYSCTLS = (
    "ipv4/conf/{}/route_localnet",
    "ipv4/conf/{}/arp_notify",
    "ipv4/conf/{}/rp_filter",
    "ipv4/conf/{}/forwarding",
    "ipv6/conf/{}/accept_ra",
    "ipv6/conf/{}/accept_dad",
    "ipv6/conf/{}/disable_ipv6",
    "ipv6/conf/{}/forwarding",
    "ipv6/conf/{}/ndisc_notify",
)


def take() -> dict[str, object]:
    """The state of this process's namespaces, as plain data. Call it inside the node."""
    messages = dump(RTM_GETLINK)
    names = {link["index"]: link.get("ifname") for link in messages}
    state: dict[str, object] = {
        "links": links(messages, names),
        "addresses": addresses(names),
        "routes": routes(names),
        "neighbours": neighbours(names),
    }
    state["sysctls"] = sysctls(sorted(names.values()))
    state["nftables"] = ruleset(["nft", "-s", "list", "ruleset"])
    state["iptables"] = {f"{tool}-legacy-save": legacy_rules(tool) for tool in ("iptables", "ip6tables")}
    state["files"] = {path: tree(path) for path in TREES if os.path.exists(path)}
    return state


def dump(kind: int) -> list[Any]:
    """The kernel's objects of a kind, as pyroute2 decodes them. Its IPRoute, with an event loop, takes three times as long."""
    found: list[Any] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        header = struct.pack("=IHHII", 16 + SIZES[kind], kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
        sock.send(header + bytes(SIZES[kind]))
        while True:
            for message in MarshalRtnl().parse(sock.recv(ANSWER_MAX), 1):
                if message["header"]["type"] == NLMSG_DONE:
                    return found
                if message["header"]["type"] == NLMSG_ERROR:
                    raise message["header"]["error"]
                found.append(message)


def ends_in(netns: str | int) -> list[int]:
    """The indexes of this namespace's links whose other ends are in another one: a path, or a descriptor."""
    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC) if isinstance(netns, str) else netns
    number = number_of(fd)
    return [link["index"] for link in dump(RTM_GETLINK) if number >= 0 and link.get("link_netnsid") == number]


def number_of(netns: int) -> int:
    """The number that this namespace knows another one by; -1 for none (rtnl_net_getid, net/core/net_namespace.c)."""
    request = struct.pack("=IHHIIB3xHHi", 28, RTM_GETNSID, NLM_F_REQUEST, 1, 0, 0, 8, NETNSA_FD, netns)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.send(request)
        answer = sock.recv(ANSWER_MAX)
    kind, attribute, number = struct.unpack_from("=4xH10x4x2xHi", answer)
    if (kind, attribute) != (RTM_NEWNSID, NETNSA_NSID):
        raise LabError(f"RTM_GETNSID was answered by {kind}")
    return int(number)


def await_end(indexes: list[int]) -> None:
    """Wait until links are gone: the kernel takes the links of a namespace that ended apart a little later."""
    deadline = time.monotonic() + START_S
    while {link["index"] for link in dump(RTM_GETLINK)} & set(indexes):
        if time.monotonic() > deadline:
            raise LabError(f"links {indexes} are still there: something keeps the namespace of their other ends")
        time.sleep(0.005)


def links(messages: list[Any], names: dict[int, str]) -> dict[str, dict[str, object]]:
    found = {}
    for link in messages:
        info = link.get_attr("IFLA_LINKINFO")
        port = info.get_attr("IFLA_INFO_SLAVE_DATA") if info else None  # of a bridge
        found[names[link["index"]]] = {
            "kind": info.get_attr("IFLA_INFO_KIND") if info else None,
            "mac": link.get("address"),
            "mtu": link.get("mtu"),
            "flags": link["flags"] & (IFF_UP | IFF_PROMISC | IFF_ALLMULTI),
            "promiscuity": link.get("promiscuity"),
            "master": names.get(link.get("master")),
            "alias": link.get("ifalias"),
            "hairpin": port.get_attr("IFLA_BRPORT_MODE") if port else None,
            "isolated": port.get_attr("IFLA_BRPORT_ISOLATED") if port else None,
        }
    return found


def addresses(names: dict[int, str]) -> list[str]:
    return sorted(
        f"{names[entry['index']]} {entry.get('address')}/{entry['prefixlen']} scope {entry['scope']}"
        f" flags {entry.get('flags') & ~IFA_F_TENTATIVE:#x}"
        for entry in dump(RTM_GETADDR)
        if not entry.get("address").startswith("fe80:")
    )


def routes(names: dict[int, str]) -> list[str]:
    found = []
    for entry in dump(RTM_GETROUTE):
        if entry.get("table") == LOCAL_TABLE or entry.get("dst") == "fe80::":
            continue
        keys = ("dst", "gateway", "prefsrc", "priority", "table")
        parts = [f"{key} {entry.get(key)}" for key in keys if entry.get(key) is not None]
        found.append(f"/{entry['dst_len']} type {entry['type']} {' '.join(parts)} dev {names.get(entry.get('oif'))}")
    return sorted(found)


def neighbours(names: dict[int, str]) -> list[str]:
    """The permanent neighbours; learned ones come and go."""
    return sorted(
        f"{names[entry['ifindex']]} {entry.get('dst')} {entry.get('lladdr')}"
        for entry in dump(RTM_GETNEIGH)
        if entry["state"] & NUD_PERMANENT
    )


def sysctls(ifnames: list[str]) -> dict[str, str]:
    wanted = list(GLOBAL_SYSCTLS)
    for ifname in [*ifnames, "all", "default"]:
        wanted += [f"net/{pattern.format(ifname)}" for pattern in INTERFACE_SYSCTLS]
    found = {}
    for name in wanted:
        with contextlib.suppress(FileNotFoundError), open(f"/proc/sys/{name}", encoding="ascii") as file:
            found[name] = file.read().strip()
    return found


def ruleset(command: list[str]) -> list[str] | None:
    """The lines that a program prints, without comments; None if it is not installed."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    return [line for line in done.stdout.splitlines() if not line.startswith("#")]


def legacy_rules(tool: str) -> list[str] | None:
    """The rules of iptables-legacy; the tool is run only if a table is in use: it reads the same file first itself."""
    kind = tool.removesuffix("tables")
    if shutil.which(f"{tool}-legacy-save") is not None:
        try:
            if not Path(f"/proc/net/{kind}_tables_names").read_text(encoding="ascii"):
                return []
        except FileNotFoundError:  # the module was never loaded
            return []
    return ruleset([f"{tool}-legacy-save"])


def tree(top: str) -> dict[str, str]:
    """Every path below a directory, with its mode and content: text, or SHA-256 if that is long or not text."""
    found = {}
    for directory, names, files in os.walk(top):
        for name in names + files:
            path = os.path.join(directory, name)
            if path not in IGNORED_FILES:
                found[path] = entry(path)
    found[top] = entry(top)
    return found


def entry(path: str) -> str:
    status = os.lstat(path)
    text = stat.filemode(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return f"{text} -> {os.readlink(path)}"
    if not stat.S_ISREG(status.st_mode) or path.startswith("/run/netns/"):
        return text
    data = Path(path).read_bytes()
    try:
        return f"{text} {data.decode()}" if len(data) < 4096 else f"{text} {hashlib.sha256(data).hexdigest()}"
    except UnicodeDecodeError:
        return f"{text} {hashlib.sha256(data).hexdigest()}"


def difference(before: dict[str, object], after: dict[str, object]) -> str:
    """The differences, as `diff -u` prints them; "" if there are none."""

    def text(state: dict[str, object]) -> list[str]:
        return json.dumps(state, indent=1, sort_keys=True).splitlines()

    return "\n".join(difflib.unified_diff(text(before), text(after), "before", "after", lineterm="", n=2))
