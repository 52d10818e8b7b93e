"""What can go wrong, for people and for the control protocol."""

from __future__ import annotations

from typing import ClassVar


class PortfwdError(Exception):
    """A sentence on what was wrong and where; `details` say what holds it or what to do."""

    kind: ClassVar[str] = "failed"  # in the control protocol
    status: ClassVar[int] = 1  # exit status

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details

    def __str__(self) -> str:
        return f"{self.msg}: {self.details}" if self.details else self.msg


class Usage(PortfwdError):
    """What was asked cannot be meant."""

    kind = "usage"
    status = 2


class Lacking(PortfwdError):
    """The environment lacks something: the service, root, a kernel feature."""

    kind = "lacking"
    status = 3


class PortInUse(PortfwdError):
    """Somebody has the port."""

    kind = "in-use"
    status = 4


class Unfit(Usage):
    """A mapping that can be of no use as it is; others that came with it can."""


class NotFound(PortfwdError):
    """No such mapping, container or namespace."""

    kind = "not-found"


KINDS = {error.kind: error for error in (PortfwdError, Usage, Lacking, PortInUse, NotFound)}
