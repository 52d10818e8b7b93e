"""Files below /run/cni-py: read with a limit, written atomically, without following links."""

import errno

from cni_py.errors import os_error
from cni_py.lean import os

S_IFMT, S_IFREG = 0o170000, 0o100000  # inode(7)
SMALL = 4096  # bytes; files of /proc say that they have none
OVERFLOWUID = 65534  # user_namespaces(7)
BUS = "/var/run/dbus/system_bus_socket"  # as godbus and libdbus have it
FILE_MAX = 16 << 20  # bytes; the record of 60,000 published ports has 6 MB


def run_dir() -> str:
    """The folder of records and locks: /run/cni-py; without root, cni-py in XDG_RUNTIME_DIR.

    The root of a user namespace may have a /run of its own, as under rootlesskit, whose `--copy-up=/run` gives it links to
    what the machine's /run has: then the machine's /run/cni-py, if there is one.
    """
    own = os.environ.get("XDG_RUNTIME_DIR")  # set to "" counts as not set (XDG Base Directory Specification)
    return f"{own}/cni-py" if own and (os.geteuid() != 0 or is_unmapped("/run/cni-py")) else "/run/cni-py"


def system_bus() -> str:
    """The address of the system's D-Bus, "" when there is none."""
    return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "") or (f"unix:path={BUS}" if os.path.exists(BUS) else "")


def is_unmapped(path: str) -> bool:
    """Whether it belongs to a user whom this user namespace does not know."""
    try:
        return os.stat(path).st_uid == OVERFLOWUID
    except OSError:
        return False


def listed(folder: str) -> list[str]:
    """The names in a folder; none when it cannot be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def lock_path(name: str) -> str:
    """The path of a lock file. attachment/locks makes the folder."""
    return f"{run_dir()}/lock/{name}"


def read(path: str, *, follow: bool = False) -> bytes:
    """The content of an ordinary file of at most FILE_MAX bytes. OSError for everything else.

    `follow`: follow a symlink, for files that an administrator may have linked.
    """
    # O_NONBLOCK: opening a FIFO would wait for its writer. The type is checked since /dev/zero, say, has no end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    # Not open(), whose object costs three more system calls and a buffer
    try:
        status = os.fstat(fd)
        if not is_ordinary(status):
            raise OSError(errno.EINVAL, "not an ordinary file")
        if status.st_size > FILE_MAX:
            raise OSError(errno.EFBIG, f"larger than {FILE_MAX >> 20} MiB")
        return os.read(fd, max(status.st_size, SMALL))
    finally:
        os.close(fd)


def is_ordinary(status: "os.stat_result") -> bool:
    """Whether it is an ordinary file. The module `stat` would cost more than its constants."""
    return status.st_mode & S_IFMT == S_IFREG


def write(path: str, text: bytes) -> None:
    """Replace the file at `path` by one of mode 0600, atomically. For writers that hold a lock. OSError.

    A file at the temporary name was left by a call that was killed. It is removed, and never opened: it may be a link.
    """
    temporary = path + ".tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
    except FileExistsError:
        os.unlink(temporary)
        fd = os.open(temporary, flags, 0o600)
    try:
        while text:
            text = text[os.write(fd, text) :]
    finally:
        os.close(fd)
    os.rename(temporary, path)


def make_folder(path: str) -> None:
    """mkdir -p, mode 0700. CniError."""
    try:
        make_folders(path, 0o700)
    except OSError as error:
        raise os_error(f"cannot make the folder {path}", error) from error


def make_folders(path: str, mode: int) -> None:
    """mkdir -p that gives every new folder the mode. os.makedirs() makes the upper ones by the umask, which may be 0. OSError."""
    if os.path.isdir(path):
        return
    head = os.path.dirname(path.rstrip("/"))
    if head and head != path:
        make_folders(head, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def published_dir() -> str:
    """The folder of the index of published ports (ports/index)."""
    return run_dir() + "/published"


def may_be_published(name: str) -> bool:
    """Whether the index of published ports lists an address, or a naming.interface_name(); True if there is no index yet.

    Every ADD and DEL asks, so it costs two stat calls and loads no module of ports.
    """
    top = published_dir()
    return os.path.isdir(f"{top}/{name}") or not os.path.isdir(top)


def remove_file(path: str) -> None:
    """rm -f, also of an empty folder at that path. OSError."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except IsADirectoryError:
        os.rmdir(path)
