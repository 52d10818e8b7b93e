"""Results in the form of each version. Rows marked golden are recorded answers of the Go plugins."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py import version
from cni_py.addr import Address, parse_address, parse_ip
from cni_py.errors import CniError
from cni_py.protocol.gojson import Object, decode, encode
from cni_py.protocol.netconf import NetConf
from cni_py.protocol.result import DNS, Interface, IPConfig, Result, Route, from_json, prev_result, to_json

V4, V6 = parse_address("10.1.2.2/24"), parse_address("fd00:1:2::2/64")
DEFAULT = parse_address("0.0.0.0/0")


def obj(fields: object) -> Object:
    value = decode(json.dumps(fields).encode())
    assert isinstance(value, Object)
    return value


def full() -> Result:
    return Result(
        [
            Interface("br0", "02:00:00:00:00:01"),
            Interface("eth0", "02:00:00:00:00:03", "/run/netns/c", 1400, "/s", "0000:00:01.0"),
        ],
        [IPConfig(V4, parse_ip("10.1.2.1"), 1), IPConfig(V6, None, 1), IPConfig(parse_address("10.1.3.2/24"))],
        [
            Route(DEFAULT, parse_ip("10.1.2.1"), 1300, 1200, 10, 100, 0),
            Route(parse_address("fd00:9::/64")),
        ],
        DNS(["10.1.2.53"], "example.test", ["a.test"], ["ndots:2"]),
    )


ROUTE = {"dst": "0.0.0.0/0", "gw": "10.1.2.1", "mtu": 1300, "advmss": 1200, "priority": 10, "table": 100, "scope": 0}
NEWER = {"mtu": 1400, "socketPath": "/s", "pciID": "0000:00:01.0"}
FULL_DNS = {"nameservers": ["10.1.2.53"], "domain": "example.test", "search": ["a.test"], "options": ["ndots:2"]}


def test_the_form_of_0_2_has_one_address_and_the_routes_of_each_family() -> None:
    assert to_json(full(), "0.2.0") == {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.1.2.2/24", "gateway": "10.1.2.1", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]},
        "ip6": {"ip": "fd00:1:2::2/64", "routes": [{"dst": "fd00:9::/64"}]},
        "dns": FULL_DNS,
    }


def test_routes_of_a_family_without_address_are_dropped_in_0_2() -> None:
    result = Result(ips=[IPConfig(V6)], routes=[Route(DEFAULT)])
    assert to_json(result, "0.1.0") == {"cniVersion": "0.1.0", "ip6": {"ip": "fd00:1:2::2/64"}, "dns": {}}


@pytest.mark.parametrize("cni_version", ["0.1.0", "0.2.0"])
def test_a_result_without_address_cannot_be_said_in_0_2(cni_version: str) -> None:
    with pytest.raises(CniError, match="cannot convert: no valid IP addresses"):
        to_json(Result([Interface("br0")]), cni_version)


def test_the_form_of_0_4() -> None:
    assert to_json(full(), "0.4.0") == {
        "cniVersion": "0.4.0",
        "interfaces": [
            {"name": "br0", "mac": "02:00:00:00:00:01"},
            {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/c"},
        ],
        "ips": [
            {"version": "4", "interface": 1, "address": "10.1.2.2/24", "gateway": "10.1.2.1"},
            {"version": "6", "interface": 1, "address": "fd00:1:2::2/64"},
            {"version": "4", "address": "10.1.3.2/24"},
        ],
        "routes": [ROUTE, {"dst": "fd00:9::/64"}],
        "dns": FULL_DNS,
    }


@pytest.mark.parametrize("cni_version", ["1.0.0", "1.1.0"])
def test_the_form_of_1(cni_version: str) -> None:
    made = to_json(full(), cni_version)
    assert made["interfaces"] == [
        {"name": "br0", "mac": "02:00:00:00:00:01"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/c", **NEWER},
    ]
    assert made["ips"] == [
        {"interface": 1, "address": "10.1.2.2/24", "gateway": "10.1.2.1"},
        {"interface": 1, "address": "fd00:1:2::2/64"},
        {"address": "10.1.3.2/24"},
    ]
    assert made["routes"] == [ROUTE, {"dst": "fd00:9::/64"}]


@pytest.mark.parametrize(
    ("cni_version", "text"),
    [
        ("0.3.1", '{"cniVersion":"0.3.1","dns":{}}'),
        ("0.4.0", '{"cniVersion":"0.4.0","dns":{}}'),
        ("1.0.0", '{"cniVersion":"1.0.0"}'),
    ],
)
def test_dns_is_always_there_before_1_0_and_empty_lists_never(cni_version: str, text: str) -> None:
    assert encode(to_json(Result(), cni_version), indent=None) == text


def test_keys_are_in_the_order_of_go() -> None:
    old = ["cniVersion", "interfaces", "ips", "routes", "dns"]
    assert list(to_json(full(), "0.3.0")) == old
    assert list(to_json(full(), "1.1.0")) == sorted(old)
    text = encode(to_json(full(), "1.1.0"), indent=None)
    assert '{"mac":"02:00:00:00:00:01","name":"br0"}' in text
    assert '{"address":"10.1.2.2/24","gateway":"10.1.2.1","interface":1}' in text


def test_an_interface_index_of_zero_is_said() -> None:
    assert to_json(Result(ips=[IPConfig(V4, interface=0)]), "1.0.0")["ips"] == [
        {"address": "10.1.2.2/24", "interface": 0}
    ]


IN_0_4 = {"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.2.2/24"}]}
IN_0_2 = {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.2.2/24", "routes": [{"dst": "0.0.0.0/0"}]}}


@pytest.mark.parametrize(
    ("fields", "cni_version", "supported"),
    [
        (IN_0_4, "1.0.0", "[1.0.0 1.1.0]"),
        (IN_0_4, "0.2.0", "[ 0.1.0 0.2.0]"),
        (IN_0_2, "0.4.0", "[0.3.0 0.3.1 0.4.0]"),
        ({"cniVersion": "9.9.9"}, "1.0.0", "[1.0.0 1.1.0]"),
    ],
)
def test_a_result_of_another_family_is_refused_in_the_words_of_go(
    fields: dict[str, object], cni_version: str, supported: str
) -> None:
    stated = fields["cniVersion"]
    with pytest.raises(CniError) as caught:
        from_json(obj(fields), cni_version)
    assert caught.value.msg == f'result type supports {supported} but unmarshalled CNIVersion is "{stated}"'


@pytest.mark.parametrize("stated", [{}, {"cniVersion": ""}, {"cniVersion": "0.3.0"}, {"CNIVersion": "0.4.0"}])
def test_a_result_of_the_same_family_or_of_none_is_relabelled(stated: dict[str, object]) -> None:
    made = to_json(from_json(obj({**IN_0_4, "cniVersion": None, **stated}), "0.3.1"), "0.3.1")
    assert made == {**IN_0_4, "cniVersion": "0.3.1", "dns": {}}


@pytest.mark.parametrize("text", ["", "6"])  # golden: tuning/prevResult 0.4.0/ips without version, version 6 on ...
def test_the_version_of_an_address_is_passed_on_as_it_came(text: str) -> None:
    fields = {"cniVersion": "0.4.0", "ips": [{"version": text, "address": "10.1.2.2/24"}]}
    result = from_json(obj(fields), "0.4.0")
    assert to_json(result, "0.4.0") == {**fields, "dns": {}}
    assert to_json(Result(ips=result.ips), "0.4.0")["ips"] == [{"version": "4", "address": "10.1.2.2/24"}]


def test_an_empty_result_of_0_2_is_passed_on() -> None:  # golden: loopback/prevResult 0.2.0/empty object
    assert to_json(from_json(Object(), "0.2.0"), "0.2.0") == {"cniVersion": "0.2.0", "dns": {}}


def test_a_result_of_0_2_becomes_one_of_1_0() -> None:
    dual = {
        **IN_0_2,
        "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
        "dns": {"domain": "x"},
    }
    assert to_json(from_json(obj(dual), "0.1.0"), "1.0.0") == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.1.2.2/24"}, {"address": "fd00::2/64", "gateway": "fd00::1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        "dns": {"domain": "x"},
    }


def test_keys_in_capitals_and_addresses_in_long_form_are_read() -> None:
    fields = {
        "IPs": [{"Address": "FD00:0:0::00AB/64", "Interface": 0}, {"address": "::ffff:10.1.2.3/120"}],
        "Routes": [{"Dst": "10.9.9.9/8", "GW": ""}],
        "DNS": {"Nameservers": ["192.0.2.53"]},
        "x": {"y": 1},
    }
    assert to_json(from_json(obj(fields), "1.0.0"), "1.0.0") == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "fd00::ab/64", "interface": 0}, {"address": "10.1.2.3/24"}],
        "routes": [{"dst": "10.9.9.9/8"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ips": "x"}, 'ips must be a list [...], not "x"'),
        ({"ips": [{"address": "10.1.2.300/24"}]}, "invalid CIDR address: 10.1.2.300/24"),
        ({"ips": [{"address": "10.1.2.3"}]}, "invalid CIDR address: 10.1.2.3"),
        ({"ips": [{}]}, "invalid CIDR address: "),
        ({"ips": [{"address": "10.1.2.3/24", "gateway": "x"}]}, "invalid IP address: x"),
        ({"ips": [{"address": "10.1.2.3/24", "interface": "0"}]}, 'interface must be a whole number, not "0"'),
        ({"routes": [{"dst": "x"}]}, "invalid CIDR address: x"),
        ({"routes": [{"dst": "<nil>"}]}, "invalid CIDR address: <nil>"),
        ({"routes": [{"dst": "0.0.0.0/0", "gw": "010.0.0.1"}]}, "invalid IP address: 010.0.0.1"),
        ({"dns": []}, "dns must be an object {...}, not []"),
        ({"cniVersion": "0.2.0"}, "result type supports [1.0.0 1.1.0]"),
    ],
)
def test_a_prev_result_that_cannot_be_read(fields: dict[str, object], message: str) -> None:
    conf = NetConf.parse(json.dumps({"name": "n", "cniVersion": "1.0.0", "prevResult": fields}).encode())
    with pytest.raises(CniError) as caught:
        prev_result(conf)
    assert caught.value.code == (6 if " must be " in message else 7)
    assert caught.value.msg.startswith(f"could not parse prevResult: {message}")


def test_prev_result_of_a_configuration() -> None:
    conf = NetConf.parse(json.dumps({"name": "n", "cniVersion": "0.2.0", "prevResult": IN_0_2}).encode())
    result = prev_result(conf)
    assert result is not None
    assert [ip.address for ip in result.ips] == [V4]
    assert prev_result(NetConf.parse(b'{"name": "n"}')) is None


texts = st.text(max_size=8)
ips = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16).map(lambda ip: b"\xfd" + ip[1:]))
prefixes = ips.flatmap(lambda ip: st.builds(Address, st.just(ip), st.integers(0, 8 * len(ip))))
numbers = st.integers(0, 1 << 31)
results = st.builds(
    Result,
    st.lists(st.builds(Interface, texts, texts, texts, numbers, texts, texts), max_size=3),
    st.lists(st.builds(IPConfig, prefixes, st.none() | ips, st.none() | st.integers(-1, 9)), max_size=3),
    st.lists(
        st.builds(
            *(Route, prefixes, st.none() | ips, numbers, numbers, numbers, st.none() | numbers, st.none() | numbers)
        ),
        max_size=3,
    ),
    st.builds(DNS, st.lists(texts, max_size=2), texts, st.lists(texts, max_size=2), st.lists(texts, max_size=2)),
)


@given(results, st.sampled_from(version.SUPPORTED))
def test_what_is_written_reads_back_and_is_written_again(result: Result, cni_version: str) -> None:
    try:
        text = encode(to_json(result, cni_version))
    except CniError:
        assert cni_version in ("0.1.0", "0.2.0")
        assert not result.ips
        return
    again = decode(text.encode())
    assert isinstance(again, Object)
    assert encode(to_json(from_json(again, cni_version), cni_version)) == text
