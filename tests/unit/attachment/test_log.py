"""cni_py.attachment.log: what cannot be logged does not fail a call that has succeeded."""

from pathlib import Path

import pytest

from cni_py.attachment.call import Call
from cni_py.attachment.log import logged
from cni_py.protocol.netconf import NetConf


def call(ifname: str, target: str) -> Call:
    conf = NetConf.parse(b'{"cniVersion": "1.1.0", "name": "net1", "type": "bridge"}')
    conf.raw["log"] = target
    return Call("DEL", "bridge", conf, container_id="c1", ifname=ifname)


@pytest.mark.parametrize("target", ["/nowhere/x", "/tmp/\0x", "/"])
def test_log_that_cannot_be_written_is_said_on_stderr(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert logged(call("eth0", target), lambda: 0) == 0
    assert "cannot log to" in capsys.readouterr().err


def test_interface_name_that_is_not_utf8_is_logged(tmp_path: Path) -> None:
    assert logged(call("e\udcff", f"{tmp_path}/log"), lambda: 0) == 0
    assert "bridge DEL net1/c1/e? " in (tmp_path / "log").read_text()
