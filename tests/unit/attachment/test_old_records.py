"""Records of containers that run while cni-py is upgraded: each operation in them is read, and undone.

records/ has one of each plugin and backend, as the version wrote them whose operations had texts where they have lists now:
all classes of operations that there were. They are applied first, so that there is something to undo.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import snapshot
from lab import Lab

from cni_py.attachment import engine, records
from cni_py.attachment.context import Kernel
from cni_py.attachment.locks import attachment_lock
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.interface.macvlan import AddMacvlan
from tests.portfwd.publisher import Publisher

RECORDS = Path(__file__).with_name("records")
CHAINS = {  # by network: the plugins in the order of ADD
    "lab": ("bridge", "portmap", "firewall", "tuning", "bandwidth"),
    "lo": ("loopback",),
    "old": ("bridge", "portmap", "firewall"),
    "lan": ("macvlan",),
}
NODES = ("host", "c1", "c2", "c3")


@pytest.mark.ours_alone
def test_records_of_the_version_before_are_read_and_undone(lab: Lab) -> None:
    lab.add_container("c3")
    # so that firewall and loopback have something to do
    assert lab["host"].run(["iptables", "-P", "FORWARD", "DROP"]).returncode == 0
    assert lab["c1"].run(["ip", "link", "set", "lo", "down"]).returncode == 0
    service = Publisher(lab["host"])
    lab["host"].python(read_and_undo)  # makes what is shared and stays
    before = {name: lab.snapshot(name) for name in NODES}
    lab["host"].python(read_and_undo)
    for name in NODES:
        assert snapshot.difference(before[name], lab.snapshot(name)) == ""
    service.end()


def read_and_undo() -> None:
    """On the host: apply what the records list, compare, undo it. All of it is ours: none of it was there before.

    Under the locks that calls take: portfwd has what goes in between restored, as after a loss.
    """
    for network, plugins in CHAINS.items():
        with contextlib.ExitStack() as locks:
            apply_and_undo([loaded(network, plugin, locks) for plugin in plugins])
    shutil.rmtree("/run/cni-py/host-local")  # times of its directories


def apply_and_undo(found: list[tuple[Record, Kernel]]) -> None:
    """Of one container."""
    for record, kernel in found:
        for op in map(engine.op_from_json, record.ops):
            assert engine.apply_one(op, kernel) is not False, op
            if isinstance(op, AddMacvlan):  # which an operation that is not recorded sets up
                kernel.container.set_link(op.ifname, up=True)
            assert op.check(kernel) is None, op
    for record, kernel in reversed(found):
        assert engine.is_whole(record)
        assert engine.undo_record(record, kernel) == []
        assert records.load(record.key, record.plugin) is None


def loaded(network: str, plugin: str, locks: contextlib.ExitStack) -> tuple[Record, Kernel]:
    """The record as a DEL finds it on disk, its cookies those of the namespaces here."""
    text = (RECORDS / f"{network}-{plugin}.json").read_text()
    fields = json.loads(text)
    key = Attachment(fields["network"], fields["containerID"], fields["ifname"])
    locks.enter_context(attachment_lock(key, plugin))
    kernel = Kernel(key, fields["netns"])
    text = text.replace(str(fields["netnsCookie"]), str(kernel.container_cookie))
    folder = Path(key.folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{plugin}.json").write_text(text.replace(str(fields["hostCookie"]), str(kernel.host_cookie)))
    record = records.load(key, plugin)
    assert record is not None
    assert record.done
    return record, kernel
