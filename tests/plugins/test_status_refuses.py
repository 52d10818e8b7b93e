"""STATUS says of a configuration what ADD would say: with some, no ADD can succeed."""

from __future__ import annotations

import json

import pytest
from lab import Lab
from runtime import Plugins

REFUSED: list[tuple[str, dict[str, object]]] = [
    ("bridge", {"vlan": 4095}),
    ("bridge", {"vlanTrunk": [{"minID": 20, "maxID": 10}]}),
    ("bridge", {"hairpinMode": True, "promiscMode": True}),
    ("bridge", {"ipMasq": True, "ipMasqBackend": "ipfw"}),
    ("bridge", {"bridge": "a-name-of-17-bytes"}),
    ("firewall", {"ingressPolicy": "closed"}),
    ("firewall", {"iptablesAdminChainName": "no chain"}),
    ("portmap", {"backend": "ipfw"}),
    ("bandwidth", {"ingressRate": 1000}),
    ("bandwidth", {"ingressRate": 7, "ingressBurst": 7}),
    ("bandwidth", {"ingressRate": 8000, "ingressBurst": 8000, "shapedSubnets": ["everybody"]}),
    ("tuning", {"sysctl": {"../kernel": "1"}}),
    ("ptp", {"ipMasq": True, "ipMasqBackend": "ipfw"}),
    ("macvlan", {"mode": "none"}),
    ("sbr", {"table": -1}),
]


@pytest.mark.ours_alone
@pytest.mark.parametrize(
    ("plugin", "keys"), REFUSED, ids=lambda value: value if isinstance(value, str) else ", ".join(value)
)
def test_status_refuses_what_add_refuses(
    shared_lab: Lab, plugins: Plugins, plugin: str, keys: dict[str, object]
) -> None:
    conf = {"cniVersion": "1.1.0", "name": "lab", "type": plugin, **keys}
    done = plugins.run(shared_lab, "STATUS", plugin, conf)
    assert done.status == 1, keys
    assert json.loads(done.stdout)["code"] in (7, 50), done.stdout
