"""Operations of the tuning plugin: sysctls and interface settings of the container, and the file with the earlier settings.

`netns` in their fields is the cookie of the namespace in which they changed something. Values are put back only there, not in
another namespace that has the same path by now.

The file, <dataDir>/<containerID>_<ifname>.json, has the form of the Go plugin's: {"mac": "…", "mtu": 1500}, with the settings
that ADD changes and their values before it. So each of the two plugins can undo the other's ADD.
"""

import errno

from cni_py import files
from cni_py.attachment import records
from cni_py.attachment.engine import Op, listed
from cni_py.errors import CniError, os_error
from cni_py.interface.common import set_sysctl
from cni_py.kernel import linksettings, sysctl
from cni_py.lean import os
from cni_py.protocol import gojson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment


PLUGIN = "tuning"  # the plugin whose records hold these operations
# Those that an ADD in this process has applied. It may still fail after its record is finished: stdout may be closed.
set_here: "list[TuneSysctl]" = []


class TuneSysctl(Op):
    """A sysctl of the container; `before` is the value to put back, "" where it could not be read."""

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
        """Put the value back if the ADD failed. After one that succeeded it stays, since another network may want it, too."""
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
                return None  # a key that can only be written, such as route/flush
            except OSError as error:
                raise os_error(f"cannot read sysctl net/{self.key}", error) from error
        if comparable(current) == comparable(self.value):
            return None
        return f"Error: Tuning configured value of /proc/sys/net/{self.key} is {self.value}, current value is {current}"


def comparable(text: str) -> list[int | str]:
    """The words of a sysctl's value, numbers as numbers: the kernel prints tabs between them, and reads 0x10 and 020 as 16
    (proc_get_long()).
    """
    return [_number(word) for word in text.split()]


def _number(word: str) -> int | str:
    digits = word.lstrip("-")
    octal = len(digits) > 1 and digits.startswith("0") and digits.isdigit()
    try:
        return int(word, 8 if octal else 0)
    except ValueError:
        return word


class TuneLink(Op):
    """One setting of the container's interface; `setting` and values as in kernel/linksettings.py."""

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


def sets(key: "Attachment", setting: str) -> bool:
    """Whether tuning has set this of the attachment's interface."""
    return any(op.setting == setting for op in listed(records.load(key, PLUGIN), TuneLink))


def put_back(kernel: "Kernel", ifname: str, values: "Mapping[str, str]") -> None:
    """Put back what can be put back of an interface's settings, then raise the last refusal. No error for one that is gone."""
    refused: OSError | None = None
    for setting, value in values.items():
        try:
            linksettings.write(kernel.container, ifname, setting, value)
        except OSError as error:
            refused = refused if error.errno == errno.ENODEV else error
    if refused is not None:
        raise refused


class SaveSettings(Op):
    """The file with the earlier settings, for the DEL of whichever plugin, ours or the Go plugin."""

    path: str
    before: dict[str, str]
    owned = True
    line = "host: write the earlier settings to {path}"
    deed = "write the earlier settings to {path}"

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
        if saved_values(read_saved(self.path)) == self.before:  # else a later ADD, by the Go plugin, has written it
            remove(self.path)


def saved_text(values: "Mapping[str, str]") -> str:
    """The content of the file, to the letter as the Go plugin writes it."""
    typed = {setting: value if setting == "mac" else _plain(value) for setting, value in values.items()}
    return gojson.encode(typed, 1)


def _plain(value: str) -> bool | int:
    return value == "true" if value in ("true", "false") else int(value)


def read_saved(path: str) -> bytes:
    """The content of the file; b"" when it is not there or cannot be read."""
    try:
        return files.read(path)
    except OSError:
        return b""


def saved_values(text: bytes) -> dict[str, str]:
    """The settings in the file's text, as linksettings has them. Unknown keys and values of a wrong type are left out."""
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
    """Remove a file if it is there. OSError when it cannot be removed."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
