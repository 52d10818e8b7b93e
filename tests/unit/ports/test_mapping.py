"""cni_py.ports.mapping: the configuration of portmap, by value."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.addr import Address, parse_address, parse_ip
from cni_py.errors import CniError
from cni_py.ports.config import PortmapConf, condition_id, vetted
from cni_py.ports.mapping import PROTOCOLS, Mapping, container_addresses, mappings, parse_mappings, relays, runs_of
from cni_py.protocol.netconf import NetConf
from cni_py.protocol.result import Interface, IPConfig, Result

V4, V6 = parse_address("198.51.100.2/24"), parse_address("2001:db8::2/64")
WEB = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}


def parse(**fields: object) -> PortmapConf:
    conf = {"cniVersion": "1.0.0", "name": "net1", "type": "portmap", **fields}
    return PortmapConf(NetConf.parse(json.dumps(conf).encode()))


def published(*entries: dict[str, object], addresses: tuple[Address, ...] = (V4, V6), **fields: object) -> list[str]:
    conf = parse(runtimeConfig={"portMappings": list(entries)}, **fields)
    return [str(mapping) for mapping in mappings(conf, addresses)]


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [
        ("", ["tcp 0.0.0.0:8080 to 198.51.100.2:80", "tcp [::]:8080 to [2001:db8::2]:80"]),
        ("0.0.0.0", ["tcp 0.0.0.0:8080 to 198.51.100.2:80"]),
        ("::", ["tcp [::]:8080 to [2001:db8::2]:80"]),
        ("192.0.2.1", ["tcp 192.0.2.1:8080 to 198.51.100.2:80"]),
        ("127.0.0.1", ["tcp 127.0.0.1:8080 to 198.51.100.2:80"]),
        ("2001:db8:1::1", ["tcp [2001:db8:1::1]:8080 to [2001:db8::2]:80"]),
        *((ip, []) for ip in ("::1", "fe80::1", "ff02::1", "224.0.0.1", "255.255.255.255")),
        ("::ffff:192.0.2.1", ["tcp 192.0.2.1:8080 to 198.51.100.2:80"]),
    ],
)
def test_host_ip_chooses_family_and_address(host_ip: str, expected: list[str]) -> None:
    assert published({**WEB, "hostIP": host_ip}) == expected


NO_ADDRESSES = [
    "localhost",
    "[::1]",
    "[2001:db8::1]",
    "192.0.2.1/24",
    "2001:db8::/64",
    " 192.0.2.1",
    "192.0.2.1\n",
    "192.0.2.01",
    "010.0.0.1",
    "0x7f000001",
    "192.0.2",
    "192.0.2.1:80",
    "fe80::1%eth0",
    "*",
    "::ffff:192.0.2.01",
    "192.0.2.1\0",
]


@pytest.mark.parametrize("text", [*NO_ADDRESSES, "x" * 100_000])
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_host_ip_that_is_no_address_is_refused(text: str, backend: str) -> None:
    """Whatever addresses the container has: none is as good a reason to publish nothing."""
    with pytest.raises(CniError, match="of host port 8080/tcp is not an IP address") as refused:
        parse(runtimeConfig={"portMappings": [{**WEB, "hostIP": text}]}, backend=backend)
    assert refused.value.code == 7
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("value", [None, "absent"])
def test_no_port_mappings_publish_nothing(value: object) -> None:
    runtime = {} if value == "absent" else {"portMappings": value}
    assert parse(runtimeConfig=runtime).entries == []
    assert parse(runtimeConfig=None).entries == []


def test_only_families_the_container_has_are_published() -> None:
    assert published(WEB, addresses=(V6,)) == ["tcp [::]:8080 to [2001:db8::2]:80"]
    assert published(WEB, addresses=()) == []


def test_keys_are_read_as_go_cni_writes_them() -> None:
    entry = {"HostPort": 53, "ContainerPort": 5353, "Protocol": "UDP", "HostIP": "192.0.2.1"}
    assert published(entry) == ["udp 192.0.2.1:53 to 198.51.100.2:5353"]


def test_the_same_mapping_twice_is_one() -> None:
    assert published(WEB, dict(WEB), addresses=(V4,)) == ["tcp 0.0.0.0:8080 to 198.51.100.2:80"]
    assert published(WEB, {**WEB, "hostIP": "0.0.0.0"}, addresses=(V4,)) == ["tcp 0.0.0.0:8080 to 198.51.100.2:80"]
    assert published(WEB, {**WEB, "hostIP": "192.0.2.1"}, addresses=(V4,)) == ["tcp 0.0.0.0:8080 to 198.51.100.2:80"]


@pytest.mark.parametrize("host_ips", [("", ""), ("", "0.0.0.0"), ("", "192.0.2.1"), ("192.0.2.1", "192.0.2.1")])
def test_two_mappings_of_one_port_are_refused(host_ips: tuple[str, str]) -> None:
    with pytest.raises(CniError, match="8080/tcp is mapped twice") as refused:
        published(*({**WEB, "hostIP": ip, "containerPort": port} for ip, port in zip(host_ips, (80, 81), strict=True)))
    assert refused.value.code == 7


def test_one_port_on_two_addresses_or_protocols_is_two() -> None:
    entries = [
        {**WEB, "hostIP": "192.0.2.1"},
        {**WEB, "hostIP": "192.0.2.2", "containerPort": 81},
        {**WEB, "protocol": "udp"},
    ]
    assert len(published(*entries, addresses=(V4,))) == 3


def run_of(first: int, count: int, offset: int = 0) -> list[dict[str, object]]:
    return [
        {"hostPort": port, "containerPort": port + offset, "protocol": "tcp"} for port in range(first, first + count)
    ]


@pytest.mark.parametrize(
    ("count", "offset", "extra", "expected"),
    [
        (64, 0, {}, 1),
        (63, 0, {}, 63),
        (64, 1, {}, 64),
        (64, 0, {"hostIP": "192.0.2.1"}, 64),
    ],
)
def test_long_runs_with_the_same_numbers_on_any_address_are_ranges(
    count: int, offset: int, extra: dict[str, object], expected: int
) -> None:
    entries = [{**entry, **extra} for entry in run_of(7000, count, offset)]
    assert len(published(*entries, addresses=(V4,))) == expected


def test_runs_are_found_in_any_order_and_end_at_gaps() -> None:
    entries = run_of(7000, 64)[::-1] + run_of(7065, 70) + run_of(9000, 2)
    assert published(*entries, addresses=(V4,)) == [
        "tcp 0.0.0.0:7000-7063 to 198.51.100.2:7000-7063",
        "tcp 0.0.0.0:7065-7134 to 198.51.100.2:7065-7134",
        "tcp 0.0.0.0:9000 to 198.51.100.2:9000",
        "tcp 0.0.0.0:9001 to 198.51.100.2:9001",
    ]


def test_under_conditions_there_are_no_ranges() -> None:
    fields = {"backend": "nftables", "conditionsV4": ["ip", "saddr", "192.0.2.0/24"]}
    assert len(published(*run_of(7000, 64), addresses=(V4, V6), **fields)) == 64 + 1


@st.composite
def any_mapping(draw: st.DrawFn) -> Mapping:
    length = draw(st.sampled_from([4, 16]))
    ips = st.binary(min_size=length, max_size=length).filter(lambda ip: any(ip) and not ip.startswith(bytes(10)))
    first = draw(st.integers(1, 65535))
    last = draw(st.integers(first, 65535))
    container_port = first if last > first else draw(st.integers(1, 65535))
    protocol = draw(st.sampled_from(sorted(PROTOCOLS)))
    made = Mapping(protocol, draw(st.none() | ips), first, draw(ips), container_port, last)
    if last == first:
        networks = ["192.0.2.0/24", "198.51.100.7/32"] if length == 4 else ["2001:db8::/32"]
        made.allow, made.share = draw(st.sampled_from([[], networks[:1], networks])), draw(st.booleans())
    return made


@given(st.lists(any_mapping(), max_size=5))
def test_text_of_mappings_is_read_back(made: list[Mapping]) -> None:
    assert parse_mappings(map(str, made)) == made


@pytest.mark.parametrize(
    "extra", ["from x", "from", "from 2001:db8::/32 shared", "share", "shared from 192.0.2.0/24", "of 192.0.2.0/24"]
)
def test_text_with_clients_that_are_none_is_refused(extra: str) -> None:
    parse_mappings(["tcp 0.0.0.0:1 to 192.0.2.1:1 from 192.0.2.0/24 shared"])
    with pytest.raises(ValueError, match=r"."):
        parse_mappings([f"tcp 0.0.0.0:1 to 192.0.2.1:1 {extra}".replace(" from shared", " from ")])


@pytest.mark.parametrize("text", ["tcp", "tcp a to b", "foo 0.0.0.0:1 to 192.0.2.1:1", "tcp 0.0.0.0:x to 192.0.2.1:1"])
def test_text_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_mappings([text])


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"hostPort": 0}, "Invalid host port number: 0"),
        ({"hostPort": -1}, "Invalid host port number: -1"),
        ({"containerPort": 0}, "Invalid container port number: 0"),
        ({"hostPort": 65536}, "port 65536 is out of range"),
        ({"containerPort": 70000}, "port 70000 is out of range"),
        ({"protocol": ""}, 'unknown protocol ""'),
        ({"protocol": "icmp"}, 'unknown protocol "icmp"'),
        ({"hostPort": "80"}, 'hostPort must be a whole number, not "80"'),
    ],
)
def test_impossible_mappings_are_refused(entry: dict[str, object], text: str) -> None:
    with pytest.raises(CniError, match=text) as refused:
        published({**WEB, **entry})
    assert refused.value.code == (6 if " must be " in text else 7)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"backend": "x"}, 'unrecognized backend "x"'),
        ({"backend": 5}, "backend must be a text in quotes, not 5"),
        ({"markMasqBit": 32}, "markMasqBit must be between 0 and 31, not 32"),
        ({"markMasqBit": 1, "externalSetMarkChain": "X"}, "Cannot specify externalSetMarkChain and markMasqBit"),
        (
            {"backend": "iptables", "conditionsV4": ["ip", "saddr"]},
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV4]",
        ),
        (
            {"backend": "nftables", "conditionsV4": ["!", "-d"], "externalSetMarkChain": "X"},
            "contains iptables-specific options [externalSetMarkChain conditionsV4]",
        ),
        (
            {"conditionsV4": ["-s", "x"], "conditionsV6": ["ip6", "saddr"]},
            "contains iptables-specific options [conditionsV4]",
        ),
    ],
)
def test_contradictory_options_are_refused(fields: dict[str, object], text: str) -> None:
    with pytest.raises(CniError) as refused:
        parse(**fields)
    assert refused.value.msg.startswith("failed to parse config: ")
    assert text in refused.value.msg


@pytest.mark.parametrize(
    ("fields", "backend"),
    [
        ({}, ""),
        ({"backend": "iptables"}, "iptables"),
        ({"externalSetMarkChain": "X"}, "iptables"),
        ({"conditionsV6": ["!", "-d", "::1"]}, "iptables"),
        ({"conditionsV4": ["ip", "saddr", "192.0.2.1"]}, "nftables"),
        ({"conditionsV4": []}, ""),
    ],
)
def test_backend_follows_from_the_options_that_only_one_has(fields: dict[str, object], backend: str) -> None:
    assert parse(**fields).asked_backend == backend


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ip", "saddr", "!=", "192.0.2.0/24"], "ip saddr != 192.0.2.0/24"),
        (["  ip6 saddr\t{ 2001:db8::1,\n2001:db8::2 } "], "ip6 saddr { 2001:db8::1, 2001:db8::2 }"),
        (['iifname "eth0.5"'], "iifname eth0.5"),
        ([], ""),
    ],
)
def test_words_of_conditions_are_joined_anew(words: list[str], expected: str) -> None:
    assert vetted(words, "conditionsV4") == expected


@pytest.mark.parametrize(
    "word", ["2001:db8::add", "::add", "fd00::/8", "br-log", "eth0.5", "0x50", "{80,443}", "last0"]
)
def test_words_that_only_look_like_statements_are_taken(word: str) -> None:
    assert vetted([word], "conditionsV6") == word


@pytest.mark.parametrize(
    "word", ["{80}log", "80log", "0x50log", "10.0.0.0/8counter", "2001:db8::/32drop", "{80},80}accept"]
)
def test_statement_glued_to_a_value_is_refused(word: str) -> None:
    """nft needs no blank between a number, or a brace, and a name."""
    with pytest.raises(CniError, match="conditionsV4"):
        vetted(["tcp", "dport", word], "conditionsV4")


@pytest.mark.parametrize(
    "text",
    [
        "tcp 0.0.0.0:88080 to 198.51.100.2:80",
        "tcp 0.0.0.0:0 to 198.51.100.2:80",
        "tcp 0.0.0.0:80-70 to 198.51.100.2:80-70",
        "tcp 0.0.0.0:1-65535 to 198.51.100.2:2-3",
        "tcp 192.0.2.1:80 to [2001:db8::2]:80",
        "tcp 0.0.0.0:80 to 198.51.100.2:-1",
    ],
)
def test_text_of_a_damaged_record_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_mappings([text])


@pytest.mark.parametrize(
    "word",
    ["accept", "drop", "jump", "vmap", "{accept}", "1;", "$x", "@set", "#", "`id`", "a\\", "\0", "ü", 'x"y', "(", "'"],
)
def test_words_that_act_or_end_the_rule_are_refused(word: str) -> None:
    with pytest.raises(CniError, match="conditionsV4") as refused:
        vetted(["ip", "saddr", word], "conditionsV4")
    assert refused.value.code == 7


def test_chain_of_a_condition_depends_on_the_text_alone() -> None:
    assert condition_id(4, "") == ""
    assert condition_id(4, "ip saddr 192.0.2.1") == condition_id(4, "ip saddr 192.0.2.1")
    assert len({condition_id(4, "x"), condition_id(6, "x"), condition_id(4, "y")}) == 3


def ip(text: str, interface: int | None = None) -> IPConfig:
    return IPConfig(parse_address(text), None, interface)


INTERFACES = [Interface("br0"), Interface("veth0"), Interface("eth0", sandbox="/run/netns/x"), Interface("eth0")]


@pytest.mark.parametrize(
    ("ips", "expected"),
    [
        ([ip("192.0.2.1/24", 0), ip("192.0.2.2/24", 2), ip("192.0.2.3/24", 2)], ["192.0.2.2/24"]),
        ([ip("2001:db8::2/64", 2), ip("192.0.2.2/24", 2)], ["192.0.2.2/24", "2001:db8::2/64"]),
        ([ip("192.0.2.1/24"), ip("192.0.2.2/24", 2)], ["192.0.2.1/24"]),
        ([ip("192.0.2.1/24", 3)], []),
        ([ip("192.0.2.1/24", 7), ip("192.0.2.2/24", -1)], ["192.0.2.1/24"]),
    ],
)
def test_address_is_the_first_of_each_family_on_the_containers_interface(
    ips: list[IPConfig], expected: list[str]
) -> None:
    assert [str(address) for address in container_addresses(Result(INTERFACES, ips), "eth0")] == expected


def test_ports_of_a_mapping() -> None:
    assert list(Mapping("tcp", None, 5, parse_ip("192.0.2.1"), 5, 7).ports) == [5, 6, 7]
    assert Mapping("tcp", None, 5, parse_ip("192.0.2.1"), 80).family == 4


# What a port is given beyond its mapping

MAY_COME = {"8080/tcp": {"allow": ["198.51.100.7", "198.51.100.0/25", "203.0.113.9/24", "2001:db8::5/32"]}}


def test_allow_is_by_family_in_one_order_without_what_another_holds() -> None:
    assert published(WEB, ports=MAY_COME) == [
        "tcp 0.0.0.0:8080 to 198.51.100.2:80 from 203.0.113.0/24 198.51.100.0/25",
        "tcp [::]:8080 to [2001:db8::2]:80 from 2001:db8::/32",
    ]


def test_family_of_which_no_network_is_allowed_is_not_published() -> None:
    assert published(WEB, ports={"8080/tcp": {"allow": ["192.0.2.0/24"]}}) == [
        "tcp 0.0.0.0:8080 to 198.51.100.2:80 from 192.0.2.0/24"
    ]


def test_network_of_all_needs_no_condition() -> None:
    assert published(WEB, addresses=(V4,), ports={"8080/tcp": {"allow": ["0.0.0.0/0"], "share": True}}) == [
        "tcp 0.0.0.0:8080 to 198.51.100.2:80 shared"
    ]


def test_options_of_ports_that_are_not_published_are_passed_over() -> None:
    assert published(WEB, addresses=(V4,), ports={"8080/udp": {"share": True}, "81/tcp": {}}) == [
        "tcp 0.0.0.0:8080 to 198.51.100.2:80"
    ]


def test_ports_with_options_are_in_no_range() -> None:
    ports = {f"{port}/tcp": {"share": True} for port in range(7000, 7100)}
    assert len(published(*run_of(7000, 100), addresses=(V4,), ports=ports)) == 100


def annotated(text: object) -> dict[str, object]:
    return {"portMappings": [WEB], "io.kubernetes.cri.pod-annotations": {"cni-py/ports": text, "a": "b"}}


def test_annotation_adds_what_the_configuration_leaves_open() -> None:
    text = json.dumps({"8080/tcp": {"share": True, "allow": ["0.0.0.0/0"]}})
    conf = parse(runtimeConfig=annotated(text), ports={"8080/tcp": {"allow": ["192.0.2.1"]}})
    assert list(map(str, mappings(conf, [V4]))) == ["tcp 0.0.0.0:8080 to 198.51.100.2:80 from 192.0.2.1/32 shared"]


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([], "ports must be an object"),
        ({"8080": {}}, 'ports: "8080" names no port'),
        ({"08080/tcp": {}}, 'ports: "08080/tcp" names no port'),
        ({"65536/tcp": {}}, "names no port"),
        ({"/tcp": {}}, "names no port"),
        ({"8080/icmp": {}}, "names no port"),
        ({"8080/tcp": {}, "8080/TCP": {}}, "stands there twice"),
        ({"8080/tcp": []}, 'ports: "8080/tcp" must be an object'),
        ({"8080/tcp": {"shared": True}}, 'ports: "8080/tcp": unknown key "shared"'),
        ({"8080/tcp": {"share": "yes"}}, "share must be true or false"),
        ({"8080/tcp": {"allow": "192.0.2.0/24"}}, "allow must be a list of networks"),
        ({"8080/tcp": {"allow": ["192.0.2.0/33"]}}, "'192.0.2.0/33' is no network"),
        ({"8080/tcp": {"allow": [7]}}, "7 is no network"),
        ({"8080/tcp": {"allow": []}}, "allow lists nobody"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_where_they_stand(ports: object, text: str) -> None:
    with pytest.raises(CniError) as refused:
        parse(ports=ports)
    assert refused.value.code == 7
    assert text in refused.value.msg
    if isinstance(ports, dict):
        with pytest.raises(CniError) as refused:
            parse(runtimeConfig=annotated(json.dumps(ports)))
        assert refused.value.code == 7
        assert text.removeprefix("ports: ") in refused.value.msg
        assert "annotation cni-py/ports" in refused.value.msg


def asking(text: object, *allowed: str) -> list[str]:
    """What a pod publishes by its annotation."""
    runtime = {"portMappings": [WEB], "io.kubernetes.cri.pod-annotations": {"cni-py/host-ports": text}}
    return list(map(str, mappings(parse(runtimeConfig=runtime, podHostPorts=list(allowed)), [V4])))[1:]


def test_a_pod_asks_for_ports_that_the_network_leaves_to_pods() -> None:
    asked = asking("9000-9099, 9100:80\t5060/UDP", "9000-9199", "5060/udp")
    assert sorted(asked) == [
        "tcp 0.0.0.0:9000-9099 to 198.51.100.2:9000-9099",
        "tcp 0.0.0.0:9100 to 198.51.100.2:80",
        "udp 0.0.0.0:5060 to 198.51.100.2:5060",
    ]
    assert asking(" , ", "9000") == []


@pytest.mark.parametrize(
    ("text", "allowed", "says"),
    [
        ("9000", (), "'9000'"),
        ("9000-9001", ("9000",), "may not publish '9000-9001'"),
        ("9000/udp", ("9000",), "may not publish '9000/udp'"),
        ("9000,8999-9001:1-3", ("8000-9999",), "'8999-9001:1-3' stands there twice"),
        ("9001-9000", ("9000-9001",), "'9001-9000' is not HOST_PORTS"),
        ("9000-9009:80-88", ("9000-9009",), "is not HOST_PORTS"),
        ("9000/icmp", ("9000",), "is not HOST_PORTS"),
        ("127.0.0.1:9000:80", ("9000",), "is not HOST_PORTS"),
        ("0", ("9000",), "is not HOST_PORTS"),
        ("9000-65536", ("9000",), "is not HOST_PORTS"),
        ("x" * 4000, ("9000",), "is not HOST_PORTS"),
        ("9000 " * 1000, ("9000",), "at most 4096 characters"),
        (9000, ("9000",), "at most 4096 characters"),
        ("9000", ("ninety",), "podHostPorts: 'ninety' is not HOST_PORTS"),
    ],
)
def test_what_a_pod_may_not_ask_for_is_refused(text: object, allowed: tuple[str, ...], says: str) -> None:
    with pytest.raises(CniError) as refused:
        asking(text, *allowed)
    assert refused.value.code == 7
    assert says in refused.value.msg
    assert len(refused.value.msg) < 500


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '"x"', 5])
def test_annotation_that_is_no_object_is_refused(text: object) -> None:
    with pytest.raises(CniError, match="annotation cni-py/ports") as refused:
        parse(runtimeConfig=annotated(text))
    assert refused.value.code == 7


@pytest.mark.parametrize("fields", [{"userlandProxy": "yes"}, {"directAccess": "drop"}, {"userlandProxy": True}])
def test_keys_of_ours_take_known_values_only(fields: dict[str, object]) -> None:
    with pytest.raises(CniError, match=r"userlandProxy|directAccess"):
        parse(**fields)


# What portfwd is asked for


def relayed(*entries: dict[str, object], addresses: tuple[Address, ...] = (V4, V6), **fields: object) -> list[str]:
    conf = parse(runtimeConfig={"portMappings": list(entries)}, **fields)
    texts = []
    for one in json.loads(json.dumps(relays(conf, addresses))):
        [target] = one["targets"]
        hosts, allow = (" ".join(one.get(name, ())) for name in ("host_ips", "allow"))
        span = f"{one['first']}-{one['last']}/{one['protocol']}"
        texts.append(f"{span} {hosts} > {target['address']} {target['port']} {allow}".strip())
    return texts


@pytest.mark.parametrize(
    ("host_ip", "addresses", "expected"),
    [
        ("", (V4, V6), ["0.0.0.0 > 198.51.100.2", ":: > 2001:db8::2"]),
        ("", (V4,), ["0.0.0.0 :: > 198.51.100.2"]),
        ("", (V6,), ["0.0.0.0 :: > 2001:db8::2"]),
        ("", (), []),
        ("0.0.0.0", (V4, V6), ["0.0.0.0 > 198.51.100.2"]),
        ("::", (V4,), [":: > 198.51.100.2"]),
        ("::1", (V4, V6), ["::1 > 2001:db8::2"]),
        ("127.0.0.1", (V6,), ["127.0.0.1 > 2001:db8::2"]),
    ],
)
def test_relay_listens_where_host_ip_says_for_an_address_of_either_family(
    host_ip: str, addresses: tuple[Address, ...], expected: list[str]
) -> None:
    wanted = [f"8080-8080/tcp {text} 80" for text in expected]
    assert relayed({**WEB, "hostIP": host_ip}, addresses=addresses) == wanted


def test_runs_of_ports_with_one_offset_are_one_relay() -> None:
    assert relayed(*run_of(7000, 5), *run_of(7005, 3, 1), *run_of(9000, 2), addresses=(V4,)) == [
        "7000-7004/tcp 0.0.0.0 :: > 198.51.100.2 7000",
        "9000-9001/tcp 0.0.0.0 :: > 198.51.100.2 9000",
        "7005-7007/tcp 0.0.0.0 :: > 198.51.100.2 7006",
    ]


def test_address_beside_any_is_not_listened_on_twice() -> None:
    entries = [{**WEB, "hostIP": ip} for ip in ("127.0.0.1", "", "::1")]
    assert relayed(*entries, addresses=(V4,)) == ["8080-8080/tcp 0.0.0.0 :: > 198.51.100.2 80"]


def test_two_targets_for_one_place_are_refused() -> None:
    with pytest.raises(CniError, match="mapped twice"):
        relayed({**WEB, "hostIP": "::1"}, {**WEB, "hostIP": "::1", "containerPort": 81})


def test_relay_leaves_out_what_it_cannot_decide() -> None:
    assert relayed({**WEB, "protocol": "sctp"}) == []
    assert relayed(WEB, ports={"8080/tcp": {"share": True}}) == []
    conditions = {"backend": "nftables", "conditionsV6": ["iifname", "eth0"]}
    assert relayed(WEB, addresses=(V4,), **conditions) == ["8080-8080/tcp 0.0.0.0 > 198.51.100.2 80"]


def test_relay_has_the_allowed_clients_and_listens_in_their_families_only() -> None:
    assert relayed(WEB, addresses=(V4,), ports={"8080/tcp": {"allow": ["192.0.2.0/24", "203.0.113.0/24"]}}) == [
        "8080-8080/tcp 0.0.0.0 > 198.51.100.2 80 192.0.2.0/24 203.0.113.0/24"
    ]


def test_all_ports_are_one_entry_unless_one_of_them_has_its_own_way() -> None:
    everything = run_of(1, 65535)
    assert [entry.numbers for entry in parse(runtimeConfig={"portMappings": everything}).entries] == ["1-65535"]
    options: dict[str, object] = {"8080/tcp": {"allow": ["192.0.2.0/24"]}}
    conf = parse(runtimeConfig={"portMappings": everything}, ports=options)
    assert [entry.numbers for entry in conf.entries] == ["1-8079", "8080", "8081-65535"]
    assert len(mappings(conf, (V4,))) == 3


@pytest.mark.parametrize("extra", [{"hostIP": "192.0.2.1"}, {}])
def test_a_port_of_a_row_that_stands_there_again_is_the_same_or_refused(extra: dict[str, object]) -> None:
    row = run_of(7000, 100)
    assert len(published(*row, {**row[50], **extra}, addresses=(V4,))) == 1
    with pytest.raises(CniError, match="7050/tcp is mapped twice"):
        published(*row, {**row[50], **extra, "containerPort": 80}, addresses=(V4,))


@given(st.sets(st.integers(1, 300)))
def test_runs_are_the_ports_and_do_not_touch(ports: set[int]) -> None:
    runs = runs_of(range(port, port + 1) for port in ports)
    assert {port for first, last in runs for port in range(first, last + 1)} == ports
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(runs))
