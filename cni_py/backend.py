"""Host-wide settings: /etc/cni-py/config.yaml, which need not exist.

    backend: iptables       for portmap, firewall and ipMasq where their own configuration says nothing; else nftables
    hostListener: refuse    for portmap where its own says nothing: a port that a program of the host listens on; else warn

Importing a YAML parser costs a plugin 40 ms, so it reads a compiled copy, config.json in the run directory, and writes a new one
when the file has changed. An unknown key or value in the file is an error.
"""

import sys

from cni_py import files
from cni_py.errors import CniError, InvalidNetworkConfig, os_error
from cni_py.lean import os
from cni_py.protocol import gojson, netconf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from yaml import Node

PATH = "/etc/cni-py/config.yaml"
BACKENDS = ("nftables", "iptables")
HOST_LISTENERS = ("warn", "refuse")
VALUES = {"backend": BACKENDS, "hostListener": HOST_LISTENERS}  # of each key; the first holds where nothing is said
# Where distributions put PyYAML: our launchers start Python with -S, so that these folders are not in sys.path
FOLDERS = ("/usr/lib/python3/dist-packages", f"/usr/lib/python3.{sys.version_info[1]}/site-packages")


class Settings:
    """The values of the file's keys, or their defaults."""

    __slots__ = ("backend", "host_listener")

    def __init__(self, said: "Mapping[str, str] | None" = None) -> None:
        values = said or {}
        self.backend = values.get("backend", BACKENDS[0])
        self.host_listener = values.get("hostListener", HOST_LISTENERS[0])


def chosen(asked: str = "") -> str:
    """The backend that a configuration asks for, or the host's for "". CniError as load()."""
    return asked or load().backend


def for_host_listener(asked: str) -> str:
    """A configuration's `hostListener`, which may be "". InvalidNetworkConfig for an unknown value."""
    if asked not in ("", *HOST_LISTENERS):
        raise InvalidNetworkConfig(f'unknown hostListener "{asked}"', f"one of {', '.join(HOST_LISTENERS)}")
    return asked


def load() -> Settings:
    """The settings of this host. InvalidNetworkConfig that names the line, CniError."""
    try:
        source = _stamp(PATH)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise os_error(f"cannot read {PATH}", error) from error
    found = _compiled(source)
    if found is None:
        found = parse(_text())
        _compile(source, found)
    return found


def _stamp(path: str) -> str:
    """A text that is another one when the file has changed."""
    seen = os.stat(path)
    return f"{seen.st_mtime_ns} {seen.st_size} {seen.st_ino}"


def _text() -> str:
    try:
        return files.read(PATH, follow=True).decode()
    except OSError as error:
        raise os_error(f"cannot read {PATH}", error) from error
    except UnicodeDecodeError as error:
        raise InvalidNetworkConfig(f"{PATH} is not UTF-8", str(error)) from error


def _compiled(source: str) -> Settings | None:
    """The settings in the compiled copy; None unless it was made from this state of the file."""
    try:
        fields = gojson.decode(files.read(f"{files.run_dir()}/config.json"))
        if isinstance(fields, gojson.Object) and fields.get("source") == source:
            said = {key: netconf.string(fields, key) for key in VALUES}
            return Settings(said) if all(said[key] in values for key, values in VALUES.items()) else None
    except (OSError, CniError):
        pass
    return None


def _compile(source: str, settings: Settings) -> None:
    """Write the compiled copy. If that fails, the next call reads the YAML again.

    Not by files.write(), which is for one writer at a time: here several calls may write at once, without a lock.
    """
    path = f"{files.run_dir()}/config.json"
    fields: dict[str, gojson.Encodable] = {
        "source": source,
        "backend": settings.backend,
        "hostListener": settings.host_listener,
    }
    temporary = f"{path}.{os.getpid()}"
    try:
        files.make_folder(files.run_dir())
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(gojson.encode(fields, None).encode())
        os.rename(temporary, path)
    except (OSError, CniError):
        pass


def parse(text: str) -> Settings:
    """The settings in the file's text. InvalidNetworkConfig that names the line."""
    yaml = _yaml()
    try:
        document = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _invalid(mark.line if mark is not None else 0, str(getattr(error, "problem", error))) from error
    said: dict[str, str] = {}
    if document is None:
        return Settings()
    if not isinstance(document, yaml.MappingNode):
        raise _invalid(document.start_mark.line, "settings are `key: value`")
    for key, value in document.value:
        line = key.start_mark.line
        known = VALUES.get(key.value) if isinstance(key.value, str) else None
        if known is None:
            raise _invalid(line, f"unknown key {_shown(key)}; there is: {', '.join(VALUES)}")
        if key.value in said:
            raise _invalid(line, f"{key.value} is there twice")
        if value.value not in known:
            raise _invalid(line, f"{key.value} is one of {', '.join(known)}, not {_shown(value)}")
        said[key.value] = value.value
    return Settings(said)


def _shown(node: "Node") -> str:
    """A key or value in an error."""
    return repr(node.value) if isinstance(node.value, str) else "a list or mapping"


def _invalid(line: int, why: str) -> InvalidNetworkConfig:
    return InvalidNetworkConfig(f"{PATH}, line {line + 1}: {why}")


def _yaml() -> "ModuleType":
    """PyYAML. CniError when it is not installed."""
    for folder in ("", *FOLDERS):
        if folder:
            sys.path.append(folder)
        try:
            import yaml

            return yaml
        except ImportError:
            continue
        finally:
            if folder:
                sys.path.remove(folder)
    raise InvalidNetworkConfig(f"PyYAML is needed to read {PATH} (Debian: apt install python3-yaml)")
