"""cni_py.ports.claims and the operations of cni_py.nftables.elements, on real tables: who gets a port, and what is left
afterwards."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest

from cni_py.addr import parse_address
from cni_py.attachment import engine, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.errors import CniError, PortInUse
from cni_py.kernel import libnftables, netlink, nf_tables
from cni_py.nftables import masquerade, spoof_check
from cni_py.nftables.elements import sweep
from cni_py.ports import publish, successors
from cni_py.ports.leftovers import withdraw_unrecorded

SUBNET = "198.51.100"


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


class Container:
    """An attachment with a namespace and an ADD of PublishPorts, as portmap makes one."""

    def __init__(self, number: int, container_id: str = "", network: str = "net1") -> None:
        self.address = f"{SUBNET}.{number}"
        self.netns = f"/run/netns/c{number}"
        if not os.path.exists(self.netns):
            run(f"ip netns add c{number}")
        self.kernel = Kernel(Attachment(network, container_id or f"c{number}", "eth0"), self.netns)
        self.executor = engine.Executor(self.kernel)
        self.op: publish.PublishPorts | None = None

    @property
    def key(self) -> Attachment:
        return self.kernel.key

    def add(self, *ports: str, condition: str = "", clients: str = "subnet") -> None:
        """`ports` as in "tcp 0.0.0.0:80", leading to port 80; a failure takes everything back, as skel does."""
        texts = [f"{port} to {self.address}:{port.rpartition(':')[2] if '-' in port else 80}" for port in ports]
        self.op = publish.PublishPorts(
            ports=texts,
            addresses=[f"{self.address}/24"],
            clients=clients,
            conditions4=condition,
            conditions6="",
        )
        self.executor = engine.Executor(self.kernel)
        self.executor.begin(self.key, "portmap")
        try:
            self.executor.apply([self.op])
            self.executor.finish()
        except CniError:
            assert self.executor.roll_back() == []
            raise

    def delete(self) -> None:
        record = records.load(self.key, "portmap")
        assert record is None or engine.undo_record(record, self.kernel) == []

    def check(self) -> str | None:
        assert self.op is not None
        return self.op.check(self.kernel)

    def die(self) -> None:
        run(f"ip netns del {os.path.basename(self.netns)}")


def prepare() -> None:
    """A /run of our own, in the namespaces of the test's process."""
    run("mount -t tmpfs tmpfs /run && mkdir /run/netns")


def elements() -> dict[str, object]:
    """What is in our maps, in nft's words, without the layout's mark."""
    listed = json.loads(run("nft -j list table inet cni_py"))["nftables"]
    found = [entry.get("map") or entry.get("set") or {} for entry in listed]
    return {entry["name"]: entry["elem"] for entry in found if entry.get("elem") and entry["name"] != "layout"}


def files() -> list[str]:
    return [f"{folder}/{name}" for folder, _, names in os.walk("/run/cni-py/attachments") for name in names]


def nothing_left() -> bool:
    return elements() == {} and not os.listdir("/run/cni-py/attachments")


def target(port: int, protocol: int = 6) -> str:
    """The container that an unconditional mapping of any address leads to, "" for none."""
    key = nf_tables.concat(bytes((protocol,)), port.to_bytes(2, "big"))
    found = nf_tables.Nft().get("any4", (key,)).get(key)
    return ".".join(map(str, found.value[:4])) if found and isinstance(found.value, bytes) else ""


@pytest.mark.netns
def test_everything_comes_and_goes() -> None:
    prepare()
    one = Container(1)
    one.add(
        "tcp 0.0.0.0:8080", "udp 0.0.0.0:8080", "tcp 192.0.2.1:80", "tcp 127.0.0.1:80", "tcp 0.0.0.0:7000-7063",
        "tcp 0.0.0.0:65000-65535",
    )  # fmt: skip
    assert one.check() is None
    names = {"any4", "specific4", "claims4", "range4_tcp", "hairpin4"}
    assert elements().keys() == names
    first = elements()
    one.add("tcp 0.0.0.0:8080")  # the same again is no conflict with itself
    assert elements() == first
    one.delete()
    assert nothing_left()
    one.delete()


@pytest.mark.netns
@pytest.mark.parametrize(
    ("held", "wanted", "conflict"),
    [
        ("tcp 0.0.0.0:80", "tcp 0.0.0.0:80", True),
        ("tcp 0.0.0.0:80", "tcp 192.0.2.1:80", True),
        ("tcp 192.0.2.1:80", "tcp 0.0.0.0:80", True),
        ("tcp 192.0.2.1:80", "tcp 192.0.2.1:80", True),
        ("tcp 192.0.2.1:80", "tcp 192.0.2.2:80", False),
        ("tcp 0.0.0.0:80", "udp 0.0.0.0:80", False),
        ("tcp 0.0.0.0:80", "tcp 0.0.0.0:81", False),
        ("tcp 0.0.0.0:7000-7100", "tcp 0.0.0.0:7050", True),
        ("tcp 0.0.0.0:7000-7100", "tcp 192.0.2.1:7050", True),
        ("tcp 0.0.0.0:7050", "tcp 0.0.0.0:7000-7100", True),
        ("tcp 192.0.2.1:7050", "tcp 0.0.0.0:7000-7100", True),
        ("tcp 0.0.0.0:7000-7100", "tcp 0.0.0.0:7100-7200", True),
        ("tcp 0.0.0.0:7000-7100", "tcp 0.0.0.0:7101-7200", False),
        ("tcp 0.0.0.0:7000-7100", "udp 0.0.0.0:7000-7100", False),
        ("tcp 0.0.0.0:7050", "tcp 0.0.0.0:1-65535", True),
        ("tcp 0.0.0.0:1-65535", "tcp 0.0.0.0:65535", True),
        ("tcp 0.0.0.0:1-65471", "tcp 0.0.0.0:65472-65535", False),
    ],
)
def test_ports_conflict_as_bind_sees_them(held: str, wanted: str, conflict: bool) -> None:
    prepare()
    one, two = Container(1), Container(2)
    one.add(held, "sctp 0.0.0.0:9000")
    before = elements()
    if conflict:
        with pytest.raises(PortInUse, match="in use by net1/c1/eth0") as refused:
            two.add("sctp 0.0.0.0:9001", wanted)
        assert refused.value.code == 110
        assert elements() == before
    else:
        two.add(wanted)
        assert two.check() is None
        two.delete()
    assert elements() == before
    assert one.check() is None
    one.delete()
    assert nothing_left()


@pytest.mark.netns
@pytest.mark.parametrize("how", ["namespace gone", "another namespace there", "no record"])
@pytest.mark.parametrize("port", ["tcp 0.0.0.0:80", "tcp 192.0.2.1:80", "tcp 0.0.0.0:7000-7100"])
def test_dead_holder_is_replaced_and_its_delete_spares_the_living(how: str, port: str) -> None:
    prepare()
    dead, living = Container(1), Container(2)
    dead.add(port, "tcp 0.0.0.0:9000")
    record = Record(dead.key, "portmap")
    if how == "no record":
        record.remove()
    else:
        dead.die()
    if how == "another namespace there":
        run("ip netns add c1")
    living.add(port)
    assert living.check() is None
    assert dead.op is not None
    dead.op.undo(dead.kernel)
    assert living.check() is None
    record.remove()
    living.delete()
    assert nothing_left()


@pytest.mark.netns
def test_specific_addresses_of_a_port_are_counted() -> None:
    prepare()
    containers = [Container(number) for number in (1, 2, 3)]
    for number, container in enumerate(containers):
        container.add(f"tcp 192.0.2.{number}:80")
    for container in containers:
        with pytest.raises(PortInUse):
            Container(9).add("tcp 0.0.0.0:80")
        container.delete()
    Container(9).add("tcp 0.0.0.0:80")
    Container(9).delete()
    assert nothing_left()


@pytest.mark.netns
@pytest.mark.parametrize("port", ["tcp 0.0.0.0:80", "tcp 192.0.2.1:80", "tcp 0.0.0.0:7000-7100"])
def test_next_attachment_of_the_same_container_takes_over(port: str) -> None:
    prepare()
    first, second, third = (Container(n, "pod", f"net{n}") for n in (1, 2, 3))
    first.add(port)
    second.add(port, "udp 0.0.0.0:53")
    third.add(port)
    assert [container.check() for container in (first, second, third)] == [None, None, None]
    assert target(80) == ("198.51.100.1" if port == "tcp 0.0.0.0:80" else "")
    first.delete()
    assert target(80) == ("198.51.100.2" if port == "tcp 0.0.0.0:80" else "")
    assert second.check() is None
    assert third.check() is None
    with pytest.raises(PortInUse, match="net2/pod/eth0"):
        Container(9).add(port)
    second.delete()
    assert target(80) == ("198.51.100.3" if port == "tcp 0.0.0.0:80" else "")
    assert third.check() is None
    assert third.key.hex in json.dumps(elements())
    assert second.key.hex not in json.dumps(elements())
    third.delete()
    assert nothing_left()


@pytest.mark.netns
def test_heir_that_is_deleted_first_inherits_nothing() -> None:
    prepare()
    first, second = Container(1, "pod", "net1"), Container(2, "pod", "net2")
    first.add("tcp 0.0.0.0:80")
    second.add("tcp 0.0.0.0:80")
    second.delete()
    assert not [path for path in files() if "heirs" in path]
    first.delete()
    assert nothing_left()


@pytest.mark.netns
@pytest.mark.parametrize("port", ["tcp 0.0.0.0:80", "tcp 192.0.2.1:80"])
def test_heir_takes_over_under_conditions_whose_chain_nobody_needed_yet(port: str) -> None:
    prepare()
    first, second = Container(1, "pod", "net1"), Container(2, "pod", "net2")
    first.add(port)
    second.add(port, condition="ip saddr 203.0.113.0/24", clients="none")
    first.delete()
    assert second.check() is None
    second.delete()
    assert nothing_left()


@pytest.mark.netns
def test_ports_are_withdrawn_even_when_the_heir_cannot_have_them() -> None:
    prepare()
    first, second = Container(1, "pod", "net1"), Container(2, "pod", "net2")
    first.add("tcp 0.0.0.0:80")
    second.add("tcp 0.0.0.0:80", condition="ip saddr 203.0.113.0/24", clients="none")
    libnftables.FOLDERS = ("/nowhere", "/nowhere")  # this process is ours alone
    sys.modules.pop("nftables", None)
    first.delete()
    assert first.key.hex not in json.dumps(elements())
    second.delete()
    assert nothing_left()


@pytest.mark.netns
def test_heir_on_any_address_of_a_holder_on_one_is_forgotten_too() -> None:
    prepare()
    first, second = Container(1, "pod", "net1"), Container(2, "pod", "net2")
    first.add("tcp 192.0.2.1:80")
    second.add("tcp 0.0.0.0:80")
    second.delete()
    assert not [path for path in files() if "heirs" in path]
    second.add("tcp 0.0.0.0:81")
    first.delete()
    assert target(80) == ""
    second.delete()
    assert nothing_left()


@pytest.mark.netns
def test_garbage_collection_without_nf_tables_finds_nothing() -> None:
    prepare()

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "as nfnetlink says it when nf_tables is missing")

    netlink.Socket.request = refuse  # type: ignore[assignment, method-assign]  # this process is ours alone
    kernel = Kernel(Attachment("net1", "c1", "eth0"), "")
    sweep(kernel, "net1", [], ("masquerade4", nf_tables.INET))
    successors.sweep_ports(kernel, "net1", [])
    successors.sweep_ports(kernel, "net1", [], kernel.key.hex)


@pytest.mark.netns
def test_heir_does_not_get_what_a_third_party_holds() -> None:
    prepare()
    first, second, third = Container(1, "pod", "net1"), Container(2, "pod", "net2"), Container(3)
    first.add("tcp 0.0.0.0:80", "tcp 0.0.0.0:81")
    second.add("tcp 0.0.0.0:80", "tcp 0.0.0.0:81")
    run("nft flush map inet cni_py claims4; nft flush map inet cni_py any4")
    third.add("tcp 0.0.0.0:80")
    first.delete()
    assert (target(80), target(81)) == ("198.51.100.3", "198.51.100.2")
    second.delete()
    third.delete()
    assert nothing_left()


CONDITION = "ip saddr 192.0.2.0/24"


@pytest.mark.netns
@pytest.mark.parametrize("port", ["tcp 0.0.0.0:80", "tcp 192.0.2.1:80"])
def test_conditions_have_one_chain_and_their_ports_conflict_too(port: str) -> None:
    prepare()
    one, two = Container(1), Container(2)
    one.add(port, condition=CONDITION)
    assert one.check() is None
    two.add("tcp 0.0.0.0:81", condition=CONDITION)
    chains = [line for line in run("nft list table inet cni_py").splitlines() if "chain conditions" in line]
    assert len(chains) == 1
    with pytest.raises(PortInUse, match="net1/c1/eth0"):
        Container(3).add("tcp 0.0.0.0:80")
    one.die()
    three = Container(3)
    three.add(port, condition="ip saddr 192.0.2.5")
    assert three.check() is None
    three.delete()
    two.delete()
    one.delete()
    assert nothing_left()


@pytest.mark.netns
def test_conditions_that_nft_does_not_know_are_refused_as_configuration() -> None:
    prepare()
    with pytest.raises(CniError, match="does not take the conditions") as refused:
        Container(1).add("tcp 0.0.0.0:80", condition="ip saddr nonsense/99" + " or" * 999)
    assert refused.value.code == 7
    assert refused.value.details.startswith('"ip saddr nonsense/99 or')
    assert len(refused.value.details) < 500
    assert nothing_left()


@pytest.mark.netns
def test_check_sees_what_is_lost() -> None:
    prepare()
    one = Container(1)
    for name, damage in (
        ("any4", "flush map inet cni_py any4"),
        ("claims4", "flush map inet cni_py claims4"),
        ("hairpin4", "flush map inet cni_py hairpin4"),
        ("table", "delete table inet cni_py"),
    ):
        one.add("tcp 0.0.0.0:80")
        assert one.check() is None
        run(f"nft {damage}")
        assert one.check() is not None, name
        one.delete()
        run("nft delete table inet cni_py || true")


@pytest.mark.netns
@pytest.mark.parametrize("make", ["masquerade", "spoof check"])
def test_single_elements_are_owned_replaced_and_spared(make: str) -> None:
    prepare()
    made: Callable[[str], list[engine.Op]] = {
        "masquerade": lambda _: masquerade.masquerade(
            [parse_address("198.51.100.7/24"), parse_address("2001:db8::7/64")]
        ),
        "spoof check": lambda name: spoof_check.spoof_check("veth0", bytes.fromhex("020000000001")),
    }[make]
    old, new = Kernel(Attachment("n", "old", "eth0"), ""), Kernel(Attachment("n", "new", "eth0"), "")
    ops = made("x")
    for op in ops:
        assert op.check(old) is not None
        op.undo(old)  # nothing there, not even a table
        assert op.apply(old) is True
        assert op.apply(old) is False
        assert op.check(old) is None
        assert engine.op_from_json(op.to_json()) == op
        assert op.apply(new) is True
        op.undo(old)
        assert op.check(new) is None
        op.undo(new)
        assert op.check(new) is not None


@pytest.mark.netns
def test_garbage_is_found_by_comment_where_no_record_is() -> None:
    prepare()
    stale, living, other = Container(1), Container(2), Container(3, network="net2")
    for number, container in enumerate((stale, living, other)):
        container.add(
            f"tcp 0.0.0.0:{80 + number}", f"tcp 192.0.2.{number}:90", f"udp 0.0.0.0:{number + 1}000-{number + 1}100"
        )
    masquerade.masquerade([parse_address("198.51.100.1/24")])[0].apply(stale.kernel)
    Record(stale.key, "portmap").remove()
    kernel = Kernel(Attachment("net1", "", ""), "")
    successors.sweep_ports(kernel, "net1", [living.key])
    sweep(kernel, "net1", [living.key], ("masquerade4", nf_tables.INET))
    assert stale.key.hex not in run("nft list table inet cni_py")
    assert living.check() is None
    assert other.check() is None
    living.delete()
    other.delete()
    assert nothing_left()


class CountingSocket(netlink.Socket):
    """Counts the messages it sends."""

    __slots__ = ()
    sent = 0

    def batch(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        CountingSocket.sent += len(messages)
        super().batch(messages)

    def request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        CountingSocket.sent += 1
        return super().request(kind, flags, body)


@pytest.mark.netns
def test_add_and_delete_of_ten_ports_cost_the_same_messages_at_any_number_of_containers() -> None:
    prepare()
    Container(1).add("tcp 0.0.0.0:1")  # makes table and chain
    costs = set()
    for number in range(2, 22):
        container = Container(number)
        container.kernel.nft._socket = CountingSocket(netlink.NETLINK_NETFILTER)
        CountingSocket.sent = 0
        ports = [f"tcp 0.0.0.0:{number * 100 + port}" for port in range(10)]
        container.add(*ports)
        added = CountingSocket.sent
        container.delete()
        costs.add((added, CountingSocket.sent - added))
        container.add(*ports)
    assert len(costs) == 1
    [(added, deleted)] = costs
    # does iptables publish, for each family; do newer Go plugins, for its own; is the table there; are there ranges; claims,
    # targets, the container's address
    assert added == 2 + 1 + 1 + 1 + 3
    assert deleted == 3 + 3  # what is there of these; take them out


@pytest.mark.netns
def test_all_ports_cost_the_messages_and_elements_of_one_range() -> None:
    prepare()
    Container(1).add("udp 0.0.0.0:1")  # makes table and chain
    few, all_ports = Container(2), Container(3)
    costs = []
    for container, ports in ((few, "tcp 0.0.0.0:7000-7063"), (all_ports, "tcp 0.0.0.0:1-65535")):
        container.kernel.nft._socket = CountingSocket(netlink.NETLINK_NETFILTER)
        CountingSocket.sent = 0
        container.add(ports)
        assert container.check() is None
        [found] = [entry for name, entry in elements().items() if name == "range4_tcp"]
        assert len(found) == 1  # type: ignore[arg-type]
        assert container.key.hex not in run("nft list map inet cni_py claims4")
        container.delete()
        costs.append(CountingSocket.sent)
    assert costs[0] == costs[1] < 20


@pytest.mark.netns
def test_range_of_the_version_before_conflicts_and_goes_with_its_claims() -> None:
    prepare()
    old, new = Container(1), Container(2)
    old.add("tcp 0.0.0.0:7000-7100")
    for port in range(7000, 7101):  # which the version before put beside the interval
        run(f"nft 'add element inet cni_py claims4 {{ tcp . {port} comment \"{old.key.comment}\" : 0 }}'")
    for wanted in ("tcp 0.0.0.0:7050", "tcp 192.0.2.1:7050", "tcp 0.0.0.0:7100-7200"):
        with pytest.raises(PortInUse, match="net1/c1/eth0"):
            new.add(wanted)
    assert old.check() is None
    old.delete()
    assert nothing_left()


@pytest.mark.netns
def test_range_and_its_ports_are_taken_over_by_the_next_network() -> None:
    prepare()
    first, second, third = (Container(n, "pod", f"net{n}") for n in (1, 2, 3))
    first.add("tcp 0.0.0.0:7000-7100")
    second.add("tcp 0.0.0.0:7050", "tcp 192.0.2.1:7060")
    third.add("tcp 0.0.0.0:7040-7200")
    assert [container.check() for container in (first, second, third)] == [None, None, None]
    first.delete()
    assert second.check() is None
    assert target(7050) == "198.51.100.2"
    assert elements().keys() >= {"any4", "specific4"}
    second.delete()
    assert third.check() is None
    assert "range4_tcp" in elements()
    third.delete()
    assert nothing_left()


@pytest.mark.netns
def test_damaged_record_still_leads_to_an_empty_table() -> None:
    prepare()
    one = Container(1)
    one.add("tcp 0.0.0.0:80", "tcp 0.0.0.0:7000-7100", "udp 192.0.2.1:53")
    record = records.load(one.key, "portmap")
    assert record is not None
    record.ops = [{**entry, "ports": "nonsense"} for entry in record.ops if isinstance(entry, dict)]
    record.save()
    assert not engine.is_whole(record)
    one.delete()
    withdraw_unrecorded(one.kernel, one.key.hex)  # as DEL does then
    assert nothing_left()
