"""Network configuration lists: what a runtime reads, and what it hands to each plugin.

As libcni has it (libcni/conf.go, api.go; SPEC.md section 1 "Network configuration format"):

    by name    *.conflist of the directory in lexical order, then *.conf and *.json, which hold a single plugin each
    drop-ins   <directory>/<network>/*.conf are appended to the list, unless loadOnlyInlinedPlugins is set
    chain      a plugin of the type chain has a list of its own; `members` are the plugins as they are without it
    request    the plugin's object with name, cniVersion, the runtimeConfig it declares capabilities for, and prevResult
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cni_py import version
from cni_py.errors import CniError, DecodingFailure, InvalidNetworkConfig, os_error
from cni_py.files import FILE_MAX
from cni_py.files import read as read_file
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object, decode, encode
from cni_py.protocol.injection import capabilities, injected

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable, Value

LIST_SUFFIXES = (".conflist",)
SINGLE_SUFFIXES = (".conf", ".json")
CONF_DIR = "/etc/cni/net.d"
DEFAULT = "cni-py"  # the network that `cni-py install` writes


class NoSuchNetwork(CniError):
    """There is no such file, or no configuration of that name in the directory."""


@dataclass(frozen=True, slots=True)
class Network:
    """A named chain of plugins; `text` is the JSON of the list, as it goes into libcni's cache."""

    name: str
    cni_version: str
    plugins: tuple[Object, ...]
    disable_check: bool
    disable_gc: bool
    only_inlined: bool
    text: bytes
    source: str  # where it was read, for messages

    def declares(self, capability: str) -> bool:
        """Whether a plugin of the chain declares that capability."""
        return any(capability in capabilities(plugin) for plugin in self.plugins)

    @property
    def types(self) -> list[str]:
        """The plugins by name, in the order of ADD."""
        return [netconf.string(plugin, "type") for plugin in self.plugins]

    @property
    def first(self) -> str:
        """The name of the plugin that is run first, also of a chain; "" for a chain without plugins."""
        return netconf.string(self.members[0], "type") if self.members else ""

    @property
    def members(self) -> tuple[Object, ...]:
        """The plugins in the order of ADD, those of a chain in its place."""
        return tuple(one for plugin in self.plugins for one in unchained(plugin))


@dataclass(frozen=True, slots=True)
class Found:
    """A network, and the errors of the files that were looked at before it."""

    network: Network
    broken: tuple[CniError, ...]


def is_path(text: str) -> bool:
    """Whether NETWORK on a command line means a file: names of networks have no slash."""
    return "/" in text or (text.endswith((*LIST_SUFFIXES, *SINGLE_SUFFIXES)) and Path(text).exists())


def parse(text: bytes, source: str) -> Network:
    """The list in `text`; a single plugin's configuration counts as a list of one. CniError that names `source`."""
    try:
        raw = _object(text)
        kind = netconf.string(raw, "type")
        if kind and (kind == netconf.CHAIN or netconf.lookup(raw, "plugins") is netconf.MISSING):
            return _of_single(raw, source)
        return _of_list(raw, text, source)
    except CniError as error:
        raise located(error, source, text) from None


def located(error: CniError, source: str, text: bytes) -> CniError:
    """The error, headed by the file and, if it is known, the line: "FILE, line 3, column 7: ..." or "FILE: ..."."""
    separator = ", " if error.msg.startswith("line ") else ": "
    if isinstance(error, netconf.Undecodable):
        line = line_of(text.decode("utf-8", "replace"), error.msg)
        separator = f", line {line}: " if line else ": "
    return type(error)(f"{source}{separator}{error.msg}", error.details, error.code)


def line_of(text: str, message: str) -> int:
    """The line, from 1, of the first key that the message names and that stands on one line only; 0 when there is none."""
    lines = text.splitlines()
    for word in message.replace('"', " ").split():
        found = [number for number, line in enumerate(lines, 1) if f'"{word.strip(",:.")}"' in line]
        if len(found) == 1:
            return found[0]
    return 0


def _object(text: bytes) -> Object:
    raw = decode(text)
    if not isinstance(raw, Object):
        raise DecodingFailure("the whole must be a JSON object {...}")
    return raw


def _of_single(raw: Object, source: str) -> Network:
    head: list[tuple[str, Value]] = [("name", netconf.string(raw, "name"))]
    stated = netconf.string(raw, "cniVersion")
    if stated:
        head.append(("cniVersion", stated))
    whole = Object([*head, ("plugins", [raw])])
    return replace(_of_list(whole, encode(whole).encode(), source), only_inlined=True)


def _of_list(raw: Object, text: bytes, source: str) -> Network:
    name = netconf.string(raw, "name")
    if not name:
        raise InvalidNetworkConfig('the network has no "name"')
    netconf.check_name(name)
    return Network(
        name=name,
        cni_version=_cni_version(raw),
        plugins=tuple(_checked(plugin) for plugin in netconf.objects(raw, "plugins")),
        disable_check=_switch(raw, "disableCheck"),
        disable_gc=_switch(raw, "disableGC"),
        only_inlined=_switch(raw, "loadOnlyInlinedPlugins"),
        text=text,
        source=source,
    )


def _cni_version(raw: Object) -> str:
    """The highest of cniVersion and cniVersions that we know; 0.1.0 when none is given."""
    stated = netconf.string(raw, "cniVersion")
    known = [listed for listed in (*netconf.strings(raw, "cniVersions"), stated) if listed in version.SUPPORTED]
    if known:
        return max(known, key=version.SUPPORTED.index)
    return stated or "0.1.0"


def _switch(raw: Object, key: str) -> bool:
    """A boolean; libcni also takes it as text."""
    value = netconf.lookup(raw, key)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return netconf.boolean(raw, key)


def _checked(plugin: Object) -> Object:
    if not netconf.string(plugin, "type"):
        raise InvalidNetworkConfig('a plugin has no "type"')
    capabilities(plugin)  # libcni refuses these here, too (pkg/types.PluginConf)
    netconf.string(netconf.child(plugin, "ipam") or Object(), "type")
    if netconf.string(plugin, "type") == netconf.CHAIN:
        for one in unchained(plugin):
            if netconf.string(_checked(one), "type") == netconf.CHAIN:
                raise InvalidNetworkConfig(f"a {netconf.CHAIN} cannot hold another {netconf.CHAIN}")
    return plugin


def unchained(plugin: Object) -> list[Object]:
    """The plugins of a chain; of another plugin, itself."""
    return netconf.objects(plugin, "plugins") if netconf.string(plugin, "type") == netconf.CHAIN else [plugin]


def read(path: str | Path, *, piped: bool = False) -> Network:
    """The network in a file, with its drop-ins. CniError when it is no network configuration.

    `piped`: the file may be a pipe (`<(jq ...)`). Not for the files of a folder: reading a pipe that nobody writes to hangs.
    """
    file = Path(path)
    try:
        network = parse(_piped(file) if piped and file.is_fifo() else read_file(str(file), follow=True), str(file))
        if not network.only_inlined:
            network = _with_drop_ins(network, file.parent / network.name)
    except FileNotFoundError as error:
        raise NoSuchNetwork(f"there is no file {file}") from error
    except OSError as error:
        raise os_error(f"cannot read {error.filename or file}", error) from error
    if not network.plugins:
        raise InvalidNetworkConfig(f"{file}: the network has no plugins")
    return network


def _piped(file: Path) -> bytes:
    with file.open("rb") as pipe:
        text = pipe.read(FILE_MAX + 1)
    if len(text) > FILE_MAX:
        raise OSError(errno.EFBIG, f"longer than {FILE_MAX >> 20} MiB", str(file))
    return text


def _with_drop_ins(network: Network, folder: Path) -> Network:
    added = []
    for file in _files(folder, SINGLE_SUFFIXES[:1]):
        text = read_file(str(file), follow=True)
        try:
            added.append(_checked(_object(text)))
        except CniError as error:
            raise located(error, str(file), text) from None
    if not added:
        return network
    plugins = (*network.plugins, *added)
    whole = Object([*_object(network.text).items(), ("plugins", [*plugins])])
    return replace(network, plugins=plugins, text=encode(whole).encode())


def find(conf_dir: str | Path, name: str) -> Found:
    """The network called `name`, and the errors of the files before it. CniError when it is not there.

    libcni gives up at the first broken file. Here a broken file is an error only if no other file has the network.
    """
    seen, broken = [], []
    for file in files(conf_dir):
        try:
            network = read(file)
        except CniError as error:
            broken.append(error)
            continue
        if network.name == name:
            return Found(network, tuple(broken))
        seen.append(network.name)
    if broken:
        first = broken[0]
        raise type(first)(
            f'network "{name}" may be in a file that cannot be used: {first.msg}', first.details, first.code
        )
    install = "cni-py install" if str(conf_dir) == CONF_DIR else f"cni-py install --conf-dir {conf_dir}"
    if not seen:
        raise NoSuchNetwork(f'no network "{name}" in {conf_dir}', f"there is none at all; `{install}` writes one")
    hint = f"; `{install} --network` adds {DEFAULT}" * (DEFAULT not in seen)
    raise NoSuchNetwork(f'no network "{name}" in {conf_dir}', f"there are: {', '.join(seen)}{hint}")


def files(conf_dir: str | Path) -> list[Path]:
    """The configuration files of a directory, in the order in which a name is looked for."""
    return [file for suffixes in (LIST_SUFFIXES, SINGLE_SUFFIXES) for file in _files(Path(conf_dir), suffixes)]


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((file for file in folder.iterdir() if file.suffix in suffixes and not file.is_dir()), key=_name)


def _name(file: Path) -> str:
    return file.name


def request(
    network: Network,
    plugin: Object,
    capability_args: "Mapping[str, Value]",
    prev_result: Object | None = None,
    extra: "Mapping[str, Encodable] | None" = None,
) -> bytes:
    """The plugin's configuration for its stdin. `extra`: more keys, such as cni.dev/valid-attachments."""
    fields: dict[str, Encodable] = {**injected(plugin, network.name, network.cni_version, capability_args, prev_result)}
    fields.update(extra or {})
    return encode(fields).encode()
