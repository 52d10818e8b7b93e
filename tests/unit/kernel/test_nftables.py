"""cni_py.kernel.nf_tables: the element codec byte for byte against libnftables', the tables, and transactions."""

import errno
import json
import os
import re
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.addr import parse_ip
from cni_py.errors import CniError
from cni_py.kernel import libnftables, nf_tables
from cni_py.kernel.netlink import BatchError
from cni_py.kernel.nf_tables import BRIDGE, INET, Change, Element, Nft, concat, ifname_key, mark
from cni_py.nftables.ruleset import ensure_table, has_table

COMMENT = "0123456789abcdef net1/c1/eth0"
NFTA_SET_ELEM_LIST_SET_ID = 4


def port(number: int) -> bytes:
    return number.to_bytes(2, "big")


SPECIFIC = Element(
    concat(parse_ip("192.0.2.1"), b"\6", port(8080)), concat(parse_ip("198.51.100.2"), port(80)), COMMENT
)
ANY6 = Element(concat(b"\x11", port(53)), concat(parse_ip("2001:db8::2"), port(5353)), COMMENT)
RANGE = [Element(port(8000), parse_ip("198.51.100.2")), Element(port(9000), end=True)]
HAIRPIN = Element(parse_ip("198.51.100.2"), "masquerade_all", COMMENT)
LINK = Element(ifname_key("br0"))
CLAIM = Element(concat(b"\6", port(80)), mark(3))
SOURCE = Element(concat(ifname_key("veth0"), bytes.fromhex("020000000001")), None, COMMENT)

EXAMPLES = [  # set, elements, nft's words for them
    ("specific4", [SPECIFIC], f'192.0.2.1 . tcp . 8080 comment "{COMMENT}" : 198.51.100.2 . 80'),
    ("any6", [ANY6], f'udp . 53 comment "{COMMENT}" : 2001:db8::2 . 5353'),
    ("range4_tcp", RANGE, "8000-8999 : 198.51.100.2"),
    ("hairpin4", [HAIRPIN], f'198.51.100.2 comment "{COMMENT}" : jump masquerade_all'),
    ("local_links", [LINK], '"br0"'),
    ("claims4", [CLAIM], "tcp . 80 : 3"),
    ("spoof_allowed", [SOURCE], f'"veth0" . 02:00:00:00:00:01 comment "{COMMENT}"'),
]


def run(command: str) -> str:
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def table() -> Nft:
    nft = Nft()
    ensure_table(nft)
    ensure_table(nft, BRIDGE)
    return nft


def family_of(set_name: str) -> tuple[int, str]:
    return (BRIDGE, "bridge") if set_name.startswith("spoof") else (INET, "inet")


def ruleset() -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    for entry in json.loads(run("nft -j list ruleset"))["nftables"]:
        for kind, value in entry.items():
            found.setdefault(kind, []).append(value)
    return found


def elements(set_name: str) -> object:
    kinds = ruleset()
    named = [entry for kind in ("map", "set") for entry in kinds[kind] if entry["name"] == set_name]
    return named[0].get("elem")


def sent_by_nft(command: str) -> list[bytes]:
    """The bodies of the messages about elements that libnftables sends, put together from its own dump of them."""
    bodies: list[bytes] = []
    wanted = False
    for line in re.sub(r"\x1b\[[0-9;]*m", "", run(f"nft --debug=mnl {command}")).splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if line.endswith("|  type | flags  |"):
            wanted = int(cells[1]) in (nf_tables.NFT_MSG_NEWSETELEM, nf_tables.NFT_MSG_DELSETELEM)
            bodies += [b""] if wanted else []
        elif wanted and ("extra header" in cells or "data" in cells):
            bodies[-1] += bytes.fromhex(cells[1])
        elif wanted and "flags" in cells:  # |length|N-|type|
            kind = int(cells[3]) | (0x8000 if cells[2].startswith("N") else 0)
            bodies[-1] += int(cells[1]).to_bytes(2, "little") + kind.to_bytes(2, "little")
    return bodies


def without_set_id(body: bytes) -> bytes:
    """libnftables numbers the sets of a transaction, which only matters for sets made in it."""
    header, rest = body[:4], body[4:]
    kept = b""
    while rest:
        length = int.from_bytes(rest[:2], "little")
        padded = (length + 3) & ~3
        if int.from_bytes(rest[2:4], "little") != NFTA_SET_ELEM_LIST_SET_ID:
            kept += rest[:padded]
        rest = rest[padded:]
    return header + kept


def without_numbers(body: bytes) -> bytes:
    """libnftables numbers the elements of a list where the kernel's header has NFTA_LIST_ELEM; the kernel looks at neither."""
    head, mark, rest = without_set_id(body).partition(b"\x03\x80")
    out = head + mark
    while rest:
        padded = (int.from_bytes(rest[:2], "little") + 3) & ~3
        out += rest[:2] + b"\x01\x80" + rest[4:padded]
        rest = rest[padded:]
    return out


@pytest.mark.netns
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_messages_are_those_of_libnftables_byte_for_byte(number: int) -> None:
    set_name, wanted, words = EXAMPLES[number]
    family, name = family_of(set_name)
    table()
    for add in (True, False):
        text = words if add else words.partition(" : ")[0].partition(" comment ")[0]
        sent = sent_by_nft(f"{'add' if add else 'delete'} element {name} cni_py {set_name} '{{ {text} }}'")
        # nft marks the start of an empty interval set; the kernel needs it not
        if set_name.startswith("range") and add:
            wanted = [Element(port(0), end=True), *wanted]
        [(_, _, ours)] = Change(add, set_name, wanted, family).messages()
        assert list(map(without_numbers, sent)) == [without_numbers(ours)]
        wanted = EXAMPLES[number][1]


@pytest.mark.netns
def test_what_we_write_nft_lists_and_what_nft_writes_we_read() -> None:
    nft = table()
    for set_name, wanted, words in EXAMPLES:
        family, name = family_of(set_name)
        nft.transaction([Change(True, set_name, wanted, family)])
        listed = elements(set_name)
        ours = nft.dump(set_name, family)
        nft.transaction([Change(False, set_name, wanted, family)])
        assert elements(set_name) is None
        run(f"nft add element {name} cni_py {set_name} '{{ {words} }}'")
        assert elements(set_name) == listed
        theirs = [element for element in nft.dump(set_name, family) if element.key != port(0)]
        assert sorted(map(repr, theirs)) == sorted(map(repr, ours)) == sorted(map(repr, wanted))


@given(
    st.builds(
        Element,
        st.binary(min_size=4, max_size=64),
        st.none() | st.binary(min_size=4, max_size=20) | st.from_regex(r"[a-z][a-z0-9_.-]{0,60}", fullmatch=True),
        st.from_regex(r"[ -~]{0,128}", fullmatch=True),
        end=st.booleans(),
    )
)
def test_decode_is_the_inverse_of_encode(element: Element) -> None:
    assert Element.decode(element.encode()[4:]) == element


def test_comment_is_cut_to_what_nft_takes() -> None:
    element = Element(b"\0" * 4, None, "x" * 300)
    assert Element.decode(element.encode()[4:]).comment == "x" * 128


@pytest.mark.netns
def test_table_is_made_once_and_brought_up_to_date_without_losing_elements() -> None:
    nft = table()
    nft.transaction([Change(True, "specific4", [SPECIFIC])])
    before = run("nft -s list ruleset")
    run("nft flush set inet cni_py layout")
    run("nft flush chain inet cni_py postrouting")
    assert not has_table(nft)
    ensure_table(Nft())
    assert run("nft -s list ruleset") == before
    run("nft delete table inet cni_py")
    assert not has_table(nft)


EXPECTED_CHAINS = """\
chain loopback_guard {
type filter hook prerouting priority -300; policy accept;
iifname @local_links ip daddr 127.0.0.0/8 drop
iifname @local_links ip saddr 127.0.0.0/8 drop
ip daddr 127.0.0.0/8 meta iifkind "vrf" return
ip daddr 127.0.0.0/8 iifname != "lo" drop
}
chain prerouting {
type nat hook prerouting priority -100; policy accept;
ip daddr 127.0.0.0/8 return
ip6 daddr { ::1, fe80::/10 } return
fib daddr type local meta nfproto vmap { ipv4 : jump published4, ipv6 : jump published6 }
}
chain output {
type nat hook output priority -100; policy accept;
ip6 daddr { ::1, fe80::/10 } return
fib daddr type local meta nfproto vmap { ipv4 : jump published4, ipv6 : jump published6 }
}
chain postrouting {
type nat hook postrouting priority 100; policy accept;
ct status dnat ip daddr vmap @hairpin4
ct status dnat ip6 daddr vmap @hairpin6
ip daddr 224.0.0.0/4 return
ip6 daddr ff00::/8 return
ip saddr vmap @masquerade4
ip6 saddr vmap @masquerade6
}
chain published4 {
ip daddr . meta l4proto . th dport vmap @conditional_specific4
dnat ip to ip daddr . meta l4proto . th dport map @specific4
meta l4proto . th dport vmap @conditional_any4
dnat ip to meta l4proto . th dport map @any4
dnat ip to tcp dport map @range4_tcp
dnat ip to udp dport map @range4_udp
dnat ip to sctp dport map @range4_sctp
}
"""


@pytest.mark.netns
def test_rules_are_these() -> None:
    table()
    listing = run("nft --numeric-priority list table inet cni_py")  # nft 1.1 has names on the output hook, too
    lines = [line.strip() for line in listing.splitlines() if line.strip()]
    assert "\n".join(lines[lines.index("chain loopback_guard {") :]).startswith(EXPECTED_CHAINS)


@pytest.mark.netns
def test_transaction_takes_effect_as_a_whole_or_not_at_all() -> None:
    nft = table()
    nft.transaction([Change(True, "specific4", [SPECIFIC])])
    for change, number in (
        (Change(True, "specific4", [SPECIFIC]), errno.EEXIST),
        (Change(True, "hairpin4", [Element(bytes(4), "no_such_chain")]), errno.ENOENT),
        (Change(False, "any6", [ANY6]), errno.ENOENT),
    ):
        with pytest.raises(BatchError) as refused:
            nft.transaction([Change(True, "local_links", [LINK]), change])
        assert refused.value.errno == number
        assert not nft.dump("local_links")
    nft.transaction([Change(False, "specific4", [SPECIFIC]), Change(True, "specific4", [SPECIFIC])])
    assert nft.dump("specific4") == [SPECIFIC]
    nft.transaction([])


@pytest.mark.netns
def test_get_finds_what_is_there_among_many_and_nothing_where_there_is_no_table() -> None:
    keys = [concat(b"\6", port(number)) for number in range(1, 301)]
    assert Nft().get("claims4", keys) == {}
    assert Nft().dump("claims4") == []
    nft = table()
    nft.transaction([Change(True, "claims4", [Element(key, mark(1)) for key in keys[::2]])])
    assert nft.get("claims4", keys).keys() == set(keys[::2])
    assert nft.get("claims4", keys[::2]).keys() == set(keys[::2])


@pytest.mark.netns
def test_ten_thousand_elements_go_in_and_out_in_one_transaction() -> None:
    nft = table()
    many = [Element(concat(b"\6", port(number)), mark(0), "x" * 128) for number in range(1, 10001)]
    nft.transaction([Change(True, "claims4", many), Change(True, "claims6", many)])
    assert len(nft.dump("claims6")) == len(many)
    nft.transaction([Change(False, "claims4", many), Change(False, "claims6", many)])
    assert not nft.dump("claims4")


@pytest.mark.netns
def test_leaving_closes_the_socket_and_every_descriptor_that_it_took() -> None:
    nft = table()
    descriptors = os.listdir("/proc/self/fd")
    nft.transaction([Change(True, "any6", [ANY6])])
    nft.transaction([Change(False, "any6", [ANY6])])
    nft.leave()
    nft.leave()
    assert len(os.listdir("/proc/self/fd")) == len(descriptors) - 1
    deadline = time.monotonic() + 10
    while nfnetlink_sockets() and time.monotonic() < deadline:  # the kernel's collector closes it
        time.sleep(0.01)
    assert not nfnetlink_sockets()
    assert nft.dump("any6") == []  # by a new socket


def nfnetlink_sockets() -> list[str]:
    """Those of programs in this network namespace: the kernel's own has port 0."""
    with open("/proc/self/net/netlink") as file:
        lines = [line.split() for line in file]
    return [line[2] for line in lines if line[1] == "12" and line[2] != "0"]


@pytest.mark.netns
def test_what_nft_refuses_is_an_error_that_shows_the_text() -> None:
    table()
    with pytest.raises(CniError) as refused:
        libnftables.run("add rule inet cni_py prerouting nonsense")
    assert "add rule inet cni_py prerouting nonsense" in refused.value.details


def test_binding_is_found_by_an_interpreter_that_does_not_look_into_the_distributions_folder() -> None:
    home = os.path.dirname(os.path.dirname(os.path.dirname(nf_tables.__file__)))
    script = (
        f"import sys; sys.path.insert(0, {home!r})\n"
        "from cni_py.kernel import libnftables\n"
        "assert not any('dist-packages' in folder for folder in sys.path)\n"
        "print(libnftables.binding().__file__)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert "/nftables/__init__.py" in done.stdout


def test_a_library_that_cannot_be_loaded_is_one_sentence() -> None:
    """Without a traceback of the module's half made object."""
    script = (
        "import ctypes\n"
        "def refuse(*_, **__): raise OSError('file too short')\n"
        "ctypes.CDLL.__init__ = refuse\n"
        "from cni_py.errors import CniError\n"
        "from cni_py.kernel import libnftables\n"
        "try: libnftables.binding()\n"
        "except CniError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("libnftables and its Python module are needed")
    assert done.stdout.endswith("file too short\n")
    assert done.stderr == ""
