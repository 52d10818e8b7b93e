"""The index of published ports: two names for each entry, damage, and an index made anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cni_py import files
from cni_py.attachment import naming, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.ports import index, survey
from cni_py.ports.index import ListPublication
from cni_py.ports.publication import Publication

KEY = Attachment("net1", "c1", "eth0")
OTHER = Attachment("net2", "c1", "eth0")
ADDRESSES = ["192.0.2.5", "2001:db8::5"]


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No packet filter and no portfwd is asked: the records alone are the source."""
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path))
    for source in ("of_nftables", "of_iptables", "of_go_tables", "of_portfwd"):
        monkeypatch.setattr(survey, source, lambda _kernel: iter(()))
    return tmp_path / "published"


def kernel(key: Attachment = KEY) -> Kernel:
    return Kernel(key, "")


def listed(name: str) -> list[tuple[str, set[str]]]:
    return [(one.hex, one.addresses) for one in index.holders(name, kernel())]


def test_an_entry_has_the_names_of_the_addresses_and_of_the_interface(top: Path) -> None:
    op = ListPublication(addresses=ADDRESSES)
    op.apply(kernel())
    for name in (*ADDRESSES, naming.interface_name(KEY)):
        assert files.may_be_published(name)
        assert listed(name) == [(KEY.hex, set(ADDRESSES))]
    assert not files.may_be_published("192.0.2.6")
    assert listed("192.0.2.6") == []
    op.undo(kernel())
    op.undo(kernel())
    assert os.listdir(top) == []


def test_networks_of_one_interface_have_one_folder_and_two_entries(top: Path) -> None:
    for key in (KEY, OTHER):
        ListPublication(addresses=ADDRESSES).apply(kernel(key))
    assert naming.interface_name(KEY) == naming.interface_name(OTHER)
    assert {hexed for hexed, _ in listed(naming.interface_name(KEY))} == {KEY.hex, OTHER.hex}
    ListPublication(addresses=ADDRESSES).undo(kernel(OTHER))
    assert [hexed for hexed, _ in listed("192.0.2.5")] == [KEY.hex]
    assert len(os.listdir(top)) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"network": 7}', '{"network":"a","containerID":"b","ifname":"c"}'])
def test_a_damaged_entry_still_names_its_attachment_and_address(top: Path, text: str) -> None:
    ListPublication(addresses=ADDRESSES).apply(kernel())
    (top / "192.0.2.5" / KEY.hex).write_text(text)
    (found,) = index.holders("192.0.2.5", kernel())
    assert (found.hex, found.key, found.addresses) == (KEY.hex, None, {"192.0.2.5"})


def test_a_fifo_or_a_link_in_the_place_of_an_entry_hangs_nobody(top: Path) -> None:
    ListPublication(addresses=ADDRESSES).apply(kernel())
    os.mkfifo(top / "192.0.2.5" / OTHER.hex)
    (top / "192.0.2.5" / ("0" * 16)).symlink_to("/dev/zero")
    assert {hexed for hexed, _ in listed("192.0.2.5")} == {KEY.hex, OTHER.hex, "0" * 16}


def test_a_folder_in_the_place_of_an_entry_is_no_obstacle(top: Path) -> None:
    op = ListPublication(addresses=ADDRESSES)
    for _ in range(2):
        (top / "192.0.2.5" / KEY.hex).mkdir(parents=True)
        op.apply(kernel())
        (top / "192.0.2.5" / KEY.hex).unlink()
        (top / "192.0.2.5" / KEY.hex).mkdir()
        op.undo(kernel())
    assert os.listdir(top) == []


def test_an_index_that_is_not_there_is_made_from_the_records(top: Path) -> None:
    record = Record(OTHER, "portmap")
    record.ops = [
        {"op": "PublishPorts", "addresses": "192.0.2.5/24 2001:db8::5/64"},
        {"op": "GuardAddress", "address": "192.0.2.7"},
        "nonsense",
    ]
    record.save()
    record.finish()
    assert files.may_be_published("198.51.100.1")  # nobody knows yet
    assert listed("198.51.100.1") == []
    assert not files.may_be_published("198.51.100.1")
    for name in ("192.0.2.5", "2001:db8::5", "192.0.2.7", naming.interface_name(OTHER)):
        assert [hexed for hexed, _ in listed(name)] == [OTHER.hex]


def test_an_index_that_cannot_be_written_serves_the_call_at_hand(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ListPublication(addresses=ADDRESSES).apply(kernel())
    record = Record(KEY, "portmap")
    record.ops = [{"op": "PublishPorts", "addresses": ["192.0.2.5/24"]}]
    record.save()
    os.rename(top, top.with_name("elsewhere"))
    monkeypatch.setattr(index, "write", full)
    assert listed("192.0.2.5") == [(KEY.hex, {"192.0.2.5"})]
    assert not top.exists()


def test_gc_forgets_what_is_not_valid_in_its_network_alone(top: Path) -> None:
    for key in (KEY, OTHER):
        ListPublication(addresses=ADDRESSES).apply(kernel(key))
    go = Publication(Attachment("net1", "c7", "").hex, Attachment("net1", "c7", ""), {"192.0.2.9"})
    index.write(str(top), go)
    index.sweep("net1", [Attachment("net1", "c7", "eth0")])
    assert {one.hex for one in index.all_holders()} == {OTHER.hex, go.hex}
    index.sweep("net1", [])
    assert {one.hex for one in index.all_holders()} == {OTHER.hex}


@pytest.mark.parametrize("addresses", [["192.0.2.5/24"], ["../../etc"], ["192.0.2.5", "x"]])
def test_a_record_cannot_lead_to_another_path(addresses: list[str]) -> None:
    with pytest.raises(ValueError, match="invalid IP address"):
        ListPublication(addresses=addresses)


@pytest.mark.parametrize(
    ("comment", "known"),
    [(KEY.comment, True), (KEY.comment[:-1], False), ("x" * 16 + " net1/c1/eth0", False), (KEY.hex, False)],
)
def test_a_comment_names_an_attachment_unless_it_was_cut(comment: str, known: bool) -> None:
    hexed, key = records.attachment_in(comment)
    assert hexed == comment[:16]
    assert (key is not None and key.hex == KEY.hex) == known
