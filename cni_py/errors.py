"""The error object of the CNI protocol: every failure that a user or a runtime sees is one of these.

Numbers and their meaning: SPEC.md, section 5 "Error". 8 and 999 are not in its table but in libcni
(pkg/types/types.go: ErrInvalidNetNS, ErrInternal). Codes from 100 up belong to plugins.

    1   the configuration's cniVersion is not spoken, or is too old for the verb
    2   a field that this version of the plugin does not support (a backend, say)
    4   a CNI_* variable is missing or malformed, CNI_ARGS included
    5   the kernel or a file refused: a system call failed
    6   JSON that cannot be read, or a value of another type than the key has
    7   a value of the right type that cannot be honoured; keys that contradict each other; a prevResult that is missing
    8   CNI_NETNS
    11  a lock is held: trying again may help
    50  STATUS: an ADD cannot be served now
    110 a host port is in use
    999 the rest: no address is left, CHECK found a difference, another program failed

The Go plugins answer 999 for 2, 4 (CNI_ARGS), 5, 6 and 7 as well; no client of theirs looks at these.
"""

import sys


def warn(text: str) -> None:
    """Write a line to stderr. A stderr that is full or closed is ignored."""
    try:
        sys.stderr.write(f"cni-py: {text}\n")
    # Full; closed; None, as Python sets it for a descriptor closed at the start
    except (
        OSError,
        ValueError,
        AttributeError,
    ):
        # Its buffer keeps the text, and the interpreter would try to write it again, and fail again, at its end.
        sys.stderr = None


class CniError(Exception):
    """A failure, printed as a CNI error object.

    `msg` is a sentence: what is wrong, with which object, what helps. `details` are the kernel's words, or more of the same.
    """

    code = 999

    def __init__(self, msg: str, details: str = "", code: int | None = None) -> None:
        super().__init__(msg, details)
        self.msg = msg
        self.details = details
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.msg}: {self.details}" if self.details else self.msg

    def to_json(self) -> dict[str, int | str]:
        """The error object without `cniVersion`; `details` only when there are any."""
        fields: dict[str, int | str] = {"code": self.code, "msg": self.msg}
        if self.details:
            fields["details"] = self.details
        return fields


class IncompatibleCniVersion(CniError):
    """The plugin does not speak the configuration's cniVersion, or that is too old for the verb."""

    code = 1


class UnsupportedField(CniError):
    """A field of the configuration cannot be honoured; `msg` names key and value."""

    code = 2


class InvalidEnvironment(CniError):
    """A CNI_* variable is missing or malformed; `msg` names it."""

    code = 4


class IOFailure(CniError):
    """A file or the kernel could not be read or written."""

    code = 5


class DecodingFailure(CniError):
    """A text is not JSON, or the JSON has the wrong shape."""

    code = 6


class InvalidNetworkConfig(CniError):
    """Well-formed JSON whose values cannot be honoured."""

    code = 7


class InvalidNetns(CniError):
    """CNI_NETNS names no network namespace, or the plugin's own."""

    code = 8


class TryAgainLater(CniError):
    """A condition that passes, such as a lock that another call holds."""

    code = 11


class PluginNotAvailable(CniError):
    """STATUS: an ADD cannot be served now."""

    code = 50


class PortInUse(CniError):
    """A host port is published by another container, or held by a program; `msg` names the holder."""

    code = 110


def os_error(action: str, error: OSError) -> CniError:
    """The error, of code 5, for a system call that failed. `action` is the start of a sentence: "cannot make X"."""
    return IOFailure(action, kernel_words(error, action))


def kernel_words(error: OSError, action: str = "") -> str:
    """The text of the errno, the file unless `action` names it, and what helps if that is known (HINTS)."""
    file = f" for {error.filename}" if isinstance(error.filename, str) and error.filename not in action else ""
    return f"{error.strerror or error}{file} (errno {error.errno}){HINTS.get(error.errno or 0, '')}"


HINTS = {  # by errno.h's numbers: importing errno would cost start-up time
    1: "; this needs CAP_NET_ADMIN and CAP_SYS_ADMIN: run it as root, or in a privileged container",
    30: "; the file system is read-only: run it privileged, or mount it writable",
}
