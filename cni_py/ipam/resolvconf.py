"""resolv.conf(5), of which host-local makes the result's DNS settings."""

import errno
import os

from cni_py.errors import IOFailure
from cni_py.protocol.result import DNS

S_IFMT, S_IFIFO = 0o170000, 0o010000  # inode(7)
RESOLV_CONF_MAX = 1 << 20  # characters; /dev/zero has no end


def read(path: str) -> DNS:
    """The resolver's settings in a file of the form of resolv.conf(5)."""
    dns = DNS()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO or /proc/kmsg would wait for ever
        with open(fd, encoding="utf-8", errors="replace") as file:
            if os.fstat(fd).st_mode & S_IFMT == S_IFIFO:  # which has nothing to read now: no DNS would be the answer
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
