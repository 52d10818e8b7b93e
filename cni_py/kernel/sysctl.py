"""Sysctls below net/ of the network namespace the process is in (/proc/sys/net shows each reader its own).

A key is a path below net/, "ipv4/conf/eth0.10/arp_notify": with slashes interface names keep their dots.
"""

import errno
import os

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
    try:
        if _has(key, value):
            return False
        fd = os.open(_path(key), os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        if optional and error.errno in _REFUSALS:
            return False
        raise
    try:
        os.write(fd, value.encode())
    except OSError as error:
        error.filename = _path(key)
        raise
    finally:
        os.close(fd)
    return True


def _has(key: str, value: str) -> bool:
    """Whether the key reads as `value`; its numbers may be set apart by any white space."""
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
