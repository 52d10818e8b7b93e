"""Files below /run/cni-py: read with a limit, written atomically, made so that no link is followed."""

import errno
import os

from cni_py.errors import os_error


def listed(folder: str) -> list[str]:
    """What is in a folder; nothing where there is none that can be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


S_IFMT, S_IFREG = 0o170000, 0o100000  # inode(7)
FILE_MAX = 16 << 20  # bytes; the record of 60,000 published ports has 6 MB


def run_dir() -> str:
    """Where records and locks live: /run/cni-py, or the user's own runtime directory without root."""
    own = os.environ.get("XDG_RUNTIME_DIR") if os.geteuid() != 0 else ""
    return f"{own or '/run'}/cni-py"  # one that is set and empty is none (XDG Base Directory Specification)


def lock_path(name: str) -> str:
    """The path of a lock file; whoever locks it makes its folder."""
    return f"{run_dir()}/lock/{name}"


def read(path: str, *, follow: bool = False) -> bytes:
    """What an ordinary file of at most FILE_MAX bytes contains. OSError for everything else.

    Opening a FIFO waits for its writer and /dev/zero has no end, so what is not an ordinary file is not read. A symlink is
    only followed (`follow`) where an administrator may have made one.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if status.st_mode & S_IFMT != S_IFREG:
            raise OSError(errno.EINVAL, "not an ordinary file")
        if status.st_size > FILE_MAX:
            raise OSError(errno.EFBIG, f"larger than {FILE_MAX >> 20} MiB")
        return file.read(FILE_MAX) or b""


def write(path: str, text: bytes) -> None:
    """Write a file of mode 0600 in place of the one at `path`, whole or not at all. OSError.

    What is at the temporary name was left by a call that was killed, whatever it is: it goes, and is never opened.
    """
    temporary = path + ".tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(temporary, flags, 0o600)
    except FileExistsError:
        os.unlink(temporary)
        fd = os.open(temporary, flags, 0o600)
    with open(fd, "wb") as file:
        file.write(text)
    os.rename(temporary, path)


def make_folder(path: str) -> None:
    """mkdir -p, mode 0700. CniError."""
    try:
        make_folders(path, 0o700)
    except OSError as error:
        raise os_error(f"cannot make the folder {path}", error) from error


def make_folders(path: str, mode: int) -> None:
    """mkdir -p that gives every new folder the mode: os.makedirs leaves those above to the umask, which may be 0. OSError."""
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
    """The index of published ports."""
    return run_dir() + "/published"


def may_be_published(name: str) -> bool:
    """Whether the index of published ports lists an address, or an interface_name(). True also where there is no index yet.

    Two stat calls where nothing is listed: every ADD and DEL asks.
    """
    top = published_dir()
    return os.path.isdir(f"{top}/{name}") or not os.path.isdir(top)


def remove_file(path: str) -> None:
    """rm -f, also of an empty folder that somebody put there. OSError."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except IsADirectoryError:
        os.rmdir(path)
