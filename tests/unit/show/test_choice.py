"""The part of a model that a name means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cni_py.host.model import Finding
from cni_py.show import choice
from cni_py.show.lines import Look, plain_text
from cni_py.show.text import picture
from tests.unit.show import models

EXAMPLE = models.example()
IDS = {record.network: record.container_id for record in EXAMPLE.attachments if record.network != "cni-py"}


@pytest.mark.parametrize(
    ("name", "networks", "links", "containers"),
    [
        ("cni-py", ["cni-py"], ["cni-py0", "veth00000001", "veth00000002", "veth00000003"], 3),
        ("web", ["cni-py"], ["cni-py0", "veth00000001"], 1),
        (models.WIDE, ["cni-py"], ["cni-py0", "veth00000003"], 1),
        (models.HOSTILE, ["cni-py"], ["cni-py0", "veth00000002"], 1),
        ("0001", ["cni-py"], ["cni-py0", "veth00000001"], 1),
        ("00045f3c9a1b", ["cni-py"], ["cni-py0"], 0),  # its link and its namespace are gone
        (IDS["old"], ["old"], ["cni0", "veth00000006"], 1),
        ("/run/netns/cni-6", ["old"], ["cni0", "veth00000006"], 1),
        ("cni-6", ["old"], ["cni0", "veth00000006"], 1),
        ("net:[4026532006]", ["old"], ["cni0", "veth00000006"], 1),
        ("4026532006", ["old"], ["cni0", "veth00000006"], 1),
        ("veth00000006", ["old"], ["cni0", "veth00000006"], 1),
        ("veth00000004", ["cni-py"], ["cni-py0"], 0),  # it is gone, and its record names it
        ("br-tenants", ["tenants"], ["br-tenants", "veth00000005"], 0),
        ("eth1", ["lan"], ["eth1"], 1),
        ("home/camera-0", ["lan"], ["eth1"], 1),
        ("direct", ["direct"], ["veth00000007"], 1),
        ("docker0", [], ["docker0", "vethd0c4"], 1),
        ("eth0", [], ["eth0"], 0),
        ("lost", ["lost"], [], 0),
        ("lab", [], [], 0),
    ],
)
def test_a_name_means(name: str, networks: list[str], links: list[str], containers: int) -> None:
    found = choice.only(EXAMPLE, name)
    assert [one.name for one in found.networks] == networks
    assert [one.name for one in found.root.links] == links
    assert len(found.containers) == containers
    assert {one.network for one in found.pools} <= {*networks}
    assert plain_text(picture(found, Look(100), closely=True))


def test_what_belongs_to_a_container_comes_with_it() -> None:
    web = choice.only(EXAMPLE, "web")
    assert [(port.first, port.protocol) for port in web.ports] == [(8080, "tcp"), (8080, "tcp"), (5000, "udp")]
    assert [one.address for one in web.masquerades] == ["10.88.0.2", "fd00:88::2"]
    assert [one.id for one in web.relays] == ["p1"]
    assert [one.key for one in web.namespaces] == [models.ROOT, "net:[4026532001]"]
    assert [one.code for one in web.findings] == ["address-leaked", "nothing-listens"]
    assert [one.code for one in choice.only(EXAMPLE, models.WIDE).findings] == ["link-down", "address-leaked"]
    assert [one.code for one in choice.only(EXAMPLE, "0004").findings] == ["attachment-dead", "address-leaked"]
    assert [one.code for one in choice.only(EXAMPLE, "direct").findings] == []
    assert web.gaps == EXAMPLE.gaps


def test_what_is_wrong_with_the_host_is_wrong_with_its_containers() -> None:
    flushed = replace(EXAMPLE, findings=(Finding("error", "table-missing", "table inet cni_py", "it is gone"),))
    assert choice.only(flushed, "web").findings == flushed.findings
    assert choice.only(flushed, "eth0").findings == ()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("wbe", "no network, container, namespace or link here is called wbe; did you mean web?"),
        ("xyzzy", "no network, container, namespace or link here is called xyzzy"),
        ("", "no network, container, namespace or link here is called "),
        ("00", "no network, container, namespace or link here is called 00"),
        ("000", "7 containers have an id that begins with 000: 00015f3c9a1b, 00025f3c9a1b, 00035f3c9a1b, ..."),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_resemble_it(name: str, sentence: str) -> None:
    with pytest.raises(choice.Unknown) as refusal:
        choice.only(EXAMPLE, name)
    assert str(refusal.value).startswith(sentence)
