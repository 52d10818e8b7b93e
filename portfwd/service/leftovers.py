"""Remove what a service of an earlier version left in the kernel: the nftables table with which it led ranges of ports."""

from __future__ import annotations

import errno
import logging

from cni_py.kernel.netlink import NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, Socket, attr
from cni_py.kernel.nf_tables import INET

log = logging.getLogger("portfwd")

TABLE = b"portfwd"
NFT_MSG_DELTABLE = NFNL_SUBSYS_NFTABLES << 8 | 2  # linux/netfilter/nf_tables.h
NFTA_TABLE_NAME = 1


def remove() -> None:
    """Remove the table if it exists: its rules lead to a socket that no longer exists."""
    try:
        sock = Socket(NETLINK_NETFILTER)
    except OSError:  # this kernel has no nfnetlink, and no table
        return
    try:
        sock.batch([(NFT_MSG_DELTABLE, 0, bytes((INET, 0, 0, 0)) + attr(NFTA_TABLE_NAME, TABLE + b"\0"))])
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
            log.warning("cannot remove the nftables table inet portfwd of an earlier version: %s", error.strerror)
    else:
        log.info("removed the nftables table inet portfwd of an earlier version")
    finally:
        sock.close()
