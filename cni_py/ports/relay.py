"""The operation that publishes ports through portfwd: those that NAT cannot serve, or all of them where there is no NAT.

The service listens at /run/cni-py/portfwd.sock: a request is a line of JSON, the answer another. Where nobody listens an ADD
in `auto` costs one connect(2) that fails. A mapping is named portmap-<hex>-<n> and owned by "attachment <hex>", by which it
is withdrawn. One that is withdrawn while the service is down stays in a file of the service, which drops mappings of
attachments that have no record any more when it starts.
"""

import _socket
import _struct
import errno

from cni_py import files
from cni_py.addr import ip_text, parse_ip
from cni_py.attachment.engine import Fields, Op, listed
from cni_py.attachment.locks import nftables_lock
from cni_py.errors import CniError, DecodingFailure, IOFailure, PluginNotAvailable, PortInUse, warn
from cni_py.lean import os
from cni_py.ports.config import RANGE_MIN
from cni_py.ports.mapping import is_for_nat
from cni_py.protocol.gojson import Object, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from cni_py.attachment.context import Kernel
    from cni_py.attachment.naming import Attachment
    from cni_py.kernel.sock_diag import Listener
    from cni_py.protocol.gojson import Encodable

AUTO_S, ALWAYS_S = 2.0, 10.0  # what an answer may take
REQUEST_MAX = 900_000  # characters of mappings in a request, which may have 1 MiB
ANSWER_MAX = 128 << 20  # bytes, of a list
OWNER = "attachment "
STEER_BEFORE = "redirect"  # what the field "steer" was called, and is in records of earlier ADDs
_UCRED = _struct.Struct("=iII")  # struct ucred, linux/socket.h
_TIMEVAL = _struct.Struct("ll")  # struct timeval


class Refused(CniError):
    """The service refuses a request; `kind` is its word for the reason: "in-use", "usage", ..."""

    def __init__(self, kind: str, msg: str, details: str) -> None:
        super().__init__(msg, details)
        self.kind = kind


class Untrusted(IOFailure):
    """A process of another user listens on the service's socket."""


class Service:
    """A connection to the service, to be closed."""

    __slots__ = ("_sock", "_timeout_s", "pid")

    def __init__(self, sock: _socket.socket, pid: int, timeout_s: float) -> None:
        self._sock = sock
        self._timeout_s = timeout_s
        self.pid = pid  # 0 where it is in another pid namespace

    @classmethod
    def connect(cls, timeout_s: float) -> "Service | None":
        """None when no service is there. CniError when one does not take us, or is not to be trusted."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            # The kernel's own time limit: a socket with Python's does not wait where the backlog is full, unix(7).
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _TIMEVAL.pack(int(timeout_s), 0))
            sock.connect(files.run_dir() + "/portfwd.sock")
            sock.settimeout(timeout_s)
            pid, uid, _ = _UCRED.unpack(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size))
        except OSError as error:
            sock.close()
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ECONNREFUSED):
                return None
            raise IOFailure("portfwd does not answer", error.strerror or str(error)) from error
        if uid not in (0, os.geteuid()):
            sock.close()
            raise Untrusted("portfwd's socket is not to be trusted", f"user {uid} listens there")
        return cls(sock, pid, timeout_s)

    def close(self) -> None:
        self._sock.close()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: "dict[str, Encodable]") -> Object:
        """The answer to one request. Refused, CniError.

        A service that was replaced may have hung up: asked once more, each of our requests does no more than once.
        """
        line = encode(request, None).encode() + b"\n"
        try:
            try:
                fields = decode(self._exchange(line))
            except (ConnectionError, EOFError):
                self._connect_again()
                fields = decode(self._exchange(line))
        except EOFError as error:
            raise IOFailure("portfwd does not answer", "it hung up in the middle of a request") from error
        except OSError as error:
            raise IOFailure("portfwd does not answer", error.strerror or str(error)) from error
        except DecodingFailure as error:
            raise IOFailure("portfwd's answer is not understood", str(error)) from error
        if not isinstance(fields, Object):
            raise IOFailure("portfwd's answer is not understood", "it is no object")
        if fields.get("ok") is not True:
            said = fields.get("error")
            words = said if isinstance(said, Object) else Object()
            raise Refused(*(str(words.get(name, "")) for name in ("kind", "msg", "details")))
        return fields

    def _connect_again(self) -> None:
        again = Service.connect(self._timeout_s)
        if again is None:
            raise ConnectionResetError(errno.ECONNRESET, "it has ended")
        self._sock.close()
        self._sock, self.pid = again._sock, again.pid

    def _exchange(self, line: bytes) -> bytes:
        """The answer's line. OSError; EOFError when it hung up."""
        self._sock.sendall(line)
        parts: list[bytes] = []
        size = 0
        while not parts or not parts[-1].endswith(b"\n"):
            part = self._sock.recv(1 << 16)
            size += len(part)
            if not part:
                raise EOFError
            if size > ANSWER_MAX:
                raise OSError(errno.EPROTO, "the answer is too long")
            parts.append(part)
        return b"".join(parts)

    def publish(self, mappings: "Sequence[dict[str, Encodable]]", *, may_fail: bool) -> list[str]:
        """Publish, in place of mappings with these names; returns what is to be known. Refused."""
        notes: list[str] = []
        for chunk in requests(mappings):
            answer = self.ask({"verb": "publish", "mappings": chunk, "replace": True, "may_fail": may_fail})
            said = answer.get("notes")
            notes += map(str, said) if isinstance(said, list) else ()
        return notes

    def remove(self, owner: str) -> None:
        """Remove all of an attachment's, whose connections end with the container. What stays on its disk is said on stderr."""
        notes = self.ask({"verb": "remove", "owner": OWNER + owner, "drain_s": 0.0}).get("notes")
        for note in notes if isinstance(notes, list) else ():
            warn(f"portfwd: {note}")

    def mappings(self) -> list[Object]:
        """All that there are."""
        listed = self.ask({"verb": "list"}).get("mappings")
        return [one for one in listed if isinstance(one, Object)] if isinstance(listed, list) else []


def requests(mappings: "Sequence[dict[str, Encodable]]") -> "Iterator[list[dict[str, Encodable]]]":
    """As many at a time as a request may hold: one mapping may have a long list of clients."""
    chunk: list[dict[str, Encodable]] = []
    size = 0
    for one in mappings:
        length = len(encode(one, None).encode())
        if chunk and size + length > REQUEST_MAX:
            yield chunk
            chunk, size = [], 0
        chunk.append(one)
        size += length
    if chunk:
        yield chunk


def owner_of(mapping: Object) -> str:
    """The hex of the attachment that a mapping belongs to; "" when it is not portmap's."""
    owner = str(mapping.get("owner", ""))
    return owner.removeprefix(OWNER) if owner.startswith(OWNER) else ""


def listens(mapping: Object, listener: "Listener") -> bool:
    """Whether a socket is one that the service listens on for a mapping."""
    hosts = mapping.get("host_ips")
    there = mapping.get("protocol") == listener.protocol and listener.port in _ports(mapping)
    return there and isinstance(hosts, list) and ip_text(listener.ip) in hosts


class Target(Fields):
    """Where the first port of a relay leads, in the host's namespace."""

    address: str
    port: int


class Relay(Fields):
    """A mapping as portfwd's control protocol has it: ports `first` to `last` of the addresses `host_ips` lead to the target.

    `allow` are the networks of the only clients (none: all). `steer` says whether portfwd takes clients of ports that are held
    by sockets of others.
    """

    protocol: str
    host_ips: list[str]
    first: int
    last: int
    targets: list[Target]
    allow: list[str]
    steer: str

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        """A record of the version before has no `allow` for all clients, and `steer` only where it was decided."""
        steer = fields.get(STEER_BEFORE, _steer(fields))
        return {"allow": [], "steer": steer, **{name: value for name, value in fields.items() if name != STEER_BEFORE}}

    def validate(self) -> None:
        if len(self.targets) != 1:
            raise ValueError("a mapping of portfwd's for a container has one target")
        parse_ip(self.targets[0].address)
        for text in self.host_ips:
            parse_ip(text)

    @property
    def ports(self) -> range:
        """The host's ports."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        """8080/tcp on 0.0.0.0 :: to 192.0.2.2 port 80."""
        span = f"{self.first}-{self.last}" if self.last > self.first else str(self.first)
        clients = f" from {' '.join(self.allow)}" if self.allow else ""
        target = self.targets[0]
        return f"{span}/{self.protocol} on {' '.join(self.host_ips)} to {target.address} port {target.port}{clients}"

    def needs_portfwd(self) -> bool:
        """Whether NAT serves no client: none of its addresses is_for_nat() and of the family of the container's address."""
        inside = ":" in self.targets[0].address
        return not any((":" in text) == inside and is_for_nat(parse_ip(text)) for text in self.host_ips)


class RelayPorts(Op):
    """portfwd listens for the container.

    `required` tells `always` from `auto`, in which what cannot be done is said on stderr, and CHECK asks only that what is
    there is right.
    """

    mappings: list[Relay]
    required: bool
    owned = True
    restorable = True

    @classmethod
    def translated(cls, fields: "dict[str, object]") -> "dict[str, object]":
        mappings = fields.get("mappings")
        if not isinstance(mappings, str):
            return fields
        try:  # the version before: the list as JSON text
            return {**fields, "mappings": decode(mappings.encode())}
        except CniError as error:
            raise ValueError(str(error)) from error

    def failure(self) -> str:
        return f"cannot publish through portfwd: {self.describe()}"

    def describe(self) -> str:
        return f"portfwd{'' if self.required else ', if it runs'}: relay {', '.join(map(str, self.mappings))}"

    def named(self, key: "Attachment") -> "list[dict[str, Encodable]]":
        """The mappings as they are asked for."""
        label = "".join(character if character.isprintable() else "?" for character in key.label)
        return [
            {**one.to_json(), "id": f"portmap-{key.hex}-{number}", "owner": OWNER + key.hex, "label": label}
            for number, one in enumerate(self.mappings)
        ]

    def beside(self, taken: "Collection[tuple[str, int]]") -> "RelayPorts":
        """The same, but for steering of ports that programs of the host have."""

        def without_steering(one: Relay) -> Relay:
            held = any(protocol == one.protocol and port in one.ports for protocol, port in taken)
            return Relay.from_json({**one.to_json(), "steer": "never"}) if held else one

        return RelayPorts(mappings=list(map(without_steering, self.mappings)), required=self.required)

    def apply(self, kernel: "Kernel") -> bool:
        try:
            service = Service.connect(ALWAYS_S if self.required else AUTO_S)
            if service is None:
                if self.required:
                    raise PluginNotAvailable("portfwd does not run", "userlandProxy: always needs `portfwd serve`")
                for one in filter(Relay.needs_portfwd, self.mappings):
                    warn(f"not published, since NAT cannot serve it and portfwd does not run: {one}")
                return False
            with service:
                self._publish(service, kernel.key)
        except Refused as error:
            if self.required:
                raise _as_error(error) from error
            warn(f"portfwd does not publish the ports of {kernel.key.label}: {error}")
        except (PluginNotAvailable, IOFailure) as error:
            if self.required:
                raise
            warn(f"{error}; ports of {kernel.key.label} that NAT cannot serve are not published")
        return True

    def _publish(self, service: Service, key: "Attachment") -> None:
        asked = self.named(key)
        try:
            notes = service.publish(asked, may_fail=not self.required)
            refusal = None
        except Refused as error:
            notes, refusal = [], error
        if refusal is not None and refusal.kind == "usage":  # an earlier ADD's have the names, but other ports
            service.remove(key.hex)
            asked = _as_before(asked)  # or the service is of another version
            notes, refusal = service.publish(asked, may_fail=not self.required), None
        if notes or (refusal is not None and refusal.kind == "in-use"):
            asked, changed = clear_or_wait(service, asked, key)
            if changed:
                notes = service.publish(asked, may_fail=not self.required) if asked else []
                refusal = None
        if refusal is not None:
            raise refusal
        for note in notes:
            warn(f"portfwd, for {key.label}: {note}")

    def undo(self, kernel: "Kernel") -> None:
        from cni_py.attachment import holders
        from cni_py.ports import successors

        try:
            service = Service.connect(ALWAYS_S if self.required else AUTO_S)
        except Untrusted as error:  # which has nothing of ours
            warn(str(error))
            service = None
        if service is not None:
            with service:
                service.remove(kernel.key.hex)
                for heir in successors.waiting_at(kernel.key.hex):
                    _succeed(service, heir.key)
        record = holders.record_of(kernel.key.hex) if successors.has_heirs(kernel.key) else None
        if record is not None and not any(
            isinstance(one, dict) and one.get("op") == "PublishPorts" for one in record.ops
        ):
            successors.forget_heirs(kernel.key.hex)  # otherwise PublishPorts has yet to see them

    def is_missing(self, kernel: "Kernel") -> bool:
        """Whether the service runs and lacks a mapping: it was started after the ADD, or could not have the port then."""
        service = Service.connect(AUTO_S)
        if service is None:
            return False
        with service:
            there = {one.get("id") for one in service.mappings()}
        return any(asked["id"] not in there for asked in self.named(kernel.key))

    def check(self, kernel: "Kernel") -> str | None:
        service = Service.connect(ALWAYS_S if self.required else AUTO_S)
        if service is None:
            return "portfwd does not run" if self.required else None
        with service:
            there = {str(one.get("id")): one for one in service.mappings()}
        for one, asked in zip(self.mappings, self.named(kernel.key), strict=True):
            found = there.get(str(asked["id"]))
            if found is None and self.required:
                return f"portfwd has lost {one}"
            if found is not None and any(found.get(name) != asked[name] for name in ("first", "last", "targets")):
                return f"portfwd does not serve {one}"
        return None


def clear_or_wait(
    service: Service, asked: "list[dict[str, Encodable]]", key: "Attachment"
) -> "tuple[list[dict[str, Encodable]], bool]":
    """Remove the mappings of dead attachments that have some of these ports; wait for what another network of the container has.

    Returns what is left to ask for, and whether it makes sense to ask again.
    """
    from cni_py.attachment import holders
    from cni_py.ports import conflicts, successors

    dead: set[str] = set()
    waited = False
    for held in service.mappings():
        hexed = owner_of(held)
        overlapping = [one for one in asked if _overlap(held, one)] if hexed not in ("", key.hex, *dead) else []
        if not overlapping:
            continue
        standing = conflicts.standing([holders.record_of(hexed)], key.container_id)
        if standing == conflicts.FREE:
            dead.add(hexed)
        elif standing == conflicts.OWN:
            asked = [one for one in asked if one not in overlapping]
            waited = True
            with nftables_lock():
                successors.wait_too(hexed, key)
    for hexed in dead:
        service.remove(hexed)
    return asked, bool(dead) or waited


def _succeed(service: Service, heir: "Attachment") -> None:
    """The next network of the same container is served. What fails is said: the DEL at hand must not fail for it."""
    from cni_py.attachment import holders

    record = holders.record_of(heir.hex)
    for op in listed(record, RelayPorts):
        try:
            for note in service.publish(op.named(heir), may_fail=True):
                warn(f"portfwd, for {heir.label}: {note}")
        except CniError as error:
            warn(f"{heir.label} does not get its ports of portfwd: {error}")


def relay(mappings: "Sequence[dict[str, Encodable]]", *, required: bool) -> list[Op]:
    """The operation that publishes these, if there are any."""
    return [RelayPorts(mappings=[Relay.from_json({**one}) for one in mappings], required=required)] if mappings else []


def sweep(network: str, valid: "Iterable[Attachment]") -> None:
    """GC: remove what attachments of `network` that are not valid have, record or not."""
    try:
        service = Service.connect(AUTO_S)
    except Untrusted as error:
        warn(str(error))
        return
    if service is not None:
        living = {key.hex for key in valid}
        with service:
            for hexed in {
                owner_of(one)
                for one in service.mappings()
                if owner_of(one) and str(one.get("label")).partition("/")[0] == network
            } - living:
                service.remove(hexed)


def forget(hexed: str) -> None:
    """Remove what one attachment has, by its hex."""
    try:
        service = Service.connect(AUTO_S)
    except Untrusted as error:  # which has nothing of ours
        warn(str(error))
        return
    if service is not None:
        with service:
            service.remove(hexed)


def require() -> None:
    """STATUS: raise PluginNotAvailable if no service runs. CniError."""
    service = Service.connect(AUTO_S)
    if service is None:
        raise PluginNotAvailable("portfwd does not run", "userlandProxy: always needs `portfwd serve`")
    service.close()


def _steer(mapping: "dict[str, object]") -> str:
    """A long range costs one socket; clients of other ports are steered to ours where the runtime itself holds those."""
    return "auto" if len(_ports(mapping)) >= RANGE_MIN else "fallback"


def _as_before(asked: "list[dict[str, Encodable]]") -> "list[dict[str, Encodable]]":
    """The same with the older name of a field, which services of every version know."""
    return [{STEER_BEFORE if field == "steer" else field: value for field, value in one.items()} for one in asked]


def _ports(mapping: "Mapping[str, object]") -> range:
    first, last = mapping.get("first"), mapping.get("last")
    return range(first, last + 1) if isinstance(first, int) and isinstance(last, int) else range(0)


def _overlap(one: Object, other: "dict[str, Encodable]") -> bool:
    ours, theirs = _ports(one), _ports(other)
    return one.get("protocol") == other["protocol"] and ours.start < theirs.stop and theirs.start < ours.stop


def _as_error(error: Refused) -> CniError:
    if error.kind == "in-use":
        return PortInUse(error.msg, error.details)
    return CniError("portfwd does not publish the ports", str(error))
