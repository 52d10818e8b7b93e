"""cni_py.kernel.sysctl: which file a key names, and what is written when."""

import errno
import subprocess

import pytest

from cni_py.kernel import sysctl


@pytest.mark.parametrize(
    "key",
    ["", "..", "ipv4/../../kernel/hostname", "/ipv4/ip_forward", "ipv4//ip_forward", "ipv4/.", "ipv4/ip_forward\0"],
)
def test_a_key_that_leads_elsewhere_is_refused(key: str) -> None:
    for call in (
        lambda: sysctl.read(key),
        lambda: sysctl.write(key, "1"),
        lambda: sysctl.write(key, "1", optional=True),
    ):
        with pytest.raises(OSError, match="not a network sysctl") as caught:
            call()
        assert caught.value.errno == errno.EINVAL


@pytest.mark.netns
def test_a_value_is_written_once() -> None:
    assert sysctl.read("ipv4/ip_forward") == "0"
    assert sysctl.write("ipv4/ip_forward", "1") is True
    assert sysctl.read("ipv4/ip_forward") == "1"
    assert sysctl.write("ipv4/ip_forward", "1") is False


@pytest.mark.netns
def test_the_values_are_those_of_the_namespace_the_process_is_in() -> None:
    sysctl.write("ipv4/ip_forward", "1")
    show = ["unshare", "-n", "cat", "/proc/sys/net/ipv4/ip_forward"]
    assert subprocess.run(show, capture_output=True, check=True).stdout == b"0\n"


@pytest.mark.netns
def test_an_interface_name_may_have_dots() -> None:
    subprocess.run(["ip", "link", "add", "cni0.5", "type", "bridge"], check=True)
    assert sysctl.write("ipv4/conf/cni0.5/arp_notify", "1") is True
    assert sysctl.read("ipv4/conf/cni0.5/arp_notify") == "1"


@pytest.mark.netns
def test_numbers_are_compared_whatever_stands_between_them() -> None:
    assert sysctl.read("ipv4/ip_local_port_range") == "32768\t60999"
    assert sysctl.write("ipv4/ip_local_port_range", "32768 60999") is False


@pytest.mark.netns
def test_a_missing_key_is_an_error_unless_it_is_optional() -> None:
    with pytest.raises(FileNotFoundError):
        sysctl.read("ipv6/conf/gone/disable_ipv6")
    with pytest.raises(FileNotFoundError):
        sysctl.write("ipv6/conf/gone/disable_ipv6", "0")
    assert sysctl.write("ipv6/conf/gone/disable_ipv6", "0", optional=True) is False


@pytest.mark.netns
def test_a_read_only_proc_is_an_error_unless_the_key_is_optional() -> None:
    subprocess.run(["mount", "--bind", "/proc/sys", "/proc/sys"], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", "/proc/sys"], check=True)
    with pytest.raises(OSError, match="Read-only") as caught:
        sysctl.write("ipv4/ip_forward", "1")
    assert caught.value.errno == errno.EROFS
    assert sysctl.write("ipv4/ip_forward", "1", optional=True) is False
    assert sysctl.write("ipv4/ip_forward", "0") is False  # as it is already: nothing to write


@pytest.mark.netns
def test_a_key_that_can_only_be_written_is_written() -> None:
    assert sysctl.write("ipv4/route/flush", "1") is True


@pytest.mark.netns
def test_a_value_the_kernel_refuses_is_an_error_even_if_optional() -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        sysctl.write("ipv4/ip_forward", "yes", optional=True)
