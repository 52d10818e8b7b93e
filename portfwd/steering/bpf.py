"""bpf(2): maps, a program written as instructions, and its link to the network namespace that this process is in.

Maps, programs and links are descriptors, and are gone with the last one: a process that is killed leaves nothing behind.

Sources: bpf(2); Linux include/uapi/linux/bpf.h and bpf_common.h, Documentation/bpf/prog_sk_lookup.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
import struct
from collections.abc import Sequence

from portfwd.errors import Lacking

SYSCALLS = {  # __NR_bpf, asm/unistd.h
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "s390x": 351,
    "i686": 357,
    "armv7l": 386,
}
MAP_CREATE, MAP_UPDATE_ELEM, MAP_DELETE_ELEM, PROG_LOAD, LINK_CREATE = 0, 2, 3, 5, 28  # enum bpf_cmd
LPM_TRIE, SOCKMAP = 11, 15  # enum bpf_map_type
NO_PREALLOC = 1  # BPF_F_NO_PREALLOC, which LPM_TRIE wants
PROG_TYPE_SK_LOOKUP, SK_LOOKUP = 30, 36  # enum bpf_prog_type, enum bpf_attach_type
LICENSE = b"MIT\0"  # the functions called here are not reserved to GPL programs
NAME = b"portfwd"  # what bpftool(8) shows

# The instructions' fields, linux/bpf_common.h and bpf.h
W, H, B = 0x00, 0x08, 0x10  # sizes: 4, 2 and 1 bytes
LDX, ST, STX = 0x61, 0x62, 0x63  # load to a register, store a number, store a register; each with mode MEM
MOV, ADD, TO_BE = 0xB7, 0x07, 0xDC  # of 64 bits; to big endian
REGISTER = 0x08  # BPF_X: the source is a register
JEQ, JNE, JA, CALL, EXIT = 0x15, 0x55, 0x05, 0x85, 0x95
LD_IMM64, PSEUDO_MAP_FD = 0x18, 1
R0, R1, R2, R3, R6, R7, FRAME = 0, 1, 2, 3, 6, 7, 10

_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: code, registers, offset, number
_BIG = struct.pack("=H", 1) == b"\0\1"


class Code:
    """A program in the making. Jumps name a label, which label() puts at its place."""

    def __init__(self) -> None:
        self._words: list[
            tuple[int, int, int, str | int, int]
        ] = []  # code, destination, source, jump or offset, number
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Put the label `name` here."""
        self._labels[name] = len(self._words)

    def load(self, register: int, base: int, offset: int, size: int = W) -> None:
        """register = memory at base + offset."""
        self._words.append((LDX | size, register, base, offset, 0))

    def store(self, base: int, offset: int, register: int, size: int = W) -> None:
        """Memory at base + offset = register."""
        self._words.append((STX | size, base, register, offset, 0))

    def store_number(self, base: int, offset: int, number: int, size: int = W) -> None:
        """Memory at base + offset = number."""
        self._words.append((ST | size, base, 0, offset, number))

    def move(self, register: int, source: int) -> None:
        """register = another register."""
        self._words.append((MOV | REGISTER, register, source, 0, 0))

    def number(self, register: int, number: int) -> None:
        """register = number."""
        self._words.append((MOV, register, 0, 0, number))

    def address(self, register: int, offset: int) -> None:
        """register = the address of what is at FRAME + offset."""
        self.move(register, FRAME)
        self._words.append((ADD, register, 0, 0, offset))

    def big_endian(self, register: int) -> None:
        """register = its lower 16 bits in network byte order."""
        self._words.append((TO_BE, register, 0, 0, 16))

    def map(self, register: int, fd: int) -> None:
        """register = a map."""
        self._words += [(LD_IMM64, register, PSEUDO_MAP_FD, 0, fd), (0, 0, 0, 0, 0)]

    def jump(self, label: str) -> None:
        """Go on at a label."""
        self._words.append((JA, 0, 0, label, 0))

    def jump_if(self, test: int, register: int, number: int, label: str) -> None:
        """Go on there if the register is (JEQ), or is not (JNE), that number."""
        self._words.append((test, register, 0, label, number))

    def call(self, function: int) -> None:
        """R0 = what a function of enum bpf_func_id returns; R1 to R5 are its arguments, and lost."""
        self._words.append((CALL, 0, 0, 0, function))

    def end(self) -> None:
        """Return R0."""
        self._words.append((EXIT, 0, 0, 0, 0))

    def bytes(self) -> bytes:
        """The instructions in the kernel's form (struct bpf_insn)."""
        found = []
        for place, (code, destination, source, jump, number) in enumerate(self._words):
            registers = destination << 4 | source if _BIG else source << 4 | destination
            offset = self._labels[jump] - place - 1 if isinstance(jump, str) else jump
            found.append(_INSTRUCTION.pack(code, registers, offset, number))
        return b"".join(found)


def create_map(kind: int, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A map with keys and values of so many bytes; its descriptor. Lacking."""
    return _made("a map", MAP_CREATE, struct.pack("=IIIIIII16s", kind, key, value, entries, flags, 0, 0, NAME))


def load(program: bytes) -> int:
    """Load a program of type SK_LOOKUP; its descriptor. Lacking."""
    license_text, text = ctypes.create_string_buffer(LICENSE), ctypes.create_string_buffer(program, len(program))
    attributes = struct.pack(
        "=IIQQIIQII16sII",
        PROG_TYPE_SK_LOOKUP,
        len(program) // _INSTRUCTION.size,
        ctypes.addressof(text),
        ctypes.addressof(license_text),
        *(0, 0, 0, 0, 0),  # no log
        NAME,
        0,
        SK_LOOKUP,
    )
    return _made("a program", PROG_LOAD, attributes)


def attach(program: int) -> int:
    """Attach a program to this network namespace, as long as the returned descriptor is open. Lacking."""
    with open("/proc/thread-self/ns/net", "rb") as namespace:
        return _made("a link", LINK_CREATE, struct.pack("=IIII", program, namespace.fileno(), SK_LOOKUP, 0))


def put(table: int, key: bytes, value: int) -> None:
    """Set an entry to a number of 32 bits; in a SOCKMAP that is a socket's descriptor. OSError.

    A SOCKMAP takes listening TCP sockets and UDP sockets. The sockets that a listener accepts are not in the map.
    """
    place = ctypes.create_string_buffer(struct.pack("=I", value), 4)
    _element(MAP_UPDATE_ELEM, table, key, ctypes.addressof(place))


def take(table: int, key: bytes) -> None:
    """Delete an entry; a missing one is no error. OSError."""
    with contextlib.suppress(FileNotFoundError):
        # The kernel refuses attributes that a command does not use unless they are 0 (EINVAL)
        _element(MAP_DELETE_ELEM, table, key, 0)


def _element(command: int, table: int, key: bytes, value: int) -> None:
    place = ctypes.create_string_buffer(key, len(key))
    _bpf(command, struct.pack("=IIQQQ", table, 0, ctypes.addressof(place), value, 0))


def _made(what: str, command: int, attributes: bytes) -> int:
    try:
        return _bpf(command, attributes)
    except OSError as error:
        raise Lacking("ports cannot be steered by sk_lookup", f"bpf(2) cannot make {what}: {_why(error)}") from error


def _why(error: OSError) -> str:
    text = error.strerror or str(error)
    if error.errno == errno.ENOSYS:
        return f"{text}: this kernel has no bpf(2), or a seccomp filter refuses it"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{text}: this needs CAP_BPF (or CAP_SYS_ADMIN) and CAP_NET_ADMIN on the host, and a kernel without lockdown"
    if error.errno == errno.EINVAL:
        return f"{text}: this needs Linux 5.9 with CONFIG_BPF_SYSCALL and CONFIG_INET"
    return text


def without_limit() -> None:
    """Lift RLIMIT_MEMLOCK, if root: before Linux 5.11 maps count as locked memory (setrlimit(2))."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _bpf(command: int, attributes: bytes) -> int:
    """The system call. OSError."""
    number = SYSCALLS.get(os.uname().machine)
    if number is None or ctypes.sizeof(ctypes.c_void_p) not in (4, 8):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    place = ctypes.create_string_buffer(attributes, len(attributes))
    result = _libc().syscall(ctypes.c_long(number), ctypes.c_long(command), place, ctypes.c_long(len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors that are no longer needed."""
    for fd in descriptors:
        os.close(fd)
