"""Ranges, range sets and the order of choice, by value."""

import time

import pytest

from cni_py.addr import ip_text, parse_address, parse_ip
from cni_py.errors import CniError, InvalidNetworkConfig
from cni_py.ipam.ranges import Range, candidates, check_set, check_sets, choose, gateways, parse_block, parse_sets
from cni_py.protocol.gojson import Object, decode


def a_range(subnet: str, start: str = "", end: str = "", gateway: str = "", *, exclude: tuple[str, ...] = ()) -> Range:
    return Range(
        parse_address(subnet),
        parse_ip(start) if start else None,
        parse_ip(end) if end else None,
        parse_ip(gateway) if gateway else None,
        [parse_block(text) for text in exclude],
    )


def order(ranges: list[Range], last: str = "") -> list[str]:
    return [ip_text(ip) for ip, _ in candidates(ranges, parse_ip(last) if last else None)]


@pytest.mark.parametrize(
    ("subnet", "text", "gateway"),
    [
        ("10.1.2.0/24", "10.1.2.1-10.1.2.254", "10.1.2.1"),
        ("10.1.2.0/30", "10.1.2.1-10.1.2.2", "10.1.2.1"),
        ("fd00:1::/64", "fd00:1::1-fd00:1::ffff:ffff:ffff:ffff", "fd00:1::1"),
        ("fd00::/126", "fd00::1-fd00::3", "fd00::1"),
        ("10.1.2.0/31", "10.1.2.0-10.1.2.1", "10.1.2.1"),
        ("fd00::2/127", "fd00::2-fd00::3", "fd00::3"),
    ],
)
def test_a_subnet_alone_leaves_out_the_network_and_the_ipv4_broadcast_address(
    subnet: str, text: str, gateway: str
) -> None:
    found = a_range(subnet)
    assert str(found) == text
    assert ip_text(found.gateway) == gateway


@pytest.mark.parametrize(
    ("subnet", "first", "second"), [("10.1.2.4/31", "10.1.2.4", "10.1.2.5"), ("fd00::/127", "fd00::", "fd00::1")]
)
def test_of_two_addresses_the_one_that_is_not_the_gateway_is_given_out(subnet: str, first: str, second: str) -> None:
    assert order([a_range(subnet)]) == order([a_range(subnet)], first) == [first]
    assert order([a_range(subnet, gateway=first)]) == [second]
    assert order([a_range(subnet, gateway="10.9.9.9")]) == [first, second]
    assert order([a_range(subnet, start=second)]) == []
    assert order([a_range(subnet, end=first)]) == [first]
    pairs = [a_range("10.1.2.0/31"), a_range("10.1.2.2/31")]
    check_set(pairs)
    assert order(pairs, "10.1.2.0") == ["10.1.2.2", "10.1.2.0"]


def test_start_and_end_may_be_the_network_and_the_broadcast_address() -> None:
    assert str(a_range("10.1.2.0/24", "10.1.2.0", "10.1.2.255")) == "10.1.2.0-10.1.2.255"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("10.1.2.1/31",), "Network has host bits set. For a subnet mask of length 31 the network address is 10.1.2.0"),
        (("10.1.2.1/32",), "Network 10.1.2.1/32 too small to allocate from"),
        (("fd00::1/128",), "Network fd00::1/128 too small to allocate from"),
        (("10.1.2.7/24",), "Network has host bits set. For a subnet mask of length 24 the network address is 10.1.2.0"),
        (("10.1.2.0/24", "10.1.3.5"), "RangeStart 10.1.3.5 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "fd00::5"), "RangeStart fd00::5 not in network 10.1.2.0/24"),
        (
            ("10.1.2.0/24", "10.1.2.50", "10.1.2.40"),
            "RangeStart 10.1.2.50 of 10.1.2.0/24 comes after the range's end, 10.1.2.40",
        ),
        (("10.1.2.0/24", "10.1.2.255"), "RangeStart 10.1.2.255 of 10.1.2.0/24 comes after the range's end, 10.1.2.254"),
        (("10.1.2.0/24", "", "10.1.3.5"), "RangeEnd 10.1.3.5 not in network 10.1.2.0/24"),
        (("10.1.2.0/24", "", "10.1.2.0"), "RangeEnd 10.1.2.0 not in network 10.1.2.0/24: the network's own address"),
        (("10.1.2.0/24", "", "fd00::5"), "RangeEnd fd00::5 not in network 10.1.2.0/24"),
    ],
)
def test_a_range_that_cannot_be_says_why(values: tuple[str, ...], message: str) -> None:
    with pytest.raises(CniError) as caught:
        a_range(*values)
    assert caught.value.msg == message
    assert caught.value.code == 7


def test_the_gateway_may_be_outside_of_the_subnet_and_of_another_family() -> None:
    assert order([a_range("10.1.2.0/30", gateway="10.9.9.9")]) == ["10.1.2.1", "10.1.2.2"]
    assert order([a_range("10.1.2.0/30", gateway="fd00::1")]) == ["10.1.2.1", "10.1.2.2"]


def test_one_set_is_of_one_family_without_overlap_and_not_empty() -> None:
    whole, half, six = a_range("10.1.2.0/24"), a_range("10.1.2.128/25"), a_range("fd00::/64")
    for ranges, message in (
        ([], "empty range set"),
        ([whole, six], "mixed address families: IPv4 and IPv6 need a set (a list) each"),
        ([whole, half], "subnets 10.1.2.1-10.1.2.254 and 10.1.2.129-10.1.2.254 overlap"),
    ):
        with pytest.raises(CniError) as caught:
            check_set(ranges)
        assert caught.value.msg == message
    check_set([a_range("10.1.2.0/24", end="10.1.2.9"), a_range("10.1.2.0/24", start="10.1.2.20")])


def test_sets_do_not_share_addresses() -> None:
    with pytest.raises(CniError, match="range set 1 overlaps with 2"):
        check_sets([[a_range("fd00::/64")], [a_range("10.1.2.0/24")], [a_range("10.1.0.0/16")]])


def test_choice_starts_after_the_last_address_and_takes_one_lap() -> None:
    ranges = [a_range("10.1.2.0/29")]
    assert order(ranges) == ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]
    assert order(ranges, "10.1.2.4") == ["10.1.2.5", "10.1.2.6", "10.1.2.2", "10.1.2.3", "10.1.2.4"]
    assert order(ranges, "10.1.2.6") == order(ranges) == order(ranges, "10.9.9.9") == order(ranges, "fd00::1")


def test_choice_goes_through_the_ranges_of_a_set_in_order() -> None:
    ranges = [a_range("10.1.2.0/30"), a_range("10.1.3.0/29", "10.1.3.3", "10.1.3.5")]
    assert order(ranges) == ["10.1.2.2", "10.1.3.3", "10.1.3.4", "10.1.3.5"]
    assert order(ranges, "10.1.3.3") == ["10.1.3.4", "10.1.3.5", "10.1.2.2", "10.1.3.3"]


@pytest.mark.parametrize("exclude", [("10.1.2.3", "10.1.2.4"), ("10.1.2.3-10.1.2.4",), ("10.1.2.3 - 10.1.2.4", "::/0")])
def test_excluded_addresses_are_passed_over(exclude: tuple[str, ...]) -> None:
    assert order([a_range("10.1.2.0/29", exclude=exclude)]) == ["10.1.2.2", "10.1.2.5", "10.1.2.6"]


def test_a_network_is_excluded_whole_and_in_one_step() -> None:
    huge = a_range("fd00::/64", exclude=("fd00::/65",))
    assert ip_text(next(candidates([huge], None))[0]) == "fd00::8000:0:0:0"
    assert order([a_range("10.1.2.0/29", exclude=("10.1.2.4/30",))]) == ["10.1.2.2", "10.1.2.3"]
    assert order([a_range("10.1.2.0/29", exclude=("10.1.0.0/16",))]) == []


@pytest.mark.parametrize(
    "text", ["", "x", "10.1.2.3/33", "10.1.2.9-10.1.2.3", "10.1.2.3-fd00::1", "10.1.2.3-", "-", "1-2-3"]
)
def test_an_exclusion_that_is_none_is_named(text: str) -> None:
    with pytest.raises(InvalidNetworkConfig, match="exclude: "):
        parse_block(text)


def test_a_request_gets_what_it_asks_for_unless_it_is_taken_or_the_gateway() -> None:
    ranges = [a_range("10.1.2.0/24", "10.1.2.1", "10.1.2.20", exclude=("10.1.2.9",))]
    taken = {parse_ip("10.1.2.7")}

    def is_free(ip: bytes) -> bool:
        return ip not in taken

    assert choose(ranges, parse_ip("10.1.2.5"), None, is_free) == (parse_ip("10.1.2.5"), ranges[0])
    assert choose(ranges, parse_ip("10.1.2.9"), None, is_free)[0] == parse_ip("10.1.2.9")  # excluded, but asked for
    assert choose(ranges, None, parse_ip("10.1.2.6"), is_free)[0] == parse_ip("10.1.2.8")
    for wanted, message in (
        ("10.1.2.1", "requested ip 10.1.2.1 is subnet's gateway"),
        ("10.1.2.7", "requested IP address 10.1.2.7 is not available in range set 10.1.2.1-10.1.2.20: it is taken"),
    ):
        with pytest.raises(CniError) as caught:
            choose(ranges, parse_ip(wanted), None, is_free)
        assert caught.value.msg == message


def test_a_full_set_says_so() -> None:
    with pytest.raises(CniError, match=r"no IP addresses available in range set: 10\.1\.2\.1-10\.1\.2\.2"):
        choose([a_range("10.1.2.0/30")], None, None, lambda _ip: False)


def parsed(ipam: str, runtime_config: str = "{}") -> list[list[str]]:
    own, runtime = decode(ipam.encode()), decode(runtime_config.encode())
    assert isinstance(own, Object)
    assert isinstance(runtime, Object)
    return [[str(one) for one in ranges] for ranges in parse_sets(own, runtime)]


def test_the_sets_of_the_runtime_come_first_then_the_oldest_form_then_the_ranges() -> None:
    assert parsed(
        '{"subnet": "10.1.2.0/30", "ranges": [[{"subnet": "10.1.3.0/30"}, {"subnet": "10.1.4.0/30"}]]}',
        '{"ipRanges": [[{"subnet": "10.1.5.0/30"}]]}',
    ) == [["10.1.5.1-10.1.5.2"], ["10.1.2.1-10.1.2.2"], ["10.1.3.1-10.1.3.2", "10.1.4.1-10.1.4.2"]]


@pytest.mark.parametrize(
    ("ipam", "message"),
    [
        ("{}", "no IP ranges specified"),
        ('{"rangeStart": "10.1.2.5"}', "no IP ranges specified"),
        ('{"ranges": []}', "no IP ranges specified"),
        ('{"ranges": [[]]}', "invalid range set 0: empty range set"),
        ('{"ranges": [[{"gateway": "10.1.2.1"}]]}', 'invalid range set 0: a range has no "subnet"'),
        ('{"ranges": [[{"subnet": "x"}]]}', "invalid range set 0: invalid CIDR address: x"),
        ('{"subnet": ""}', "invalid range set 0: invalid CIDR address: "),
        ('{"subnet": "10.1.2.0/24", "gateway": "x"}', "invalid range set 0: gateway: invalid IP address: x"),
        ('{"ranges": [{"subnet": "10.1.2.0/24"}]}', "ranges must be a list of lists: [[{"),
    ],
)
def test_a_configuration_without_usable_ranges_says_what_is_wrong(ipam: str, message: str) -> None:
    with pytest.raises(CniError) as caught:
        parsed(ipam)
    assert message in caught.value.msg
    assert caught.value.code == (6 if " must be " in message else 7)


def test_the_gateways_of_all_ranges_are_found_in_a_configuration_that_may_be_wrong() -> None:
    ipam = decode(
        b"""{"subnet": "10.1.2.0/24", "ranges": [[{"subnet": "10.1.3.0/30"}, {"subnet": "fd00::/64", "gateway": "fe80::1"}],
        [{"subnet": "10.1.4.0/24", "gateway": "fd00::1"}], [{"subnet": "10.1.5.0/99"}]]}"""
    )
    runtime = decode(b'{"ipRanges": [[{"subnet": "10.1.6.0/31", "gateway": "10.1.6.0"}]]}')
    assert isinstance(ipam, Object)
    assert isinstance(runtime, Object)
    expected = ["10.1.6.0/31", "10.1.2.1/24", "10.1.3.1/30", "fe80::1/64"]  # none of another family than its range
    assert [str(gateway) for gateway in gateways(ipam, runtime)] == expected


def test_a_wrong_exclusion_is_an_error_of_the_configuration() -> None:
    with pytest.raises(CniError) as caught:
        parsed('{"subnet": "10.1.2.0/24", "exclude": ["10.1.2.300"]}')
    assert caught.value.code == 7


def test_many_ranges_and_exclusions_cost_their_size() -> None:
    begun = time.monotonic()
    ranges = [a_range(f"10.{number >> 8}.{number & 255}.0/28") for number in range(20_000)]
    check_set(ranges)
    check_sets([ranges])
    with pytest.raises(CniError, match="overlap"):
        check_set([*ranges, a_range("10.0.0.0/8")])
    one = a_range("10.0.0.0/8", exclude=tuple(f"10.{n >> 8}.{n & 255}.7" for n in range(20_000)))
    taken = iter(range(100_000))
    assert choose([one], None, None, lambda _: next(taken) > 90_000)
    assert time.monotonic() - begun < 20
