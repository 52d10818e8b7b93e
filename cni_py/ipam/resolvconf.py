"""Reads resolv.conf(5): host-local's key `resolvConf` names a file with the DNS settings of the result."""

import errno

from cni_py.errors import IOFailure
from cni_py.lean import os
from cni_py.protocol.result import DNS

S_IFMT, S_IFIFO = 0o170000, 0o010000  # inode(7)
RESOLV_CONF_MAX = 1 << 20  # characters; /dev/zero has no end


def read(path: str) -> DNS:
    """The DNS settings in a file of the form of resolv.conf(5). IOFailure when it cannot be read, or is a FIFO."""
    dns = DNS()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # else a FIFO or /proc/kmsg would be waited for
        with open(fd, encoding="utf-8", errors="replace") as file:
            # A FIFO that nobody writes to reads as an empty file: the result would have no DNS, without an error.
            if os.fstat(fd).st_mode & S_IFMT == S_IFIFO:
                raise OSError(errno.EINVAL, "it is a pipe (FIFO), not a file")
            lines = [line.split() for line in file.read(RESOLV_CONF_MAX).splitlines()]
    except (OSError, ValueError, TypeError) as error:  # TypeError: the text layer's answer to "nothing to read now"
        raise IOFailure(f"cannot read resolvConf {path!r}", getattr(error, "strerror", None) or str(error)) from None
    for keyword, *values in filter(None, lines):
        if keyword == "nameserver":
            dns.nameservers += values[:1]
        elif keyword == "domain" and values:
            dns.domain = values[0]
        elif keyword == "search":
            dns.search += values
        elif keyword == "options":
            dns.options += values
    return dns
