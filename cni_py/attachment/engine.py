"""Plan, apply, undo: a plugin makes a list of operations, the plan; this module applies, records and undoes them.

    ADD    begin -> apply(plan) ... -> finish     a failure anywhere undoes, in reverse, what was applied
    DEL    undo all operations of the record, in reverse, then report all failures together
    CHECK  every operation compares the kernel with what apply() made

An operation is *owned* (for this attachment alone: written to the record before it is applied, undone by DEL) or *ensured*
(for something shared, or for a part of an owned object: never undone). Of the ensured ones the record lists, apart from the
others, those that `cni-py restore` can apply again.
"""

from cni_py.attachment import records
from cni_py.errors import CniError, os_error
from cni_py.protocol.netconf import IFNAME_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import ClassVar, Self, TypeVar, dataclass_transform

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.attachment.records import Record
    from cni_py.kernel.rtnl import Link
    from cni_py.protocol.gojson import Encodable

    AnyOp = TypeVar("AnyOp", bound="Op")
else:

    def dataclass_transform(**_options):
        """For type checkers alone: a plugin call does not import typing (20 ms)."""
        return lambda cls: cls


REGISTRY: "dict[str, type[Op]]" = {}
# Where the operations are defined that a record may hold: a DEL loads the modules of what it undoes, and no others.
# Records hold the names of the classes alone. They are a file format, and a module may move: so a name is no path to a module.
HOMES = {
    "cni_py.firewalld.sources": ("BindSource",),
    "cni_py.interface.bridge": (
        "EnsureBridge",
        "EnsureGatewayAddress",
        "EnsureSubnetRoute",
        "JoinBridge",
        "SetPortVlans",
    ),
    "cni_py.interface.common": ("AddVeth",),
    "cni_py.interface.dummy": ("AddDummy",),
    "cni_py.interface.hostdevice": ("MoveDevice",),
    "cni_py.interface.ipvlan": ("AddIpvlan",),
    "cni_py.interface.macvlan": ("AddMacvlan",),
    "cni_py.interface.network_limits": ("LimitNetworks",),
    "cni_py.interface.ptp": ("AddPeer",),
    "cni_py.interface.shaping": ("AddIfb", "LimitRate", "RedirectToIfb"),
    "cni_py.interface.source_routing": ("EmptyTable", "FillTable", "RouteBySource"),
    "cni_py.interface.tap": ("AddTap",),
    "cni_py.interface.tuning": ("SaveSettings", "TuneLink", "TuneSysctl"),
    "cni_py.interface.vlan_gateway": ("EnsureVlanGateway",),
    "cni_py.interface.vlan": ("AddVlan",),
    "cni_py.interface.vrf": ("AddVrf", "JoinVrf"),
    "cni_py.ipam.dhcp": ("HoldLease",),
    "cni_py.ipam.reservations": ("ReserveAddress",),
    "cni_py.iptables.forward": ("PassForwarded",),
    "cni_py.iptables.masquerade": ("MasqueradeByIptables",),
    "cni_py.nftables.masquerade": ("Masquerade",),
    "cni_py.nftables.policy": ("KeepApart", "IsolatePort"),
    "cni_py.nftables.spoof_check": ("CheckSource",),
    "cni_py.plugins.loopback": ("SetLoopbackUp",),
    "cni_py.ports.by_iptables": ("PublishByIptables",),
    "cni_py.ports.index": ("ListPublication",),
    "cni_py.ports.publish": ("GuardAddress", "PublishPorts"),
    "cni_py.ports.random_ports": ("RememberPorts",),
    "cni_py.ports.relay": ("RelayPorts",),
}
NAMES = ("name", "ifname", "bridge", "ifb", "master")  # fields that hold the name of an interface, or ""


@dataclass_transform(kw_only_default=True)
class Fields:  # noqa: PLW1641  no hash: lists have none
    """A value that a record holds as a JSON object: an operation, or a part of one.

    A subclass declares its fields as annotations, of these types: str, int, bool, bytes (in JSON hexadecimal), list[T],
    dict[str, T] and subclasses of Fields. It is built with all of them by keyword. What they must satisfy beyond their types
    is checked by validate(), once, so that no other method meets a damaged value.

    The names of operations and fields, and the types, are a file format: records of running containers outlive an upgrade.
    A class that changes a field reads what the version before wrote by translated():

        class Masquerade(Op):
            addresses: list[str]

            @classmethod
            def translated(cls, fields):
                return split_texts(fields, "addresses")  # the version before: "192.0.2.2/24 2001:db8::2/64"
    """

    FIELDS: "ClassVar[dict[str, type]]"

    def __init_subclass__(cls) -> None:
        inherited = getattr(cls, "FIELDS", {})
        cls.FIELDS = {**inherited, **cls.__dict__.get("__annotations__", cls.__annotations__)}

    def __init__(self, **values: object) -> None:
        if values.keys() != self.FIELDS.keys():
            raise TypeError(f"{type(self).__name__} takes {sorted(self.FIELDS)}, not {sorted(values)}")
        self.__dict__.update(values)
        self.validate()

    def validate(self) -> None:
        """Called once, when the value is built: ValueError when a field is wrong, as in a damaged record."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and type(self) is type(other) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    def to_json(self) -> "dict[str, Encodable]":
        """The form in the attachment record."""
        return {name: _plain(value) for name, value in self.__dict__.items()}

    @classmethod
    def from_json(cls, fields: "dict[str, object]") -> "Self":
        """The value that a record holds in today's form or the one of the version before. ValueError: which field is wrong."""
        fields = cls.translated(fields)
        if fields.keys() != cls.FIELDS.keys():
            raise ValueError(f"{cls.__name__} has the fields {sorted(cls.FIELDS)}, not {sorted(fields)}")
        return cls(**{name: _typed(fields[name], kind, name) for name, kind in cls.FIELDS.items()})

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        """The fields in today's form, of a record that may be of the version before. ValueError when they are neither."""
        return fields


def split_texts(fields: "dict[str, object]", *names: str) -> "dict[str, object]":
    """For translated(): these fields were one text, its words separated by blanks, and are lists of texts now."""
    texts = {name: value.split() for name in names if isinstance(value := fields.get(name), str)}
    return {**fields, **texts}


def _plain(value: object) -> "Encodable":
    """A field in JSON."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Fields):
        return value.to_json()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    assert isinstance(value, str | int)  # the types that are left
    return value


def _typed(value: object, kind: type, name: str) -> object:
    """A field of that type, from JSON. ValueError, with the `name` of the field."""
    if type(value) is kind:  # a text, a number, a truth value: most fields
        return value
    generic = getattr(kind, "__origin__", kind)  # of list[str] it is list
    if generic is list and isinstance(value, list):
        (inner,) = kind.__args__  # type: ignore[attr-defined]  # which a types.GenericAlias has
        return [_typed(each, inner, f"{name}[{number}]") for number, each in enumerate(value)]
    if generic is dict and isinstance(value, dict):
        _, inner = kind.__args__  # type: ignore[attr-defined]
        return {key: _typed(each, inner, f"{name}.{key}") for key, each in value.items()}
    try:
        if generic is bytes and isinstance(value, str):
            return bytes.fromhex(value)
        if isinstance(kind, type) and issubclass(kind, Fields) and isinstance(value, dict):
            return kind.from_json(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if type(value) is not generic:
        raise ValueError(f"{name} is not of type {generic.__name__}: {value!r}")
    return value


class Op(Fields):
    """One change of the kernel's or the disk's state; see Fields for how a subclass declares its parameters."""

    owned = False
    # whether `cni-py restore` applies it again: it is in a packet filter, which others reload, in portfwd, or on a link of the
    # host that others may delete or change
    restorable = False
    # whether what it makes lies in the container as a whole: then the record has the number of its namespace, by which alone a
    # later call can tell that the namespace is gone (with a veth pair the host's end tells)
    whole = False
    nft_family = 0  # the family of our nftables table in which it has elements; 0: in none
    by_interface = False  # whether undo() needs the container's interface, which must not be deleted before
    line = ""  # the text of describe(), with {field} for values
    deed = ""  # apply() in words, to stand behind "cannot": a verb and its object, with {field} for values

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        REGISTRY[cls.__name__] = cls

    def describe(self) -> str:
        """The operation in one line, in the terms of ip(8), nft(8) and sysctl(8)."""
        return self.line.format(**self.shown())

    def shown(self) -> "dict[str, object]":
        """The values as people write them."""
        return {name: _shown(value) for name, value in self.__dict__.items()}

    def foretell(self, _kernel: "Kernel") -> str:
        """describe(), for a plan: an operation on something shared says whether that exists already."""
        return self.describe()

    def failure(self) -> str:
        """The start of the error when the kernel refuses apply()."""
        return f"cannot {self.deed.format(**self.shown())}" if self.deed else f"this failed: {self.describe()}"

    def apply(self, kernel: "Kernel") -> bool | None:
        """Apply the operation. False: there was nothing to do, so a failed ADD does not undo it. OSError, CniError."""
        raise NotImplementedError

    def undo(self, kernel: "Kernel") -> None:
        """Undo apply(), if the object is ours; one that is gone is success. Nothing for an ensured operation."""

    def own_link(self, kernel: "Kernel") -> "Link | None":
        """The interface of the host that undo() deletes, if it is there and ours: a GC deletes those of many together."""
        return None

    def check(self, kernel: "Kernel") -> str | None:
        """A sentence for the first difference from what apply() made; None when there is none."""

    def to_json(self) -> "dict[str, Encodable]":
        """The form in the attachment record."""
        return {"op": type(self).__name__, **super().to_json()}


def _shown(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex(":")
    return " ".join(map(str, value)) if isinstance(value, list) else value


def class_in(fields: object) -> "type[Op]":
    """The class of the operation in an entry of a record. ValueError when there is none."""
    if not isinstance(fields, dict):
        raise ValueError(f"not an operation: {fields!r}")
    name = str(fields.get("op"))
    if name not in REGISTRY:
        for module, names in HOMES.items():
            if name in names:
                __import__(module)
    if name not in REGISTRY:
        raise ValueError(f"no such operation: {dict(fields)}")
    return REGISTRY[name]


def op_from_json(fields: object) -> Op:
    """The operation in an entry of a record. ValueError when the entry is damaged."""
    cls = class_in(fields)
    assert isinstance(fields, dict)
    for field in NAMES:
        value = str(fields.get(field, ""))
        if "\0" in value or len(value.encode("utf-8", "replace")) > IFNAME_MAX:
            raise ValueError(f"{field} is no interface name: {value!r}")
    return cls.from_json({field: value for field, value in fields.items() if field not in ("op", records.PART_OF)})


def readable(entries: "Iterable[object]") -> list[Op]:
    """The operations among the entries of a record. One that is damaged is passed over: GC finds by comment what it made."""
    found = []
    for fields in entries:
        try:
            found.append(op_from_json(fields))
        except ValueError:
            continue
    return found


def listed(record: "Record | None", cls: "type[AnyOp]") -> "list[AnyOp]":
    """The operations of a class among those of a record; none without a record. Other classes' modules are not loaded."""
    entries = record.ops if record is not None else ()
    named = (fields for fields in entries if isinstance(fields, dict) and fields.get("op") == cls.__name__)
    return [op for op in readable(named) if isinstance(op, cls)]


class Executor:
    """Applies plans for one plugin of one attachment, or for a list of plugins, and can undo all that it has applied."""

    __slots__ = ("applied", "before", "before_shared", "is_saved", "kernel", "record")

    def __init__(self, kernel: "Kernel") -> None:
        self.kernel = kernel
        self.record: Record | None = None
        self.is_saved = True  # False: the record is still to be written, before the first effect that is to be undone
        self.before: list[Encodable] | None = None  # the operations of an earlier ADD that still stands
        self.before_shared: list[Encodable] = []
        self.applied: list[Op | Callable[[], None]] = []  # what undoes another program's effects is a function

    def begin(self, key: "Attachment", plugin: str) -> None:
        """Begin the record. It is written before the first effect that a later call would have to undo, which is mostly the
        first of apply(): should the ADD be killed, that call knows it. What is shared is never undone.
        """
        record = records.own(key, plugin) or records.Record(key, plugin)
        if record.done:
            self.before, self.before_shared = list(record.ops), record.shared
        record.shared = []
        record.done = False
        record.netns = self.kernel.netns_path
        record.container_cookie = self.kernel.container_cookie
        record.container_file = "" if record.container_cookie else self.kernel.container_file
        record.host_cookie = self.kernel.host_cookie
        record.number = -1
        self.record = record
        self.is_saved = False

    def save(self) -> None:
        """Write the record as it is now. CniError."""
        if self.record is not None:
            self.record.save()
        self.is_saved = True

    def apply(self, plan: "Sequence[Op]", part: str = "") -> None:
        """Record the owned operations, then apply all in order. CniError when one fails; roll_back() undoes them then.

        `part`: the plugin of a chain's list that they are of.
        """
        owned = [op for op in plan if op.owned]
        standing = readable(self.before or ()) if owned else []
        # What an earlier ADD made that still stands is neither recorded twice nor undone when this ADD fails.
        new = [op for op in owned if op not in standing]
        if self.record is not None:
            named = {records.PART_OF: part} if part else {}
            shared = [{**op.to_json(), **named} for op in plan if op.restorable and not op.owned]
            self.record.shared = [*self.record.shared, *shared]
            self.is_saved = self.is_saved and not shared
            if owned:
                self.record.ops = [*self.record.ops, *({**op.to_json(), **named} for op in new)]
                if any(op.whole for op in owned):
                    self.record.number = self.kernel.number_container()
                self.save()
        for op in plan:
            ours = op in new
            if ours:  # before apply(), which may fail half-way
                self.applied.append(op)
            if apply_one(op, self.kernel) is False and ours:
                self.applied.pop()

    def undone_by(self, undo: "Callable[[], None]") -> None:
        """Call `undo`, in its turn, if the ADD fails later: for effects of another program, such as an IPAM plugin. CniError."""
        if not self.is_saved:
            self.save()
        self.applied.append(undo)

    def finish(self) -> None:
        """The ADD has succeeded."""
        if not self.is_saved:
            self.save()
        if self.record is not None:
            self.record.finish()

    def roll_back(self) -> list[str]:
        """Undo all that this ADD has applied; returns the failures in words."""
        failures = []
        for step in reversed(self.applied):
            if isinstance(step, Op):
                failures += undo_all([step], self.kernel)
                continue
            try:
                step()
            except CniError as error:
                failures.append(str(error))
        self.applied = []
        if self.record is not None:
            self._restore_record(failures)
        return failures

    def _restore_record(self, failures: list[str]) -> None:
        record = self.record
        assert record is not None
        if self.before is not None:
            record.ops, record.shared = self.before, self.before_shared
            record.save()
            record.finish()
        elif not failures:  # else the record stays, so that DEL or GC can undo the rest
            record.remove()


class Planner(Executor):
    """Collects the operations instead of applying them: for `cni-py-exec --plan`."""

    __slots__ = ("parts", "plan")

    def __init__(self, kernel: "Kernel") -> None:
        super().__init__(kernel)
        self.plan: list[Op] = []
        self.parts: list[str] = []  # the plugin of a chain's list, for each operation

    def begin(self, key: "Attachment", plugin: str) -> None:
        """Nothing is written."""

    def apply(self, plan: "Sequence[Op]", part: str = "") -> None:
        """Collect."""
        self.plan.extend(plan)
        self.parts.extend([part] * len(plan))


def apply_one(op: Op, kernel: "Kernel") -> bool | None:
    """Apply one operation; an OSError becomes a CniError that begins with op.failure()."""
    try:
        return op.apply(kernel)
    except OSError as error:
        raise os_error(op.failure(), error) from error


def undo_all(ops: "Sequence[Op]", kernel: "Kernel") -> list[str]:
    """Undo in reverse order, all of them even if some fail; returns the failures in words."""
    failures = []
    for op in reversed(ops):
        try:
            op.undo(kernel)
        except CniError as error:
            failures.append(f"undo of '{op.describe()}': {error}")
        except OSError as error:
            failures.append(f"undo of '{op.describe()}': {os_error('failed', error)}")
    return failures


def is_whole(record: "Record") -> bool:
    """Whether the record lists operations, and each of them can be read."""
    return 0 < len(record.ops) == len(readable(record.ops))


def undo_record(record: "Record", kernel: "Kernel") -> list[str]:
    """Undo everything readable() that a record lists, and remove it when that worked; returns the failures in words."""
    kernel.recorded_path = record.netns
    failures = undo_all(readable(record.ops), kernel)
    if not failures:
        record.remove()
    return failures
