"""Addresses, with Python's ipaddress as the oracle and Go's package net where the two differ."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py import addr

PACKED = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
# few set bytes: long runs of zeros are where the texts of IPv6 differ
SPARSE = st.lists(st.sampled_from([0, 0, 0, 0, 1, 255]), min_size=16, max_size=16).map(bytes)


@st.composite
def addresses(draw: st.DrawFn) -> addr.Address:
    packed = draw(st.one_of(PACKED, SPARSE).filter(lambda ip: not ip.startswith(addr.MAPPED)))
    return addr.Address(packed, draw(st.integers(0, 8 * len(packed))))


def interface(address: addr.Address) -> ipaddress.IPv4Interface | ipaddress.IPv6Interface:
    return ipaddress.ip_interface((address.packed, address.prefixlen))


@given(addresses())
def test_texts_are_those_of_ipaddress_and_read_back(address: addr.Address) -> None:
    assert str(address) == interface(address).with_prefixlen
    assert addr.parse_address(str(address)) == address
    assert hash(addr.parse_address(str(address))) == hash(address)
    assert addr.parse_ip(addr.ip_text(address.packed)) == address.packed


@given(addresses())
def test_network_and_last_address_are_those_of_ipaddress(address: addr.Address) -> None:
    network = interface(address).network
    assert str(address.network()) == network.with_prefixlen
    assert address.broadcast() == network.broadcast_address.packed
    assert address.family == network.version
    assert address.host().prefixlen == network.max_prefixlen
    assert address.contains(address.packed)
    assert address.contains(address.broadcast())


@given(addresses(), PACKED)
def test_contains_is_that_of_ipaddress(address: addr.Address, ip: bytes) -> None:
    other = ipaddress.ip_address(ip)
    same_family = other.version == address.family
    assert address.contains(ip) == (same_family and other in interface(address).network)


@given(st.text(alphabet="0123456789abcdefg.:/% -", max_size=24))
def test_what_ipaddress_refuses_is_refused(text: str) -> None:
    try:
        theirs: bytes | None = ipaddress.ip_address(text).packed
    except ValueError:
        theirs = None
    if theirs is None or "%" in text:
        with pytest.raises(ValueError, match="invalid IP address"):
            addr.parse_ip(text)
    else:
        assert addr.parse_ip(text) == (theirs[12:] if theirs.startswith(addr.MAPPED) else theirs)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.1.2.3/24", "10.1.2.3/24"),
        ("10.1.2.3/024", "10.1.2.3/24"),  # Go reads the length with leading zeros
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00:0:0::00AB/64", "fd00::ab/64"),
        ("::/0", "::/0"),
        ("::1.2.3.4/128", "::102:304/128"),
        ("::ffff:10.1.2.3/120", "10.1.2.3/24"),
        ("::ffff:10.1.2.3/64", "10.1.2.3/0"),
    ],
)
def test_addresses_that_are_read(text: str, canonical: str) -> None:
    assert str(addr.parse_address(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        *("", "/", "/24", "10.1.2.3", "10.1.2.3/", "10.1.2.3/33", "10.1.2.3/-1", "10.1.2.3/+8", "10.1.2.3/ 8"),
        *("10.1.2.3/٨", "10.1.2.3/8/8", "10.1.2/24", "010.0.0.1/8", "10.1.2.300/24", "10.1.2.3/99999999999"),
        *("fd00::1/129", "fe80::1%eth0/64", "fd00:::1/64", "10.1.2.3\0/8", "\udc80/8", "<nil>"),
    ],
)
def test_addresses_that_are_refused_in_the_words_of_go(text: str) -> None:
    with pytest.raises(ValueError, match="invalid CIDR address: ") as caught:
        addr.parse_address(text)
    assert str(caught.value).startswith(f"invalid CIDR address: {text or addr.EMPTY} (")


def test_an_ipv4_mapped_address_is_an_ipv4_address() -> None:
    assert addr.parse_ip("::ffff:192.0.2.1") == bytes([192, 0, 2, 1])


@given(PACKED)
def test_numbers_and_addresses_convert_both_ways(ip: bytes) -> None:
    assert addr.ip_of(addr.int_of(ip), len(ip)) == ip


@pytest.mark.parametrize("value", [-1, 1 << 32])
def test_a_number_outside_the_family_has_no_address(value: int) -> None:
    with pytest.raises(ValueError, match="no address of 4 bytes"):
        addr.ip_of(value, 4)


@pytest.mark.parametrize(("packed", "prefixlen"), [(b"", 0), (bytes(5), 0), (bytes(4), 33), (bytes(16), -1)])
def test_an_address_of_impossible_size_is_refused(packed: bytes, prefixlen: int) -> None:
    with pytest.raises(ValueError, match="invalid address"):
        addr.Address(packed, prefixlen)


def test_an_address_is_equal_to_addresses_only() -> None:
    address = addr.parse_address("192.0.2.1/24")
    assert address != addr.parse_address("192.0.2.1/25")
    assert address != "192.0.2.1/24"
    assert repr(address) == "Address(192.0.2.1/24)"


@given(st.binary(min_size=6, max_size=6))
def test_mac_addresses_read_back_in_the_three_spellings(mac: bytes) -> None:
    text = addr.mac_text(mac)
    assert addr.parse_mac(text) == mac
    assert addr.parse_mac(text.upper().replace(":", "-")) == mac
    assert addr.parse_mac(mac.hex(".", 2)) == mac


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "02:00:00:00:00", "02:00:00:00:00:01:02", "02:00:00:00:00:1", "02:00:00:00-00-01", "020000000001"),
        *("02:00:00:00:00:0g", "02:00:00:00:00: 1", "0200.0000.000", "02:00:00:00:00:00:00:01", "٠٢:00:00:00:00:01"),
    ],
)
def test_mac_addresses_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid MAC address"):
        addr.parse_mac(text)
