"""Typed reading of JSON objects as Go's encoding/json does it, and the configuration common to all plugins.

    - keys match without regard to case, by Unicode simple folding: go-cni sends "HostPort" for hostPort
    - a key given several times is read several times into the same place: the last scalar stays, objects merge, and
      the elements of a second list are read into those of the first
    - null changes nothing

A value of another type raises Undecodable, also if a later one of the right type follows. While a DEL reads (Tolerant), such
a value counts as absent.
"""

from cni_py.errors import CniError, DecodingFailure, InvalidEnvironment, InvalidNetworkConfig, warn
from cni_py.protocol.gojson import Object, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import ClassVar, TypeVar

    from cni_py.protocol.gojson import Value

    T = TypeVar("T", bound="Value")

CHAIN = "chain"  # the type of our plugin that runs the plugins of a list
INT64_MIN = -(1 << 63)  # Go's int
IFNAME_MAX = 15  # bytes; IFNAMSIZ - 1, linux/if.h
SHOWN_MAX = 40  # characters of a value in an error
UNSHOWN = ("args", "cni", "runtimeConfig", "io.kubernetes.cri.pod-annotations")  # secrets may be in them
KINDS = {bool: "a truth value", int: "a number", float: "a number", str: "a text", list: "a list", Object: "an object"}
NAME_FIRST = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
NAME_REST = NAME_FIRST | frozenset("_.-")


class Undecodable(CniError):
    """A value is not of the type that its key has."""

    code = 6


class Tolerant:
    """`with Tolerant():` a value of the wrong type is ignored, with a note on stderr.

    A DEL must not fail because of a configuration that ADD refused: libcni stops at the first plugin that fails, so what the
    other plugins of the chain made would stay for ever. The record tells a DEL what to undo; of the configuration it takes
    the values that it can read.
    """

    __slots__ = ()
    depth = 0  # how many such blocks are open
    noted: "ClassVar[tuple[str, ...]]" = ()  # keys that stderr has been told of

    def __enter__(self) -> None:
        Tolerant.depth += 1

    def __exit__(
        self, kind: "type[BaseException] | None", error: "BaseException | None", trace: "TracebackType | None"
    ) -> None:
        Tolerant.depth -= 1


class Missing:
    """The type of MISSING."""

    __slots__ = ()


MISSING = Missing()  # the key is absent, or null


def _fold(key: str) -> str:
    """Equal for keys that Go takes as equal, if one of them is ASCII: two other letters fold to ASCII, U+017F and U+212A."""
    return key.lower() if key.isascii() else key.lower().replace("\u017f", "s")  # lower() makes k of the Kelvin sign


def _matches(obj: Object, name: str) -> "Iterator[Value]":
    folded = name.lower()
    for key, value in obj.pairs:
        if value is not None and (key == name or _fold(key) == folded):
            yield value


def _merged(found: "list[Value]") -> "Value":
    """What Go has after it has read all of `found` into one variable, one after the other. Linear in their size."""
    if len(found) == 1:
        return found[0]
    given = [value for value in found if value is not None]
    alike: list[Value] = []  # the run of objects or of lists at the end: they merge
    for value in reversed(given):
        if alike and not (type(value) is type(given[-1]) and isinstance(value, list | Object)):
            break
        alike.append(value)
    objects = [value for value in reversed(alike) if isinstance(value, Object)]
    if objects:
        return Object([pair for value in objects for pair in value.pairs])
    lists = [value for value in alike if isinstance(value, list)]  # the last one first
    return _merged_lists(lists) if lists else given[-1] if given else None


def _merged_lists(lists: "list[list[Value]]") -> "list[Value]":
    """The elements of the first list, each read into that of the list after it, as far as there is one."""
    merged: list[Value] = []
    columns = lists
    for place in range(len(lists[0])):
        longer = next((end for end, value in enumerate(columns) if len(value) <= place), len(columns))
        columns = columns[:longer] if longer < len(columns) else columns
        merged.append(_merged([value[place] for value in reversed(columns)]))
    return merged


def lookup(obj: Object, name: str) -> "Value | Missing":
    """The value, of any type; MISSING when the key is absent or null."""
    found = list(_matches(obj, name))
    return _merged(found) if found else MISSING


def undecodable(value: "Value", name: str, wanted: str) -> Undecodable:
    """The error: `name` must be `wanted`, not `value`, which is cut to SHOWN_MAX characters."""
    if name in UNSHOWN and value:
        return Undecodable(f"{name} must be {wanted}, not {KINDS[type(value)]}")
    try:
        text = encode(value, None)
        shown = repr(value) if isinstance(value, float) else text  # 80.0 is no whole number, and 80 is
    except ValueError:  # 1e999 is JSON, and read as infinity
        shown = "a number without end"
    return Undecodable(
        f"{name} must be {wanted}, not {shown if len(shown) <= SHOWN_MAX else shown[:SHOWN_MAX] + '...'}"
    )


def _refuse(value: "Value", name: str, wanted: str) -> None:
    """Raise Undecodable; while a DEL reads (Tolerant), warn instead, once for each key."""
    if not Tolerant.depth:
        raise undecodable(value, name, wanted)
    if name not in Tolerant.noted:  # a list may have 100,000 wrong elements: even the text of a note costs too much
        Tolerant.noted += (name,)
        warn(f"passed over, since this is a DEL: {undecodable(value, name, wanted)}")


def _of_type(obj: Object, name: str, kind: "type[T]", wanted: str) -> "list[T]":
    """The values under the key that are of the type; each of the others is refused. `wanted` names the type."""
    found: list[T] = []
    for value in _matches(obj, name):
        if isinstance(value, kind) and type(value) is kind:  # True is an int, too
            found.append(value)
        else:
            _refuse(value, name, wanted)
    return found


# Readers of one key. The optional_ ones return None when it is absent, the others a default. Undecodable: see above.


def optional_string(obj: Object, name: str) -> str | None:
    found = _of_type(obj, name, str, "a text in quotes")
    return found[-1] if found else None


def string(obj: Object, name: str, default: str = "") -> str:
    found = optional_string(obj, name)
    return default if found is None else found


def optional_boolean(obj: Object, name: str) -> bool | None:
    found = _of_type(obj, name, bool, "true or false")
    return found[-1] if found else None


def boolean(obj: Object, name: str, default: bool = False) -> bool:
    found = optional_boolean(obj, name)
    return default if found is None else found


def optional_integer(obj: Object, name: str) -> int | None:
    found = None
    for value in _of_type(obj, name, int, "a whole number"):
        if INT64_MIN <= value <= -INT64_MIN - 1:
            found = value
        else:
            _refuse(value, name, "a number of 64 bits")
    return found


def integer(obj: Object, name: str, default: int = 0) -> int:
    found = optional_integer(obj, name)
    return default if found is None else found


def child(obj: Object, name: str) -> Object | None:
    """An object; None when absent."""
    merged = _merged([*_of_type(obj, name, Object, "an object {...}")])
    return merged if isinstance(merged, Object) else None


def values(obj: Object, name: str) -> "list[Value] | None":
    """A list of anything; None when absent, which differs from empty."""
    merged = _merged([*_of_type(obj, name, list, "a list [...]")])
    return merged if isinstance(merged, list) else None


def strings(obj: Object, name: str) -> list[str]:
    """A list of strings; null in it is the empty string."""
    texts = []
    for value in values(obj, name) or ():
        if not isinstance(value, str | None):
            _refuse(value, f"an element of {name}", "a text in quotes")
            continue
        texts.append(value or "")
    return texts


def objects(obj: Object, name: str) -> list[Object]:
    """A list of objects; null in it is an empty one."""
    return as_objects(values(obj, name) or [], name)


def as_objects(elements: "Value", name: str) -> list[Object]:
    """`elements` as a list of objects: also for a list inside a list. `name` is for the error."""
    if not isinstance(elements, list):
        _refuse(elements, name, "a list [...]")
        return []
    found = []
    for value in elements:
        if not isinstance(value, Object | None):
            _refuse(value, f"an element of {name}", "an object {...}")
            continue
        found.append(Object() if value is None else value)
    return found


def check_name(name: str) -> None:
    """InvalidNetworkConfig for a text that cannot be the name of a network."""
    if not is_identifier(name):
        raise InvalidNetworkConfig(
            f'invalid characters found in network name: {name} (letters, digits, "_", ".", "-"; the first is no sign)'
        )


def check_ifname(name: str, key: str) -> None:
    """InvalidNetworkConfig for a text that cannot be the name of an interface; `key` is where it stands."""
    bad = not 0 < len(name.encode("utf-8", "replace")) <= IFNAME_MAX or name in (".", "..", "all", "default")
    if bad or any(character in "/:%\0" or character.isspace() for character in name):
        rule = f'1 to {IFNAME_MAX} bytes, no "/", ":", "%" or blank, nor "all" or "default"'  # names of sysctls
        raise InvalidNetworkConfig(f'{key}: "{name}" cannot be the name of an interface ({rule})')


def is_identifier(text: str) -> bool:
    """Whether `text` can be a network name or a container id (SPEC.md section 1 "name", section 2 "CNI_CONTAINERID")."""
    return text[:1] in NAME_FIRST and NAME_REST.issuperset(text)


class NetConf:
    """A plugin's configuration as the runtime sends it (SPEC.md, section 1 "Plugin configuration objects").

    `name` is checked at once. Each other key is read when it is asked for, and raises Undecodable then, so that a wrong
    prevResult does not stop a DEL that does not need it.
    """

    __slots__ = ("_text", "name", "raw")

    def __init__(self, name: str, raw: Object, text: bytes | None = None) -> None:
        self.name = name
        self.raw = raw
        self._text = text

    @property
    def text(self) -> bytes:
        """The configuration as it was read from stdin, or for the stdin of another program."""
        if self._text is None:
            self._text = encode(self.raw).encode()
        return self._text

    @classmethod
    def parse(cls, text: bytes) -> "NetConf":
        """The configuration in `text`. DecodingFailure if it is no JSON object; InvalidNetworkConfig for a wrong name."""
        try:
            raw = decode(text)
            if not isinstance(raw, Object | None):
                raise undecodable(raw, "the network configuration", "an object {...}")
            name = string(raw or Object(), "name")
        except (DecodingFailure, Undecodable) as error:
            raise DecodingFailure(f"the network configuration on stdin cannot be used: {error}") from None
        if not name:
            raise InvalidNetworkConfig('missing network name: the configuration has no "name"')
        check_name(name)
        return cls(name, raw or Object(), text)

    @property
    def cni_version(self) -> str:
        """0.1.0 when there is none: that version had no such key."""
        try:
            return string(self.raw, "cniVersion") or "0.1.0"
        except Undecodable as error:
            raise DecodingFailure(str(error)) from None

    @property
    def type(self) -> str:
        return string(self.raw, "type")

    @property
    def capabilities(self) -> dict[str, bool]:
        declared = child(self.raw, "capabilities") or Object()
        found = {}
        for name, value in declared.pairs:  # read by its own name: the keys of a Go map are not folded
            if isinstance(value, bool | None):
                found[name] = bool(value)
            else:
                _refuse(value, name, "bool")
        return found

    @property
    def ipam(self) -> Object | None:
        return child(self.raw, "ipam")

    @property
    def dns(self) -> Object | None:
        return child(self.raw, "dns")

    @property
    def args(self) -> Object | None:
        return child(self.raw, "args")

    @property
    def runtime_config(self) -> Object | None:
        return child(self.raw, "runtimeConfig")

    @property
    def prev_result(self) -> Object | None:
        return child(self.raw, "prevResult")

    def check_common(self) -> None:
        """Undecodable if a key that all plugins have is of the wrong type: ADD calls this before it does anything."""
        _ = self.capabilities, self.args, self.runtime_config, self.prev_result
        if self.ipam is not None:
            string(self.ipam, "type")
        if self.dns is not None:
            string(self.dns, "domain")
            for name in ("nameservers", "search", "options"):
                strings(self.dns, name)

    @property
    def valid_attachments(self) -> list[tuple[str, str]] | None:
        """The (container_id, ifname) that GC keeps; None when there is no such list, which differs from an empty one."""
        for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):  # the second is libcni's older name
            listed = values(self.raw, key)
            if listed is not None:
                entries = as_objects(listed, key)
                return [(string(entry, "containerID"), string(entry, "ifname")) for entry in entries]
        return None

    def check_attachments(self) -> None:
        """InvalidNetworkConfig when an attachment of that list has no name: GC would remove one that is in use."""
        if not all(container_id and ifname for container_id, ifname in self.valid_attachments or ()):
            raise InvalidNetworkConfig(
                'an element of "cni.dev/valid-attachments" lacks containerID or ifname',
                "nothing is removed, since it cannot be told what is in use",
            )


def parse_cni_args(text: str, known: tuple[str, ...]) -> dict[str, str]:
    """The pairs of CNI_ARGS whose keys the plugin knows; the last of a key wins.

    Anything else in it is an error, as in libcni's pkg/types LoadArgs, unless IgnoreUnknown is set in the same text. The
    error names keys, never values: some are secrets.
    """
    found = {}
    unknown = []
    ignore_unknown = False
    for number, pair in enumerate(text.split(";") if text else (), 1):
        key, *rest = pair.split("=")
        if len(rest) != 1:
            which = f"of {key}" if rest else f"number {number}"
            raise InvalidEnvironment(f"CNI_ARGS: the pair {which} is not of the form KEY=VALUE")
        if key == "IgnoreUnknown":
            ignore_unknown = _parse_flag(rest[0])
        elif key in known:
            found[key] = rest[0]
        else:
            unknown.append(key)
    if unknown and not ignore_unknown:
        heard = f"known here: {', '.join(known)}; IgnoreUnknown=1 lets others pass"
        raise InvalidEnvironment(f"CNI_ARGS: unknown args [{' '.join(unknown)}] ({heard})")
    return found


def _parse_flag(value: str) -> bool:
    if value.lower() not in ("1", "true", "0", "false"):
        raise InvalidEnvironment("CNI_ARGS: IgnoreUnknown must be 1, true, 0 or false")
    return value.lower() in ("1", "true")
