"""Run a program for which the kernel refuses something, by a seccomp filter: refuse.py WHAT PROGRAM ARGUMENT...

splice    splice(2), with EINVAL
ipv6      socket(2) of family AF_INET6, with EAFNOSUPPORT, as a kernel without IPv6 (or started with ipv6.disable=1) does
device    setsockopt(2) of SO_BINDTODEVICE, with EPERM, as Linux before 5.7 does to whom has no CAP_NET_RAW
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

NUMBERS = {  # of system calls
    "x86_64": {"splice": 275, "socket": 41, "setsockopt": 54},
    "aarch64": {"splice": 76, "socket": 198, "setsockopt": 208},
}
# What to refuse: the system call, arguments by their place, and the error.
CASES: dict[str, tuple[str, dict[int, int], int]] = {
    "splice": ("splice", {}, errno.EINVAL),
    "ipv6": ("socket", {0: socket.AF_INET6}, errno.EAFNOSUPPORT),
    "device": ("setsockopt", {1: socket.SOL_SOCKET, 2: socket.SO_BINDTODEVICE}, errno.EPERM),
}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
NUMBER, ARGUMENTS = 0, 16  # places in struct seccomp_data; the lower half of an argument comes first on these machines

Step = tuple[int, int, int, int]  # struct sock_filter: code, steps over when true, when false, value


class Program(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def steps(what: str) -> list[Step]:
    """The filter."""
    name, arguments, error = CASES[what]
    tests = [(NUMBER, NUMBERS[platform.machine()][name])]
    tests += [(ARGUMENTS + 8 * place, value) for place, value in arguments.items()]
    found: list[Step] = []
    for left, (place, value) in zip(range(len(tests), 0, -1), tests, strict=True):
        found += [(LOAD, 0, 0, place), (EQUAL, 0, 2 * left - 1, value)]  # when it is another, to the last step
    return [*found, (RETURN, 0, 0, REFUSE | error), (RETURN, 0, 0, ALLOW)]


def refuse(what: str) -> None:
    """From now on, in this process and what it becomes."""
    filtering = steps(what)
    program = Program(len(filtering), b"".join(struct.pack("HBBI", *step) for step in filtering))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    refuse(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
