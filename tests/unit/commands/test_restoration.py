"""Which records `cni-py restore` leaves out, what a broken one costs, and how adopt and restore print."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni_py import files
from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.attachment.records import Record
from cni_py.commands import outcome
from cni_py.commands.adoption import Adopted
from cni_py.protocol.gojson import Object
from cni_py.restore import restoration
from cni_py.restore.outcome import Restored

KEY = Attachment("lab", "web", "eth0")


@pytest.fixture(autouse=True)
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "run_dir", lambda: str(tmp_path))
    return tmp_path


def record(netns: str = "/proc/self/ns/net", *, done: bool = True) -> Record:
    made = Record(KEY, "portmap")
    made.netns = netns
    made.ops = [Object([("op", "NoSuchOperation")])]
    made.save()
    if done:
        made.finish()
    return made


def restored(made: Record) -> Restored:
    return restoration.restore(made, Kernel(Attachment("", "", ""), ""))


def test_an_attachment_that_is_not_running_is_left_out() -> None:
    assert restored(Record(KEY, "portmap")).skipped == "it was deleted meanwhile"
    assert restored(record(done=False)).skipped == "its ADD is still running, or was killed"
    assert restored(record("/run/netns/no-such-namespace")).skipped == "its network namespace is gone"
    assert restored(record("/etc/passwd")).skipped == "its network namespace is gone"


def test_a_damaged_record_is_an_error_in_its_outcome() -> None:
    found = restored(record())
    assert (found.done, found.skipped) == ([], "")
    assert found.errors[0].startswith(f"the attachment record {KEY.folder}/portmap.json is damaged: ")


def test_outcomes_are_printed_as_lines_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = (
        Restored(KEY, "portmap"),
        Restored(KEY, "bridge"),
        Restored(Attachment("lab", "db", "eth0"), "bridge"),
    )
    one.done, one.errors = ["publish 80", "publish 81"], ["no"]
    two.skipped = "gone"
    found = [one, two, three]
    assert outcome.tell(found, "restored", lines=True) == found
    told = capsys.readouterr()
    assert told.out.splitlines() == [
        "lab/web/eth0 portmap: restored: publish 80",
        "lab/web/eth0 portmap: restored: publish 81",
        "lab/web/eth0 bridge: skipped: gone",
    ]
    assert told.err == "lab/web/eth0 portmap: error: no\n"
    outcome.tell(found, "restored", lines=False)
    assert capsys.readouterr() == ("", told.err)
    assert (outcome.attachments(found), outcome.status(found), outcome.status([two, three])) == (2, 1, 0)
    key = {"network": "lab", "containerID": "web", "ifname": "eth0", "plugin": "portmap"}
    assert one.to_json() == {**key, "skipped": "", "putBack": one.done, "errors": ["no"]}
    adopted = Adopted(KEY, "portmap")
    assert adopted.to_json() == {**key, "skipped": "", "adopted": [], "error": ""}
