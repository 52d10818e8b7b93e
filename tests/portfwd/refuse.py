"""Run a program for which the kernel refuses something, by a seccomp filter: refuse.py splice|ipv6 PROGRAM ARGUMENT...

splice    splice(2), with EINVAL
ipv6      socket(2) of family AF_INET6, with EAFNOSUPPORT, as a kernel without IPv6 (or started with ipv6.disable=1) does
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

NUMBERS = {"x86_64": {"splice": 275, "socket": 41}, "aarch64": {"splice": 76, "socket": 198}}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2  # linux/prctl.h, linux/seccomp.h
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06  # linux/bpf_common.h: BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO
NUMBER, FIRST_ARGUMENT = (
    0,
    16,
)  # places in struct seccomp_data; of a 64-bit argument the lower half, where that comes first

Step = tuple[int, int, int, int]  # struct sock_filter: code, steps over when true, when false, value
ALLOWED: Step = (RETURN, 0, 0, ALLOW)


class Program(ctypes.Structure):
    """struct sock_fprog, linux/filter.h."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def steps(what: str) -> list[Step]:
    """The filter."""
    numbers = NUMBERS[platform.machine()]
    load: Step = (LOAD, 0, 0, NUMBER)
    if what == "splice":
        return [load, (EQUAL, 0, 1, numbers["splice"]), (RETURN, 0, 0, REFUSE | errno.EINVAL), ALLOWED]
    family: list[Step] = [(LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 0, 1, socket.AF_INET6)]
    return [load, (EQUAL, 0, 3, numbers["socket"]), *family, (RETURN, 0, 0, REFUSE | errno.EAFNOSUPPORT), ALLOWED]


def refuse(what: str) -> None:
    """From now on, in this process and what it becomes."""
    code = b"".join(struct.pack("HBBI", *step) for step in steps(what))
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(code) // 8, code)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    refuse(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])
