"""What `cni-py adopt` writes a record of, and what it leaves out."""

import json
import subprocess

import pytest

from cni_py.attachment import records
from cni_py.attachment.naming import Attachment
from cni_py.commands.adoption import adopt_all
from cni_py.protocol.cache import Entry
from cni_py.protocol.gojson import Object, decode

KEY = ("lab", "web", "eth0")
CONFIG = json.dumps(
    {"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "bridge"}, {"type": "tuning"}]}
).encode()


def run(command: str) -> None:
    subprocess.run(command, shell=True, check=True)


def entry(netns: str = "/run/netns/web", *, links: tuple[str, ...] = ("cni0", "vethweb"), known: bool = True) -> Entry:
    interfaces = [{"name": name} for name in links] + [{"name": "eth0", "sandbox": netns}]
    result = decode(json.dumps({"cniVersion": "1.0.0", "interfaces": interfaces}).encode())
    assert isinstance(result, Object)
    return Entry(*KEY, config=CONFIG, netns=netns, result=result if known else None)


@pytest.mark.netns
def test_the_pair_that_the_kernel_shows_is_recorded_once() -> None:
    run("mount -t tmpfs tmpfs /run; ip netns add web; ip link add cni0 type bridge")
    run("ip link add vethweb type veth peer name eth0 netns web")
    run("ip link add stray type veth peer name stray1; ip link set stray up")
    for wanted, skipped in (
        (entry(known=False), "the cache has no result of it"),
        (entry("/run/netns/gone"), "its network namespace is gone: GC removes what is left of it"),
        (entry(links=("cni0", "stray")), "the kernel has nothing of it"),  # a pair of somebody else
        (entry(), "the kernel has nothing of it"),  # CHECK would find it down
    ):
        (found,) = adopt_all([wanted])  # tuning needs no record
        assert (found.plugin, found.done, found.skipped, found.errors) == ("bridge", [], skipped, [])
    run("ip link set vethweb up")
    (found,) = adopt_all([entry()], dry_run=True)
    assert len(found.done) == 1, (found.skipped, found.errors)
    assert "vethweb" in found.done[0]
    assert records.load(Attachment(*KEY), "bridge") is None
    broken, found = adopt_all([Entry("lab", "x", "eth0", config=b"{"), entry()])
    assert (broken.plugin, len(broken.errors), broken.done) == ("", 1, [])
    record = records.load(Attachment(*KEY), "bridge")
    assert record is not None
    assert (record.done, record.netns, len(record.ops)) == (True, "/run/netns/web", 1)
    assert record.container_cookie not in (0, record.host_cookie)
    (found,) = adopt_all([entry()])
    assert found.skipped == "it has a record already"
