"""The drawing: everything is there, nothing lies on anything else, and names of others stay text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cni_py.host.model import Attachment, Finding, Host, Process
from cni_py.host.printable import plain
from cni_py.show.layout import Drawing, Shape, Wire, drawing
from cni_py.show.measure import px
from cni_py.show.page import asset
from cni_py.show.scene import scene
from cni_py.show.svg import svg
from tests.unit.show import models

SOLID = ("member", "bar", "chip", "nic", "publisher", "words")
EXAMPLE = Path(__file__).parents[3] / "docs/show.svg"


def pod() -> Host:
    """A container on two bridges."""
    made = models.Builder([models.link(3, "br0", "bridge"), models.link(4, "br1", "bridge")])
    made.connect("one", "br0", "both", ["10.1.0.2/24"], [models.port(80, "10.1.0.2", 80)])
    second = models.link(30, "vethsecond", "veth", master="br1", peer_index=3, peer_namespace=made.namespaces[0].key)
    made.links.append(second)
    inner = models.link(3, "eth1", "veth", ["10.2.0.2/24"], peer_index=30, peer_namespace=models.ROOT)
    first = made.namespaces[0]
    made.namespaces[0] = dataclasses.replace(first, links=(*first.links, inner))
    made.attachments.append(
        Attachment("two", made.attachments[0].container_id, "eth1", "f" * 16, "", first.key, "alive")
    )
    return made.host()


def many_ports() -> Host:
    made = models.Builder([models.link(3, "br0", "bridge")])
    for number in range(4):
        target = f"10.1.0.{number + 2}"
        ports = [models.port(1000 * (number + 1) + one, target, 80 + one) for one in range(9)]
        made.connect("one", "br0", f"c{number}", [f"{target}/24"], ports)
    lost = models.port(7, "192.0.2.77", 7)
    return dataclasses.replace(made.host(), ports=(*made.ports, lost))


def empty() -> Host:
    return models.Builder([]).host()


HOSTS: list[Callable[[], Host]] = [
    *(empty, models.lone, models.example, pod, many_ports),
    *(lambda: models.crowd(1, 3), lambda: models.crowd(1, 40), lambda: models.crowd(2, 150)),
]


@pytest.fixture(params=HOSTS, ids=["empty", "1", "example", "pod", "ports", "3", "40", "300"])
def drawn(request: pytest.FixtureRequest) -> tuple[Host, Drawing]:
    host: Host = request.param()
    return host, drawing(scene(host))


def shapes(made: Drawing, *kinds: str) -> list[Shape]:
    return [one for one in made.parts if isinstance(one, Shape) and one.kind in kinds]


def wires(made: Drawing, kind: str) -> list[Wire]:
    return [one for one in made.parts if isinstance(one, Wire) and one.kind == kind]


def test_nothing_lies_on_anything_else(drawn: tuple[Host, Drawing]) -> None:
    solid = sorted(shapes(drawn[1], *SOLID), key=lambda one: one.y)
    for number, one in enumerate(solid):
        assert one.width > 0
        assert one.height > 0
        assert one.x >= 0
        assert one.x + one.width <= drawn[1].width
        assert one.bottom <= drawn[1].height
        for other in solid[number + 1 :]:
            if other.y >= one.bottom:
                break
            assert other.x >= one.x + one.width or other.x + other.width <= one.x, (one, other)


def test_texts_are_inside_their_boxes(drawn: tuple[Host, Drawing]) -> None:
    for one in shapes(drawn[1], "member", "publisher", "bar", "chip"):
        for text in one.texts:
            width = px(text.text, text.style)
            left = text.x - {"start": 0, "middle": width / 2, "end": width}[text.anchor]
            assert one.x <= left, text
            assert left + width <= one.x + one.width + 1, text
            assert one.y < text.y <= one.bottom, text


def test_every_container_interface_and_port_is_drawn(drawn: tuple[Host, Drawing]) -> None:
    host, made = drawn
    titles = "\n".join(one.full for one in shapes(made, "member"))
    for one in host.attachments:
        for address in one.addresses:
            assert f"{one.ifname} {address}" in titles
    assert all(plain(one.name) in titles for one in host.containers)
    drawn_links = {one.id for one in wires(made, "veth")}
    assert len(drawn_links) >= sum(link.kind == "veth" for link in host.root.links)
    said = "\n".join(one.full for one in wires(made, "port"))
    for port in host.ports:
        assert f"{port.first}" in said
        assert f":{port.target_port}" in said


def segments(wire: Wire) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    yield from pairwise(wire.points)


def test_the_wires_of_ports_do_not_cross(drawn: tuple[Host, Drawing]) -> None:
    """Nor do they run through boxes: each ends at the upper edge of one."""
    turned = [one for one in wires(drawn[1], "port") if len(one.points) == 3]
    for one, other in combinations(turned, 2):
        (_, (x, y), (_, end)), (first, (right, height), _) = one.points, other.points
        assert not (first[0] <= x <= right and y < height <= end), (one, other)
    for one in turned:
        tip = one.points[-1]
        assert any(box.x < tip[0] < box.x + box.width and tip[1] == box.y - 1 for box in shapes(drawn[1], "member")), (
            one
        )


def test_what_is_wrong_is_marked() -> None:
    down = Finding("error", "link-down", "link veth00000003", "it is down")
    strict = Finding("warning", "x", "link eth0", "it is strict")
    host = dataclasses.replace(models.example(), findings=(down, strict))
    made = drawing(scene(host))
    said = {text.text: text.style for one in made.parts for text in one.texts}
    assert said["✗ it is down"] == "error"
    assert said["⚠ it is strict"] == "warning"
    assert {one.tone for one in wires(made, "veth") if one.id.endswith(":13")} == {"error"}
    dead = next(one for one in shapes(made, "member") if "dead" in {text.text for text in one.texts})
    assert dead.tone == "error gone"
    strange = next(one for one in shapes(made, "member") if "Docker" in {text.text for text in one.texts})
    assert strange.tone == "strange"


def test_a_finding_that_is_about_nothing_drawn_stands_at_the_host() -> None:
    host = dataclasses.replace(models.lone(), findings=(Finding("error", "x", "sysctl y", "it is wrong"),))
    words = next(one for one in shapes(drawing(scene(host)), "words") if one.id == "host")
    assert "✗ sysctl y: it is wrong" in [text.text for text in words.texts]


def test_both_families_of_a_port_are_one_wire() -> None:
    target, six = "10.88.0.2", "fd00::2"
    made = models.Builder([models.link(3, "br0", "bridge")])
    ports = [
        models.port(80, target, 80),
        models.port(80, six, 80, at="::"),
        models.port(81, target, 81, at="192.0.2.1"),
    ]
    made.connect("n", "br0", "c", [f"{target}/24", f"{six}/64"], ports)
    chips = [one.texts[0].text for one in shapes(drawing(scene(made.host())), "chip") if "way-nat" in one.tone]
    assert sorted(chips) == ["192.0.2.1:81/tcp", "80/tcp"]


def test_names_of_others_stay_text() -> None:
    """Also in attributes: a network's file and a container's id are in ids of objects."""
    host = models.example()
    evil = '"><script>alert(1)</script>\x00\x1b]\u2028'
    networks = tuple(dataclasses.replace(one, path=f"/{evil}", name=evil) for one in host.networks)
    spaces = [
        dataclasses.replace(one, processes=(Process(1, evil),), names=(f"/run/{evil}",)) for one in host.namespaces
    ]
    links = tuple(dataclasses.replace(one, name=f"{one.name}{evil}") for one in host.root.links)
    spaces[0] = dataclasses.replace(spaces[0], links=links)
    attachments = tuple(dataclasses.replace(one, network=evil, container_id=evil) for one in host.attachments)
    hostile = dataclasses.replace(
        host, hostname=evil, networks=networks, namespaces=tuple(spaces), attachments=attachments
    )
    root = ElementTree.fromstring(svg(hostile).encode())
    tags = {one.tag.rpartition("}")[2] for one in root.iter()}
    assert tags <= {"svg", "style", "rect", "g", "title", "path", "polygon", "text"}
    assert not {name for one in root.iter() for name in one.attrib if name.startswith("on") or name == "href"}


def test_the_style_cannot_end_its_element() -> None:
    """It stands in SVG, where it is XML, and in the page, where it is HTML."""
    assert not {"<", "&"} & set(asset("drawing.css") + asset("page.css"))


def test_the_example_in_the_documents_is_up_to_date() -> None:
    """Written anew by: python -m tests.unit.show.test_drawing"""
    assert EXAMPLE.read_text() == svg(models.documented())


if __name__ == "__main__":
    EXAMPLE.write_text(svg(models.documented()))
