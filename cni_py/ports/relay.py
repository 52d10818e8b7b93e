"""portfwd as portmap uses it: the ports of a container that NAT cannot serve, or all of them where there is no NAT.

The service listens at /run/cni-py/portfwd.sock: a request is a line of JSON, the answer another. Where nobody listens an ADD
in `auto` costs one connect(2) that fails. A mapping is named portmap-<hex>-<n> and owned by "attachment <hex>", by which it
is withdrawn. One that is withdrawn while the service is down stays in a file of the service, which drops mappings of
attachments that have no record any more when it starts.
"""

import _socket
import _struct
import errno
import os

from cni_py import files
from cni_py.addr import ip_text, parse_ip
from cni_py.attachment import holders
from cni_py.attachment.engine import Op, op_from_json
from cni_py.attachment.locks import nftables_lock
from cni_py.errors import CniError, DecodingFailure, IOFailure, PluginNotAvailable, PortInUse, warn
from cni_py.ports import successors
from cni_py.ports.config import RANGE_MIN
from cni_py.ports.mapping import is_for_nat
from cni_py.protocol.gojson import Object, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

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
    """The service says no; `kind` is its word for why."""

    def __init__(self, kind: str, msg: str, details: str) -> None:
        super().__init__(msg, details)
        self.kind = kind


class Untrusted(IOFailure):
    """Somebody else listens in the service's place."""


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


class RelayPorts(Op):
    """portfwd listens for the container.

    `mappings` is JSON: a list of its mappings without names. `required` tells `always` from `auto`, in which what cannot
    be done is said on stderr, and no more is asked of CHECK than that what is there is right.
    """

    mappings: str
    required: bool
    owned = True
    restorable = True

    def failure(self) -> str:
        return f"cannot publish through portfwd: {self.describe()}"

    def describe(self) -> str:
        what = ", ".join(map(in_words, self.wanted()))
        return f"portfwd{'' if self.required else ', if it runs'}: relay {what}"

    def wanted(self) -> list[Object]:
        """The mappings; ValueError for a damaged record."""
        try:
            listed = decode(self.mappings.encode())
        except CniError as error:
            raise ValueError(str(error)) from error
        if not isinstance(listed, list):
            raise ValueError("not a list of mappings")
        return [one for one in listed if isinstance(one, Object)]

    def named(self, key: "Attachment") -> "list[dict[str, Encodable]]":
        """The mappings as they are asked for."""
        label = "".join(character if character.isprintable() else "?" for character in key.label)
        found: list[dict[str, Encodable]] = []
        for number, one in enumerate(self.wanted()):
            name: dict[str, Encodable] = {"id": f"portmap-{key.hex}-{number}", "owner": OWNER + key.hex, "label": label}
            steer = one.get("steer", one.get(STEER_BEFORE, _steer(one)))
            fields = {field: value for field, value in one.items() if field != STEER_BEFORE}
            found.append({**fields, **name, "steer": steer})
        return found

    def beside(self, taken: "Collection[tuple[str, int]]") -> "RelayPorts":
        """The same, but for steering of ports that programs of the host have."""
        changed: list[dict[str, Encodable]] = []
        for one in self.wanted():
            held = any(protocol == one.get("protocol") and port in _ports(one) for protocol, port in taken)
            changed.append({**one, "steer": "never"} if held else {**one})
        return RelayPorts(mappings=encode(changed, None), required=self.required)

    def apply(self, kernel: "Kernel") -> bool:
        try:
            service = Service.connect(ALWAYS_S if self.required else AUTO_S)
            if service is None:
                if self.required:
                    raise PluginNotAvailable("portfwd does not run", "userlandProxy: always needs `portfwd serve`")
                for one in filter(needs_relay, self.wanted()):
                    warn(f"not published, since NAT cannot serve it and portfwd does not run: {in_words(one)}")
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
        try:
            service = Service.connect(ALWAYS_S if self.required else AUTO_S)
        except Untrusted as error:  # which has nothing of ours
            warn(str(error))
            service = None
        if service is not None:
            with service:
                service.remove(kernel.key.hex)
                for heir in successors.waiting_for(kernel.key):
                    _succeed(service, heir[0])
        record = holders.record_of(kernel.key.hex) if successors.has_heirs(kernel.key) else None
        if record is not None and not any(_op_name(fields) == "PublishPorts" for fields in record.ops):
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
        for asked in self.named(kernel.key):
            found = there.get(str(asked["id"]))
            if found is None and self.required:
                return f"portfwd has lost {in_words(asked)}"
            if found is not None and any(
                found.get(name) != _plain(asked[name]) for name in ("first", "last", "targets")
            ):
                return f"portfwd does not serve {in_words(asked)}"
        return None


def needs_relay(mapping: "Object | dict[str, Encodable]") -> bool:
    """Whether NAT serves no client of the mapping: none of its addresses is_for_nat() and of a family that the container has."""
    hosts, targets = mapping.get("host_ips"), mapping.get("targets")
    target = targets[0] if isinstance(targets, list | tuple) and targets else Object()
    inside = ":" in str(target.get("address")) if isinstance(target, dict) else False
    texts = list(map(str, hosts)) if isinstance(hosts, list | tuple) else []
    return not any((":" in text) == inside and is_for_nat(parse_ip(text)) for text in texts)


def clear_or_wait(
    service: Service, asked: "list[dict[str, Encodable]]", key: "Attachment"
) -> "tuple[list[dict[str, Encodable]], bool]":
    """Remove the mappings of dead attachments that have some of these ports; wait for what another network of the container has.

    Returns what is left to ask for, and whether it makes sense to ask again.
    """
    from cni_py.ports import conflicts

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


def _op_name(fields: object) -> str:
    return str(fields.get("op")) if isinstance(fields, dict) else ""


def _succeed(service: Service, heir: "Attachment") -> None:
    """The next network of the same container is served. What fails is said: the DEL at hand must not fail for it."""
    record = holders.record_of(heir.hex)
    for fields in record.ops if record is not None else ():
        try:
            op = op_from_json(fields) if _op_name(fields) == RelayPorts.__name__ else None
            if isinstance(op, RelayPorts):
                for note in service.publish(op.named(heir), may_fail=True):
                    warn(f"portfwd, for {heir.label}: {note}")
        except (CniError, ValueError) as error:
            warn(f"{heir.label} does not get its ports of portfwd: {error}")


def relay(mappings: "Sequence[dict[str, Encodable]]", *, required: bool) -> list[Op]:
    """The operation that publishes these, if there are any."""
    return [RelayPorts(mappings=encode(mappings, None), required=required)] if mappings else []


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
    """STATUS. PluginNotAvailable when no service is there."""
    service = Service.connect(AUTO_S)
    if service is None:
        raise PluginNotAvailable("portfwd does not run", "userlandProxy: always needs `portfwd serve`")
    service.close()


def _steer(mapping: "Object | dict[str, Encodable]") -> str:
    """A long range costs one socket; clients of other ports are steered to ours where the runtime itself holds those."""
    return "auto" if len(_ports(mapping)) >= RANGE_MIN else "fallback"


def _as_before(asked: "list[dict[str, Encodable]]") -> "list[dict[str, Encodable]]":
    """The same with the older name of a field, which services of every version know."""
    return [{STEER_BEFORE if field == "steer" else field: value for field, value in one.items()} for one in asked]


def _ports(mapping: "Object | dict[str, Encodable]") -> range:
    first, last = mapping.get("first"), mapping.get("last")
    return range(first, last + 1) if isinstance(first, int) and isinstance(last, int) else range(0)


def _overlap(one: Object, other: "dict[str, Encodable]") -> bool:
    ours, theirs = _ports(one), _ports(other)
    return one.get("protocol") == other["protocol"] and ours.start < theirs.stop and theirs.start < ours.stop


def _plain(value: "Encodable") -> "Encodable":
    return list(value) if isinstance(value, tuple) else value


def in_words(mapping: "Object | dict[str, Encodable]") -> str:
    """8080/tcp on 0.0.0.0 :: to 192.0.2.2 port 80."""
    ports = _ports(mapping)
    span = f"{ports.start}-{ports.stop - 1}" if len(ports) > 1 else str(ports.start)
    hosts, targets, allow = (mapping.get(name) for name in ("host_ips", "targets", "allow"))
    target = targets[0] if isinstance(targets, list) and targets and isinstance(targets[0], Object) else Object()
    clients = f" from {' '.join(map(str, allow))}" if isinstance(allow, list) else ""
    where = " ".join(map(str, hosts)) if isinstance(hosts, list) else ""
    return f"{span}/{mapping.get('protocol')} on {where} to {target.get('address')} port {target.get('port')}{clients}"


def _as_error(error: Refused) -> CniError:
    if error.kind == "in-use":
        return PortInUse(error.msg, error.details)
    return CniError("portfwd does not publish the ports", str(error))
