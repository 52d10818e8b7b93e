"""Network configurations and /etc/cni-py/config.yaml, against the schemas and the plugins' own readers."""

from __future__ import annotations

import ipaddress
import itertools
import json
from collections.abc import Iterator

from cni_py import backend
from cni_py.doctor import parsers, schemas
from cni_py.doctor.checks import of_facts, of_host, some
from cni_py.doctor.values import Config, Facts
from cni_py.errors import CniError
from cni_py.host.model import Finding, Host, Network
from cni_py.plugins.bridge_conf import VLAN_MAX
from cni_py.protocol import conflist, injection, netconf

VIOLATIONS_MAX = 5  # of one file
ROUTED = {"bridge", "ptp"}  # plugins whose containers the host routes to


@of_facts("network configurations can be read, and their plugins take them", "config-unreadable", "config-refused")
def refused(_host: Host, facts: Facts) -> Iterator[Finding]:
    for config in facts.configs:
        yield from refusals(config)


def refusals(config: Config) -> Iterator[Finding]:
    """What runtime and plugins would refuse in one file."""
    try:
        if config.problem:
            raise CniError(f"{config.path}: {config.problem}")
        network = conflist.parse(config.text.encode("utf-8", "surrogateescape"), config.path)
        if not network.plugins:
            raise CniError(f"{config.path}: the network has no plugins")
    except CniError as error:
        yield Finding(
            "error",
            "config-unreadable",
            config.path,
            str(error).removeprefix(f"{config.path}: "),
            "runtimes do not take the network, and libcni may take none of the files after it",
            f"mend the file, or take it out of {config.path.rpartition('/')[0]}",
        )
        return
    for refusal in parsers.refusals(network):
        line = conflist.line_of(config.text, refusal.error.msg)
        yield Finding(
            "error",
            "config-refused",
            f"{config.path}, line {line}" if line else config.path,
            f"{refusal.plugin} refuses it: {refusal.error}",
            f"no container can be connected to the network {network.name}",
            "mend the file; docs/plugins.md has every key",
        )


@of_facts("network configurations are as their schema says", "config-schema")
def schema(_host: Host, facts: Facts) -> Iterator[Finding]:
    for config in facts.configs:
        if config.problem or any(refusals(config)):
            continue  # then the plugin's own words are better
        try:
            document = json.loads(config.text)
        except (ValueError, RecursionError):
            continue  # a number of 5,000 digits, which our own reader takes
        # A single plugin has a type and no list; one of the type chain has both
        single = isinstance(document, dict) and "type" in schemas.plain(document)
        found = schemas.violations(schemas.CONF if single else schemas.NETWORK, document)
        for violation in itertools.islice(found, VIOLATIONS_MAX):
            yield Finding(
                "warning",
                "config-schema",
                f"{config.path}, {violation.place}" if violation.place else config.path,
                violation.what,
                "the plugin reads it without an error, and does not do what it seems to say",
                "mend the file; docs/plugins.md has every key",
            )


@of_facts("network configurations have known keys alone, and each once", "config-key")
def keys(_host: Host, facts: Facts) -> Iterator[Finding]:
    for config in facts.configs:
        for note in config.notes:
            yield Finding(
                "note", "config-key", config.path, note, "the key has no effect", "correct it, or take it out"
            )


@of_facts("only root can change network configurations", "config-open")
def writable(_host: Host, facts: Facts) -> Iterator[Finding]:
    for config in (*facts.configs, *([facts.settings] if facts.settings else ())):
        if config.others_write:
            yield Finding(
                "error",
                "config-open",
                config.path,
                "users other than root can change it",
                "plugins do what it says, as root",
                f"chown root: {config.path}; chmod go-w {config.path}",
            )


@of_facts("/etc/cni-py/config.yaml is right", "settings-refused")
def settings(_host: Host, facts: Facts) -> Iterator[Finding]:
    config = facts.settings
    if config is None:
        return
    try:
        if config.problem:
            raise CniError(f"cannot read {config.path}: {config.problem}")
        backend.parse(config.text)
    except CniError as error:
        yield Finding(
            "error",
            "settings-refused",
            config.path,
            str(error),
            "every plugin that reads it fails",
            "mend the file: keys and values are in docs/backends.md",
        )


@of_host("every network has a name of its own", "network-twice")
def twice(host: Host) -> Iterator[Finding]:
    for name, group in itertools.groupby(sorted(host.networks, key=lambda one: one.name), lambda one: one.name):
        paths = [one.path for one in group]
        if name and len(paths) > 1:
            yield Finding(
                "warning",
                "network-twice",
                f"network {name}",
                f"{some(paths)} have the same name",
                "runtimes take the first; containers of both would share records and addresses",
                "rename one of them",
            )


@of_facts("plugins get what they need of the runtime", "portmap-without-ports")
def capabilities(_host: Host, facts: Facts) -> Iterator[Finding]:
    for config in facts.configs:
        try:
            network = conflist.parse(config.text.encode("utf-8", "surrogateescape"), config.path)
            silent = [one for one in network.members if netconf.string(one, "type") == "portmap"]
            silent = [one for one in silent if "portMappings" not in injection.capabilities(one)]
        except CniError:
            continue  # refused() tells
        if silent:
            yield Finding(
                "warning",
                "portmap-without-ports",
                config.path,
                "portmap does not declare the capability portMappings",
                "runtimes do not tell it which ports to publish, so it publishes none",
                'put "capabilities": {"portMappings": true} into the object of portmap',
            )


@of_facts("bridges keep the VLANs of their networks apart", "bridge-unfiltered")
def unfiltered(host: Host, facts: Facts) -> Iterator[Finding]:
    mixing = {link.name for link in host.root.links if link.kind == "bridge" and not link.vlan_filtering}
    used = mixing & {link.master for link in host.root.links}  # at a bridge without ports an ADD turns it on
    for config in facts.configs:
        try:
            network = conflist.parse(config.text.encode("utf-8", "surrogateescape"), config.path)
            members = [one for one in network.members if netconf.string(one, "type") == "bridge"]
            tagging = [one for one in members if is_vlan(one.get("vlan")) or one.get("vlanTrunk")]
            found = [netconf.string(one, "bridge", "cni0") for one in tagging]
        except CniError:
            continue  # refused() tells, as of a VLAN that is none
        for bridge in used.intersection(found):
            yield Finding(
                "error",
                "bridge-unfiltered",
                config.path,
                f"bridge {bridge} is there without VLAN filtering, and has ports",
                "ports of different VLANs would see each other's frames, so that every ADD is refused",
                f"if no port needs frames with VLAN tags: ip link set {bridge} type bridge vlan_filtering 1",
            )


def is_vlan(value: object) -> bool:
    """Whether it is the number of a VLAN."""
    return isinstance(value, int) and 0 < value <= VLAN_MAX


@of_host("networks have subnets of their own", "subnet-taken")
def subnets(host: Host) -> Iterator[Finding]:
    listed = [(network, ipaddress.ip_network(text, strict=False)) for network, text in subnets_of(host)]
    for (one, its), (other, others) in itertools.combinations(listed, 2):
        if (
            one.name != other.name
            and its.version == others.version
            and its.overlaps(others)
            and one.bridge != other.bridge
        ):
            yield Finding(
                "warning",
                "subnet-taken",
                f"network {one.name}",
                f"its subnet {its} overlaps with {others} of the network {other.name}",
                "the host's route to it leads to one of the two bridges, and containers of the other are not reached",
                f"choose another subnet in {other.path}, before containers are connected",
            )
    for network, its in listed:
        for route in host.root.routes:
            if (
                route.kind != "unicast"
                or route.link in (network.bridge, "")
                or route.destination in ("0.0.0.0/0", "::/0")
            ):
                continue
            if any(link.name == route.link and link.source for link in host.root.links):
                continue  # of another bridge of containers: told above, if it is a network's
            there = ipaddress.ip_network(route.destination, strict=False)
            if (
                there.version == its.version
                and there.prefixlen > 0
                and there.overlaps(its)
                and there.prefixlen < its.max_prefixlen
            ):
                yield Finding(
                    "warning",
                    "subnet-taken",
                    f"network {network.name}",
                    f"its subnet {its} overlaps with {there}, to which the host has a route by {route.link}",
                    "hosts there, or the containers, are not reached",
                    f"choose another subnet in {network.path}, before containers are connected",
                )


def subnets_of(host: Host) -> Iterator[tuple[Network, str]]:
    """Networks that the host has routes to, and their subnets; what is no subnet is left out, since refused() tells of it.

    Containers of the others (macvlan) are on a LAN, whose subnet is theirs on purpose.
    """
    for network in host.networks:
        for text in network.subnets if ROUTED.intersection(network.types) else ():
            try:
                ipaddress.ip_network(text, strict=False)
            except ValueError:
                continue
            yield network, text


CHECKS = (refused, schema, keys, writable, settings, twice, capabilities, unfiltered, subnets)
