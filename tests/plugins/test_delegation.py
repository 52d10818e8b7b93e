"""The executable bridge with somebody else's IPAM plugin: found in CNI_PATH, believed when it answers well, told of every end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runtime import Outcome
from snapshot import difference

from tests.plugins.bridge_network import BridgeNetwork, Conf, ForeignIpam, ours_alone

# what it does at ADD; exit status 1 unless it says otherwise -> the code and a part of the text that bridge passes on
FAILURES: dict[str, tuple[str, int, str]] = {
    "an error object": ("""echo '{"code": 123, "msg": "no way", "details": "ever"}'; exit 1""", 123, "no way ever"),
    "an error without a code": ("""echo '{"msg": "no way"}'; exit 1""", 0, "no way"),
    "text at failure": ("echo 'no way'; exit 3", 0, "error parsing its diagnostic message"),
    "a list at failure": ("echo '[1]'; exit 3", 0, "error parsing its diagnostic message"),
    "only a complaint": ("echo 'no way' >&2; exit 3", 0, 'netplugin failed: "no way'),
    "nothing at failure": ("exit 3", 0, "netplugin failed with no error message"),
    "death by a signal": ("kill -KILL $$", 0, "netplugin failed with no error message: signal: killed"),
    "nothing": ("exit 0", 999, ""),
    "garbage": ("echo 'address: 192.0.2.2'", 999, ""),
    "a list": ("echo '[]'", 999, ""),
    "no addresses": ("""echo '{"cniVersion": "1.0.0"}'""", 999, "IPAM plugin returned missing IP config"),
    "another version": ("""echo '{"cniVersion": "9.9.9"}'""", 999, ""),
    "no address in an address": ("""echo '{"ips": [{"address": "x"}]}'""", 999, ""),
}


def path(net: BridgeNetwork, foreign: ForeignIpam) -> str:
    return f"{foreign.path.parent}:{net.plugins.directory}"


def run(net: BridgeNetwork, foreign: ForeignIpam, verb: str, conf: Conf) -> Outcome:
    return net.run(verb, {**conf, "ipam": {"type": foreign.name}}, CNI_PATH=path(net, foreign))


def answer(net: BridgeNetwork, version: str = "1.0.0", **keys: object) -> dict[str, object]:
    found: dict[str, object] = {"cniVersion": version, **keys}
    address = {"address": f"{net.address(4, 9)}/24", "gateway": net.address(4, 1)}
    if version < "0.3.0":
        return {**found, "ip4": {"ip": address["address"], "gateway": address["gateway"]}}
    return {**found, "ips": [{**address, **({"version": "4"} if version < "1.0.0" else {})}]}


def test_a_failing_ipam_plugin_fails_the_add_in_its_own_words(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    conf = net.conf(ipMasq=True)
    net.warm(conf)
    before = net.state()
    for how, (body, code, text) in FAILURES.items():
        outcome = run(net, foreign.adds(body), "ADD", conf)
        assert (outcome.status, outcome.json["code"]) == (1, code), f"{how}: {outcome}"
        assert text in f"{outcome.json['msg']} {outcome.json.get('details', '')}", how
        assert "Traceback" not in outcome.stderr, how
        if net.plugins.whose == "ours":
            assert not difference(before, net.state()), how
        else:
            run(net, foreign, "DEL", conf)  # Go's has left the pair


@pytest.mark.parametrize("version", ["0.1.0", "0.3.1", "0.4.0", "1.0.0"])
@pytest.mark.parametrize("labelled", [True, False])
def test_results_of_every_form_are_understood(
    net: BridgeNetwork, foreign: ForeignIpam, version: str, labelled: bool
) -> None:
    found = answer(net, version)
    if not labelled:
        del found["cniVersion"]
    outcome = run(net, foreign.answers(found), "ADD", net.conf(version))
    assert outcome.status == 0, outcome
    assert net.held(net.a, "eth0") == [f"{net.address(4, 9)}/24"]
    assert outcome.json["cniVersion"] == version


def test_ipam_is_told_of_every_verb_with_the_whole_configuration(
    net: BridgeNetwork, foreign: ForeignIpam, tmp_path: Path
) -> None:
    foreign.does(f"cat >{tmp_path}/$CNI_COMMAND; [ $CNI_COMMAND = ADD ] && echo '{json.dumps(answer(net))}'; exit 0")
    conf = net.conf(mtu=1400, own={"key": [1, "ü"]})
    result = run(net, foreign, "ADD", conf).json
    assert run(net, foreign, "CHECK", {**conf, "prevResult": result}).status == 0
    assert run(net, foreign, "DEL", {**conf, "prevResult": result}).status == 0
    assert foreign.calls == [f"{verb} {net.a}/eth0" for verb in ("ADD", "CHECK", "DEL")]
    told = json.loads((tmp_path / "DEL").read_text(encoding="utf-8"))
    assert told == {**conf, "prevResult": result, "ipam": {"type": foreign.name}}


@pytest.mark.ours_alone
@pytest.mark.parametrize("version", ["0.2.0", "0.3.1", "1.1.0"])
@pytest.mark.parametrize("ipam", ["host-local", "static"])
def test_our_own_ipam_in_the_same_process_says_no_more_than_in_another(
    net: BridgeNetwork, foreign: ForeignIpam, ipam: str, version: str
) -> None:
    """0.2.0 knows neither MTU nor metric of a route."""
    addresses = [{"address": f"{net.address(4, 2)}/24", "gateway": net.address(4, 1)}]
    routes = [{"dst": "198.18.0.0/15", "mtu": 1300, "priority": 7}, {"dst": "2001:db8::/32"}]
    conf = net.conf(version, ipam={"type": ipam, "routes": routes, "addresses": addresses})
    foreign.does(f"exec {net.plugins.directory / ipam}")
    found = []
    for type_ in (foreign.name, ipam):
        asked = {**conf, "ipam": {**conf["ipam"], "type": type_}}
        outcome = net.run("ADD", asked, CNI_PATH=path(net, foreign))
        shown = net.lab[net.a].run(["ip", "-4", "-json", "route", "show", "198.18.0.0/15"], check=True).stdout
        found.append((outcome.status, outcome.stdout, shown, net.held(net.a, "eth0")))
        assert net.run("DEL", asked, CNI_PATH=path(net, foreign)).status == 0
        net.do("host", f"rm -rf /var/lib/cni/networks/{net.name}")  # which address was given last
    assert found[0] == found[1]


@pytest.mark.ours_alone
def test_ipam_is_asked_for_its_status_and_to_collect_garbage(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    conf = {**net.conf("1.1.0"), "cni.dev/valid-attachments": []}
    foreign.does("""[ $CNI_COMMAND = STATUS ] && echo '{"code": 51, "msg": "half of it is gone"}' && exit 1; exit 0""")
    outcome = run(net, foreign, "STATUS", conf)
    assert (outcome.code, outcome.json["msg"]) == (51, "half of it is gone")
    assert run(net, foreign, "GC", conf).status == 0
    assert [call.partition(" ")[0] for call in foreign.calls] == ["STATUS", "GC"]


@pytest.mark.parametrize("verb", ["CHECK", "DEL"])
def test_what_ipam_refuses_later_is_passed_on(net: BridgeNetwork, foreign: ForeignIpam, verb: str) -> None:
    refuse = f"""[ $CNI_COMMAND = {verb} ] && echo '{{"code": 123, "msg": "no way"}}' && exit 1"""
    foreign.does(f"{refuse}\necho '{json.dumps(answer(net))}'")
    conf = net.conf()
    conf["prevResult"] = run(net, foreign, "ADD", conf).json
    outcome = run(net, foreign, verb, conf)
    assert (outcome.code, outcome.json["msg"]) == (123, "no way")
    if verb == "DEL":
        assert set(net.links(net.a)) == {"lo"}  # done in spite of it


def test_ipam_gives_the_address_back_when_something_fails_after_it(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    net.warm(net.conf())
    net.do("host", f"ip address replace 10.99.0.1/24 dev {net.bridge}")
    net.do("host", f"ip address delete {net.address(4, 1)}/24 dev {net.bridge}")
    before = net.state()
    outcome = run(net, foreign.answers(answer(net)), "ADD", net.conf())
    assert "already has an IP address different" in outcome.json["msg"]
    assert foreign.calls == [f"{verb} {net.a}/eth0" for verb in ("ADD", "DEL")]
    if net.plugins.whose == "ours":
        assert not difference(before, net.state())


@pytest.mark.ours_alone
def test_what_ipam_got_wrong_is_given_back(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    """The address does not fit the kernel: the host's end of a /32 cannot be reached, a route into nowhere fails."""
    routes = [{"dst": "192.0.2.0/24", "gw": "203.0.113.1"}]
    net.warm(net.conf())
    before = net.state()
    outcome = run(net, foreign.answers(answer(net, routes=routes)), "ADD", net.conf())
    assert "failed to add route '192.0.2.0/24 via 203.0.113.1 dev eth0'" in outcome.json["msg"]
    assert foreign.calls == [f"{verb} {net.a}/eth0" for verb in ("ADD", "DEL")]
    assert not difference(before, net.state())


def test_the_first_of_the_name_in_cni_path_is_taken_also_in_place_of_our_own(
    net: BridgeNetwork, tmp_path: Path
) -> None:
    foreign = ForeignIpam(tmp_path / "foreign", "host-local").answers(answer(net))
    conf = net.conf()
    own, theirs = str(net.plugins.directory), str(foreign.path.parent)
    for order, address in ((f"{theirs}:{own}", net.address(4, 9)), (f"/nowhere::{own}:{theirs}", net.address(4, 2))):
        result = net.well("ADD", conf, CNI_PATH=order).json
        assert result["ips"][0]["address"] == f"{address}/24"
        net.well("DEL", conf, CNI_PATH=order)
    assert [call.partition(" ")[0] for call in foreign.calls] == ["ADD", "DEL"]
    assert net.reservations() == {}


@pytest.mark.parametrize("obstacle", ["folder", "dangling link"])
def test_what_is_no_file_is_passed_over_in_cni_path(net: BridgeNetwork, tmp_path: Path, obstacle: str) -> None:
    if obstacle == "folder":
        (tmp_path / "host-local").mkdir()
    else:
        (tmp_path / "host-local").symlink_to("/nowhere")
    net.well("ADD", net.conf(), CNI_PATH=f"{tmp_path}:{net.plugins.directory}")


@pytest.mark.ours_alone
@pytest.mark.unchained
def test_a_link_to_our_own_plugin_is_our_own(net: BridgeNetwork, tmp_path: Path) -> None:
    (tmp_path / "host-local").symlink_to(net.plugins.directory / "host-local")
    net.well("ADD", net.conf(), CNI_PATH=str(tmp_path))
    assert len(net.reservations()) == 1


def test_a_file_that_cannot_be_executed_is_an_error(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    foreign.answers(answer(net)).path.chmod(0o644)
    outcome = run(net, foreign, "ADD", net.conf())
    assert outcome.status == 1
    assert "permission denied" in outcome.json["msg"].lower()
    assert foreign.calls == []


@pytest.mark.ours_alone
def test_what_a_well_behaved_ipam_plugin_says_on_stderr_is_passed_on(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    foreign.adds(f"echo 'pool is filling up' >&2; echo '{json.dumps(answer(net))}'")
    outcome = run(net, foreign, "ADD", net.conf())
    assert (outcome.status, outcome.stderr) == (0, "pool is filling up\n")


def test_a_long_answer_after_a_long_configuration_is_read_to_its_end(net: BridgeNetwork, foreign: ForeignIpam) -> None:
    """More than a pipe holds, both ways, and the plugin does not read its stdin."""
    foreign.adds(f"head -c 300000 /dev/zero | tr '\\0' ' '; echo '{json.dumps(answer(net))}'")
    assert run(net, foreign, "ADD", net.conf(padding="x" * 300_000)).status == 0


@pytest.mark.parametrize("known", [True, ours_alone(False)], ids=["known", "gone"])
def test_del_when_the_ipam_plugin_is_gone_removes_the_interface(
    net: BridgeNetwork, foreign: ForeignIpam, known: bool
) -> None:
    conf = net.conf()
    run(net, foreign.answers(answer(net)), "ADD", conf)
    if not known:
        foreign.path.unlink()
    outcome = run(net, foreign, "DEL", conf)
    assert outcome.status == (0 if known else 1)
    assert set(net.links(net.a)) == {"lo"}
