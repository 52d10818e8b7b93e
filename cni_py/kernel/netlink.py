"""Netlink: framing, attributes, acknowledgements, dumps and nfnetlink batches.

The kernel handles a request while send() runs (netlink_unicast_kernel()), so a request is one send, and then its answers are
in the queue. A socket is connected to the kernel: no other process of its namespace (it may be a container's) can put an answer
into it.

Sources: Linux include/uapi/linux/netlink.h and nfnetlink.h, Documentation/userspace-api/netlink/intro.rst,
net/netlink/af_netlink.c, net/netfilter/nfnetlink.c.
"""

import _signal
import _socket
import _struct
import errno
import sys

from cni_py.lean import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x01
_NLM_F_MULTI = 0x02  # in answers: a part, or the end, of a dump
NLM_F_ACK = 0x04
NLM_F_ECHO = 0x08
NLM_F_DUMP_INTR = 0x10
# The same bits have other meanings in a GET, in a request that makes something, and in an acknowledgement.
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSGERR_ATTR_MSG, _NLMSGERR_ATTR_OFFS = 1, 2

NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, Linux 5.14

_NFNL_MSG_BATCH_BEGIN = 0x10
_NFNL_MSG_BATCH_END = 0x11
NFNL_SUBSYS_NFTABLES = 10

_HEADER = _struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_ATTR = _struct.Struct("=HH")  # struct nlattr: length, type
_INT = _struct.Struct("=i")
_U32 = _struct.Struct("=I")

# Bytes. recv() cuts off what does not fit and says nothing. The kernel fills at most 32 KiB in a dump (netlink_recvmsg());
# any other answer is one message, and an nlattr ends at 64 KiB.
_BUFFER = 65536
_RECEIVE_TIMEOUT_S = 10  # never reached: turns a lost answer into an error instead of a hang
_DUMP_ATTEMPTS = 50
_DESCRIPTORS = 1 << 20  # no process has more, unless fs.nr_open was raised
_FIRST_PIDS = "pid:[4026531836]"  # PID_NS_INIT_INO, include/uapi/linux/nsfs.h
_CHILD_SIGNAL = 1 << _signal.SIGCHLD - 1  # in a mask of /proc/PID/status
_AT = "refused_at"  # of an OSError


def refused_at(error: OSError) -> int:
    """Where in the refused message, its header included, the attribute begins that is wrong; 0 where the kernel does not say."""
    place: int = getattr(error, _AT, 0)
    return place


class BatchError(OSError):
    """A batch was refused as a whole. `index` is the place of the first refused message, -1 when the kernel names none."""

    index = -1


def attr(kind: int, payload: bytes) -> bytes:
    """One attribute. The next begins at a multiple of 4, but the padding does not count in its length (nla_put())."""
    length = 4 + len(payload)
    return _ATTR.pack(length, kind) + payload + b"\0" * (-length & 3)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes. Parsers of newer subsystems refuse one without the flag (nla_parse_nested())."""
    return attr(kind | NLA_F_NESTED, b"".join(attributes))


def iter_attrs(data: bytes) -> "Iterator[tuple[int, bytes]]":
    """The attributes in `data` in their order, types without flag bits."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4:
            break
        yield kind & _NLA_TYPE_MASK, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def attrs(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by type; of a repeated one the last."""
    return dict(iter_attrs(data))


def u32(value: int) -> bytes:
    """A number of 32 bits in the host's byte order, as rtnetlink has them. OSError ERANGE for one that does not fit."""
    if not 0 <= value < 1 << 32:
        raise OSError(errno.ERANGE, f"{os.strerror(errno.ERANGE)}: {value}")
    return _U32.pack(value)


def number(payload: bytes | None) -> int:
    """The number in an attribute, in the host's byte order; 0 when the attribute is missing."""
    return int.from_bytes(payload or b"", sys.byteorder)


def text(payload: bytes | None) -> str:
    """The text in an attribute, with or without its NUL; "" when the attribute is missing."""
    return os.fsdecode((payload or b"").rstrip(b"\0"))


class Socket:
    """A netlink socket of the network namespace the process is in when it is made."""

    __slots__ = ("_buffer", "_seq", "_socket", "_unfinished")

    def __init__(self, protocol: int) -> None:
        self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._seq = 0
        self._unfinished = 0  # sequence number of a dump that an exception (a signal's) cut off
        # CAP_ACK: an error does not repeat the whole request, which for a batch would fill the queue. EXT_ACK: the reason
        # as a text. GET_STRICT_CHK (Linux 4.20): a dump is filtered by the kernel, by index or table, where it ignored the
        # wish before; in return, what it does not understand in a GET is EINVAL.
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._set_timeout(_RECEIVE_TIMEOUT_S)
        self._socket.connect((0, 0))

    def close(self) -> None:
        """A second call is harmless."""
        self._socket.close()

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def _set_timeout(self, wait_s: float) -> None:
        """The limit of a recv(), above 0."""
        seconds = int(wait_s)
        timeout = _struct.pack("@ll", seconds, int((wait_s - seconds) * 1_000_000))
        self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeout)

    def netns_cookie(self) -> int:
        """The kernel's number of the socket's network namespace, never used twice in one boot; 0 before Linux 5.14."""
        return netns_cookie(self._socket)

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        """Send one message and await its acknowledgement (or, with NLM_F_DUMP, the end of the dump).

        Returns the answers as (type, body). The kernel's refusal is an OSError that carries its words.
        """
        if flags & NLM_F_DUMP == NLM_F_DUMP and not flags & NLM_F_CREATE:
            return self._dump(kind, flags, body)
        self._send(kind, flags | NLM_F_ACK, body)
        answers: list[tuple[int, bytes]] = []
        # The acknowledgement is the last answer: netlink_rcv_skb() sends it when the request has been carried out.
        while True:
            for answer, answer_flags, payload in self._receive(self._seq):
                if answer == _NLMSG_ERROR:
                    _raise_refusal(answer_flags, payload)
                    return answers
                answers.append((answer, payload))

    def send_by_child(self, kind: int, flags: int, body: bytes) -> tuple[int, int]:
        """Let a child process send a message, so that the kernel holds the child. Returns its pid and the message's number.

        The answers come to this socket. Nothing else stays open in the child: a runtime waits for the end of what we print,
        and other calls for our locks. OSError when there can be no child, or nobody to collect it after our end.
        """
        if not orphans_are_collected():
            raise OSError(errno.EAGAIN, "a child that outlives us would stay a zombie")
        self._seq += 1
        frame = _frame(kind, flags | NLM_F_REQUEST | NLM_F_ACK, self._seq, body)
        pid = os.fork()
        if pid == 0:
            try:
                os.dup2(self._socket.fileno(), 0)
                os.closerange(1, _DESCRIPTORS)
                os.write(0, frame)
            finally:
                os._exit(0)
        return pid, self._seq

    def answered(self, seq: int, wait_s: float) -> bool:
        """Whether a first answer to the message with that number comes within the time. OSError when it is a refusal."""
        self._set_timeout(wait_s)
        try:
            answers = self._receive(seq)
        except TimeoutError:
            return False
        finally:
            self._set_timeout(_RECEIVE_TIMEOUT_S)
        for answer, flags, payload in answers:
            if answer == _NLMSG_ERROR:
                _raise_refusal(flags, payload)
        return bool(answers)

    def batch(self, messages: "Sequence[tuple[int, int, bytes]]") -> None:
        """Send (type, flags, body) messages as one nf_tables transaction: all of them take effect or BatchError is raised.

        The messages see what those before them have done. The kernel goes on after a refused one and reports each, so a
        first refusal brings others about: only the first means something (nfnetlink_rcv_batch()). The generation of the
        rules is not stated (NFNL_BATCH_GENID): anybody's transaction in the namespace would make ours fail with ERESTART,
        and what has to be so is said by NLM_F_EXCL, or kept so by our lock.
        """
        if not messages:
            return
        begin = self._seq + 1
        last = begin + len(messages)
        edge = _struct.pack("!BBH", 0, 0, NFNL_SUBSYS_NFTABLES)  # struct nfgenmsg
        # Without its end the batch is thrown away, and nobody is told. The end itself is acknowledged since Linux 6.10 only,
        # so the last message is: its acknowledgement comes after the commit (nfnl_err_deliver()).
        parts = [_frame(_NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, begin, edge)]
        for seq, (kind, flags, body) in enumerate(messages, begin + 1):
            parts.append(_frame(kind, flags | NLM_F_REQUEST | (NLM_F_ACK if seq == last else 0), seq, body))
        parts.append(_frame(_NFNL_MSG_BATCH_END, NLM_F_REQUEST, last + 1, edge))
        self._seq = last + 1
        data = b"".join(parts)
        self._grow_send_buffer(len(data))
        self._socket.send(data)
        self._read_verdict(begin, last)

    def _read_verdict(self, begin: int, last: int) -> None:
        """BatchError unless the kernel has confirmed the message with the number `last`."""
        failure: BatchError | None = None
        confirmed = False
        for answer, flags, seq, payload in self._queued():
            if answer != _NLMSG_ERROR or not begin <= seq <= last + 1:
                continue
            if _INT.unpack_from(payload)[0] == 0:
                confirmed = confirmed or seq == last
            # A commit that fails is reported with the number of the batch's beginning: then no message is singled out.
            elif failure is None:
                failure = BatchError(*_refusal(flags, payload))
                failure.index = seq - begin - 1 if begin < seq <= last else -1
        if failure is not None:
            raise failure
        if not confirmed:
            raise BatchError(errno.EIO, "the kernel did not confirm the transaction")

    def _queued(self) -> "Iterator[tuple[int, int, int, bytes]]":
        """The messages in the queue, of all numbers; the kernel has answered before send() returned.

        A refusal that does not fit into the receive buffer is lost, and the next recv() fails with ENOBUFS
        (netlink_overrun()). The first refusals, which count, are in the queue then: read on.
        """
        while True:
            try:
                data = self._received(_socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
            else:
                yield from messages(data)

    def _dump(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        if self._unfinished:
            # A socket has one dump at a time: EBUSY otherwise (__netlink_dump_start())
            self._read_dump(self._unfinished)
        for _ in range(_DUMP_ATTEMPTS):
            self._send(kind, flags, body)
            self._unfinished = self._seq
            answers = self._read_dump(self._seq)
            if answers is not None:
                return answers
        raise OSError(errno.EAGAIN, "the kernel's tables changed during every attempt to read them")

    def stream(self, kind: int, body: bytes) -> "Iterator[tuple[int, bytes]]":
        """The parts of a dump as they come, for a table that is too large to keep: some may be missing or doubled. OSError.

        A socket whose stream was given up serves no other request.
        """
        self._send(kind, NLM_F_DUMP, body)
        while True:
            for answer, flags, payload in self._receive(self._seq):
                if answer in (_NLMSG_DONE, _NLMSG_ERROR):
                    _raise_refusal(flags, payload)
                    return
                yield answer, payload

    def _read_dump(self, seq: int) -> list[tuple[int, bytes]] | None:
        """The parts of a dump, or None: it is not whole, so ask again.

        The kernel goes through its table between our recv() calls and holds no lock meanwhile. When the table has changed,
        entries may be missing or doubled, and some message of the dump, at the latest its end, has NLM_F_DUMP_INTR
        (nl_dump_check_consistent()). ENOBUFS says that parts were lost. Either way the dump is read to its end.
        """
        answers: list[tuple[int, bytes]] = []
        whole = True
        while True:
            try:
                parts = self._receive(seq)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                whole = False
                continue
            for answer, flags, payload in parts:
                whole = whole and not flags & NLM_F_DUMP_INTR
                # A dump that fails on its way ends with NLMSG_DONE, too: it has the error number (netlink_dump_done()).
                if answer in (_NLMSG_DONE, _NLMSG_ERROR):
                    self._unfinished = 0
                    if whole:
                        _raise_refusal(flags, payload)
                    return answers if whole else None
                answers.append((answer, payload))

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._seq += 1
        self._socket.send(_frame(kind, flags | NLM_F_REQUEST, self._seq, body))

    def _receive(self, seq: int) -> list[tuple[int, int, bytes]]:
        """The (type, flags, body) of the next datagram's messages; those with another number than `seq` are left out.

        They answer a request that a signal's exception has interrupted.
        """
        try:
            data = self._received()
        except BlockingIOError as error:
            raise OSError(errno.ETIMEDOUT, f"no netlink answer within {_RECEIVE_TIMEOUT_S} s") from error
        return [(kind, flags, body) for kind, flags, number, body in messages(data) if number == seq]

    def _received(self, flags: int = 0) -> bytes:
        """The next datagram. Into one buffer: recv() would take 64 KiB from the system for each, and give them back."""
        return bytes(self._buffer[: self._socket.recv_into(self._buffer, _BUFFER, flags)])

    def _grow_send_buffer(self, length: int) -> None:
        """A transaction is one datagram, and one larger than the send buffer (by default 208 KiB) is EMSGSIZE."""
        if length <= self._socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) - 1024:
            return
        try:
            self._socket.setsockopt(_socket.SOL_SOCKET, _SO_SNDBUFFORCE, length + 1024)
        except PermissionError:
            # FORCE needs CAP_NET_ADMIN in the first user namespace, and who is rootless has not got it. Without force the
            # buffer gets up to twice net.core.wmem_max (sk_setsockopt()).
            self._socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, length + 1024)


def netns_cookie(socket: _socket.socket) -> int:
    """The same for a socket of any family."""
    try:
        return int.from_bytes(socket.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        return 0


def orphans_are_collected() -> bool:
    """Whether a child that outlives us is collected (wait(2)) when it ends, by the first process of our PID namespace.

    In the namespace that the kernel begins with that is an init, which collects what it inherits. In another one it may be
    any program, and zombies would pile up. It is an init if it ignores SIGCHLD, and the kernel collects for it
    (do_notify_parent()), or blocks SIGCHLD, to read it from a descriptor or wait for it (systemd, tini, catatonit). One that
    catches it may wait for its own children alone, as programs in Go do.
    """
    try:
        if os.readlink("/proc/self/ns/pid") == _FIRST_PIDS:
            return True
        if os.readlink("/proc/self") != str(os.getpid()):  # the /proc of another PID namespace, and so is its 1
            return False
        with open("/proc/1/status", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith((b"SigIgn:", b"SigBlk:"))]
    return any(mask & _CHILD_SIGNAL for mask in masks)


def _frame(kind: int, flags: int, seq: int, body: bytes) -> bytes:
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, kind, flags, seq, 0) + body + b"\0" * (-length & 3)


def messages(data: bytes) -> "Iterator[tuple[int, int, int, bytes]]":
    """The (type, flags, sequence number, body) of the messages in a datagram."""
    offset, end = 0, len(data)
    while offset + _HEADER.size <= end:
        length, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > end:
            raise OSError(errno.EBADMSG, "malformed or truncated netlink message")
        yield kind, flags, seq, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _raise_refusal(flags: int, payload: bytes) -> None:
    """Raise what an acknowledgement or the end of a dump reports, if it reports an error."""
    if len(payload) >= _INT.size and _INT.unpack_from(payload)[0] < 0:
        # Not a class of ours: OSError makes a FileExistsError and its like
        refusal = OSError(*_refusal(flags, payload))
        if flags & _NLM_F_ACK_TLVS:
            at = attrs(payload[_tlv_offset(flags, payload) :]).get(_NLMSGERR_ATTR_OFFS)
            setattr(refusal, _AT, number(at))
        raise refusal


def _refusal(flags: int, payload: bytes) -> tuple[int, str]:
    """Error number and text: that of strerror(3), then the kernel's reason if it gives one (extended acknowledgement)."""
    number = -int(_INT.unpack_from(payload)[0])
    text = os.strerror(number)
    if flags & _NLM_F_ACK_TLVS:
        words = attrs(payload[_tlv_offset(flags, payload) :]).get(_NLMSGERR_ATTR_MSG, b"")
        if words:
            text += ": " + words.rstrip(b"\0").decode("utf-8", "replace")
    return number, text


def _tlv_offset(flags: int, payload: bytes) -> int:
    """Where the attributes of an error message begin: after its number and (not at a dump's end) the refused header."""
    if len(payload) < _INT.size + _HEADER.size or flags & _NLM_F_MULTI:
        return _INT.size
    if flags & _NLM_F_CAPPED:
        return _INT.size + _HEADER.size
    return int(_INT.size + ((_HEADER.unpack_from(payload, _INT.size)[0] + 3) & ~3))
