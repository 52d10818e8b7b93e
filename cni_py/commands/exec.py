"""`cni-py-exec`: run a network's chain of plugins by hand, as libcni does for a runtime. Manual: docs/cni-py-exec.md.

    command line -> network, namespace, capability arguments     arguments.py, namespaces.py
    ADD     every plugin in order, each with the result of the one before; then libcni's cache. After a failure: DEL of the chain
    DEL     every plugin in reverse order, with the cached result; then the cache entry is removed
    CHECK   every plugin in order, with the cached result
    GC      every plugin, with the attachments in the cache
    --plan  our own plugins in this process, with an executor that collects operations instead of applying them

Errors that can be found without running a plugin are found before the first one is run: usage, a missing plugin, a missing
namespace.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cni_py import __version__, version
from cni_py.commands import keys, namespaces, overlaps, report
from cni_py.commands.arguments import check_usage, network_for, requests_of
from cni_py.commands.chain import ATTACHED, GC_SINCE, Chain, PluginFailed, answer_in, planned
from cni_py.commands.describe import described
from cni_py.commands.listeners import notes, refuse_listeners
from cni_py.commands.namespaces import NETNS_DIR, Target
from cni_py.commands.report import FAILED, LACKING, USAGE, Failure, Parser, complain, counted
from cni_py.errors import CniError
from cni_py.protocol import cache, conflist, netconf
from cni_py.protocol.cache import Entry
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object, encode
from cni_py.protocol.result import from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Encodable, Value

VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
CONF_DIR = Path(conflist.CONF_DIR)
BIN_DIRS = "/opt/cni/bin:/usr/lib/cni"
INTERRUPTED = 130

DESCRIPTION = """\
Run the plugins of a network as a container runtime would: connect a network namespace, check it, disconnect it.

  cni-py-exec ADD cni-py web --create-netns -p 8080:80
  cni-py-exec CHECK cni-py web
  cni-py-exec DEL cni-py web

exit status: 0 success, 1 the operation failed, 2 wrong usage, 3 something is missing here (root, a plugin, a namespace),
130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="cni-py-exec", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument(
        "verb", metavar="VERB", type=str.upper, choices=VERBS, help=f"{', '.join(VERBS)}; upper or lower case"
    )
    top.add_argument("network", metavar="NETWORK", help="a configuration file, or the name of a network in --conf-dir")
    top.add_argument(
        "netns",
        metavar="NETNS",
        nargs="?",
        default="",
        help=f"the container's network namespace: a name in {NETNS_DIR}, a path, or a pid",
    )
    top.add_argument(
        "--create-netns", action="store_true", help="with ADD: create the namespace if there is none of that name"
    )
    add = top.add_argument
    add(
        "-p",
        "--publish",
        metavar="[IP:]HOST_PORT:PORT[/PROTO]",
        action="append",
        default=[],
        help="publish a host port; may be repeated",
    )
    add("--ip", metavar="ADDRESS", action="append", default=[], help="ask for this address; may be repeated")
    add("--mac", metavar="MAC", default="", help="ask for this MAC address")
    add("--ifname", metavar="NAME", default="eth0", help="the interface's name in the container (default: %(default)s)")
    add("--id", default="", help="the container's ID (default: derived from NETNS)")
    add("--args", metavar="K=V;K=V", default="", help="CNI_ARGS for the plugins")
    add(
        "--conf-dir",
        type=Path,
        metavar="DIR",
        default=CONF_DIR,
        help="folder of network configurations (default: %(default)s)",
    )
    add(
        "--bin-dir",
        metavar="DIR[:DIR]",
        action="append",
        default=[],
        help=f"folders of plugins; may be repeated (default: $CNI_PATH, else {BIN_DIRS})",
    )
    add("--json", action="store_true", help="print the result, the plan or the error object as JSON")
    add("--plan", action="store_true", help="with ADD: print the operations and change nothing")
    add("-v", "--verbose", action="store_true", help="show every step, also of the DEL that follows a failed ADD")
    add("--version", action="version", version=f"cni-py-exec {__version__}")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    report.open_streams()
    top = parser()
    for word in words:
        if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
            top.error(f"{word!a} is not UTF-8")
    options = top.parse_intermixed_args(words)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as by nohup(1)
            signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt, on which ADD undoes itself
    asked = options.plan or options.verb == "VERSION"
    return report.ended("cni-py-exec", performed(options), asked=asked)


def performed(options: argparse.Namespace) -> int:
    """Perform the verb, and print on stderr how it failed. Returns the exit status."""
    try:
        return perform(options)
    except PluginFailed as failure:
        if options.json:
            print(encode({"plugin": failure.plugin, **failure.error.to_json()}))
        complain(f"cni-py-exec: {failure}")
        return FAILED
    except Failure as failure:
        complain(f"cni-py-exec: {failure}")
        return failure.status
    except CniError as error:
        complain(f"cni-py-exec: {error}")
        return FAILED
    except KeyboardInterrupt:
        complain("cni-py-exec: interrupted")
        return INTERRUPTED


# The verbs


def perform(options: argparse.Namespace) -> int:
    """Resolve the command line and call the verb's function."""
    check_usage(options)
    if options.verb != "VERSION":
        check_powers()
    target = namespaces.find(options.netns) if options.netns else Target("", "", "")
    container_id = options.id or target.container_id
    network, entry = network_for(options, container_id)
    folders = options.bin_dir or [os.environ.get("CNI_PATH") or BIN_DIRS]
    path = [os.path.abspath(folder) for text in folders for folder in text.split(":") if folder]
    chain = Chain(network, path, (lambda _: None) if options.json else print, print)
    chain.check_plugins()
    if options.verb in ATTACHED:
        capability_args, cni_args = requests_of(options, network)
        chain = replace(
            chain,
            container_id=container_id,
            ifname=options.ifname,
            netns=target.path,
            cni_args=cni_args or (entry.cni_args if entry else ()),
            capability_args=capability_args or (entry.capability_args if entry else Object()),
        )
    if options.verb == "ADD":
        refuse_taken(chain, target, entry)
        refuse_listeners(chain)
        for note in (*keys.unknown(network), *keys.repeated(network), *overlaps.of_network(network, options.conf_dir)):
            complain(f"cni-py-exec: note: {note}")
        return (plan if options.plan else add)(options, chain, target)
    if options.verb == "DEL":
        return delete(chain, target, entry)
    if options.verb == "CHECK":
        return check(chain, target, entry)
    if options.verb == "VERSION":
        return versions(options, chain)
    return collect(chain) if options.verb == "GC" else status(chain)


CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}  # linux/capability.h
TRY_UNSHARED = "unshare -r -n -m sh -c 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && exec sh'"


def check_powers() -> None:
    """Failure 3 without root, or without a capability that root does not have in an ordinary container."""
    if os.geteuid() != 0:
        raise Failure(f"this needs root; to try it without root, in namespaces of your own: {TRY_UNSHARED}", LACKING)
    held = effective_capabilities()
    lacking = [name for name, number in CAPABILITIES.items() if not held >> number & 1]
    if lacking:
        where = "run it on the host, or in a privileged container (--privileged)"
        raise Failure(f"this needs {' and '.join(lacking)}, which root does not have here: {where}", LACKING)


def effective_capabilities() -> int:
    """The bits of CapEff (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)


def refuse_taken(chain: Chain, target: Target, entry: Entry | None) -> None:
    """Failure if the attachment or interface exists: the DEL that follows a failed ADD would remove it, whoever made it."""
    if target.exists and namespaces.is_own(target.path):
        raise Failure(f"{target.path} is the network namespace of this host, not of a container", LACKING)
    if entry is not None:
        raise Failure(
            f"{target.label} is already connected to {chain.network.name} as {chain.ifname} "
            f"(container ID {chain.container_id}): DEL it first, or choose another --ifname"
        )
    makes_it = chain.network.first != "loopback"  # its interface is lo, whatever CNI_IFNAME says
    if makes_it and target.exists and namespaces.has_interface(target.path, chain.ifname):
        raise Failure(f"{target.label} already has an interface {chain.ifname}: choose another --ifname")


def add(options: argparse.Namespace, chain: Chain, target: Target) -> int:
    """Connect, all or nothing: a cache entry that cannot be written is a failure, too."""
    with namespaces.opened(target, options.create_netns, options.plan, chain.say):
        added: list[str] = []
        try:
            result = chain.add(added)
            shown = from_json(result, netconf.string(result, "cniVersion") or chain.network.cni_version)
            cache.save(
                Entry(
                    chain.network.name,
                    chain.container_id,
                    chain.ifname,
                    config=chain.network.text,
                    netns=chain.netns,
                    cni_args=chain.cni_args,
                    capability_args=chain.capability_args,
                    result=result,
                )
            )
        except BaseException as cause:
            chain.undo(added, cause, options.verbose)
            raise
    if options.json:
        chain.answer(encode(result))
        return 0
    chain.say(f"\n{chain.ifname} in {target.label} ({chain.netns}), container ID {chain.container_id}")
    for line in described(chain.network, chain.ifname, chain.capability_args, shown):
        chain.say(line)
    return 0


def delete(chain: Chain, target: Target, entry: Entry | None) -> int:
    """Disconnect. The namespace may be gone, and its pid may be reused by a program in the host's namespace."""
    known = target.path or (entry.netns if entry else "")
    there = os.path.exists(known) and not namespaces.is_own(known)
    chain = replace(chain, netns=known if there else "")
    name = target.label or chain.container_id
    where = f"{chain.network.name} ({chain.ifname})"
    # DEL runs all the same: the plugins may find something that this command does not know.
    if entry is None and not chain.is_connected():
        replace(chain, say=lambda _: None).delete(None)
        chain.say(f"{name} was not connected to {where}")
        return 0
    if entry is None:
        chain.say(f"container ID {chain.container_id} is not in the cache: DEL uses the configuration file")
    chain.delete(chain.prev_result_of(entry))
    cache.remove(entry or Entry(chain.network.name, chain.container_id, chain.ifname))
    chain.say(f"{name} is disconnected from {where}")
    return 0


def check(chain: Chain, target: Target, entry: Entry | None) -> int:
    """CHECK of every plugin. Failure if it is not possible: an old version, no cache entry, no namespace."""
    network = chain.network
    if not version.at_least(network.cni_version, "0.4.0"):
        raise Failure(f"network {network.name} has cniVersion {network.cni_version}: CHECK needs 0.4.0 or later")
    if network.disable_check:
        chain.say(f"network {network.name} has disableCheck: nothing was checked")
        return 0
    if entry is None:
        raise Failure(
            f"the cache has no ADD of {target.label or chain.container_id} to {network.name} as {chain.ifname} "
            f"(container ID {chain.container_id})"
        )
    chain = replace(chain, netns=target.path or entry.known_netns)
    if not chain.netns:
        raise Failure("CHECK needs NETNS: the cache does not name the namespace", USAGE)
    if not os.path.exists(chain.netns):
        raise Failure(f"no such namespace: {chain.netns}", LACKING)
    for plugin in network.plugins:
        chain.run("CHECK", plugin, chain.prev_result_of(entry))
    chain.say("everything is as ADD made it")
    for note in notes(chain, entry.result):
        chain.say(f"note: {note}")
    return 0


def collect(chain: Chain) -> int:
    """GC: every plugin removes what belongs to no attachment in the cache. Failures are reported when all have run."""
    network = chain.network
    if network.disable_gc:
        chain.say(f"network {network.name} has disableGC: nothing was done")
        return 0
    chain, unable = chain.at_least(GC_SINCE)
    valid: list[Value] = [
        Object([("containerID", entry.container_id), ("ifname", entry.ifname)])
        for entry in cache.attachments(network.name)
    ]
    extra = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}  # the second is libcni's older key
    failures = chain.every("GC", chain.network.plugins, extra)
    if failures:
        for other in failures[1:]:
            complain(f"cni-py-exec: {other}")
        raise failures[0]
    refuse_partly(network, unable, "GC", "nothing of theirs was removed")
    chain.say(f"removed everything that belongs to none of the {counted(len(valid), 'attachment')} in the cache")
    return 0


def refuse_partly(network: Network, unable: Sequence[str], verb: str, outcome: str) -> None:
    """Failure that names the plugins without the verb, after the others have run."""
    if unable:
        raise Failure(
            f"{verb} needs cniVersion {GC_SINCE}, not supported by {' and '.join(unable)} of network {network.name} "
            f"(cniVersion {network.cni_version}): {outcome}"
        )


def status(chain: Chain) -> int:
    """STATUS of every plugin: whether an ADD could be served now."""
    network = chain.network
    chain, unable = chain.at_least(GC_SINCE)
    for plugin in chain.network.plugins:
        chain.run("STATUS", plugin)
    refuse_partly(network, unable, "STATUS", "whether an ADD can be served is not known")
    chain.say("an ADD can be served")
    return 0


def versions(options: argparse.Namespace, chain: Chain) -> int:
    """Print the versions that every plugin supports, and its path."""
    quiet = replace(chain, say=lambda _: None)
    inner = [netconf.string(plugin, "type") for plugin in chain.network.members]
    answers = {
        name: answer_in(quiet.run("VERSION", Object([("type", name)])), "VERSION", name)
        for name in dict.fromkeys([*chain.network.types, *inner])
    }
    if options.json:
        chain.answer(encode({**answers}))
    for name, fields in answers.items():
        chain.say(f"{name:<12} {', '.join(netconf.strings(fields, 'supportedVersions'))}  ({chain.find(name)})")
    return 0


# Plans


def plan(options: argparse.Namespace, chain: Chain, target: Target) -> int:
    """Print the operations of an ADD, plugin by plugin; each plugin's predicted result feeds the next."""
    told: list[Encodable] = []
    prev_result: Object | None = None
    with namespaces.opened(target, options.create_netns, options.plan, chain.say) as path:
        for plugin in chain.network.plugins:
            plans, prev_result = planned(chain, plugin, path, prev_result)
            for name, operations in plans.items():
                chain.say(f"{name}:")
                for line in [text for _, text in operations] or ["nothing"]:
                    chain.say(f"  {line}")
                told.append({"plugin": name, "operations": [{**op.to_json(), "text": text} for op, text in operations]})
    if options.json:
        chain.answer(encode(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
