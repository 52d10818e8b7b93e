"""The command line of `cni-py-exec`, checked before any plugin is run: the network, capability arguments and CNI_ARGS."""

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
    """The network, and the cache entry of the attachment. DEL uses the configuration of its ADD if the cache has it.

    Failure 3 if there is no such network; CniError for a configuration that cannot be used.
    """
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
    """The network of that name in --conf-dir. Broken files beside it are named on stderr and skipped."""
    search = conflist.find(options.conf_dir, name)
    for error in search.broken:
        complain(f"cni-py-exec: note: skipped a broken file, at which a runtime may stop: {error}")
    return search.network


def cached(options: argparse.Namespace, name: str, container_id: str) -> Entry | None:
    """The cache entry, None if there is none. A damaged one is an error, but for DEL, which must work without."""
    if not netconf.is_identifier(name):
        raise Failure(f'"{name}" is neither a file nor a valid network name', USAGE)
    try:
        return cache.load(name, container_id, options.ifname)
    except CniError as error:
        if options.verb != "DEL":
            raise
        complain(f"cni-py-exec: note: DEL goes on without the cache: {error}")
        return None


def requests_of(options: argparse.Namespace, network: Network) -> tuple[Object, list[tuple[str, str]]]:
    """The options -p, --ip, --mac and --args as capability arguments and CNI_ARGS. Failure 2 for one that no plugin takes."""
    asked = Object()
    pairs = [parse_pair(pair) for pair in options.args.split(";")] if options.args else []
    random = any(plugin.get("randomHostPort") == "sticky" for plugin in network.members)
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
    for option, capability, value, older in wanted:
        if value and network.declares(capability):
            asked[capability] = value
        elif value and len(older) == 1:  # CNI_ARGS, which has room for one address
            pairs += [parse_pair("IgnoreUnknown=1"), parse_pair(older[0])]
        elif value:
            raise Failure(
                f"{option}: no plugin of network {network.name} takes it: add "
                f'"capabilities": {{"{capability}": true}} to one in {network.source}',
                USAGE,
            )
    return asked, list(dict.fromkeys(pairs))


def checked_ip(text: str) -> str:
    """An address, with or without a prefix length."""
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        raise Failure(f"--ip {text}: not an IP address (192.0.2.7, 192.0.2.7/24, 2001:db8::7)", USAGE) from None
    return text


def check_mac(text: str) -> None:
    """A MAC address that an interface can have."""
    try:
        mac = parse_mac(text)
    except ValueError:
        raise Failure(f"--mac {text}: not a MAC address (02:00:00:00:00:07)", USAGE) from None
    if mac[0] & 1:
        raise Failure(
            f"--mac {mac_text(mac)}: a multicast address (lowest bit of the first byte), not an interface's", USAGE
        )
    if not any(mac):
        raise Failure(f"--mac {mac_text(mac)}: an interface cannot have the zero address", USAGE)


def parse_pair(text: str) -> tuple[str, str]:
    """One KEY=VALUE of CNI_ARGS. Failure 2."""
    key, equals, value = text.partition("=")
    if not (key and equals) or "=" in value:
        # The value may be a secret, so the message does not quote it.
        which = f"the pair with key {key}" if equals and key else "a pair"
        raise Failure(f"--args: {which} is not KEY=VALUE (a semicolon separates pairs)", USAGE)
    return key, value


def check_usage(options: argparse.Namespace) -> None:
    """Failure 2 for options and arguments that contradict each other or the verb: what argparse cannot check."""
    attached = options.verb in ATTACHED
    if options.verb == "ADD" and not options.netns:
        raise Failure("ADD needs NETNS: the name or path of a network namespace, or the pid of a process in it", USAGE)
    if attached and not options.netns and not options.id:
        raise Failure(f"{options.verb} needs NETNS or --id", USAGE)
    if not attached and options.netns:
        raise Failure(f"{options.verb} takes no NETNS: it is for the whole network", USAGE)
    for option, given in (("--plan", options.plan), ("--create-netns", options.create_netns)):
        if given and options.verb != "ADD":
            raise Failure(f"{option} can only be used with ADD", USAGE)
    if options.id and not netconf.is_identifier(options.id):
        raise Failure(
            f'--id: "{options.id}" is not a container ID (letters, digits, "_", "." and "-", the first a letter or digit)',
            USAGE,
        )
    name = options.ifname
    if not 0 < len(os.fsencode(name)) < 16 or name in (".", "..") or any(c in "/:%" or c.isspace() for c in name):
        raise Failure(
            f'--ifname: "{name}" is not an interface name (at most 15 bytes, without "/", ":", "%" and blanks)', USAGE
        )
