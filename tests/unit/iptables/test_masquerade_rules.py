"""Rules of the nat table by value: names, comments, order, and what a condition may be."""

from collections.abc import Iterable, Sequence

import pytest

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.errors import InvalidNetworkConfig
from cni_py.iptables import masquerade_rules
from cni_py.iptables.names import ENTRIES, MASQUERADE, PUBLISH, chain_name
from cni_py.iptables.tool import Rules, quote, split
from cni_py.kernel.xtables import NAT, is_chain_name
from cni_py.ports import iptables_rules
from cni_py.ports.iptables_rules import Publication, parse_ports, vetted
from cni_py.ports.mapping import Mapping

MINE, OTHER = parse_address("192.0.2.2/24"), parse_address("192.0.2.3/24")
CHAIN = "CNI-DN-mine"
LABEL = masquerade_rules.label("net1", "c1")
BASE = "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n"


def publication(
    ports: str, address: Address = MINE, chain: str = CHAIN, label: str = LABEL, conditions: Sequence[str] = ()
) -> Publication:
    return Publication(
        label,
        chain,
        address,
        parse_ports(ports.split(", ")),
        clients="subnet",
        mark=0x2000,
        mark_chain="",
        conditions=conditions,
    )


def nobody(_: bytes) -> bool:
    return False


def only(*addresses: Address) -> "list[bytes]":
    return [address.packed for address in addresses]


def lines(rules: Rules, chain: str) -> list[str]:
    return [" ".join(map(quote, rule)) for rule in rules.chains.get((NAT, chain), [])]


def read_again(rules: Rules) -> Rules:
    """As the next call sees them."""
    chains = [f":{chain} - [0:0]\n" for _, chain in rules.chains]
    appended = [f"-A {chain} {line}\n" for _, chain in rules.chains for line in lines(rules, chain)]
    return Rules(rules.family, f"*nat\n{''.join(chains)}{''.join(appended)}COMMIT\n")


@pytest.mark.parametrize(
    ("network", "container_id", "masquerades", "publishes"),
    [
        ("test", "1234", "CNI-2bbe0c48b91a7d1b8a6753a8", "CNI-DN-2bbe0c48b91a7d1b8a675"),
        ("podman", "abc", "CNI-514f2d63f742a896f7a7f9d8", "CNI-DN-514f2d63f742a896f7a7f"),
        ("bridge", "default-" + 64 * "0", "CNI-e919d2aed5e55b1937201105", "CNI-DN-e919d2aed5e55b1937201"),
    ],
)
def test_chains_have_the_names_that_the_go_plugins_give_them(
    network: str, container_id: str, masquerades: str, publishes: str
) -> None:
    assert chain_name(MASQUERADE, network, container_id) == masquerades
    assert chain_name(PUBLISH, network, container_id) == publishes


@pytest.mark.parametrize("comment", ["dnat ", ""])
def test_a_comment_says_whose_a_rule_is(comment: str) -> None:
    words = masquerade_rules.said(comment + masquerade_rules.label("a.b", "c-d"))
    assert masquerade_rules.label_in((*words, "-j", "X")) == ("a.b", "c-d")


def test_a_long_comment_is_cut_to_what_the_kernel_keeps_and_names_nobody() -> None:
    words = masquerade_rules.said(f"dnat {masquerade_rules.label('n' * 200, 'c' * 64)}")
    assert len(words[-1]) == 255
    assert masquerade_rules.label_in(words) == ("", "")


# Masquerading


def masquerade(addresses: Iterable[Address]) -> Rules:
    rules = Rules(4, BASE)
    masquerade_rules.masquerade(rules, "CNI-x", LABEL, addresses)
    return rules


def test_what_leaves_the_subnet_is_masqueraded_but_for_multicast() -> None:
    rules = masquerade([MINE])
    comment = '-m comment --comment "name: \\"net1\\" id: \\"c1\\""'
    assert lines(rules, "POSTROUTING") == [f"-s 192.0.2.2/32 {comment} -j CNI-x"]
    assert lines(rules, "CNI-x") == [
        f"-d 192.0.2.0/24 {comment} -j ACCEPT",
        f"! -d 224.0.0.0/4 {comment} -j MASQUERADE",
    ]


def test_every_subnet_is_accepted_before_the_rest_is_masqueraded() -> None:
    rules = masquerade([MINE])
    masquerade_rules.masquerade(rules, "CNI-x", LABEL, [parse_address("198.51.100.2/25")])
    assert [line.rsplit(" ", 1)[1] for line in lines(rules, "CNI-x")] == ["ACCEPT", "ACCEPT", "MASQUERADE"]
    assert masquerade_rules.is_masqueraded(rules, "CNI-x", LABEL, MINE)


def test_the_last_address_takes_the_chain_along_and_no_other_does() -> None:
    far = parse_address("198.51.100.2/25")
    rules = read_again(masquerade([MINE, OTHER, far]))
    masquerade_rules.unmasquerade(rules, "CNI-x", only(OTHER).__contains__)
    assert [line.split(" ")[1] for line in lines(rules, "POSTROUTING")] == ["192.0.2.3/32"]
    assert [line.rsplit(" ", 1)[1] for line in lines(rules, "CNI-x")] == ["ACCEPT", "MASQUERADE"]
    assert masquerade_rules.is_masqueraded(rules, "CNI-x", LABEL, OTHER)
    masquerade_rules.unmasquerade(rules, "CNI-x", nobody)
    assert not rules.has_chain(NAT, "CNI-x")
    assert lines(rules, "POSTROUTING") == []


# Published ports


def test_ports_are_the_same_after_their_text_was_read() -> None:
    text = "tcp 8080 to 80, udp 127.0.0.1:53 to 53, tcp [::]:1 to 65535, tcp 8000-8999 to 8000-8999"
    assert ", ".join(map(str, parse_ports(text.split(", ")))) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp 8080",
        "icmp 1 to 1",
        "tcp 0 to 80",
        "tcp 1 to 65536",
        "tcp 9-1 to 9-1",
        "tcp 1-2 to 1-3",
        "tcp 65535-65536 to 65535-65536",
        "tcp x:1 to 2",
        "tcp 1 at 2",
        "tcp 1 to 2,udp 3 to 4",
    ],
)
def test_a_damaged_text_is_no_ports(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_ports(text.split(", "))


def test_at_most_fifteen_ports_share_an_entry_by_protocol() -> None:
    ports = [f"udp {number} to 1, tcp {number} to 1" for number in range(1, 18)]
    entries = list(publication(", ".join(ports)).entries())
    assert [(entry[1], len(entry[-1].split(","))) for entry in entries] == [
        ("tcp", 15),
        ("tcp", 2),
        ("udp", 15),
        ("udp", 2),
    ]


def test_publishing_again_changes_nothing() -> None:
    rules = Rules(4, BASE)
    asked = publication("tcp 8080 to 80, udp 127.0.0.1:53 to 53")
    asked.make(rules, nobody)
    assert asked.lacking(rules) == ""
    again = read_again(rules)
    asked.make(again, nobody)
    assert again.text() == ""


def test_another_mark_replaces_the_one_before() -> None:
    rules = Rules(4, BASE)
    publication("tcp 8080 to 80").make(rules, nobody)
    other = publication("tcp 8080 to 80")
    other.mark = "0x1/0x1"
    other.make(rules, nobody)
    assert [line.split(" ")[-1] for line in lines(rules, iptables_rules.SETMARK)] == ["0x1/0x1"]
    assert len(lines(rules, iptables_rules.MASQ)) == 1


def test_a_chain_of_an_older_address_is_made_anew_and_a_siblings_rules_stay() -> None:
    rules = Rules(4, BASE)
    publication("tcp 8080 to 80", parse_address("192.0.2.9/24")).make(rules, nobody)
    publication("tcp 8081 to 80", OTHER).make(rules, only(parse_address("192.0.2.9/24")).__contains__)
    publication("tcp 8080 to 80").make(rules, only(OTHER).__contains__)
    led = [line.split(" ")[-1] for line in lines(rules, CHAIN) if "DNAT" in line]
    assert led == ["192.0.2.3:80", "192.0.2.2:80"]


def test_what_leads_elsewhere_is_withdrawn() -> None:
    rules = Rules(4, BASE)
    publication("tcp 8080 to 80, udp 53 to 53").make(rules, nobody)
    publication("tcp 8081 to 80", OTHER).make(rules, only(MINE).__contains__)
    gone = iptables_rules.withdraw(rules, CHAIN, only(OTHER).__contains__)
    assert gone == [Mapping("tcp", None, 8080, MINE.packed, 80), Mapping("udp", None, 53, MINE.packed, 53)]
    assert publication("tcp 8081 to 80", OTHER).lacking(rules) == ""
    assert not [line for line in lines(rules, CHAIN) if "8081" not in line]
    iptables_rules.withdraw(rules, CHAIN, nobody)
    assert not rules.has_chain(NAT, CHAIN)
    assert lines(rules, ENTRIES) == []


def test_a_row_of_ports_costs_the_rules_of_one_port() -> None:
    few, many = Rules(4, BASE), Rules(4, BASE)
    publication("tcp 8080 to 80").make(few, nobody)
    asked = publication("tcp 1-65535 to 1-65535")
    asked.make(many, nobody)
    assert len(few.text().splitlines()) == len(many.text().splitlines())
    again = read_again(many)
    assert asked.lacking(again) == ""
    asked.make(again, nobody)
    assert again.text() == ""
    wanted = publication("tcp 80 to 80", OTHER, "CNI-DN-other", masquerade_rules.label("net2", "c2")).mappings
    assert len(list(iptables_rules.conflicting(again, wanted, "CNI-DN-other"))) == 1
    assert len(list(iptables_rules.conflicting(few, asked.mappings, "CNI-DN-other"))) == 1
    assert iptables_rules.withdraw(again, CHAIN, nobody) == asked.mappings


@pytest.mark.parametrize(
    ("host_ip", "protocol", "meets"),
    [("", "tcp", True), ("127.0.0.1:", "tcp", True), ("198.51.100.1:", "tcp", False), ("", "udp", False)],
)
def test_ports_meet_as_bind_sees_them(host_ip: str, protocol: str, *, meets: bool) -> None:
    rules = Rules(4, BASE)
    publication("tcp 127.0.0.1:8080 to 80, tcp 8081 to 80").make(rules, nobody)
    wanted = publication(f"{protocol} {host_ip}8080 to 80", OTHER, "CNI-DN-other", masquerade_rules.label("net2", "c2"))
    found = list(iptables_rules.conflicting(rules, wanted.mappings, wanted.chain))
    assert [masquerade_rules.label_in(entry) for *_, entry in found] == ([("net1", "c1")] if meets else [])
    assert not list(iptables_rules.conflicting(rules, wanted.mappings, CHAIN))  # its own


def test_an_entry_is_found_where_iptables_prints_conditions_before_it() -> None:
    rules = Rules(4, BASE)
    asked = publication("tcp 8080 to 80", conditions=["!", "-d", "203.0.113.0/24"])
    asked.make(rules, nobody)
    place = rules.chains[NAT, ENTRIES]
    (entry,) = place
    place[:] = [("!", "-d", "203.0.113.0/24", *(word for word in entry if word not in ("!", "-d", "203.0.113.0/24")))]
    assert asked.lacking(rules) == ""
    asked.make(rules, nobody)
    assert len(place) == 1
    place.clear()
    assert asked.lacking(rules).startswith("-A CNI-HOSTPORT-DNAT -p tcp")


def test_a_rule_that_is_not_like_ours_leads_nowhere() -> None:
    for text in (
        "-j RETURN",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 192.0.2.1",
        "-d x --dport 1 -j ACCEPT",
    ):
        assert iptables_rules.mapping_of(tuple(split(text))) is None
    rule = tuple(split("-d ::1/128 -p udp -m udp --dport 53 -j DNAT --to-destination [2001:db8::2]:53"))
    assert iptables_rules.mapping_of(rule) == Mapping("udp", parse_ip("::1"), 53, parse_ip("2001:db8::2"), 53)


# Conditions


@pytest.mark.parametrize(
    "words",
    [
        ["-d", "192.0.2.1"],
        ["!", "-i", "eth0", "-m", "conntrack", "--ctstate", "NEW"],
        ["-m", "policy", "--dir", "in", "--pol", "ipsec"],
        ["-m", "comment", "--comment", 'two "words"'],
    ],
)
def test_the_words_of_a_match_are_taken(words: list[str]) -> None:
    text = vetted(words, "conditionsV4")
    assert iptables_rules.words_of(text) == words


@pytest.mark.parametrize(
    "word",
    ["-j", "-jACCEPT", "--jump", "--jump=X", "--ju", "-g", "--goto", "-t", "-A", "-I", "-D", "--delete", "-4", "--ipv6", "-M",
     "--modprobe", "--m", "-w", "-c", "--set-counters", "-p", "-fj", "--", "-", "", "a\nb", "\x00", "--wait", "-h"],
)  # fmt: skip
def test_what_acts_is_refused(word: str) -> None:
    with pytest.raises(InvalidNetworkConfig, match="the words of an iptables match only"):
        vetted(["-d", "192.0.2.1", word], "conditionsV4")
    with pytest.raises(ValueError, match=r".*"):
        iptables_rules.words_of(" ".join(["-d", "192.0.2.1", quote(word) if word.isprintable() else word]))


def test_the_name_of_a_match_is_no_path() -> None:
    with pytest.raises(InvalidNetworkConfig):
        vetted(["-m", "../x"], "conditionsV4")


@pytest.mark.parametrize(
    ("text", "known"),
    [("MYCHAIN", True), ("", False), ("a b", False), ("-j", False), ("x" * 29, False), ("KUBE-MARK", True)],
)
def test_names_of_chains(text: str, *, known: bool) -> None:
    assert is_chain_name(text) is known
