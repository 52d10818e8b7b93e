"""The picture in text: it fits, it has everything, and text of others is only text."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from rich.cells import cell_len

from cni_py.host.model import Address, Host, Namespace
from cni_py.host.printable import plain
from cni_py.show import words
from cni_py.show.lines import Look, plain_text
from cni_py.show.text import ALL, STYLES, Most, picture
from tests.unit.host import worlds
from tests.unit.show import models

HOSTS = {
    "lone": models.lone(),
    "example": models.example(),
    "crowd": models.crowd(),
    "empty": models.Builder([]).host(),
}
WIDTHS = (40, 57, 80, 120, 200)


def drawn(host: Host, width: int = 200, most: Most = ALL, **more: bool) -> str:
    return plain_text(picture(host, Look(width), most, **more))


@pytest.mark.parametrize(
    ("name", "width", "encoding"), [*itertools.product(HOSTS, WIDTHS, ("utf-8", "ascii", "koi8-r"))]
)
def test_no_line_is_wider_than_the_terminal(name: str, width: int, encoding: str) -> None:
    for closely in (False, True):
        for line in picture(HOSTS[name], Look(width, encoding), ALL, closely=closely):
            text = "".join(piece for piece, _ in line)
            assert cell_len(text) <= width, text
            assert text.isprintable()
            assert text == text.rstrip()
            text.encode(encoding)
            assert {style for _, style in line} <= STYLES.keys()


def squeezed(text: str) -> str:
    """Without what wrapping puts between the characters of a word."""
    return "".join(one for one in text if one not in " \n│├└─→")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", HOSTS)
def test_everything_of_the_model_is_in_the_picture(name: str, width: int) -> None:
    host, text = HOSTS[name], squeezed(drawn(HOSTS[name], width))
    wanted = [plain(one.name) or one.id[:12] for one in host.containers]
    wanted += [one.container_id[:12] for one in host.attachments]
    wanted += [one.name for one in host.networks] + [one.name for one in host.root.links if one.name != "lo"]
    wanted += [f"{one.address}/{one.prefix}" for space in host.namespaces for link in space.links
               for one in link.addresses if link.name != "lo" and one.scope != "link"]  # fmt: skip
    for port in host.ports:
        wanted += [words.listens(port), words.leads(port), *port.allow]
    wanted += [one.what for one in (*host.findings, *host.gaps)] + [one.do for one in host.findings]
    wanted += [text for one in host.relays for text in (one.listen, one.target, one.owner, one.problem)]
    assert [one for one in wanted if squeezed(one) not in text] == []


def test_the_picture_of_one_container() -> None:
    assert drawn(models.lone(), 80) == LONE.lstrip("\n")


LONE = """
node7  1 container in 1 network, 1 published port
Linux 6.12.41, cni-py 0.1.0, portfwd not running, 2026-09-21 14:13 UTC

├─ eth0  198.51.100.1/24, 2001:db8:1::1/64  default via 198.51.100.254
│
└─ cni-py0  bridge  10.88.0.1/24
   │  network cni-py (bridge, host-local, portmap, firewall): outgoing packets
   │      masqueraded; 1 of 253 IPv4 addresses taken
   └─ veth00000001 ── web  nginx (4001), containerd 00015f3c9a1b
         eth0  10.88.0.2/24
         0.0.0.0:8080/tcp → 10.88.0.2:80  NAT
         listens on 80/tcp
"""


def test_frames_are_ascii_where_the_encoding_has_no_others() -> None:
    text = plain_text(picture(models.example(), Look(80, "ascii"), ALL))
    assert text.isascii()
    assert "\n`- veth00000007 -- direct" in text
    assert "\\u6570\\u636e\\u5e93" in text
    assert "x veth00000003 is down" in text


def test_a_terminal_gets_colours_and_no_markup_of_others() -> None:
    """A name may be rich's markup, an escape sequence, or a line of its own."""
    text = drawn(models.example())
    assert r"""veth00000002 ── [red]no "markup"</text><script>alert(1)</script>\x1b[31m\n\u202etxt""" in text
    assert r"\x1b]0;x\x07sh (4002)" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"live": "dead", "reason": "its boot is over"}, "✗ dead: its boot is over"),
        ({"unfinished": True}, "✗ its ADD has not finished"),
        ({"bridge": "br9"}, "✗ veth00000001 is not in bridge br9"),
        ({"addresses": ("10.88.0.2/24", "10.88.0.9/24")}, "✗ address 10.88.0.9/24 is missing"),
        ({"ifname": "eth7"}, "✗ eth7 is missing"),
        ({"namespace": "net:[1]", "host_links": ("veth9",)}, "✗ its namespace is not found"),
        ({"namespace": "net:[1]", "host_links": ("veth9",)}, "✗ veth9 is missing"),
    ],
)
def test_what_the_record_says_and_the_kernel_has_not_is_marked(change: dict[str, object], said: str) -> None:
    host = models.lone()
    (record,) = host.attachments
    broken = dataclasses.replace(record, **change)  # type: ignore[arg-type]
    assert said in drawn(dataclasses.replace(host, attachments=(broken,)))
    assert "✗" not in drawn(host)


def test_a_full_pool_and_a_link_that_is_down_are_marked() -> None:
    host = models.lone()
    pool = dataclasses.replace(host.pools[0], sizes=(1,))
    links = tuple(dataclasses.replace(link, up=link.name == "eth0") for link in host.root.links)
    root = dataclasses.replace(host.root, links=links)
    pieces = [
        piece
        for line in picture(
            dataclasses.replace(host, pools=(pool,), namespaces=(root, *host.namespaces[1:])), Look(200)
        )
        for piece in line
    ]
    assert ("1 of 1 IPv4 addresses taken", "bad") in merged(pieces)
    assert ("✗ down", "bad") in merged(pieces)


def merged(pieces: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbours of one style as one piece."""
    groups = itertools.groupby(pieces, key=lambda piece: piece[1])
    return [("".join(text for text, _ in group).strip(), style) for style, group in groups]


def test_long_lists_are_cut_and_what_is_wrong_is_kept() -> None:
    host = models.crowd(1, 300)
    last = dataclasses.replace(host.attachments[-1], unfinished=True)
    host = dataclasses.replace(host, attachments=(*host.attachments[:-1], last))
    text = drawn(host, most=Most(containers=10))
    assert "300 containers, 60 with published ports; 1 with trouble" in text
    assert text.count(" ── ") == 10
    assert "net0-app299" in text
    assert "… and 290 containers more: --all, or name one" in text
    assert drawn(host).count(" ── ") == 300


def test_a_stranger_on_the_bridge_of_a_network_is_in_none() -> None:
    inner = worlds.link(2, "eth0", "veth", Address("192.0.2.50", 24), peer_namespace=worlds.ROOT, peer_index=20)
    other = Namespace("net:[9]", names=("/run/netns/other",), links=(inner,))
    host = worlds.healthy()
    port = worlds.link(20, "veth9", "veth", master="cni0", peer_namespace=other.key, peer_index=2)
    host = worlds.with_root(host, links=(*host.root.links, port))
    text = drawn(dataclasses.replace(host, namespaces=(*host.namespaces, other)))
    assert "192.0.2.50/24  not by a CNI plugin" in text
