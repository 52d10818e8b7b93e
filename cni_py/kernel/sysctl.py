"""Sysctls below net/ of the network namespace that the calling thread is in.

/proc/sys/net shows the namespace of who opens a file (net_ctl_header_lookup()), and no other; the open file stays with it. So
a container's are reached by netns.Enter, without a mount of its /proc. Some keys set others: ip_forward that of every interface
and conf/all/accept_redirects (inet_forward_change()), IPv6's conf/all/forwarding and conf/all/disable_ipv6 those of every
interface. A new interface starts with the values that conf/default has then.

A key is a path below net/, "ipv4/conf/eth0.10/arp_notify": with slashes interface names keep their dots.
"""

import errno

from cni_py.lean import os

_REFUSALS = (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM)


def read(key: str) -> str:
    """The value without its final newline. FileNotFoundError when there is no such key (IPv6 switched off, no such link)."""
    fd = os.open(_path(key), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("utf-8", "replace").rstrip("\n")
    finally:
        os.close(fd)


def write(key: str, value: str, *, optional: bool = False) -> bool:
    """Set a key unless it has the value already. True when it was written.

    With `optional` nothing happens where the key does not exist, or where /proc/sys is read-only, as in many containers.
    """
    # A key may be read-only and right; and some take the RTNL lock even for a value that they have (addrconf_disable_ipv6()).
    try:
        if _has(key, value):
            return False
        fd = os.open(_path(key), os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        if optional and error.errno in _REFUSALS:
            return False
        raise
    # In one write(): each is parsed by itself, and one behind the first is ignored (proc_first_pos_non_zero_ignore()).
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = _path(key)
        raise
    finally:
        os.close(fd)
    return True


def _has(key: str, value: str) -> bool:
    """Whether the key has the value. Several numbers are read with tabs between them, however they were written."""
    try:
        return read(key).split() == value.split()
    except PermissionError:
        return False  # some keys can only be written


def _path(key: str) -> str:
    """The file of a key; OSError EINVAL for a key that would lead out of /proc/sys/net."""
    if any(part in ("", ".", "..") or "\0" in part for part in key.split("/")):
        raise OSError(errno.EINVAL, f"not a network sysctl: {key!r}")
    return "/proc/sys/net/" + key


def bridged_packets_pass_ip_rules(family: int) -> bool:
    """Whether br_netfilter is loaded and on: net.bridge.bridge-nf-call-iptables, -ip6tables."""
    try:
        return read(f"bridge/bridge-nf-call-{'iptables' if family == 4 else 'ip6tables'}") != "0"
    except FileNotFoundError:
        return False
