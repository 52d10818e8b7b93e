"""The page as a text: what it holds of the model, and how."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser
from typing import Any

from cni_py.host.model import Finding, Host
from cni_py.host.saved import to_json
from cni_py.show.page import embedded, page, page_policy
from tests.unit.show import models

EVIL = "</script><!--<script>\u2028\u2029&lt;\x00\ud800"


class Elements(HTMLParser):
    """The elements of a page, with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts.append(data)


def data_of(host: Host) -> dict[str, Any]:
    return dict(json.loads(Elements(page(host)).scripts[0]))


def hostile() -> Host:
    host = models.example()
    containers = tuple(dataclasses.replace(one, name=EVIL, image=EVIL) for one in host.containers)
    findings = tuple(dataclasses.replace(one, what=EVIL, do=EVIL, subject=EVIL) for one in host.findings)
    return dataclasses.replace(host, hostname=EVIL, containers=containers, findings=findings)


def test_json_cannot_end_its_element() -> None:
    text = embedded({"key": EVIL})
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {"key": EVIL}


def test_hostile_names_make_no_elements() -> None:
    plain = page(models.example())
    evil = page(hostile())
    counted = [[tag for tag, _ in Elements(text).found if tag not in ("g", "path", "polygon", "text", "rect", "title")]
               for text in (plain, evil)]  # fmt: skip
    assert counted[0] == counted[1]
    assert data_of(hostile())["title"] == EVIL
    evil.encode()  # a lone surrogate, as undecodable names of files have, could not be written


def test_it_names_nothing_outside_itself() -> None:
    found = Elements(page(models.example())).found
    links = [
        value
        for _, attributes in found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset")
    ]
    assert links == ["data:,"]
    assert not re.search(r"@import|url\(", page(models.example()))


def test_the_policy_lets_this_script_run_alone() -> None:
    text = page_policy(live=False)
    assert text.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in text
    assert "connect-src" not in text
    assert "connect-src 'self'" in page_policy(live=True)


def test_everything_of_the_model_is_an_object() -> None:
    host = models.example()
    data = data_of(host)
    known = {one["id"]: one for one in data["objects"]}
    assert len(known) == len(data["objects"])
    for values in (host.networks, host.attachments, host.ports, host.masquerades, host.relays, host.pools):
        for one in values:
            assert to_json(one) in [entry["fields"] for entry in known.values()]
    for space in host.namespaces:
        for link in space.links:
            assert to_json(link) in [entry["fields"] for entry in known.values()]
    assert {entry["fields"]["container name"] for entry in known.values() if "container name" in entry["fields"]} == {
        one.name for one in host.containers
    }


def test_what_is_drawn_can_be_clicked() -> None:
    data = data_of(models.example())
    drawn = set(re.findall(r'data-id="([^"]+)"', page(models.example()))) - {"lan"}
    assert drawn <= {one["id"] for one in data["objects"]}


def test_relations_hold_both_ways() -> None:
    data = data_of(models.example())
    related = {one["id"]: one["related"] for one in data["objects"]}
    titles = {one["id"]: one["title"] for one in data["objects"]}
    assert all(name in related[other] for name, others in related.items() for other in others)
    web = next(name for name, title in titles.items() if title == "web")
    assert {"0.0.0.0:8080/tcp", "[::]:8080/tcp", "veth00000001", "eth0"} <= {titles[one] for one in related[web]}


def test_findings_come_worst_first_with_their_objects() -> None:
    findings = (
        Finding("note", "x", "nothing known", "a"),
        Finding("warning", "x", "container web", "b"),
        Finding("error", "x", "link veth00000003", "c"),
        Finding("error", "x", "port 127.0.0.1:5432/tcp", "d"),
        Finding("error", "x", "port 5000-5099/udp of IPv4", "e"),
        Finding("error", "x", "address 10.90.0.2", "f"),
    )
    data = data_of(dataclasses.replace(models.example(), findings=findings, gaps=()))
    titles = {one["id"]: one["title"] for one in data["objects"]}
    found = {one["what"]: [titles[name] for name in one["objects"]] for one in data["findings"]}
    assert [*found] == ["c", "d", "e", "f", "b", "a"]
    assert found["a"] == []
    assert "web" in found["b"]
    assert found["c"] == ["veth00000003"]
    assert found["d"] == ["127.0.0.1:5432/tcp"]
    assert found["e"] == ["0.0.0.0:5000-5099/udp"]
    assert found["f"] == ["eth0"]
    assert next(one["level"] for one in data["objects"] if one["title"] == "veth00000003") == "error"
