"""The directory of reservations: its form, its index, what is reclaimed, and what a call costs."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni_py import files
from cni_py.addr import ip_text, parse_address, parse_ip
from cni_py.attachment import naming
from cni_py.errors import TryAgainLater
from cni_py.ipam import reservations
from cni_py.ipam.ranges import Range, choose
from cni_py.ipam.reservations import OPERATOR, STAMP, DirectoryLock, Pool, ReserveAddress, holder, is_over


class Machine:
    """What the tests decide about the machine: its boot, and where the index is."""

    def __init__(self, tmp: Path) -> None:
        self.boot = "boot-1"
        self.run = tmp / "run"
        self.directory = tmp / "networks" / "net1"

    def reboot(self) -> None:
        """Another boot id; /run is empty again."""
        self.boot += "1"
        self.run = self.run.with_name("run-" + self.boot)

    def pool(self, **modes: bool) -> Pool:
        return Pool(str(self.directory), **(modes or {"make": True}))

    def by_go(self, name: str, content: str) -> Path:
        """What the Go plugin would have done, behind our back."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / name
        path.write_bytes(content.encode())
        return path

    def files(self) -> dict[str, str]:
        return {path.name: path.read_bytes().decode() for path in self.directory.iterdir() if path.is_file()}

    def reserve(self, address: str, container_id: str) -> None:
        with self.pool() as pool:
            pool.reserve(address, holder(container_id, "eth0"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(tmp_path)
    monkeypatch.setattr(files, "run_dir", lambda: str(found.run))
    monkeypatch.setattr(naming, "boot_id", lambda: found.boot)
    monkeypatch.setattr(reservations, "MACHINE_ID", str(tmp_path / "machine-id"))
    (tmp_path / "machine-id").write_text("0123456789abcdef\n")
    return found


def op(machine: Machine, address: str, container_id: str = "c1") -> ReserveAddress:
    return ReserveAddress(
        directory=str(machine.directory), range_set=0, address=address, container_id=container_id, ifname="eth0"
    )


def test_the_directory_has_the_form_of_the_go_plugin_and_nothing_else(machine: Machine) -> None:
    op(machine, "10.1.2.2").apply(None)  # type: ignore[arg-type]  # the operation does not look at the kernel
    op(machine, "fd00::2", "c2").apply(None)  # type: ignore[arg-type]  # as above
    assert machine.files() == {
        "lock": "", "10.1.2.2": "c1\r\neth0", "fd00::2": "c2\r\neth0", "last_reserved_ip.0": "fd00::2",
    }  # fmt: skip
    modes = {path.name: path.stat().st_mode & 0o777 for path in machine.directory.iterdir()}
    assert modes == {"lock": 0o750, "10.1.2.2": 0o600, "fd00::2": 0o600, "last_reserved_ip.0": 0o600}


def test_undo_removes_the_reservation_once_and_only_its_own(machine: Machine) -> None:
    mine = op(machine, "10.1.2.2")
    mine.undo(None)  # type: ignore[arg-type]  # there is not even a directory
    mine.apply(None)  # type: ignore[arg-type]  # as above
    op(machine, "10.1.2.2", "c9").undo(None)  # type: ignore[arg-type]  # as above
    assert "10.1.2.2" in machine.files()
    mine.undo(None)  # type: ignore[arg-type]  # as above
    mine.undo(None)  # type: ignore[arg-type]  # as above
    assert machine.files() == {"lock": "", "last_reserved_ip.0": "10.1.2.2"}


def test_an_address_is_reserved_once(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    with machine.pool() as pool:
        assert not pool.is_free(parse_ip("10.1.2.2"))
        with pytest.raises(FileExistsError):
            pool.reserve("10.1.2.2", holder("c2", "eth0"))
    assert machine.files()["10.1.2.2"] == "c1\r\neth0"


def test_a_symlink_in_the_place_of_a_file_is_neither_followed_nor_replaced(machine: Machine, tmp_path: Path) -> None:
    machine.directory.mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("10.1.2.2", "last_reserved_ip.0"):
        (machine.directory / name).symlink_to(outside)
    with machine.pool() as pool:
        assert not pool.is_free(parse_ip("10.1.2.2"))
        assert pool.cursor(0) is None
        with pytest.raises(OSError, match=r"10\.1\.2\.2"):
            pool.reserve("10.1.2.2", b"c1")
        with pytest.raises(OSError, match="last_reserved_ip"):
            pool.move_cursor(0, "10.1.2.2")
    assert outside.read_text() == "precious"


def test_a_lock_file_that_is_a_symlink_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.directory.mkdir(parents=True)
    (machine.directory / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="cannot open the lock file"), machine.pool():
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_what_the_go_plugin_reserves_or_releases_behind_our_back_is_seen(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    machine.by_go("10.1.2.3", "c2\r\neth0")
    with machine.pool() as pool:
        assert pool.of_attachment("c2", "eth0") == (b"c2\r\neth0", ["10.1.2.3"])
    (machine.directory / "10.1.2.2").unlink()
    with machine.pool() as pool:
        assert pool.of_attachment("c1", "eth0")[1] == []


def test_a_change_within_the_same_tick_of_the_kernels_clock_is_seen(machine: Machine) -> None:
    for number in range(2, 60):  # on a coarse clock many of these share one time
        machine.reserve(f"10.1.2.{number}", f"c{number}")
        machine.by_go(f"10.1.3.{number}", f"g{number}\r\neth0")
        with machine.pool() as pool:
            assert pool.of_attachment(f"g{number}", "eth0")[1] == [f"10.1.3.{number}"]


def test_a_reservation_edited_in_place_is_read_anew(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    (machine.directory / "10.1.2.2").write_bytes(b"c2\r\neth0")  # the directory does not change by this
    with machine.pool() as pool:
        assert pool.of_attachment("c1", "eth0")[1] == []
        assert pool.of_attachment("c2", "eth0")[1] == ["10.1.2.2"]


def test_the_old_form_counts_only_where_there_is_no_other(machine: Machine) -> None:
    machine.by_go("10.1.2.5", "c1\n")
    machine.by_go("10.1.2.6", " c1 ")
    machine.by_go("10.1.2.7", "c1\r\neth0")
    machine.by_go("10.1.2.8", "c1\neth0")
    with machine.pool() as pool:
        pool.release(*pool.of_attachment("c1", "eth0"))
        assert pool.of_attachment("c1", "eth0") == (b"c1", ["10.1.2.5", "10.1.2.6"])
        pool.release(*pool.of_attachment("c1", "eth0"))
        assert pool.of_attachment("c1", "eth0")[1] == []
    assert machine.files() == {"lock": "", "10.1.2.8": "c1\neth0"}


def test_files_in_folders_belong_to_it_and_keep_the_index_from_being_trusted(machine: Machine) -> None:
    machine.by_go("readme", "hello")
    (machine.directory / "sub").mkdir()
    machine.reserve("10.1.2.2", "c1")
    (machine.directory / "sub" / "x").write_bytes(b"c1\r\neth0")
    with machine.pool() as pool:
        who, names = pool.of_attachment("c1", "eth0")
        assert names == ["10.1.2.2", "sub/x"]
        pool.release(who, names)
    assert machine.files() == {"lock": "", "readme": "hello"}
    assert list((machine.directory / "sub").iterdir()) == []


def test_without_a_place_for_the_index_everything_still_works(machine: Machine) -> None:
    machine.run.write_text("a file where the folder should be")
    machine.reserve("10.1.2.2", "c1")
    machine.reserve("10.1.2.3", "c2")
    with machine.pool() as pool:
        assert pool.of_attachment("c1", "eth0")[1] == ["10.1.2.2"]
        pool.release(*pool.of_attachment("c2", "eth0"))
    assert set(machine.files()) == {"lock", "10.1.2.2"}


def test_looking_changes_nothing(machine: Machine) -> None:
    with machine.pool(look=True) as pool:
        assert pool.is_free(parse_ip("10.1.2.2"))
        assert pool.of_attachment("c1", "eth0")[1] == []
        assert pool.by_holder() == {}
    assert not machine.directory.exists()
    machine.by_go("10.1.2.2", "c1\r\neth0")
    before = machine.directory.stat()
    with machine.pool(look=True) as pool:
        assert pool.of_attachment("c1", "eth0")[1] == ["10.1.2.2"]
    assert machine.files() == {"10.1.2.2": "c1\r\neth0"}
    assert machine.directory.stat().st_mtime_ns == before.st_mtime_ns
    assert STAMP not in os.listxattr(machine.directory / "10.1.2.2")


def test_a_lock_that_is_held_ends_in_code_11(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    path = str(machine.directory / "lock")
    with DirectoryLock(path, "it"), pytest.raises(TryAgainLater), DirectoryLock(path, "it", 0.05):
        pass


def test_what_an_earlier_boot_reserved_is_reclaimed_and_what_this_one_did_is_not(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    machine.reboot()
    machine.reserve("10.1.2.3", "c2")
    assert set(machine.files()) == {"lock", "10.1.2.3"}
    machine.reserve("10.1.2.2", "c1")  # the same container, restarted
    assert set(machine.files()) == {"lock", "10.1.2.2", "10.1.2.3"}


def test_an_operators_reservation_outlives_a_boot(machine: Machine) -> None:
    for _ in range(2):
        with Pool(str(machine.directory), make=True) as pool:
            if pool.is_free(parse_ip("10.1.2.9")):
                pool.reserve("10.1.2.9", OPERATOR + b"the printer")
        machine.reboot()
    with Pool(str(machine.directory)) as pool:
        assert pool.by_holder() == {b"operator: the printer": ["10.1.2.9"]}


def test_a_reservation_of_the_go_plugin_is_reclaimed_only_if_it_was_seen_in_an_earlier_boot(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    seen = machine.by_go("10.1.2.3", "g1\r\neth0")
    machine.reserve("10.1.2.4", "c2")  # sees it
    unseen = machine.by_go("10.1.2.5", "g2\r\neth0")
    os.utime(unseen, (0, 0))  # however old it looks
    machine.reboot()
    alive = machine.by_go("10.1.2.6", "g3\r\neth0")  # before our first call in this boot
    machine.reserve("10.1.2.7", "c3")
    assert (seen.exists(), unseen.exists(), alive.exists()) == (False, True, True)
    machine.reboot()
    machine.reserve("10.1.2.8", "c4")
    assert set(machine.files()) == {"lock", "10.1.2.8"}


def test_a_name_taken_again_by_the_go_plugin_in_this_boot_is_alive(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    machine.reboot()
    (machine.directory / "10.1.2.2").unlink()
    machine.by_go("10.1.2.2", "c1\r\neth0")
    machine.reserve("10.1.2.3", "c2")
    assert "10.1.2.2" in machine.files()


def test_the_clock_decides_nothing(machine: Machine) -> None:
    machine.reserve("10.1.2.2", "c1")
    for when in (0, 2_000_000_000, 4_000_000_000):
        os.utime(machine.directory / "10.1.2.2", (when, when))
        os.utime(machine.directory, (when, when))
        machine.run = machine.run.with_name(f"run-{when}")  # the index is lost, the boot is the same
        machine.reserve(f"10.1.3.{when % 251}", f"d{when}")
        assert "10.1.2.2" in machine.files()


@pytest.mark.parametrize(
    ("stamp", "now", "over"),
    [
        ("m1/b1", "m1/b2", True),
        ("m1/b1", "m1/b1", False),
        ("m2/b1", "m1/b2", False),  # shared storage: that machine may be up
        ("/b1", "/b2", True),
        ("/b1", "m1/b2", False),
        ("m1/b1", "", False),  # no /proc: nothing can be said
        ("", "m1/b2", False),
        ("m1/", "m1/b2", False),
        ("m1", "m1/b2", False),
    ],
)
def test_a_stamp_is_over_only_by_proof(stamp: str, now: str, over: bool) -> None:
    assert is_over(stamp, now) is over


def test_without_extended_attributes_nothing_is_reclaimed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", unsupported)
    machine.reserve("10.1.2.2", "c1")
    machine.reboot()
    machine.reserve("10.1.2.3", "c2")
    assert set(machine.files()) == {"lock", "10.1.2.2", "10.1.2.3"}


def test_an_empty_file_left_by_a_power_loss_does_not_hold_its_address(machine: Machine) -> None:
    machine.by_go("10.1.2.2", "")
    with machine.pool() as pool:
        assert pool.is_free(parse_ip("10.1.2.2"))
        pool.reserve("10.1.2.2", holder("c1", "eth0"))
    assert machine.files()["10.1.2.2"] == "c1\r\neth0"


def test_a_failed_write_leaves_no_file(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with machine.pool() as pool, pytest.raises(OSError, match="No space left"):
        pool.reserve("10.1.2.2", b"c1")
    assert set(machine.files()) == {"lock"}


def test_the_cursor_survives_garbage_and_a_longer_predecessor(machine: Machine) -> None:
    machine.by_go("last_reserved_ip.0", "zzz")
    with machine.pool() as pool:
        assert pool.cursor(0) is None
        pool.move_cursor(0, "10.1.2.200")
        pool.move_cursor(0, "10.1.2.3")
        assert pool.cursor(0) == parse_ip("10.1.2.3")
    assert machine.files()["last_reserved_ip.0"] == "10.1.2.3"


class CountedOs:
    """The module os, counting what is called."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        if callable(getattr(os, name)):
            self.calls[name] += 1
        return getattr(os, name)


def fill(machine: Machine, count: int) -> None:
    for number in range(count):
        machine.by_go(ip_text((0x0A010002 + number).to_bytes(4, "big")), f"old{number}\r\neth0")
    machine.by_go("last_reserved_ip.0", ip_text((0x0A010001 + count).to_bytes(4, "big")))
    with machine.pool():
        pass  # the one scan that is needed when the directory is not known


def add_and_delete(machine: Machine) -> None:
    ranges = [Range(parse_address("10.1.0.0/16"))]
    with machine.pool() as pool:
        assert pool.of_attachment("c1", "eth0")[1] == []
        address = ip_text(choose(ranges, None, pool.cursor(0), pool.is_free)[0])
        op(machine, address).apply(None)  # type: ignore[arg-type]  # the operation does not look at the kernel
    with machine.pool() as pool:
        pool.release(*pool.of_attachment("c1", "eth0"))
    assert address not in machine.files()


def test_an_add_and_a_del_cost_the_same_whatever_the_pool_holds(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = []
    for count in (10, 5000):
        machine.directory = machine.directory.with_name(f"net{count}")
        fill(machine, count)
        counted = CountedOs()
        monkeypatch.setattr(reservations, "os", counted)
        add_and_delete(machine)
        monkeypatch.setattr(reservations, "os", os)
        costs.append(counted.calls)
    assert costs[0] == costs[1]
    assert costs[0]["scandir"] == costs[0]["listdir"] == 0
    assert costs[0]["open"] <= 12


def children(count: int, work: "object") -> Iterator[int]:
    """Exit statuses of `count` forked processes that all do `work(number)` at once."""
    start, go = os.pipe()
    pids = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(go)
                os.read(start, 1)  # until the parent closes its end
                work(number)  # type: ignore[operator]  # a callable
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(start)
    os.close(go)
    for pid in pids:
        yield os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_fifty_processes_at_once_get_fifty_addresses(machine: Machine) -> None:
    ranges = [Range(parse_address("10.1.2.0/24"))]

    def add(number: int) -> None:
        with machine.pool() as pool:
            address = ip_text(choose(ranges, None, pool.cursor(0), pool.is_free)[0])
            op(machine, address, f"c{number}").apply(None)  # type: ignore[arg-type]  # as above

    def delete(number: int) -> None:
        with machine.pool() as pool:
            pool.release(*pool.of_attachment(f"c{number}", "eth0"))

    assert list(children(50, add)) == [0] * 50
    with machine.pool() as pool:
        assert sorted(len(names) for names in pool.by_holder().values()) == [1] * 50
    assert set(machine.files()) == {"lock", "last_reserved_ip.0", *(f"10.1.2.{number}" for number in range(2, 52))}
    assert list(children(50, delete)) == [0] * 50
    assert set(machine.files()) == {"lock", "last_reserved_ip.0"}
