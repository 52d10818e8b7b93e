"""The configuration of chain: the list, and what each of its plugins is given of what the runtime sends.

    {"type": "chain", "capabilities": {"portMappings": true}, "plugins": [{"type": "bridge", ...}, {"type": "portmap", ...}]}

The plugins stand as in the list of a *.conflist, and get what libcni injects into each of those (protocol/injection.py).
"""

from cni_py import run, skel, version
from cni_py.attachment import delegate
from cni_py.errors import CniError, InvalidNetworkConfig, warn
from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object
from cni_py.protocol.injection import capabilities, injected
from cni_py.protocol.netconf import CHAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.call import Call, Plugin

EXTENSIONS = "cni.dev/"  # of keys that libcni adds to each plugin of a list, such as cni.dev/valid-attachments


class Member:
    """A plugin of the list: its call, its executable, and the plugin itself if that is one of ours; else it is executed."""

    __slots__ = ("call", "ours", "path", "type")

    def __init__(self, call: "Call", kind: str, path: str, ours: "Plugin | None") -> None:
        self.type = kind
        self.path = path
        self.ours = ours
        self.call = call

    def named(self, error: CniError) -> CniError:
        """The error with the name of the plugin, in the words in which libcni reports a plugin of a list."""
        failed = f'plugin type="{self.type}" failed ({self.call.verb.lower()})'
        return CniError(f"{failed}: {error.msg}", error.details, error.code)


def members(call: "Call", failures: list[CniError] | None = None) -> list[Member]:
    """The plugins in the order of ADD. CniError for a list that cannot be run. A DEL passes over what no ADD can have run.

    With `failures` the plugins that can be run are returned, and what is wrong with the others is put there.
    """
    found = []
    listed = netconf.values(call.conf.raw, "plugins")
    if not listed and call.verb != "DEL":
        raise InvalidNetworkConfig(f'{CHAIN} needs "plugins": a list of plugins, as in a *.conflist')
    for number, raw in enumerate(netconf.objects(call.conf.raw, "plugins"), 1):
        try:
            if is_runnable(call, raw, number):
                found.append(member(call, raw))
        except CniError as error:
            if failures is None:
                raise
            failures.append(error)
    return found


def is_runnable(call: "Call", raw: Object, number: int) -> bool:
    """Whether a plugin of the list can be run, as far as its configuration tells. InvalidNetworkConfig; a DEL is warned."""
    try:
        check_type(netconf.string(raw, "type"))
        if call.verb != "DEL":
            check_capabilities(call, raw)
    except InvalidNetworkConfig as error:
        if call.verb != "DEL":
            raise InvalidNetworkConfig(f"plugin {number} of the {CHAIN}: {error.msg}", error.details) from None
        warn(f"passed over, since this is a DEL: plugin {number} of the {CHAIN}: {error}")
        return False
    return True


def check_type(kind: str) -> None:
    """InvalidNetworkConfig for a type that cannot be run."""
    if not kind:
        raise InvalidNetworkConfig('it has no "type"')
    if "/" in kind:
        raise InvalidNetworkConfig(f"invalid plugin name: {kind}")
    if kind == CHAIN:
        raise InvalidNetworkConfig(f"a {CHAIN} cannot hold another {CHAIN}: put its plugins in its place")


def check_capabilities(call: "Call", raw: Object) -> None:
    """InvalidNetworkConfig for a capability of which the runtime does not know, so that it would send nothing for it."""
    known = netconf.child(call.conf.raw, "capabilities") or Object()
    for name in capabilities(raw):
        if name not in known:
            raise InvalidNetworkConfig(
                f"{netconf.string(raw, 'type')} has the capability {name}, and the {CHAIN} has not: add it to the "
                f"capabilities of the {CHAIN}, for which the runtime sends values"
            )


def member(call: "Call", raw: Object) -> Member:
    """One plugin, with the call that is made of it. CniError when its executable is not in CNI_PATH, as from libcni."""
    kind = netconf.string(raw, "type")
    fields = injected(
        raw, call.conf.name, call.conf.cni_version, call.conf.runtime_config or Object(), call.conf.prev_result
    )
    for key, value in call.conf.raw.items():
        if key.startswith(EXTENSIONS):
            fields[key] = value
    conf = netconf.NetConf(call.conf.name, Object([*fields.items()]))
    found = Member(call.member(kind, conf), kind, "", None)
    try:
        try:
            found.path = delegate.find(kind, call.path)
            found.ours = run.load(kind) if run.is_own_launcher(found.path) else None
        except InvalidNetworkConfig:
            if call.verb != "DEL" or kind not in run.MODULES:
                raise
            found.ours = run.load(kind)  # its executable is gone, and what its ADD made is not
        if found.ours is not None:
            skel.check_version(call.verb, conf.cni_version, found.ours.versions or version.SUPPORTED)
            if call.verb == "ADD":
                conf.check_common()
    except CniError as error:
        raise found.named(error) from error
    return found
