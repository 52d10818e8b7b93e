"""The macvlan plugin's decisions: its configuration, and which interface is the master."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import pytest

from cni_py.addr import parse_address
from cni_py.attachment.call import Call
from cni_py.errors import InvalidNetworkConfig
from cni_py.kernel import inet
from cni_py.kernel.rtnl import Rtnl
from cni_py.plugins.macvlan import MacvlanConf, master_of
from cni_py.protocol.netconf import NetConf
from cni_py.protocol.result import Route
from tests.lacking import need_root
from tests.unit.kernel.test_rtnl import new_netns

FIRST, SECOND, THIRD = (f"02:00:00:00:00:0{number}" for number in (1, 2, 3))


def call_for(config: Mapping[str, object], args: str = "") -> Call:
    text = json.dumps({"cniVersion": "1.0.0", "name": "net1", "type": "macvlan", **config}).encode()
    return Call("ADD", "macvlan", NetConf.parse(text), container_id="c1", netns="/x", ifname="eth7", args=args)


def conf_of(**config: object) -> MacvlanConf:
    return MacvlanConf(call_for(config))


@pytest.mark.parametrize(
    ("config", "args", "wanted"),
    [
        ({}, "", ""),
        ({"mac": FIRST}, "", FIRST),
        ({"mac": FIRST}, f"MAC={SECOND}", SECOND),
        ({"mac": FIRST, "runtimeConfig": {"mac": THIRD}}, f"MAC={SECOND}", THIRD),
        ({"mac": FIRST, "runtimeConfig": {"mac": ""}}, "", FIRST),
    ],
)
def test_the_mac_comes_from_runtime_config_then_the_environment_then_the_configuration(
    config: dict[str, object], args: str, wanted: str
) -> None:
    call = call_for(config, args)
    assert MacvlanConf(call).requested_mac(call) == wanted


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bcqueuelen": -1}, "bcqueuelen -1 is not between"),
        ({"bcqueuelen": 1 << 32}, "bcqueuelen"),
        ({"mode": "x"}, '"x"'),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidNetworkConfig, match=message):
        conf_of(**config).check_mode()


def test_the_master_is_that_of_the_best_default_route_ipv4_first() -> None:
    need_root()
    fd = new_netns()
    side = Rtnl(fd)
    try:
        indexes = {}
        for number, (name, peer) in enumerate((("lan0", "lan1"), ("lan2", "lan3"))):
            side.add_veth(name, peer)
            for end in (name, peer):
                side.set_link(end, up=True)
            link = side.link(name)
            assert link is not None
            indexes[name] = link.index
            inet.add_address(side, link.index, parse_address(f"192.0.2.{9 + number}/24"))
        with pytest.raises(InvalidNetworkConfig, match="no default route interface found"):
            master_of(side, conf_of())
        chosen = []
        for dst, name, metric in (("::/0", "lan2", 0), ("0.0.0.0/0", "lan0", 9), ("0.0.0.0/0", "lan2", 5)):
            inet.add_route(side, Route(parse_address(dst), priority=metric), indexes[name])
            chosen.append(master_of(side, conf_of()).name)
        assert chosen == ["lan2", "lan0", "lan2"]
        assert master_of(side, conf_of(master="lan1")).name == "lan1"
        with pytest.raises(InvalidNetworkConfig, match="the host has no interface nowhere"):
            master_of(side, conf_of(master="nowhere"))
    finally:
        side.close()
        os.close(fd)
