"""Restoring what firewalld forgot, where it does not answer."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.firewalld import zones
from cni_py.firewalld.sources import BindSource
from cni_py.restore import sources
from cni_py.restore.outcome import Restored
from tests.unit.firewalld.fake_bus import GREETING, HELLO, LIMIT_S, FakeBus, message, text

OWNED = message(2, 2, "s", text(b":1.2")) + message(2, 3, "u", struct.pack("<I", 1))  # firewalld, and its process


def test_a_firewalld_that_does_not_answer_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeBus(tmp_path)
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", fake.answer(GREETING + HELLO + OWNED))
    monkeypatch.setattr(zones, "DAEMON_S", 0.2)
    found = []
    for number in (2, 3, 4):
        key = Attachment("lab", f"c{number}", "eth0")
        record = Record(key, "firewall")
        record.ops = [BindSource(source=f"192.0.2.{number}/32", zone="trusted").to_json()]
        found.append((record, Restored(key, "firewall")))
    sources.put_back(found, locked=True)
    assert ["within 0.2 s" in "".join(outcome.errors) for _, outcome in found] == [True, True, True]
    assert fake.over.wait(LIMIT_S)
    assert fake.heard.count(b"getSources") == 1
    fake.close()
