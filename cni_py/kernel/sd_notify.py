"""sd_notify(3): telling the service manager what a process does."""

import _socket


def notify(path: str, word: str) -> None:
    """Tell the service manager at `path` (NOTIFY_SOCKET), if there is one."""
    if not path.startswith(("/", "@")):
        return
    try:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        sock.sendto(word.encode(), "\0" + path[1:] if path.startswith("@") else path)
        sock.close()
    except OSError:
        pass
