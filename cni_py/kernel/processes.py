"""Which process has a socket, and what people call that process: for messages, and to know sockets that are held on purpose.

/proc/PID/fd names the sockets of a process by inode. A process may end while it is looked at, and those of others are readable
for root alone, so a failure to read means nothing found and is no error.
"""

from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONTAINER_ID = 64  # digits, in the path of a cgroup, whoever runs the container
SHORT_ID = 12  # as docker and podman show them
COMM_MAX = 15  # TASK_COMM_LEN without its end, linux/sched.h
NAME_MAX = 64
TEXT_MAX = 1 << 16  # bytes that are read of a file
HEX_DIGITS = frozenset("0123456789abcdef")
INTERPRETERS = ("python", "perl", "ruby", "node", "php", "bash", "sh", "dash")


def having(inodes: "Iterable[int]") -> dict[int, list[int]]:
    """For each socket (by inode) the processes that have it, lowest pid first: the parent of workers. Reads all of /proc once."""
    found: dict[int, list[int]] = {inode: [] for inode in inodes}
    try:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())
    except OSError:
        return found
    for pid in pids:
        for inode in sockets_of(pid) & found.keys():
            found[inode].append(pid)
    return found


def sockets_of(pid: int) -> set[int]:
    """The sockets of a process, by inode; none if it has ended, or we may not look."""
    folder = f"/proc/{pid}/fd"
    try:
        links = [_link(f"{folder}/{fd}") for fd in os.listdir(folder)]
    except OSError:
        return set()
    return {int(link[8:-1]) for link in links if link.startswith("socket:[")}


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def described(pid: int) -> str:
    """The process for a message: nginx (pid 812), or nginx (pid 812 in container 0123456789ab)."""
    return f"{name(pid)} (pid {pid}{container(pid)})"


def words(pid: int) -> list[str]:
    """The command line."""
    return read(f"/proc/{pid}/cmdline").split("\0")


def name(pid: int) -> str:
    """The name of the process, or of an interpreter and its script; the kernel cuts names at 15 bytes, the whole is given."""
    comm = read(f"/proc/{pid}/comm").removesuffix("\n")
    line = words(pid)
    if len(comm) == COMM_MAX:
        programs = [word.rpartition("/")[2] for word in line[:2]]  # a script's own name stands behind its interpreter
        comm = next((program for program in programs if program.startswith(comm)), comm)
    whole = f"{comm} {_script(line)}" if comm.rstrip("0123456789.") in INTERPRETERS else comm
    clean = "".join(character for character in whole if character.isprintable()).strip()
    return clean[:NAME_MAX] or "a process"


def _script(line: "Sequence[str]") -> str:
    """The script of an interpreter: app.py of `python3 -u /srv/app.py`, "-m http.server" of a module; "" if unknown."""
    for place, word in enumerate(line[1:], 1):
        if word == "-m":
            return " ".join(line[place : place + 2])
        if not word.startswith("-"):
            return word.rpartition("/")[2]
        if word in ("-c", "-e"):
            break
    return ""


def container(pid: int) -> str:
    """ " in container ID", from the process's cgroup; " in a container" for one in a pid namespace below ours; or ""."""
    found = container_id(pid)
    if found:
        return f" in container {found[:SHORT_ID]}"
    return " in a container" if _pids(pid) > _pids(os.getpid()) else ""


def container_id(pid: int) -> str:
    """The ID of the container that a process is in, whole: the last 64 hexadecimal digits in the path of its cgroup; or ""."""
    text = read(f"/proc/{pid}/cgroup")
    runs = "".join(character if character in HEX_DIGITS else " " for character in text).split()
    found = [run for run in runs if len(run) == CONTAINER_ID]
    return found[-1] if found else ""


def _pids(pid: int) -> int:
    """The number of pid namespaces that the process has a pid in."""
    for line in read(f"/proc/{pid}/status").splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) - 1
    return 0


def read(path: str) -> str:
    """The text of a file of /proc; "" when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(TEXT_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def user(uid: int) -> str:
    """The user's name, or number."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
