"""What the command line of `cni-py-exec` asks for, before anything is run: the network, and what its plugins shall hear."""

import argparse
import ipaddress
import os

from cni_py.addr import mac_text, parse_mac
from cni_py.commands import portspec
from cni_py.commands.chain import ATTACHED
from cni_py.commands.report import LACKING, USAGE, Failure, complain
from cni_py.errors import CniError
from cni_py.protocol import cache, conflist, netconf
from cni_py.protocol.cache import Entry
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Value


def network_for(options: argparse.Namespace, container_id: str) -> tuple[Network, Entry | None]:
    """The network, and what the cache knows of the attachment. DEL uses the configuration of its ADD when that is known."""
    name = options.network
    given = None
    try:
        if conflist.is_path(name):
            given = conflist.read(name, piped=True)
            name = given.name
        elif options.verb != "DEL":
            given = found(options, name)
        entry = cached(options, name, container_id) if options.verb in ATTACHED else None
        if options.verb == "DEL" and entry is not None and entry.config:
            return conflist.parse(entry.config, "the cached configuration"), entry
        return given or found(options, name), entry
    except conflist.NoSuchNetwork as error:
        raise Failure(str(error), LACKING) from error


def found(options: argparse.Namespace, name: str) -> Network:
    """The network of that name in --conf-dir; broken files beside it are named and passed over."""
    search = conflist.find(options.conf_dir, name)
    for error in search.broken:
        complain(f"cni-py-exec: note: passed over, though runtimes may stop there: {error}")
    return search.network


def cached(options: argparse.Namespace, name: str, container_id: str) -> Entry | None:
    """The cache entry; a damaged one must not keep a DEL from working."""
    if not netconf.is_identifier(name):
        raise Failure(f'"{name}" is neither a file nor a name that a network can have', USAGE)
    try:
        return cache.load(name, container_id, options.ifname)
    except CniError as error:
        if options.verb != "DEL":
            raise
        complain(f"cni-py-exec: going on without the cache: {error}")
        return None


def requests_of(options: argparse.Namespace, network: Network) -> tuple[Object, list[tuple[str, str]]]:
    """What the options ask of the plugins, as capability arguments and CNI_ARGS. Failure 2 for what none would hear."""
    asked = Object()
    pairs = [parse_pair(pair) for pair in options.args.split(";")] if options.args else []
    random = any(plugin.get("randomHostPort") == "sticky" for plugin in network.plugins)
    try:
        ports = [port for text in options.publish for port in portspec.parse(text, random=random)]
    except ValueError as error:
        raise Failure(f"-p {error}", USAGE) from error
    ips = [checked_ip(text) for text in options.ip]
    if options.mac:
        check_mac(options.mac)
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


def checked_ip(text: str) -> str:
    """An address, with or without a prefix length."""
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        wanted = "no IPv4 or IPv6 address, such as 192.0.2.7 or 2001:db8::7, with or without /PREFIX"
        raise Failure(f"--ip {text}: this is {wanted}", USAGE) from None
    return text


def check_mac(text: str) -> None:
    """A MAC address that an interface can have."""
    try:
        mac = parse_mac(text)
    except ValueError:
        raise Failure(f"--mac {text}: this is no MAC address, such as 02:00:00:00:00:07", USAGE) from None
    if mac[0] & 1:
        why = "a multicast address (the lowest bit of its first byte is set), which no interface can have"
        raise Failure(f"--mac {mac_text(mac)}: this is {why}", USAGE)
    if not any(mac):
        raise Failure(f"--mac {mac_text(mac)}: no interface can have this", USAGE)


def parse_pair(text: str) -> tuple[str, str]:
    """K=V of CNI_ARGS."""
    key, equals, value = text.partition("=")
    if not (key and equals) or "=" in value:
        which = f"the pair of {key}" if equals and key else "a pair of it"  # whose value may be a secret
        raise Failure(f"--args: {which} is not of the form KEY=VALUE (pairs are separated by ;)", USAGE)
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
    if not 0 < len(os.fsencode(name)) < 16 or name in (".", "..") or any(c in "/:%" or c.isspace() for c in name):
        raise Failure(
            f'--ifname: "{name}" cannot be the name of an interface (15 bytes, no "/", ":", "%" or blank)', USAGE
        )
