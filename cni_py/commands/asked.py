"""What the command line of `cni-py-exec` asks for, before anything is run: the network, and what its plugins shall hear."""

import argparse
import ipaddress
import os
import sys

from cni_py import conflist, libcni_cache, netconf, portspec
from cni_py.addr import parse_mac
from cni_py.commands.chain import ATTACHED
from cni_py.commands.report import LACKING, USAGE, Failure
from cni_py.conflist import Network
from cni_py.errors import CniError
from cni_py.jsontext import Object
from cni_py.libcni_cache import Entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.jsontext import Value


def network_for(options: argparse.Namespace, container_id: str) -> tuple[Network, Entry | None]:
    """The network, and what the cache knows of the attachment. DEL uses the configuration of its ADD when that is known."""
    name = options.network
    given = None
    try:
        if conflist.is_path(name):
            given = conflist.read(name)
            name = given.name
        elif options.verb != "DEL":
            given = conflist.find(options.conf_dir, name)
        entry = cached(options, name, container_id) if options.verb in ATTACHED else None
        if options.verb == "DEL" and entry is not None and entry.config:
            return conflist.parse(entry.config, "the cached configuration"), entry
        return given or conflist.find(options.conf_dir, name), entry
    except conflist.NoSuchNetwork as error:
        raise Failure(str(error), LACKING) from error


def cached(options: argparse.Namespace, name: str, container_id: str) -> Entry | None:
    """The cache entry; a damaged one must not keep a DEL from working."""
    if not netconf.is_identifier(name):
        raise Failure(f'"{name}" is neither a file nor a name that a network can have', USAGE)
    try:
        return libcni_cache.load(name, container_id, options.ifname)
    except CniError as error:
        if options.verb != "DEL":
            raise
        print(f"cni-py-exec: going on without the cache: {error}", file=sys.stderr)
        return None


def requests_of(options: argparse.Namespace, network: Network) -> tuple[Object, list[tuple[str, str]]]:
    """What the options ask of the plugins, as capability arguments and CNI_ARGS. Failure 2 for what none would hear."""
    asked = Object()
    pairs = [parse_pair(pair) for pair in options.args.split(";")] if options.args else []
    try:
        ports = [port for text in options.publish for port in portspec.parse(text)]
        ips = [text for text in options.ip if ipaddress.ip_interface(text)]
        if options.mac:
            parse_mac(options.mac)
    except ValueError as error:
        raise Failure(str(error), USAGE) from error
    wanted: list[tuple[str, str, Value, list[str]]] = [
        ("-p", "portMappings", [port.to_json() for port in ports], []),
        ("--ip", "ips", [*ips], [f"IP={ip}" for ip in ips]),
        ("--mac", "mac", options.mac, [f"MAC={options.mac}"] if options.mac else []),
    ]
    for option, capability, value, instead in wanted:
        if value and network.declares(capability):
            asked[capability] = value
        elif value and len(instead) == 1:  # the older way, which knows one address
            pairs += [parse_pair("IgnoreUnknown=1"), parse_pair(instead[0])]
        elif value:
            raise Failure(
                f"{option}: no plugin of network {network.name} would hear it; one needs "
                f'"capabilities": {{"{capability}": true}} in {network.source}',
                USAGE,
            )
    return asked, list(dict.fromkeys(pairs))


def parse_pair(text: str) -> tuple[str, str]:
    """K=V of CNI_ARGS."""
    key, equals, value = text.partition("=")
    if not (key and equals) or "=" in value:
        raise Failure(f'--args: "{text}" is not of the form KEY=VALUE', USAGE)
    return key, value


def check_usage(options: argparse.Namespace) -> None:
    """What argparse cannot tell."""
    attached = options.verb in ATTACHED
    if options.verb == "ADD" and not options.netns:
        raise Failure("ADD needs NETNS: the name, path or pid of a network namespace", USAGE)
    if attached and not options.netns and not options.id:
        raise Failure(f"{options.verb} needs NETNS, or --id", USAGE)
    if not attached and options.netns:
        raise Failure(f"{options.verb} is about the whole network: it takes no NETNS", USAGE)
    for option, given in (("--plan", options.plan), ("--create-netns", options.create_netns)):
        if given and options.verb != "ADD":
            raise Failure(f"{option} goes with ADD only", USAGE)
    if options.id and not netconf.is_identifier(options.id):
        raise Failure(f'--id: "{options.id}" has characters that a container ID cannot have', USAGE)
    name = options.ifname
    if not 0 < len(os.fsencode(name)) < 16 or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise Failure(f'--ifname: "{name}" cannot be the name of an interface (15 bytes, no "/", ":" or blank)', USAGE)
