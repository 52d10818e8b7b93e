"""Keys of a configuration that our plugins do not know. The specification allows them, but most are spelling mistakes."""

from collections.abc import Iterator
from pathlib import Path

from cni_py.commands.report import did_you_mean
from cni_py.errors import CniError
from cni_py.plugins.known_keys import CAPABILITIES, COMMON, IPAM, LIST, PLUGINS, Keys
from cni_py.protocol import netconf
from cni_py.protocol.conflist import Network, unchained
from cni_py.protocol.gojson import Object, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Value

FREE = ("cni.dev/", "x-", "_", "#", "//")  # prefixes of keys that are extensions or comments


def unknown(network: Network) -> list[str]:
    """A sentence for each key of the network that is not known at its place."""
    text = _text(network)
    found = []
    for who, key, known in _unknown_in(network, text):
        lines = [number for number, line in enumerate(text.splitlines(), 1) if f'"{key}"' in line]
        line = f", line {lines[0]}" if len(lines) == 1 else ""
        found.append(f"{who} does not know the key {key}{did_you_mean(key, list(known))} ({network.source}{line})")
    return list(dict.fromkeys(found))


def repeated(network: Network) -> list[str]:
    """A sentence for each key that one object of the network's file has more than once."""
    text = _text(network)
    found = []
    for key in _repeated_in(_decoded(text)):
        lines = [str(number) for number, line in enumerate(text.splitlines(), 1) if f'"{key}"' in line]
        where = f", lines {' and '.join(lines)}" if len(lines) == 2 else ""
        found.append(
            f"the key {key} occurs more than once in one object: the last one counts ({network.source}{where})"
        )
    return list(dict.fromkeys(found))


def _repeated_in(value: "Value") -> Iterator[str]:
    if isinstance(value, list):
        for element in value:
            yield from _repeated_in(element)
    if isinstance(value, Object):
        keys = [key for key, _ in value.pairs]
        yield from (key for key in value if len(keys) != len(value) and keys.count(key) > 1)
        for _, part in value.pairs:
            yield from _repeated_in(part)


def _text(network: Network) -> str:
    """The text of the network's file; the list in memory may have been converted from it."""
    try:
        return Path(network.source).read_text(errors="replace")
    except OSError:
        return network.text.decode("utf-8", "replace")


def _unknown_in(network: Network, text: str) -> Iterator[tuple[str, str, Keys]]:
    """(place, key, known keys of the place) for each unknown key."""
    for key in _unlike(_top(text), LIST):
        yield f"network {network.name}", key, LIST
    for plugin in _all(network):
        name = netconf.string(plugin, "type")
        if name not in PLUGINS:
            continue  # not one of our plugins
        known = {**COMMON, **PLUGINS[name]}
        for place, key, keys in _walk(plugin, known, name):
            yield place, key, keys
        for key in _unlike(_child(plugin, "capabilities"), CAPABILITIES):
            yield f"{name}'s capabilities", key, CAPABILITIES
        ipam = _child(plugin, "ipam")
        kind = ipam.get("type")
        if isinstance(kind, str) and kind in IPAM:
            yield from _walk(ipam, IPAM[kind], f"{kind} (ipam of {name})")


def _all(network: Network) -> Iterator[Object]:
    """The plugins, chains and what is in them."""
    for plugin in network.plugins:
        yield plugin
        yield from (one for one in unchained(plugin) if one is not plugin)


def _decoded(text: str) -> "Value":
    try:
        return decode(text.encode())
    except CniError:
        return None


def _top(text: str) -> Object:
    raw = _decoded(text)
    return raw if isinstance(raw, Object) and "plugins" in raw else Object()


def _child(obj: Object, name: str) -> Object:
    try:
        return netconf.child(obj, name) or Object()
    except CniError:
        return Object()  # of a wrong type: the plugin reports it


def _unlike(obj: Object, known: Keys) -> Iterator[str]:
    """Unknown keys that resemble a known one, for places where others may add keys of their own."""
    for key in obj:
        if not _is_known(key, known) and did_you_mean(key, list(known)):
            yield key


def _is_known(key: str, known: Keys) -> bool:
    return key.lower() in {name.lower() for name in known} or key.startswith(FREE)


def _walk(value: "Value", known: Keys, place: str) -> Iterator[tuple[str, str, Keys]]:
    """The unknown keys of an object or of the objects in a list, at every depth."""
    if isinstance(value, list):
        for element in value:
            yield from _walk(element, known, place)
    if not isinstance(value, Object):
        return
    inner = {name.lower(): keys for name, keys in known.items()}
    for key, part in value.items():
        if not _is_known(key, known):
            yield place, key, known
        deeper = inner.get(key.lower())
        if deeper is not None:
            yield from _walk(part, deeper, f"{place}, {key}:")
