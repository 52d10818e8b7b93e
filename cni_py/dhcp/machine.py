"""The states of a DHCP client (RFC 2131, section 4.4). Pure: messages and the time come in, messages and a deadline come out.

    SELECTING   looks for servers                REQUESTING   asks one of them for what it has offered
    BOUND       has a lease                      RENEWING     from T1 on: asks the server that gave it
    REBINDING   from T2 on: asks any server      ENDED        there is no lease, or not any more

What a container has was given to it by others, so its address cannot change: a lease is for one address until it ends. When a
server refuses to renew it (DHCPNAK), the same address is asked for anew for a moment, and then the lease has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from cni_py.dhcp import message
from cni_py.dhcp.frame import EVERYBODY
from cni_py.dhcp.message import ANY, Message

FAST_S = (0.3, 0.7, 1.5, 2.0)  # the first waits for an answer: a bridge's port may not forward yet
SLOW_S = 4.0  # the wait after them, doubled each time (section 4.1)
JITTER = 0.25
DEFAULT_LEASE_S = 3600
INFINITE = 0xFFFFFFFF
T1, T2 = 0.5, 0.85  # of the time of a lease, as the Go daemon has it (RFC 2131: 0.5 and 0.875)
RETRY_S = 60.0  # between requests to renew, at least (section 4.4.5); an eighth of a lease that is shorter
RETRY_MIN_S = 1.0
SIZE_MAX = 1500  # bytes of a message that we take
NEVER = float("inf")


class State(Enum):
    """See above."""

    SELECTING = "selecting"
    REQUESTING = "requesting"
    BOUND = "bound"
    RENEWING = "renewing"
    REBINDING = "rebinding"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a client tells of itself and asks for. `provided` may have another client identifier than `client`."""

    mac: bytes
    client: bytes
    provided: Mapping[int, bytes] = field(default_factory=dict)
    requested: tuple[int, ...] = ()
    broadcast: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds: `answer` for a server to acknowledge its offer, `resend_max` between messages, `resend` for all."""

    answer: float = 10.0
    resend_max: float = 62.0
    resend: float = 208.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease. Times are of the clock that the machine is given. `server_mac`: where its message came from, maybe a relay."""

    address: bytes
    server: bytes
    server_mac: bytes
    options: Mapping[int, bytes]
    begun: float
    renewal: float
    rebinding: float
    expiry: float


@dataclass(frozen=True, slots=True)
class Sending:
    """A message that is to be sent. `mac` b"": to everybody."""

    payload: bytes
    source: bytes = ANY
    destination: bytes = EVERYBODY
    mac: bytes = b""


class Machine:
    """One client. After each call `deadline` says when tick() is due; `failure` why it has ENDED."""

    def __init__(self, identity: Identity, limits: Limits, random: Callable[[], float]) -> None:
        self.identity = identity
        self.limits = limits
        self.random = random  # 0 <= x < 1
        self.state = State.ENDED
        self.lease: Lease | None = None
        self.deadline = NEVER
        self.failure = ""
        self.wanted = b""  # the address that is asked for
        self._offer = Message(0, 0, ANY, b"", {})
        self._xid = 0
        self._begun = self._sent = 0.0
        self._tries = 0
        self._until = self._asking_until = NEVER

    # What happens

    def start(self, now: float) -> list[Sending]:
        """Look for a lease."""
        self._until = now + self.limits.resend
        return self._select(now)

    def resume(self, lease: Lease, now: float) -> list[Sending]:
        """Go on with a lease of an earlier time."""
        self._bind(lease)
        return self.tick(now)

    def tick(self, now: float) -> list[Sending]:
        """The time `now` has come."""
        if now < self.deadline or self.state is State.ENDED:
            return []
        lease = self.lease
        if lease is not None and now >= lease.expiry:
            return self.end("the lease has expired")
        if self.state in (State.SELECTING, State.REQUESTING):
            return self._search_on(now)
        assert lease is not None
        self.state = State.REBINDING if now >= lease.rebinding else State.RENEWING
        return self._extend(now, lease)

    def receive(self, found: Message, mac: bytes, now: float) -> list[Sending]:
        """A message has come, from the hardware address `mac`. One that is not for us, or not expected, changes nothing."""
        if found.xid != self._xid or found.mac != self.identity.mac:
            return []
        if self.state is State.SELECTING and found.type == message.OFFER and self._may_take(found):
            return self._request(found, now)
        if self.state not in (State.REQUESTING, State.RENEWING, State.REBINDING) or not self._is_expected(found):
            return []
        if found.type == message.NAK:
            return self._refused(now)
        known = self.lease or self._offer
        if found.type == message.ACK and found.address == known.address:
            self._bind(lease_of(found, mac, self._sent, known.server))
        return []

    def release(self) -> list[Sending]:
        """Give the lease back."""
        lease, was = self.lease, self.state
        self.end("released")
        if lease is None or was is State.ENDED:
            return []
        self._xid = int(self.random() * (1 << 32))
        options = {
            message.TYPE: bytes((message.RELEASE,)),
            message.SERVER: lease.server,
            message.CLIENT: self._client(),
        }
        payload = message.build(self._xid, self.identity.mac, options, ciaddr=lease.address)
        return [Sending(payload, lease.address, lease.server, lease.server_mac)]

    # Looking for a lease

    def _select(self, now: float) -> list[Sending]:
        self.state = State.SELECTING
        self._xid = int(self.random() * (1 << 32))
        self._begun, self._tries = now, 0
        return self._search_on(now)

    def _search_on(self, now: float) -> list[Sending]:
        if now >= self._until:
            return self.end("no more tries" if self.lease is None else "the server does not give the address again")
        if self.state is State.REQUESTING and now >= self._asking_until:
            return self._select(now)
        self.deadline = min(now + self._wait(), self._until, *([self.lease.expiry] if self.lease else []))
        self._tries += 1
        if self.state is State.REQUESTING:
            return [
                self._asking(now, {message.REQUESTED_ADDRESS: self._offer.address, message.SERVER: self._offer.server})
            ]
        wanted = {message.REQUESTED_ADDRESS: self.lease.address} if self.lease else {}
        return [self._sending(now, message.DISCOVER, wanted)]

    def _wait(self) -> float:
        """Seconds until the next message."""
        slow = SLOW_S * 2 ** min(max(0, self._tries - len(FAST_S)), 16)
        wait = FAST_S[self._tries] if self._tries < len(FAST_S) else min(slow, self.limits.resend_max)
        return wait * (1 - JITTER + 2 * JITTER * self.random())

    def _may_take(self, found: Message) -> bool:
        if found.server == ANY or not is_host(found.address):
            return False
        return self.lease is None or found.address == self.lease.address

    def _request(self, offer: Message, now: float) -> list[Sending]:
        self.state = State.REQUESTING
        self._offer = offer
        self._tries = 0
        self._asking_until = now + self.limits.answer
        return self._search_on(now)

    def _is_expected(self, found: Message) -> bool:
        """Whether a message comes from the server that was asked; any may answer a REBINDING client."""
        if self.state is State.REQUESTING:
            return found.server in (self._offer.server, ANY)
        return self.state is State.REBINDING or (self.lease is not None and found.server in (self.lease.server, ANY))

    # Keeping it

    def _bind(self, lease: Lease) -> None:
        self.state = State.BOUND
        self.lease = lease
        self.deadline = lease.renewal

    def _extend(self, now: float, lease: Lease) -> list[Sending]:
        if self._sent < lease.renewal:  # the first of these
            self._xid = int(self.random() * (1 << 32))
            self._begun = now
        end = lease.expiry if self.state is State.REBINDING else lease.rebinding
        pause = max(min(RETRY_S, (lease.expiry - lease.begun) / 8), RETRY_MIN_S)
        self.deadline = min(now + max((end - now) / 2, pause), end)
        asking = self._asking(now, {}, ciaddr=lease.address)
        if self.state is State.REBINDING:
            return [Sending(asking.payload, lease.address)]
        return [Sending(asking.payload, lease.address, lease.server, lease.server_mac)]

    def _refused(self, now: float) -> list[Sending]:
        """DHCPNAK. Somebody who has an address asks for the same one, but not for long, since it must not use it meanwhile."""
        if self.state is not State.REQUESTING and self.lease is not None:
            self._until = min(now + self.limits.answer, self.lease.expiry)
            return self._select(now)
        self._select(now)
        self._tries = len(FAST_S)  # not at once: it would go on for ever
        self.deadline = min(now + self._wait(), self._until)
        return []

    def end(self, why: str) -> list[Sending]:
        """There is no lease any more; nothing is sent."""
        self.state = State.ENDED
        self.failure = why
        self.deadline = NEVER
        return []

    # Messages

    def _client(self) -> bytes:
        return self.identity.provided.get(message.CLIENT) or self.identity.client

    def _asking(self, now: float, options: Mapping[int, bytes], ciaddr: bytes = ANY) -> Sending:
        self._sent = now
        return self._sending(now, message.ASK, options, ciaddr)

    def _sending(self, now: float, kind: int, options: Mapping[int, bytes], ciaddr: bytes = ANY) -> Sending:
        identity = self.identity
        asked = {message.PARAMETERS: bytes(identity.requested)} if identity.requested else {}
        all_options = {
            message.TYPE: bytes((kind,)),
            message.CLIENT: identity.client,
            **options,
            message.SIZE_MAX: SIZE_MAX.to_bytes(2, "big"),
            **identity.provided,
            **asked,
        }
        payload = message.build(
            *(self._xid, identity.mac, all_options),
            secs=int(now - self._begun),
            ciaddr=ciaddr,
            broadcast=identity.broadcast and ciaddr == ANY,
        )
        return Sending(payload)


def lease_of(ack: Message, mac: bytes, sent: float, server: bytes) -> Lease:
    """The lease that an ACK gives, of `server` if it does not name one. Its time began when it was asked for."""
    server = server if ack.server == ANY else ack.server
    given = ack.seconds(message.LEASE_TIME)
    lasting: float = DEFAULT_LEASE_S if given is None else given
    if given == INFINITE:
        return Lease(ack.address, server, mac, ack.options, sent, NEVER, NEVER, NEVER)
    renewal, rebinding = ack.seconds(message.RENEWAL_TIME), ack.seconds(message.REBINDING_TIME)
    late = rebinding if rebinding is not None and 0 < rebinding <= lasting else lasting * T2
    early = renewal if renewal is not None and 0 < renewal <= late else min(lasting * T1, late)
    early = max(early, RETRY_MIN_S)  # of a lease of no time, too
    return Lease(
        *(ack.address, server, mac, ack.options, sent),
        *(sent + early, sent + max(late, early), sent + max(lasting, early)),
    )


def is_host(address: bytes) -> bool:
    """Whether an address may be that of a host: not this network's, loopback, multicast or reserved."""
    return address[0] not in (0, 127) and address[0] < 224
