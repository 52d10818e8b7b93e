"""/etc/cni-py/config.yaml, as the executables obey it."""

from __future__ import annotations

import pytest
from lab import Lab
from runtime import Network, Plugins, mapping

pytestmark = pytest.mark.ours_alone
PATH = "/etc/cni-py/config.yaml"


@pytest.fixture
def network(lab: Lab, plugins: Plugins) -> Network:
    return Network(lab, plugins)


def configure(lab: Lab, text: str) -> None:
    lab["host"].run(["mkdir", "-p", "/etc/cni-py"], check=True)
    lab["host"].run(["tee", PATH], input=text, check=True)


def nat(lab: Lab) -> str:
    return lab["host"].run(["iptables", "-t", "nat", "-S"], check=True).stdout


def test_the_hosts_backend_holds_where_a_configuration_says_nothing(network: Network) -> None:
    configure(network.lab, "# as nerdctl reads them\nbackend: iptables\n")
    network.attach("c1", mapping(8080, 80))
    assert "CNI-HOSTPORT-DNAT" in nat(network.lab)
    assert 'name: \\"lab\\" id: \\"c1\\"' in nat(network.lab)
    assert "elements" not in network.lab["host"].run(["nft", "list", "map", "inet", "cni_py", "masquerade4"]).stdout
    conf = {**network.portmap("c1"), "backend": "nftables", "prevResult": network.results["c1"]}
    conf["runtimeConfig"] = {"portMappings": [mapping(8081, 81)]}
    assert network.plugins.run(network.lab, "ADD", "portmap", conf, "c1", ifname="eth1").status == 0
    assert "8081" not in nat(network.lab)
    network.detach("c1")
    assert 'id: \\"c1\\"' not in nat(network.lab)


def test_a_change_holds_from_the_next_call_on_and_del_knows_both(network: Network) -> None:
    network.attach("c1", mapping(8080, 80))
    configure(network.lab, "backend: iptables\n")
    network.attach("c2", mapping(8081, 80))
    assert "8081" in nat(network.lab)
    assert "8080" not in nat(network.lab)
    for container_id in ("c1", "c2"):
        conf = {**network.portmap(container_id), "prevResult": network.results[container_id]}
        checked = network.plugins.run(network.lab, "CHECK", "portmap", conf, container_id)
        assert checked.status == 0, checked.stdout
        network.detach(container_id)
    listed = network.lab["host"].run(["nft", "-s", "list", "ruleset"]).stdout
    assert "8080" not in listed
    assert "8081" not in listed


def test_a_mistake_in_the_file_is_an_error_that_names_the_line_but_for_del(network: Network) -> None:
    network.attach("c1", mapping(8080, 80))
    configure(network.lab, "backend: nftables\nbackends: iptables\n")
    for plugin, conf in (("bridge", network.bridge()), ("portmap", network.portmap("c1"))):
        more = {"prevResult": network.results["c1"]} if plugin == "portmap" else {}
        refused = network.plugins.run(network.lab, "ADD", plugin, {**conf, **more}, "c2")
        assert refused.code == 7
        assert f"{PATH}, line 2" in refused.json["msg"]
    network.detach("c1")
