"""The errors of portfwd, each with its word in the control protocol and its exit status."""

from __future__ import annotations

from typing import ClassVar


class PortfwdError(Exception):
    """`msg` says what was wrong and where; `details` say why, or what to do."""

    kind: ClassVar[str] = "failed"  # in the control protocol
    status: ClassVar[int] = 1  # exit status

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}: {self.details}" if self.details else self.msg


class Usage(PortfwdError):
    """The request is malformed, or contradicts itself or this host."""

    kind = "usage"
    status = 2


class Lacking(PortfwdError):
    """The environment lacks something: the service, root, a kernel feature."""

    kind = "lacking"
    status = 3


class PortInUse(PortfwdError):
    """The port is taken; the message names the holder."""

    kind = "in-use"
    status = 4


class Unfit(Usage):
    """A well-formed mapping that cannot work. With `may_fail` it is left out, and others of its request are published."""


class NotFound(PortfwdError):
    """No such mapping, container or namespace."""

    kind = "not-found"


KINDS = {error.kind: error for error in (PortfwdError, Usage, Lacking, PortInUse, NotFound)}
