"""Whether asking the kernel for something would load a module of it.

A netlink request for a subsystem that is not there makes the kernel start modprobe(8): nfnetlink_rcv_msg() for nf_tables and
conntrack, sock_diag for tcp_diag and its like. A command that only looks does not ask then: what is not loaded has nothing to
show.
"""

import os

MODULES = "/proc/modules"  # missing: a kernel without loadable modules
FOLDER = "/lib/modules"


def would_load(name: str) -> bool:
    """Whether the module `name` is not in the kernel and could be loaded. False too where nothing tells whether it is built in.

    /proc/modules lists what is loaded, modules.builtin what is part of the kernel. A container that does not have the host's
    /lib/modules cannot see the latter.
    """
    try:
        with open(MODULES, encoding="ascii", errors="replace") as file:
            loaded = {line.partition(" ")[0] for line in file}
    except OSError:
        return False
    if name in loaded or os.path.isdir(f"/sys/module/{name}"):
        return False
    try:
        with open(f"{FOLDER}/{os.uname().release}/modules.builtin", encoding="utf-8", errors="replace") as file:
            built_in = {line.strip().rpartition("/")[2].removesuffix(".ko").replace("-", "_") for line in file}
    except OSError:
        return False
    return name not in built_in
