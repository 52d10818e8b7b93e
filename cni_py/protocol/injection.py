"""What a runtime puts into the configuration of a plugin of a list (libcni/api.go, buildOneConfig; SPEC.md section 3).

name, cniVersion    the list's
runtimeConfig       the part of the runtime's arguments that the plugin declares capabilities for
prevResult          the result of the plugin before; at CHECK and DEL the last one
"""

from cni_py.protocol import netconf
from cni_py.protocol.gojson import Object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cni_py.protocol.gojson import Value


def capabilities(plugin: Object) -> list[str]:
    """The capabilities that a plugin's configuration declares with `true`."""
    declared = netconf.child(plugin, "capabilities") or Object()
    return [name for name in declared if netconf.boolean(declared, name)]


def injected(
    plugin: Object,
    name: str,
    cni_version: str,
    capability_args: "Mapping[str, Value]",
    prev_result: Object | None = None,
) -> "dict[str, Value]":
    """The plugin's configuration with all that."""
    fields: dict[str, Value] = dict(plugin)
    fields["name"] = name
    fields["cniVersion"] = cni_version
    given: list[tuple[str, Value]] = [
        (one, capability_args[one]) for one in capabilities(plugin) if one in capability_args
    ]
    if given:
        fields["runtimeConfig"] = Object(given)
    if prev_result is not None:
        fields["prevResult"] = prev_result
    return fields
