"""Host-wide settings: /etc/cni-py/config.yaml, which need not exist.

    backend: iptables     for portmap, firewall and ipMasq where their own configuration says nothing; else nftables

A plugin cannot afford a YAML parser at each start, so it reads a compiled copy (config.json in the run directory) and
makes it anew when the file has changed. A file that says something else than the above is an error, never ignored.
"""

import os
import sys

from cni_py import jsontext, netconf, records
from cni_py.errors import CniError, InvalidNetworkConfig, os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

PATH = "/etc/cni-py/config.yaml"
BACKENDS = ("nftables", "iptables")
# Where distributions put PyYAML, for an interpreter that was not told (-S) and an installation without one beside it
FOLDERS = ("/usr/lib/python3/dist-packages", f"/usr/lib/python3.{sys.version_info[1]}/site-packages")


class Settings:
    """What the file says, with what holds where it says nothing."""

    __slots__ = ("backend",)

    def __init__(self, backend: str = BACKENDS[0]) -> None:
        self.backend = backend


def backend(asked: str = "") -> str:
    """The backend that a configuration asks for, or else the host's."""
    return asked or load().backend


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
    """What tells a version of the file from another one."""
    seen = os.stat(path)
    return f"{seen.st_mtime_ns} {seen.st_size} {seen.st_ino}"


def _text() -> str:
    try:
        return records.read(PATH, follow=True).decode()
    except OSError as error:
        raise os_error(f"cannot read {PATH}", error) from error
    except UnicodeDecodeError as error:
        raise InvalidNetworkConfig(f"{PATH} is not UTF-8", str(error)) from error


def _compiled(source: str) -> Settings | None:
    """The compiled copy; None when there is none of this version of the file."""
    try:
        fields = jsontext.decode(records.read(f"{records.run_dir()}/config.json"))
        if isinstance(fields, jsontext.Object) and fields.get("source") == source:
            asked = netconf.string(fields, "backend")
            return Settings(asked) if asked in BACKENDS else None
    except (OSError, CniError):
        pass
    return None


def _compile(source: str, settings: Settings) -> None:
    """Write the copy. One that cannot be written is made again by the next call."""
    path = f"{records.run_dir()}/config.json"
    fields: dict[str, jsontext.Encodable] = {"source": source, "backend": settings.backend}
    temporary = f"{path}.{os.getpid()}"
    try:
        records.make_folder(records.run_dir())
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(jsontext.encode(fields, None).encode())
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
    settings = Settings()
    if document is None:
        return settings
    if not isinstance(document, yaml.MappingNode):
        raise _invalid(document.start_mark.line, "settings are `key: value`")
    seen = set()
    for key, value in document.value:
        line = key.start_mark.line
        if key.value != "backend":
            raise _invalid(line, f"unknown key {key.value!r}; there is: backend")
        if key.value in seen:
            raise _invalid(line, f"{key.value} is there twice")
        seen.add(key.value)
        if value.value not in BACKENDS:
            raise _invalid(line, f"backend is one of {', '.join(BACKENDS)}, not {value.value!r}")
        settings.backend = value.value
    return settings


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
