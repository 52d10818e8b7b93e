"""What was done for one plugin's part of an attachment: what `cni-py adopt` and `cni-py restore` print."""

from cni_py.attachment.naming import Attachment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable


class Outcome:
    """What was done for one plugin's part of an attachment."""

    __slots__ = ("done", "errors", "key", "plugin", "skipped")

    def __init__(self, key: Attachment, plugin: str) -> None:
        self.key = key
        self.plugin = plugin
        self.done: list[str] = []  # operations in words
        self.skipped = ""  # why nothing was done
        self.errors: list[str] = []

    def to_json(self) -> "dict[str, Encodable]":
        """The fields that both commands print with --json."""
        return {
            "network": self.key.network,
            "containerID": self.key.container_id,
            "ifname": self.key.ifname,
            "plugin": self.plugin,
            "skipped": self.skipped,
        }


class Restored(Outcome):
    """Which operations were applied again for one plugin's part of an attachment."""

    __slots__ = ()

    def to_json(self) -> "dict[str, Encodable]":
        return {**super().to_json(), "putBack": self.done, "errors": [*self.errors]}
