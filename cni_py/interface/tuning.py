"""Operations that tune what is there: sysctls and settings of an interface, and the file of the settings before.

What they change belongs to one namespace, known by its cookie: in another one of the same path nothing is put back.

The file, <dataDir>/<containerID>_<ifname>.json, is that of the Go plugin: {"mac": "…", "mtu": 1500}, only what was about to
change, so that either of the two can undo the other's ADD.
"""

import errno
import os

from cni_py import files
from cni_py.attachment import records
from cni_py.attachment.engine import Op
from cni_py.errors import CniError, os_error
from cni_py.interface.common import set_sysctl
from cni_py.kernel import linksettings, sysctl
from cni_py.protocol import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.attachment.context import Kernel


PLUGIN = "tuning"  # whose records hold these
set_here: "list[TuneSysctl]" = []  # by an ADD in this process, which may fail yet: its result cannot be written


class TuneSysctl(Op):
    """A sysctl of the container. `before` is "" where it cannot be read."""

    key: str
    value: str
    before: str
    netns: int
    owned = True
    line = "container: sysctl net/{key} = {value}"
    deed = "set the container's sysctl net/{key} to {value}"

    def apply(self, kernel: "Kernel") -> bool:
        set_here.append(self)
        with kernel.in_container():
            return set_sysctl(self.key, self.value, optional=False)

    def undo(self, kernel: "Kernel") -> None:
        """For an ADD that fails. Once it has succeeded the value stays: another network of the container may want it too."""
        record = records.load(kernel.key, PLUGIN)
        stays = record is not None and record.done and self not in set_here
        if self.before and not stays and kernel.lives(self.netns):
            with kernel.in_container():
                sysctl.write(self.key, self.before, optional=True)

    def check(self, kernel: "Kernel") -> str | None:
        with kernel.in_container():
            try:
                current = sysctl.read(self.key)
            except PermissionError:
                return None  # it can only be written
            except OSError as error:
                raise os_error(f"cannot read sysctl net/{self.key}", error) from error
        if comparable(current) == comparable(self.value):
            return None
        return f"Error: Tuning configured value of /proc/sys/net/{self.key} is {self.value}, current value is {current}"


def comparable(text: str) -> list[int | str]:
    """The words of a sysctl's value. The kernel sets them apart by tabs, and reads 0x10 and 020 as 16 (simple_strtoul())."""
    return [_number(word) for word in text.split()]


def _number(word: str) -> int | str:
    digits = word.lstrip("-")
    octal = len(digits) > 1 and digits.startswith("0") and digits.isdigit()
    try:
        return int(word, 8 if octal else 0)
    except ValueError:
        return word


class TuneLink(Op):
    """One setting of the container's interface (see kernel/linksettings.py)."""

    ifname: str
    setting: str
    value: str
    before: str
    netns: int
    owned = True
    line = "container: set {ifname} {setting} {value} (it was {before})"
    deed = "set the {setting} of {ifname} in the container to {value}"

    def apply(self, kernel: "Kernel") -> None:
        linksettings.write(kernel.container, self.ifname, self.setting, self.value)

    def undo(self, kernel: "Kernel") -> None:
        if kernel.lives(self.netns):
            put_back(kernel, self.ifname, {self.setting: self.before})

    def check(self, kernel: "Kernel") -> str | None:
        current = (linksettings.read(kernel.container, self.ifname) or {}).get(self.setting)
        if current == self.value:
            return None
        return f"Error: Tuning configured {self.setting} of {self.ifname} is {self.value}, current value is {current}"


def put_back(kernel: "Kernel", ifname: str, values: "Mapping[str, str]") -> None:
    """Set what an interface had before, all that can be; nothing when it is gone."""
    refused: OSError | None = None
    for setting, value in values.items():
        try:
            linksettings.write(kernel.container, ifname, setting, value)
        except OSError as error:
            refused = refused if error.errno == errno.ENODEV else error
    if refused is not None:
        raise refused


class SaveSettings(Op):
    """The file of the settings before, for whichever plugin is asked to DEL."""

    path: str
    before: dict[str, str]
    owned = True
    line = "host: write the settings before to {path}"
    deed = "write the settings before to {path}"

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        """The version before recorded the text of the file."""
        if "text" not in fields:
            return fields
        return {"path": fields.get("path"), "before": saved_values(str(fields["text"]).encode())}

    def validate(self) -> None:
        if not self.before:
            raise ValueError("no settings to write")
        saved_text(self.before)  # ValueError

    def apply(self, kernel: "Kernel") -> None:
        files.make_folder(os.path.dirname(self.path))
        files.write(self.path, saved_text(self.before).encode())

    def undo(self, kernel: "Kernel") -> None:
        remove(self.path + ".tmp")
        if saved_values(read_saved(self.path)) == self.before:  # another one is of a later ADD, by the Go plugin
            remove(self.path)


def saved_text(values: "Mapping[str, str]") -> str:
    """The content of that file, to the letter as the Go plugin writes it."""
    typed = {setting: value if setting == "mac" else _plain(value) for setting, value in values.items()}
    return gojson.encode(typed, 1)


def _plain(value: str) -> bool | int:
    return value == "true" if value in ("true", "false") else int(value)


def read_saved(path: str) -> bytes:
    """The content of such a file; nothing when there is none that can be read."""
    try:
        return files.read(path)
    except OSError:
        return b""


def saved_values(text: bytes) -> dict[str, str]:
    """The settings in such a file. What is no setting, or no value of one, is left out."""
    try:
        fields = gojson.decode(text)
    except CniError:
        return {}
    found = fields if isinstance(fields, gojson.Object) else {}
    values = {}
    for setting in linksettings.SETTINGS:
        value = found.get(setting)
        if isinstance(value, bool):
            values[setting] = str(value).lower()
        elif isinstance(value, str | int):
            values[setting] = str(value)
    return values


def remove(path: str) -> None:
    """rm -f."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
