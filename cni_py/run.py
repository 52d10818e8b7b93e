"""The start of every executable. Which plugin it runs is told by its name, or else by its text (commands/launchers.py).

Clients run VERSION of every plugin of every configuration before anything else. So VERSION imports only this module and
`version`: neither `os` nor the plugin.
"""

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Plugin

MODULES = {
    "bandwidth": "bandwidth",
    "bridge": "bridge",
    "chain": "chain",
    "dhcp": "dhcp",
    "dummy": "dummy",
    "firewall": "firewall",
    "host-device": "host_device",
    "host-local": "host_local",
    "ipvlan": "ipvlan",
    "loopback": "loopback",
    "macvlan": "macvlan",
    "portmap": "portmap",
    "ptp": "ptp",
    "sbr": "sbr",
    "static": "static",
    "tap": "tap",
    "tuning": "tuning",
    "vlan": "vlan",
    "vrf": "vrf",
}
LAUNCHER_MAX = 16384  # bytes; a launcher of ours is far smaller
NATIVE_END = b"\ncni-py launcher: the text of the one in Python\n"  # what follows the program in a compiled launcher
LINKS_MAX = 40  # MAXSYMLINKS, linux/namei.h
GARBAGE = 100_000  # objects; Python has 700


def main(plugin: str = "") -> None:
    """Run the plugin that the executable is named after, and end the process.

    An executable that was copied or linked under another name (cnv-bridge) runs `plugin`, which its text names.
    """
    name = sys.argv[0].rpartition("/")[2]
    if name not in MODULES:
        name = plugin or _linked_to(sys.argv[0]) or name
    if name == "dhcp" and sys.argv[1:2] == ["daemon"]:
        load(name)
        sys.modules["cni_py.plugins.dhcp"].start_daemon(sys.argv[2:])
    status = 0
    if posix.environ.get(b"CNI_COMMAND") != b"VERSION" or not _told_versions(name):
        status = _by_service(name)
        if status < 0:
            import gc

            # A call ends before its garbage counts: the collector would look through all that the modules define, several times.
            gc.set_threshold(GARBAGE)
            from cni_py import skel

            status = skel.main(name, load)
    try:
        sys.stderr.flush()
    except (OSError, AttributeError):  # full; None, if it was closed
        pass
    # Not sys.exit(): the interpreter would free all its objects first, which takes time and is of no use here.
    posix._exit(status)


def _told_versions(name: str) -> bool:
    """Answer VERSION. False when stdout cannot be written to: skel then reports it."""
    from cni_py import version

    try:
        posix.write(1, version.reply(version.spoken_by(name)).encode())
    except OSError:
        return False
    return True


def _by_service(name: str) -> int:
    """Let the warm service run the plugin (`cni-py serve`). The exit status; -1 if there is none, or it does not take the call.

    With an argument (cni_py/launcher.c gives one when it has asked already) the service is not asked.
    """
    path = service_socket()
    if len(sys.argv) > 1 or name not in MODULES:
        return -1
    try:
        posix.stat(path)
        from cni_py import warm
    except (OSError, ImportError):
        return -1
    return warm.call(path, name, sys.path[-1])


def service_socket() -> str:
    """The socket of the warm service: below /run; without root, below XDG_RUNTIME_DIR."""
    own = posix.environ.get(b"XDG_RUNTIME_DIR", b"") if posix.geteuid() != 0 else b""
    return (own.decode("utf-8", "surrogateescape") or "/run") + "/cni-py/serve.sock"


def _linked_to(path: str) -> str:
    """The plugin that a symbolic link leads to, or "". For launchers of earlier versions, whose text names no plugin."""
    for _ in range(LINKS_MAX):
        try:
            target = posix.readlink(path)
        except OSError:
            break
        path = target if target.startswith("/") else path[: path.rfind("/") + 1] + target
        name = path.rpartition("/")[2]
        if name in MODULES:
            return name
    return ""


def load(name: str) -> "Plugin":
    """The plugin of that type. CniError when it is none of ours."""
    if name not in MODULES:
        from cni_py.errors import CniError

        raise CniError(
            f'the executable "{name}" does not tell which plugin it is: call it {", ".join(MODULES)}, '
            "make it a symbolic link to one of these, or install it anew with `cni-py install`"
        )
    module = "cni_py.plugins." + MODULES[name]
    __import__(module)
    plugin: Plugin = sys.modules[module].PLUGIN
    return plugin


def is_own_launcher(path: str) -> bool:
    """Whether the executable at `path` is a launcher of this installation."""
    from cni_py.lean import os

    if path.rpartition("/")[2] not in MODULES:
        return False
    home = __file__.rpartition("/")[0].rpartition("/")[0]
    text = launcher_text(path)
    return text.startswith(b"#!") and b"from cni_py.run import main" in text and os.fsencode(home) in text


def launcher_text(path: str) -> bytes:
    """The beginning of the file at `path`, which is the whole of a launcher in Python. OSError.

    A launcher that is compiled (launcher.c) ends with the text of one in Python. b"" for any other program.
    """
    with open(path, "rb", buffering=0) as file:
        text: bytes = file.read(LAUNCHER_MAX)
        if text.startswith(b"\x7fELF"):
            file.seek(0, 2)
            file.seek(max(0, file.tell() - LAUNCHER_MAX - len(NATIVE_END)))
            _, start, rest = file.read().partition(NATIVE_END)
            text = rest if start else b""
    return text
