"""cni_py.interface.tuning: values as the kernel and the Go plugin write them, and putting them back."""

from __future__ import annotations

import errno
import subprocess

import pytest

from cni_py.attachment.context import Kernel
from cni_py.attachment.naming import Attachment
from cni_py.interface.tuning import comparable, put_back, saved_text, saved_values
from cni_py.kernel import linksettings

KEY = Attachment("net1", "c1", "eth0")
GO_FILE = """{
 "mac": "02:00:00:00:00:07",
 "promisc": false,
 "mtu": 1500
}"""


@pytest.mark.parametrize(
    ("written", "shown", "alike"),
    [
        ("4096 131072 6291456", "4096\t131072\t6291456", True),
        ("0x10", "16", True),
        ("020", "16", True),
        ("-020", "-16", True),
        ("0", "0", True),
        ("cubic", "cubic", True),
        ("cubic", "reno", False),
        ("1", "2", False),
        ("1 2", "1", False),
        ("08", "8", False),
        ("", "", True),
    ],
)
def test_values_of_a_sysctl_are_compared_as_the_kernel_reads_them(written: str, shown: str, alike: bool) -> None:
    assert (comparable(written) == comparable(shown)) is alike


def test_the_file_of_earlier_settings_is_the_go_plugins_to_the_letter() -> None:
    values = {"mac": "02:00:00:00:00:07", "promisc": "false", "mtu": "1500"}
    assert "".join(saved_text(values).split()) == "".join(GO_FILE.split())
    assert saved_values(saved_text(values).encode()) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (b"", {}),
        (b"[1]", {}),
        (
            b'{"mtu": 1400, "unknown": 1, "mac": null, "txQLen": [1], "allmulti": true}',
            {"mtu": "1400", "allmulti": "true"},
        ),
    ],
)
def test_what_is_no_setting_in_the_file_is_left_out(text: bytes, values: dict[str, str]) -> None:
    assert saved_values(text) == values


@pytest.mark.netns
def test_one_setting_that_is_refused_does_not_keep_the_others() -> None:
    subprocess.run("ip link add v0 type veth peer name v1", shell=True, check=True)
    kernel = Kernel(KEY, "/proc/self/ns/net")
    with pytest.raises(OSError, match="mtu cannot be much") as caught:
        put_back(kernel, "v0", {"mtu": "much", "mac": "02:00:00:00:00:07", "txQLen": "7"})
    assert caught.value.errno == errno.EINVAL
    found = linksettings.read(kernel.container, "v0") or {}
    assert (found["mac"], found["txQLen"]) == ("02:00:00:00:00:07", "7")
    put_back(kernel, "gone", {"mtu": "1400"})
