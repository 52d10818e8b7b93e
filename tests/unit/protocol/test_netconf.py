"""Configurations read as Go reads them. The rows marked golden are recorded answers of the Go plugins."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py.errors import CniError, DecodingFailure, InvalidNetworkConfig
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object, decode
from cni_py.protocol.netconf import MISSING, NetConf, Undecodable, parse_cni_args

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Value


def obj(text: str) -> Object:
    value = decode(text.encode())
    assert isinstance(value, Object)
    return value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"subnet": 1}', 1),
        ('{"SUBNET": 1}', 1),
        ('{"\\u017fubnet": 1}', 1),  # golden: long s folds to s
        ('{"\\u0073ubnet": 1}', 1),
        ('{"subnet": 1, "Subnet": 2}', 2),
        ('{"Subnet": 2, "subnet": 1}', 1),
        ('{"subnet": 1, "subnet": 2}', 2),
        ('{"subnet": 1, "subnet": null}', 1),
        ('{"subnet": null}', MISSING),
        ('{"subnets": 1}', MISSING),
        ('{"\\u00dfubnet": 1}', MISSING),  # sharp s is not ss here
        ('{"subnet": {"a": 1, "b": 2}, "subnet": {"A": 3}}', {"a": 1, "b": 2, "A": 3}),
        ('{"subnet": [1, 2, 3], "subnet": [4, null]}', [4, 2]),
        ('{"subnet": [[{"a": 1, "g": 2}], [5]], "subnet": [[{"a": 3}]]}', [[{"a": 3, "g": 2}]]),
        ('{"subnet": [{"a": 1}], "SUBNET": {"b": 2}}', {"b": 2}),
    ],
)
def test_lookup(text: str, value: "Value") -> None:
    assert netconf.lookup(obj(text), "subnet") == value


def test_the_kelvin_sign_folds_to_k() -> None:
    assert netconf.string(obj('{"\\u212aey": "x"}'), "key") == "x"


@given(st.characters(min_codepoint=128), st.sampled_from("abcdefghijklmnopqrstuvwxyz"))
def test_no_other_character_folds_to_ascii(character: str, letter: str) -> None:
    found = netconf.lookup(Object([(character, 1)]), letter)
    assert (found == 1) == ((character, letter) in (("\u017f", "s"), ("\u212a", "k")))


def test_merged_objects_merge_to_any_depth() -> None:
    merged = netconf.child(obj('{"a": {"b": {"x": 1}}, "A": {"B": {"X": 2, "y": 3}}}'), "a")
    assert merged is not None
    inner = netconf.child(merged, "b")
    assert inner is not None
    assert (netconf.integer(inner, "x"), netconf.integer(inner, "y")) == (2, 3)


STDIN = "the network configuration on stdin cannot be used: "
EMPTY = Object()
NULL = Object([("k", None)])


@pytest.mark.parametrize("absent", [EMPTY, NULL])
def test_what_is_absent_has_its_default(absent: Object) -> None:
    assert netconf.string(absent, "k") == ""
    assert netconf.string(absent, "k", "d") == "d"
    assert netconf.boolean(absent, "k", default=True) is True
    assert netconf.integer(absent, "k", 7) == 7
    assert netconf.optional_string(absent, "k") is None
    assert netconf.optional_boolean(absent, "k") is None
    assert netconf.optional_integer(absent, "k") is None
    assert netconf.child(absent, "k") is None
    assert netconf.values(absent, "k") is None
    assert netconf.strings(absent, "k") == []
    assert netconf.objects(absent, "k") == []


def test_what_is_there_has_its_value() -> None:
    there = obj('{"s": "", "b": false, "i": 0, "l": ["a", null], "o": [{"x": 1}, null]}')
    assert netconf.string(there, "s", "d") == ""
    assert netconf.boolean(there, "b", default=True) is False
    assert netconf.integer(there, "i", 7) == 0
    assert netconf.strings(there, "l") == ["a", ""]
    assert netconf.objects(there, "o") == [{"x": 1}, {}]
    assert netconf.integer(obj('{"k": -9223372036854775808}'), "k") == -(1 << 63)


@pytest.mark.parametrize(
    ("reader", "text", "message"),
    [
        (netconf.string, '{"k": 5}', "k must be a text in quotes, not 5"),
        (netconf.string, '{"k": [1]}', "k must be a text in quotes, not [1]"),
        (netconf.string, '{"k": true}', "k must be a text in quotes, not true"),
        (netconf.string, '{"k": 5, "k": "x"}', "k must be a text in quotes, not 5"),
        (netconf.boolean, '{"k": "yes"}', 'k must be true or false, not "yes"'),
        (netconf.boolean, '{"k": 1}', "k must be true or false, not 1"),
        (netconf.integer, '{"k": "1"}', 'k must be a whole number, not "1"'),
        (netconf.integer, '{"k": 1.5}', "k must be a whole number, not 1.5"),
        (netconf.integer, '{"k": 80.0}', "k must be a whole number, not 80.0"),
        (netconf.integer, '{"k": true}', "k must be a whole number, not true"),
        (netconf.integer, '{"k": 1e999}', "k must be a whole number, not a number without end"),
        (netconf.string, '{"k": [-1e999]}', "k must be a text in quotes, not a number without end"),
        (netconf.integer, '{"k": 9223372036854775808}', "k must be a number of 64 bits, not 9223372036854775808"),
        (netconf.child, '{"k": []}', "k must be an object {...}, not []"),
        (netconf.strings, '{"k": {}}', "k must be a list [...], not {}"),
        (netconf.strings, '{"k": [1]}', "an element of k must be a text in quotes, not 1"),
        (netconf.objects, '{"k": ["x"]}', 'an element of k must be an object {...}, not "x"'),
    ],
)
def test_a_value_of_another_type_is_undecodable(reader, text: str, message: str) -> None:  # type: ignore[no-untyped-def]  # any of them
    with pytest.raises(Undecodable) as caught:
        reader(obj(text), "k")
    assert caught.value.code == 6
    assert caught.value.msg == message


@pytest.mark.parametrize("name", ["args", "runtimeConfig", "io.kubernetes.cri.pod-annotations"])
def test_what_may_be_secret_is_not_shown_in_the_error(name: str) -> None:
    for value, kind in (("secret", "a text"), (["secret"], "a list"), (4711, "a number")):
        with pytest.raises(Undecodable) as caught:
            netconf.child(obj(json.dumps({name: value})), name)
        assert caught.value.msg == f"{name} must be an object {{...}}, not {kind}"


def test_a_long_value_is_cut_in_the_error() -> None:
    with pytest.raises(Undecodable) as caught:
        netconf.boolean(obj(json.dumps({"k": "x" * 10_000})), "k")
    assert caught.value.msg.startswith('k must be true or false, not "xxx')
    assert len(caught.value.msg) < 100


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a", True),
        ("0_.-", True),
        ("", False),
        ("_a", False),
        (".", False),
        ("a b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_identifiers(text: str, holds: bool) -> None:
    assert netconf.is_identifier(text) is holds


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", 6, "there is no JSON: it is empty"),
        ("hello", 6, 'line 1, column 1: a value is expected, not "h"'),
        ("[]", 6, "the network configuration must be an object {...}, not []"),
        ("5", 6, "the network configuration must be an object {...}, not 5"),
        ("true", 6, "the network configuration must be an object {...}, not true"),
        ('{"name": 5}', 6, "name must be a text in quotes, not 5"),
        ("null", 7, "missing network name"),
        ("{}", 7, "missing network name"),
        ('{"name": null}', 7, "missing network name"),
        ('{"name": ""}', 7, "missing network name"),
        ('{"name": "a b"}', 7, "invalid characters found in network name: a b"),
        ('{"name": "<a&b>"}', 7, "invalid characters found in network name: <a&b>"),
        ('{"name": ".."}', 7, "invalid characters found in network name: .."),
        ('{"name": "-x"}', 7, "invalid characters found in network name: -x"),
        ('{"name": "a\\n"}', 7, "invalid characters found in network name: a\n"),
        ('{"name": "é"}', 7, "invalid characters found in network name: é"),
        ('{"name": "a/b"}', 7, "invalid characters found in network name: a/b"),
    ],
)
def test_configurations_that_are_refused_at_once(text: str, code: int, message: str) -> None:
    with pytest.raises((DecodingFailure, InvalidNetworkConfig)) as caught:
        NetConf.parse(text.encode())
    assert caught.value.code == code
    assert str(caught.value).startswith(STDIN * (code == 6) + message)


FULL = {
    "CNIVERSION": "1.1.0",
    "Name": "net1",
    "type": "bridge",
    "capabilities": {"portMappings": True, "mac": False},
    "ipam": {"type": "host-local"},
    "dns": {"nameservers": ["192.0.2.53"]},
    "args": {"cni": {}},
    "RuntimeConfig": {"mac": "02:00:00:00:00:01"},
    "prevResult": {"cniVersion": "1.1.0"},
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
}


def test_a_full_configuration() -> None:
    text = json.dumps(FULL).encode()
    conf = NetConf.parse(text)
    assert (conf.cni_version, conf.name, conf.type) == ("1.1.0", "net1", "bridge")
    assert conf.capabilities == {"portMappings": True, "mac": False}
    assert conf.ipam == FULL["ipam"]
    assert conf.dns == FULL["dns"]
    assert conf.args == FULL["args"]
    assert conf.runtime_config == FULL["RuntimeConfig"]
    assert conf.prev_result == FULL["prevResult"]
    assert conf.valid_attachments == [("c1", "eth0")]
    assert (conf.raw, conf.text) == (FULL, text)


def test_a_configuration_of_a_name_alone() -> None:
    conf = NetConf.parse(b'{"name": "n"}')
    assert (conf.cni_version, conf.type, conf.capabilities) == ("0.1.0", "", {})
    assert conf.ipam is conf.dns is conf.args is conf.runtime_config is conf.prev_result is None
    assert conf.valid_attachments is None


@pytest.mark.parametrize("version", ['""', "null"])
def test_an_empty_version_is_the_first(version: str) -> None:
    assert NetConf.parse(f'{{"name": "n", "cniVersion": {version}}}'.encode()).cni_version == "0.1.0"


def test_a_version_that_is_no_text_has_code_6() -> None:
    conf = NetConf.parse(b'{"name": "n", "cniVersion": 1.0}')  # golden: an unknown verb is reported before it
    with pytest.raises(DecodingFailure, match="cniVersion must be a text in quotes, not 1"):
        _ = conf.cni_version


@pytest.mark.parametrize(
    ("text", "attachments"),
    [
        ('"cni.dev/attachments": [{"containerID": "c", "ifname": "i"}]', [("c", "i")]),
        ('"cni.dev/valid-attachments": [], "cni.dev/attachments": [{"containerID": "c"}]', []),
        ('"cni.dev/valid-attachments": [{}]', [("", "")]),
        ('"cni.dev/valid-attachments": null', None),
    ],
)
def test_valid_attachments(text: str, attachments: list[tuple[str, str]] | None) -> None:
    assert NetConf.parse(f'{{"name": "n", {text}}}'.encode()).valid_attachments == attachments


def test_valid_attachments_of_another_type_are_refused() -> None:
    """Taking them for an empty list would have GC remove everything."""
    for text in ('"x"', "{}", '["x"]', '[{"containerID": 1}]'):
        with pytest.raises(Undecodable):
            _ = NetConf.parse(f'{{"name": "n", "cni.dev/valid-attachments": {text}}}'.encode()).valid_attachments


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("IP=192.0.2.5", {"IP": "192.0.2.5"}),
        ("IP=", {"IP": ""}),
        ("IP=a;IP=b", {"IP": "b"}),
        ("IgnoreUnknown=1;K8S_POD_NAME=x;IP=a", {"IP": "a"}),
        ("K8S_POD_NAME=x;IgnoreUnknown=TRUE", {}),
        ("IgnoreUnknown=0;IP=a", {"IP": "a"}),
        ("IgnoreUnknown=1;NERDCTL_CNI_DHCP_HOSTNAME=", {}),
    ],
)
def test_cni_args_that_are_read(text: str, pairs: dict[str, str]) -> None:
    assert parse_cni_args(text, ("IP",)) == pairs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "the pair number 1 is not of the form KEY=VALUE"),
        (";", "the pair number 1 is not of the form KEY=VALUE"),
        ("IP=a;", "the pair number 2 is not of the form KEY=VALUE"),
        ("IgnoreUnknown=1;X=secret=b", "the pair of X is not of the form KEY=VALUE"),
        ("=", "unknown args []"),
        ("ip=secret", "unknown args [ip]"),
        (" IP=secret", "unknown args [ IP]"),
        ("B=secret;A=1;C=secret", "unknown args [B A C] (known here: IP; IgnoreUnknown=1 lets others pass)"),
        ("ignoreunknown=1", "unknown args [ignoreunknown]"),
        ("IgnoreUnknown=1;IgnoreUnknown=0;A=secret", "unknown args [A]"),
        ("IgnoreUnknown=secret", "IgnoreUnknown must be 1, true, 0 or false"),
        ("IgnoreUnknown=", "IgnoreUnknown must be 1, true, 0 or false"),
    ],
)
def test_cni_args_that_go_refuses_are_refused_without_their_values(text: str, message: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_cni_args(text, ("IP",))
    assert caught.value.code == 4
    assert caught.value.msg.startswith(f"CNI_ARGS: {message}")
    assert "secret" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
KEYS = ["name", "cniVersion", "type", "ipam", "dns", "args", "runtimeConfig", "prevResult", "capabilities"]


@given(st.dictionaries(st.sampled_from([*KEYS, "cni.dev/valid-attachments"]), JSON))
def test_any_object_is_a_configuration_or_a_cni_error(fields: dict[str, object]) -> None:
    with suppress(CniError):
        conf = NetConf.parse(json.dumps({"name": "n", **fields}).encode())
        for name in ("cni_version", "type", "capabilities", "ipam", "dns", "args", "prev_result", "valid_attachments"):
            with suppress(DecodingFailure, Undecodable):
                getattr(conf, name)
