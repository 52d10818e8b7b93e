"""cni_py.kernel.netlink: framing by value, exchanges with a pretended kernel, and the real one."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.kernel import netlink
from cni_py.kernel.netlink import BatchError, Socket

HEADER = struct.Struct("=IHHII")
DONE, ERROR = 3, 2
MULTI, INTERRUPTED = 2, 0x10
DUMP = 0x300
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h


def test_an_attribute_is_padded_to_four_bytes_that_its_length_does_not_count() -> None:
    assert netlink.attr(3, b"abcde") == bytes.fromhex("0900 0300 6162636465 000000")
    assert netlink.attr(1, b"") == bytes.fromhex("0400 0100")


def test_nested_attributes_are_marked_and_read_back_without_the_mark() -> None:
    data = netlink.nested(18, netlink.attr(1, b"veth\0"), netlink.attr(2, b"\1"))
    assert data == bytes.fromhex("1800 1280 0900 0100 7665746800 000000 0500 0200 01 000000")
    [(kind, inside)] = netlink.iter_attrs(data)
    assert kind == 18
    assert netlink.attrs(inside) == {1: b"veth\0", 2: b"\1"}


def test_of_a_repeated_attribute_iter_attrs_gives_each_and_attrs_the_last() -> None:
    data = netlink.attr(2, b"aaaa") + netlink.attr(2, b"bbbb")
    assert list(netlink.iter_attrs(data)) == [(2, b"aaaa"), (2, b"bbbb")]
    assert netlink.attrs(data) == {2: b"bbbb"}


@pytest.mark.parametrize("data", [b"", b"\1", b"\0\0\0\0", b"\3\0\1\0", b"\0" * 16])
def test_reading_attributes_ends_at_the_first_malformed_one(data: bytes) -> None:
    assert netlink.attrs(data) == {}


@given(st.binary(max_size=200))
def test_reading_attributes_always_ends(data: bytes) -> None:
    assert sum(4 + len(payload) for _, payload in netlink.iter_attrs(data)) <= len(data)


class PretendedKernel:
    """The other end of a Socket: answers are queued before the request, as the kernel's are before send() returns."""

    def __init__(self) -> None:
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = Socket.__new__(Socket)
        self.socket._socket = theirs
        self.socket._buffer = memoryview(bytearray(65536))
        self.socket._seq = self.socket._unfinished = 0

    def answer(self, *messages: tuple[int, int, int, bytes]) -> None:
        """Queue one datagram of (type, flags, sequence number, body)."""
        self.end.send(
            b"".join(HEADER.pack(16 + len(body), kind, flags, seq, 0) + body for kind, flags, seq, body in messages)
        )

    def asked(self) -> tuple[int, int, int, bytes]:
        data = self.end.recv(65536)
        length, kind, flags, seq, _ = HEADER.unpack_from(data)
        assert length == len(data)
        return kind, flags, seq, data[16:]


@pytest.fixture
def kernel() -> Iterator[PretendedKernel]:
    pretended = PretendedKernel()
    yield pretended
    pretended.end.close()
    pretended.socket.close()


def ack(number: int = 0) -> bytes:
    return struct.pack("=i", -number) + bytes(16)


def test_a_request_awaits_its_acknowledgement_and_returns_what_came_before(kernel: PretendedKernel) -> None:
    kernel.answer((16, 0, 1, b"body"))
    kernel.answer((ERROR, 0x100, 1, ack()))
    assert kernel.socket.request(18, 0, b"abcd") == [(16, b"body")]
    assert kernel.asked() == (18, netlink.NLM_F_REQUEST | netlink.NLM_F_ACK, 1, b"abcd")


def test_an_answer_to_an_earlier_request_is_passed_over(kernel: PretendedKernel) -> None:
    kernel.answer((ERROR, 0x100, 77, ack(errno.EPERM)), (16, 0, 77, b"old!"))
    kernel.answer((ERROR, 0x100, 1, ack()))
    assert kernel.socket.request(18, 0, b"") == []


@pytest.mark.parametrize(
    ("flags", "header"),
    [(0x300, HEADER.pack(20, 1, 0, 1, 0)), (0x200, HEADER.pack(20, 1, 0, 1, 0) + b"body")],
    ids=["capped", "with the refused message"],
)
def test_a_refusal_carries_the_kernels_words(kernel: PretendedKernel, flags: int, header: bytes) -> None:
    words = netlink.attr(1, b"Invalid prefix\0") + netlink.attr(2, b"\0\0\0\0")
    kernel.answer((ERROR, flags, 1, struct.pack("=i", -errno.EINVAL) + header + words))
    with pytest.raises(OSError, match=r"Invalid argument: Invalid prefix$") as caught:
        kernel.socket.request(24, 0, b"body")
    assert caught.value.errno == errno.EINVAL


def test_a_refusal_is_the_subclass_of_oserror_that_fits(kernel: PretendedKernel) -> None:
    kernel.answer((ERROR, 0x100, 1, ack(errno.EEXIST)))
    with pytest.raises(FileExistsError):
        kernel.socket.request(16, netlink.NLM_F_CREATE | netlink.NLM_F_EXCL, b"")


@pytest.mark.parametrize("data", [HEADER.pack(15, 16, 0, 1, 0), HEADER.pack(40, 16, 0, 1, 0)], ids=["short", "cut off"])
def test_a_malformed_datagram_is_an_error_and_not_a_hang(kernel: PretendedKernel, data: bytes) -> None:
    kernel.end.send(data)
    with pytest.raises(OSError, match="malformed or truncated"):
        kernel.socket.request(18, 0, b"")


def test_a_dump_is_read_to_its_end(kernel: PretendedKernel) -> None:
    kernel.answer((16, MULTI, 1, b"one!"), (16, MULTI, 1, b"two!"))
    kernel.answer((16, MULTI, 1, b"last"), (DONE, MULTI, 1, bytes(4)))
    assert kernel.socket.request(18, DUMP, b"") == [(16, b"one!"), (16, b"two!"), (16, b"last")]
    assert kernel.asked()[1] == netlink.NLM_F_REQUEST | DUMP


def test_an_interrupted_dump_is_begun_again(kernel: PretendedKernel) -> None:
    kernel.answer((16, MULTI, 1, b"one!"))
    kernel.answer((16, MULTI | INTERRUPTED, 1, b"half"), (DONE, MULTI, 1, bytes(4)))
    kernel.answer((16, MULTI, 2, b"full"), (DONE, MULTI, 2, bytes(4)))
    assert kernel.socket.request(18, DUMP, b"") == [(16, b"full")]
    assert [kernel.asked()[2], kernel.asked()[2]] == [1, 2]


def test_a_dump_that_is_interrupted_every_time_is_an_error(kernel: PretendedKernel) -> None:
    for seq in range(1, 100):
        kernel.answer((DONE, MULTI | INTERRUPTED, seq, bytes(4)))
    with pytest.raises(BlockingIOError, match="changed during every attempt"):
        kernel.socket.request(18, DUMP, b"")


def test_a_dump_that_the_kernel_refuses_says_why(kernel: PretendedKernel) -> None:
    words = netlink.attr(1, b"no such table\0")
    kernel.answer((DONE, MULTI | 0x200, 1, struct.pack("=i", -errno.ENOENT) + words))
    with pytest.raises(FileNotFoundError, match="no such table"):
        kernel.socket.request(26, DUMP, b"")


def test_the_rest_of_a_dump_that_a_signal_cut_off_is_read_before_the_next(kernel: PretendedKernel) -> None:
    kernel.socket._seq = kernel.socket._unfinished = 5
    kernel.answer((16, MULTI, 5, b"old!"))
    kernel.answer((DONE, MULTI, 5, bytes(4)))
    kernel.answer((DONE, MULTI, 6, bytes(4)))
    assert kernel.socket.request(18, DUMP, b"") == []
    assert kernel.socket._unfinished == 0


def test_a_batch_is_one_datagram_that_asks_for_one_acknowledgement(kernel: PretendedKernel) -> None:
    kernel.answer((ERROR, 0x100, 3, ack()))
    kernel.socket.batch([(0xA0C, 0x400, b"ab"), (0xA0C, 0x400, b"cdef")])
    frames = list(netlink.messages(kernel.end.recv(65536)))
    edge = bytes.fromhex("0000 000a")
    assert frames == [
        (0x10, 1, 1, edge),
        (0xA0C, 0x401, 2, b"ab"),
        (0xA0C, 0x405, 3, b"cdef"),
        (0x11, 1, 4, edge),
    ]


def test_a_refused_batch_names_the_first_message_at_fault(kernel: PretendedKernel) -> None:
    kernel.answer((ERROR, 0x100, 3, ack(errno.EEXIST)), (ERROR, 0x100, 4, ack(errno.ENOENT)))
    with pytest.raises(BatchError) as caught:
        kernel.socket.batch([(1, 0, b""), (2, 0, b""), (3, 0, b"")])
    assert (caught.value.errno, caught.value.index) == (errno.EEXIST, 1)


def test_a_batch_refused_as_a_whole_names_no_message(kernel: PretendedKernel) -> None:
    kernel.answer((ERROR, 0x100, 1, ack(errno.EPERM)))
    with pytest.raises(BatchError) as caught:
        kernel.socket.batch([(1, 0, b"")])
    assert (caught.value.errno, caught.value.index) == (errno.EPERM, -1)


def test_a_batch_without_confirmation_is_not_taken_for_done(kernel: PretendedKernel) -> None:
    kernel.answer((ERROR, 0x100, 2, ack()))
    with pytest.raises(BatchError, match="did not confirm"):
        kernel.socket.batch([(1, 4, b""), (2, 0, b"")])


def test_an_empty_batch_sends_nothing(kernel: PretendedKernel) -> None:
    kernel.socket.batch([])
    kernel.end.setblocking(False)
    with pytest.raises(BlockingIOError):
        kernel.end.recv(1)


@pytest.mark.netns
def test_the_kernel_explains_its_refusal() -> None:
    sock = Socket(netlink.NETLINK_ROUTE)
    route = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 3, 0, 1, 0) + netlink.attr(1, bytes([192, 0, 2, 1]))
    with pytest.raises(OSError, match="Invalid argument: Invalid prefix for given prefix length"):
        sock.request(24, netlink.NLM_F_CREATE, route)


@pytest.mark.netns
def test_only_the_kernel_can_answer() -> None:
    sock = Socket(netlink.NETLINK_ROUTE)
    port = sock._socket.getsockname()[0]
    stranger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink.NETLINK_ROUTE)
    with pytest.raises(ConnectionRefusedError):
        stranger.sendto(HEADER.pack(16, ERROR, 0, 1, 0), (port, 0))


@pytest.mark.netns
def test_the_cookie_tells_namespaces_apart() -> None:
    first = Socket(netlink.NETLINK_ROUTE).netns_cookie()
    assert first > 0
    assert Socket(netlink.NETLINK_NETFILTER).netns_cookie() == first


def table(name: bytes) -> bytes:
    return bytes([1, 0, 0, 0]) + netlink.attr(1, name + b"\0")


NEWTABLE, GETTABLE, DELTABLE = (10 << 8 | kind for kind in (0, 1, 2))


@pytest.mark.netns
def test_a_transaction_is_all_or_nothing() -> None:
    sock = Socket(netlink.NETLINK_NETFILTER)
    sock.batch([(NEWTABLE, netlink.NLM_F_CREATE, table(b"one"))])
    exclusive = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
    with pytest.raises(BatchError) as caught:
        sock.batch([(NEWTABLE, exclusive, table(b"two")), (NEWTABLE, exclusive, table(b"one"))])
    assert (caught.value.errno, caught.value.index) == (errno.EEXIST, 1)
    tables = sock.request(GETTABLE, DUMP, bytes([1, 0, 0, 0]))
    assert [netlink.attrs(body[4:])[1] for _, body in tables] == [b"one\0"]


@pytest.mark.netns
@pytest.mark.parametrize("rootless", [False, True])
def test_a_transaction_larger_than_the_send_buffer_goes_through(rootless: bool) -> None:
    if rootless:
        assert ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    sock = Socket(netlink.NETLINK_NETFILTER)
    names = [b"table-%d-" % number + b"x" * 200 for number in range(1000)]
    sock.batch([(NEWTABLE, netlink.NLM_F_CREATE, table(name)) for name in names])
    assert len(sock.request(GETTABLE, DUMP, bytes([1, 0, 0, 0]))) == 1000


@pytest.mark.netns
def test_more_refusals_than_the_queue_holds_still_name_the_first() -> None:
    sock = Socket(netlink.NETLINK_NETFILTER)
    with pytest.raises(BatchError) as caught:
        sock.batch([(DELTABLE, 0, table(b"missing-%d" % number)) for number in range(3000)])
    assert (caught.value.errno, caught.value.index) == (errno.ENOENT, 0)
    assert sock.request(GETTABLE, DUMP, bytes([1, 0, 0, 0])) == []


@pytest.mark.netns
def test_a_socket_is_not_inherited_by_programs() -> None:
    sock = Socket(netlink.NETLINK_ROUTE)
    assert not os.get_inheritable(sock._socket.fileno())
    sock.close()
    sock.close()
