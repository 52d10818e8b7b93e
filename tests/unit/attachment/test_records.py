"""Attachment records on disk: names, damage, GC's listing."""

import ctypes
import json
import os
import stat
from hashlib import sha256
from pathlib import Path

import pytest

from cni_py import files
from cni_py.attachment import naming, records
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.errors import CniError

KEY = Attachment("net", "c1", "eth0")


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path))
    return tmp_path


def test_names_derive_from_network_container_and_interface() -> None:
    digits = sha256(b"net\0c1\0eth0").hexdigest()[:16]
    assert KEY.hex == digits
    assert KEY.host_veth == f"veth{digits[:8]}"
    assert KEY.comment == f"{digits} net/c1/eth0"
    assert len(Attachment("n" * 100, "c" * 100, "eth0").comment) == 128
    assert KEY.mac("host") != KEY.mac("container")
    assert KEY.mac("host")[0] == 2
    assert KEY.mac("host") == Attachment("net", "c1", "eth0").mac("host")


@pytest.mark.netns
def test_macs_are_of_the_network_namespace_that_they_are_derived_in() -> None:
    here = [KEY.mac("host"), naming.derived_mac("bridge/br0")]
    assert here == [KEY.mac("host"), naming.derived_mac("bridge/br0")]
    fd = os.open("/proc/self/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x40000000) == 0  # CLONE_NEWNET
    there = [KEY.mac("host"), naming.derived_mac("bridge/br0")]
    assert libc.setns(fd, 0) == 0
    os.close(fd)
    assert not set(here) & set(there)
    assert here == [KEY.mac("host"), naming.derived_mac("bridge/br0")]


def test_a_record_round_trips_and_is_private() -> None:
    record = Record(KEY, "bridge")
    record.netns, record.container_cookie, record.host_cookie = "/run/netns/x", 5, 1
    record.ops = [{"op": "AddVeth"}]
    record.save()
    path = Path(record.path + ".adding")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    record.finish()
    again = records.load(KEY, "bridge")
    assert again is not None
    assert (again.done, again.netns, again.container_cookie, again.host_cookie) == (True, "/run/netns/x", 5, 1)
    assert again.ops == [{"op": "AddVeth"}]


def test_folders_above_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.make_folder(f"{tmp_path}/a/b")
        files.make_folders(f"{tmp_path}/c/d/", 0o755)
        files.make_folder(f"{tmp_path}/a/b")
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b", "c", "c/d")}
    assert modes == {"a": 0o700, "a/b": 0o700, "c": 0o755, "c/d": 0o755}
    (tmp_path / "file").touch()
    with pytest.raises(CniError):
        files.make_folder(f"{tmp_path}/file")


def test_comment_is_cut_in_bytes_and_is_always_utf8() -> None:
    comment = Attachment("n" * 101, "c", "é" * 7).comment.encode()
    assert len(comment) == 127
    assert comment.endswith("é".encode())
    assert Attachment("n", "c", os.fsdecode(b"e\xff")).comment.encode().endswith(b" n/c/e?")


def test_an_unfinished_record_hides_the_finished_one() -> None:
    record = Record(KEY, "bridge")
    record.save()
    record.finish()
    record.save()
    again = records.load(KEY, "bridge")
    assert again is not None
    assert not again.done


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"schema":99}', b'{"schema":1,"ops":3}', b"\xff\xfe", b"null"])
def test_a_damaged_record_still_says_that_something_was_made(text: bytes) -> None:
    record = Record(KEY, "bridge")
    record.save()
    record.finish()
    Path(record.path + ".json").write_bytes(text)
    again = records.load(KEY, "bridge")
    assert again is not None
    assert again.ops == []


def test_removing_the_last_record_removes_the_folder() -> None:
    bridge, portmap = Record(KEY, "bridge"), Record(KEY, "portmap")
    bridge.save()
    portmap.save()
    bridge.remove()
    assert os.listdir(KEY.folder) == ["portmap.adding"]
    portmap.remove()
    assert not os.path.exists(KEY.folder)
    portmap.remove()


def test_gc_sees_the_records_of_one_plugin_and_network_only(run_dir: Path) -> None:
    for network, container_id, plugin in (
        ("a", "c1", "bridge"),
        ("a", "c2", "bridge"),
        ("b", "c1", "bridge"),
        ("a", "c3", "portmap"),
    ):
        record = Record(Attachment(network, container_id, "eth0"), plugin)
        record.save()
        record.finish()
    forged = run_dir / "attachments" / "0123456789abcdef"
    forged.mkdir()
    (forged / "bridge.json").write_text(json.dumps({"schema": 1, "network": "a", "containerID": "x", "ifname": "eth0"}))
    assert sorted(key.container_id for key in records.keys_of("a", "bridge")) == ["c1", "c2"]


@pytest.mark.parametrize("what", ["fifo", "folder", "link", "huge"])
def test_what_is_no_ordinary_file_of_ours_is_not_read(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "link":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(files.FILE_MAX + 1)
    with pytest.raises(OSError, match=r"."):
        files.read(str(path))


def test_a_file_is_written_over_whatever_a_killed_call_left(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file.tmp")
    files.write(str(tmp_path / "file"), b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


# The record of a chain


def chain_record(*ops: tuple[str, str]) -> Record:
    record = Record(KEY, "chain")
    record.netns, record.container_cookie, record.host_cookie = "/run/netns/x", 5, 1
    record.ops = [{"op": op, **({"plugin": plugin} if plugin else {})} for op, plugin in ops]
    record.save()
    record.finish()
    return record


def test_a_plugin_has_a_part_of_a_chains_record_and_takes_it_out() -> None:
    chain_record(("AddVeth", "bridge"), ("PublishPorts", "portmap"), ("TuneLink", "bridge"))
    for plugin, ops in (("bridge", ["AddVeth", "TuneLink"]), ("portmap", ["PublishPorts"])):
        (listed,) = records.all_records(plugin)
        part = records.load(KEY, plugin)
        assert part is not None
        assert [op["op"] for op in part.ops if isinstance(op, dict)] == ops
        assert (part.netns, part.container_cookie, part.done, part.file) == ("/run/netns/x", 5, True, "chain")
        assert (listed.key.label, listed.ops) == (KEY.label, part.ops)
        part.remove()
        assert records.load(KEY, plugin) is None
    assert records.load(KEY, "tuning") is None
    assert not os.path.exists(KEY.folder)


def test_a_record_of_its_own_comes_before_a_part() -> None:
    chain_record(("AddVeth", "bridge"))
    own = Record(KEY, "bridge")
    own.ops = [{"op": "AddMacvlan"}]
    own.save()
    assert records.file_of(KEY.hex, "bridge") == "bridge"
    assert records.file_of(KEY.hex, "portmap") == "chain"
    for ops in ([{"op": "AddMacvlan"}], [{"op": "AddVeth", "plugin": "bridge"}]):
        found = records.load(KEY, "bridge")
        assert found is not None
        assert found.ops == ops
        found.remove()
    assert not os.path.exists(KEY.folder)


def test_a_damaged_record_of_a_chain_is_a_part_of_every_plugin_and_stays_until_the_chain_goes() -> None:
    path = Path(chain_record(("AddVeth", "bridge")).path + ".json")
    path.write_text("{")
    for plugin in ("bridge", "portmap"):
        part = records.load(KEY, plugin)
        assert part is not None
        assert part.damage
        part.remove()
    assert path.exists()
    Record(KEY, "chain").remove()
    assert not path.exists()


def test_an_operation_that_names_no_plugin_goes_with_the_last_part() -> None:
    chain_record(("Nonsense", ""), ("AddVeth", "bridge"), ("PublishPorts", "portmap"))
    for plugin, count in (("portmap", 2), ("bridge", 2)):
        part = records.load(KEY, plugin)
        assert part is not None
        assert len(part.ops) == count
        part.remove()
    assert not os.path.exists(KEY.folder)
