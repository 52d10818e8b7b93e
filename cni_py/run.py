"""Which plugin an executable runs: all executables are one launcher under different names.

Clients run VERSION of every plugin of every configuration before anything else, so that path imports nothing but this
module and `version`: neither `os` nor the plugin.
"""

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.call import Plugin

MODULES = {
    "bandwidth": "bandwidth",
    "bridge": "bridge",
    "firewall": "firewall",
    "host-local": "host_local",
    "loopback": "loopback",
    "macvlan": "macvlan",
    "portmap": "portmap",
    "ptp": "ptp",
    "static": "static",
    "tuning": "tuning",
}
LAUNCHER_MAX = 1024  # bytes; ours is far smaller


def main() -> None:
    """Run the plugin named like the executable, and end without the interpreter's clean-up, which has nothing to do."""
    name = sys.argv[0].rpartition("/")[2]
    if posix.environ.get(b"CNI_COMMAND") == b"VERSION":
        from cni_py import version

        posix.write(1, version.reply(version.spoken_by(name)).encode())
        status = 0
    else:
        from cni_py import skel

        status = skel.main(name, load)
    if sys.stderr is not None:  # it was closed
        sys.stderr.flush()
    posix._exit(status)


def load(name: str) -> "Plugin":
    """The plugin of that type. KeyError for one that is not ours."""
    module = "cni_py.plugins." + MODULES[name]
    __import__(module)
    plugin: Plugin = sys.modules[module].PLUGIN
    return plugin


def is_own_launcher(path: str) -> bool:
    """Whether the executable at `path` is a launcher of this very installation."""
    import os

    if path.rpartition("/")[2] not in MODULES:
        return False
    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(path, "rb") as file:
        text = file.read(LAUNCHER_MAX)
    return text.startswith(b"#!") and b"from cni_py.run import main" in text and os.fsencode(home) in text
