"""What can be asked, and how a wrong question is refused."""

from __future__ import annotations

import pytest

from cni_py.explain import question, whom
from cni_py.explain.question import Question


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("8080", Question("tcp", 8080)),
        ("53/UDP", Question("udp", 53)),
        ("192.0.2.2:80", Question("tcp", 80, "192.0.2.2")),
        ("[2001:DB8::0:2]:80/sctp", Question("sctp", 80, "2001:db8::2")),
        ("[fe80::1%lan0]:80", Question("tcp", 80, "fe80::1")),
        ("[::ffff:192.0.2.2]:80", Question("tcp", 80, "192.0.2.2")),
    ],
)
def test_questions(text: str, asked: Question) -> None:
    assert question.parse(text) == asked
    assert question.parse(str(asked)) == asked


@pytest.mark.parametrize(
    "text",
    ["", "0", "65536", "http", "80/icmp", "host:80", "2001:db8::1:80", "[192.0.2.1]:80", "0.0.0.0:80", "[::]:80", "٨٠", "80/"],
)  # fmt: skip
def test_what_is_no_question(text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("[", r"\[") or "not a port"):
        question.parse(text)


@pytest.mark.parametrize(
    ("text", "client"),
    [
        ("198.51.100.7", ("198.51.100.7", 0)),
        ("198.51.100.7:4000", ("198.51.100.7", 4000)),
        ("::ffff:198.51.100.7", ("198.51.100.7", 0)),
        ("2001:db8::7", ("2001:db8::7", 0)),
        ("[2001:db8::7]", ("2001:db8::7", 0)),
        ("[2001:db8::7]:4000", ("2001:db8::7", 4000)),
    ],
)
def test_addresses_of_clients(text: str, client: tuple[str, int]) -> None:
    assert whom._address_and_port(text) == client


@pytest.mark.parametrize("text", ["", "web", "198.51.100.7:x", "198.51.100.7:70000", "[2001:db8::7"])
def test_who_is_nobody(text: str) -> None:
    with pytest.raises(whom.Unknown, match="no container, no address"):
        whom._address_and_port(text)
