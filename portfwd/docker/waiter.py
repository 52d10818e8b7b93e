"""A docker proxy whose port the service has: the process only waits for dockerd's signal, and becomes a program of one page.

The program waits for SIGINT or SIGTERM and ends with status 0. It keeps the pid, its parent's death signal, and the
arguments for ps(1). There is one per published port and family, so its memory counts: 16 kB (proportional set size,
measured with 200 processes). A shell's `trap` takes 115 kB; `sleep infinity` takes 100 kB and ends with the wrong status.
"""

import os
from _signal import SIG_BLOCK, SIG_DFL, SIG_UNBLOCK, SIGINT, SIGTERM, pthread_sigmask, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

STOP_SIGNALS = (SIGINT, SIGTERM)

# By machine: its number in ELF, and the instructions of
#     prctl(PR_SET_NAME, name), then rt_sigtimedwait(&set, NULL, NULL, 8) until it succeeds (EINTR: stopped and
#     continued), then exit_group(0). They are followed by the set and the name.
PROGRAMS = {
    "x86_64": (
        62,  # EM_X86_64
        "b89d000000 bf0f000000"  # mov eax, 157; mov edi, 15
        "488d352e000000 0f05"  # lea rsi, [rip + name]; syscall
        "6880000000 58"  # again: push 128; pop rax
        "488d3d17000000"  # lea rdi, [rip + set]
        "31f6 31d2 6a08 415a"  # xor esi, esi; xor edx, edx; push 8; pop r10
        "0f05 85c0 78e5"  # syscall; test eax, eax; js again
        "b8e7000000 31ff 0f05",  # mov eax, 231; xor edi, edi; syscall
    ),
    "aarch64": (
        183,  # EM_AARCH64
        "e00180d2 e1010010"  # mov x0, #15; adr x1, name
        "e81480d2 010000d4"  # mov x8, #167; svc #0
        "40010010 010080d2"  # again: adr x0, set; mov x1, #0
        "020080d2 030180d2"  # mov x2, #0; mov x3, #8
        "281180d2 010000d4"  # mov x8, #137; svc #0
        "40ffffb7 000080d2"  # tbnz x0, #63, again; mov x0, #0
        "c80b80d2 010000d4",  # mov x8, #94; svc #0
    ),
}
SIGNALS = 1 << SIGINT - 1 | 1 << SIGTERM - 1  # sigset_t of the kernel
NAME = b"portfwd-docker-\0"  # as much as TASK_COMM_LEN takes
BASE = 0x400000  # where the program is loaded
HEADERS = 64 + 56  # Elf64_Ehdr and one Elf64_Phdr, elf(5)
FDS_MAX = 1 << 20  # descriptors; close_range(2) closes them in one call
MFD_EXEC = 0x10  # linux/memfd.h, Linux 6.3; earlier ones refuse it

# On other machines, and where a memfd must not be executed (vm.memfd_noexec). Descriptor 0 is a pipe that never ends.
SHELL_WAITER = "trap 'exit 0' INT TERM; read nothing"


def become_waiter(arguments: "Sequence[str]") -> "NoReturn":
    """Replace this process by the program. Descriptors from 3 on are closed: a bound socket here would keep the port in use.

    A signal that came while STOP_SIGNALS were blocked stays pending through execve(2), and ends the program at once.
    """
    pthread_sigmask(SIG_BLOCK, STOP_SIGNALS)
    os.closerange(3, FDS_MAX)
    if program := waiter_program(os.uname().machine):
        try_to_become(program, arguments)
    become_shell(arguments)


def try_to_become(program: bytes, arguments: "Sequence[str]") -> None:
    """Run the program from a memfd; returns where that is not allowed."""
    for flags in (MFD_EXEC, 0):
        try:
            fd = os.memfd_create("portfwd-docker-proxy", os.MFD_CLOEXEC | flags)
            os.write(fd, program)
            os.execve(fd, [*arguments], {})  # noqa: S606
        except OSError:
            continue


def become_shell(arguments: "Sequence[str]") -> "NoReturn":
    """Wait with a shell instead, which every system has."""
    for number in STOP_SIGNALS:
        signal(number, SIG_DFL)
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.set_inheritable(writer, True)
    pthread_sigmask(SIG_UNBLOCK, STOP_SIGNALS)
    os.execve("/bin/sh", ["sh", "-c", SHELL_WAITER, *arguments], {})  # noqa: S606


def waiter_program(machine: str) -> bytes:
    """The executable, less than a page; b"" for a machine for which there is none."""
    if machine not in PROGRAMS:
        return b""
    number, code = PROGRAMS[machine]
    body = bytes.fromhex(code) + words(8, SIGNALS) + NAME
    size = HEADERS + len(body)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)  # 64 bits, little-endian, version 1
    header = identity + words(2, 2, number) + words(4, 1) + words(8, BASE + HEADERS, 64, 0)  # ET_EXEC, entry, segments
    header += words(4, 0) + words(2, 64, 56, 1, 0, 0, 0)
    segment = words(4, 1, 5) + words(8, 0, BASE, BASE, size, size, 4096)  # PT_LOAD, PF_R | PF_X
    return header + segment + body


def words(width: int, *numbers: int) -> bytes:
    """Little-endian numbers of `width` bytes."""
    return b"".join(number.to_bytes(width, "little") for number in numbers)
