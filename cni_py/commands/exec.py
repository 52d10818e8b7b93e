"""`cni-py-exec`: run a network's chain of plugins by hand, as libcni does for a runtime. Manual: docs/cni-py-exec.md.

    command line -> network, namespace, what is asked     asked.py, namespaces.py
    ADD     each plugin in order, fed the result of the one before; then libcni's cache. A failure: DEL of the whole chain
    DEL     in reverse, with what the cache holds; then the cache entry goes
    CHECK   in order, with the cached result
    GC      every plugin hears which attachments the cache holds
    --plan  our own plugins in this process, with an executor that collects instead of acting

Everything is refused that can be before the first plugin is run: usage, a missing plugin, a missing namespace.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cni_py import __version__, version
from cni_py.attachment.naming import Attachment
from cni_py.commands import keys, namespaces, overlaps, report
from cni_py.commands.asked import check_usage, network_for, requests_of
from cni_py.commands.chain import ATTACHED, GC_SINCE, Chain, PluginFailed, answer_in, planned
from cni_py.commands.describe import described
from cni_py.commands.listeners import notes, refuse_listeners
from cni_py.commands.namespaces import NETNS_DIR, Target
from cni_py.commands.report import FAILED, LACKING, USAGE, Failure, Parser, complain
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

exit status: 0 well, 1 the operation failed, 2 usage, 3 the environment lacks something
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="cni-py-exec", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("verb", metavar="VERB", type=str.upper, choices=VERBS, help=f"{', '.join(VERBS)}; in any case")
    top.add_argument("network", metavar="NETWORK", help="a configuration file, or a network's name in --conf-dir")
    top.add_argument(
        "netns", metavar="NETNS", nargs="?", default="", help=f"a namespace: its name in {NETNS_DIR}, a path, or a pid"
    )
    top.add_argument("--create-netns", action="store_true", help="make the named namespace if it does not exist")
    add = top.add_argument
    add("-p", "--publish", metavar="[IP:]PORT:PORT[/PROTO]", action="append", default=[], help="publish a port")
    add("--ip", action="append", default=[], help="ask for this address; may be given again")
    add("--mac", default="", help="ask for this MAC")
    add("--ifname", default="eth0", help="the interface's name in the container (default: %(default)s)")
    add("--id", default="", help="the container's ID (default: derived from NETNS)")
    add("--args", metavar="K=V;K=V", default="", help="CNI_ARGS")
    add("--conf-dir", type=Path, default=CONF_DIR, help="network configurations (default: %(default)s)")
    add("--bin-dir", action="append", default=[], help=f"plugins (default: $CNI_PATH, else {BIN_DIRS})")
    add("--json", action="store_true", help="print JSON: the result, or the error object")
    add("--plan", action="store_true", help="with ADD: print what would be done, and do nothing")
    add("-v", "--verbose", action="store_true", help="show each step, also of what a failed ADD is taken back with")
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
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
            signal.signal(number, signal.default_int_handler)  # KeyboardInterrupt: what was begun is taken back
    asked = options.plan or options.verb == "VERSION"
    return report.ended("cni-py-exec", performed(options), asked=asked)


def performed(options: argparse.Namespace) -> int:
    """Perform the verb, and say on stderr how it failed."""
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
    """From the command line to the verb's function."""
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
    """Failure 3 without root, or without what root lacks in an ordinary container."""
    if os.geteuid() != 0:
        raise Failure(f"this needs root; to try it without, in a host of your own: {TRY_UNSHARED}", LACKING)
    held = effective_capabilities()
    lacking = [name for name, number in CAPABILITIES.items() if not held >> number & 1]
    if lacking:
        where = "run it on the host, or in a container that is --privileged"
        raise Failure(f"this needs {' and '.join(lacking)}, which root does not have here: {where}", LACKING)


def effective_capabilities() -> int:
    """The bits of CapEff (proc_pid_status(5))."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)


def refuse_taken(chain: Chain, target: Target, entry: Entry | None) -> None:
    """Failure for what exists, ours or another's: the DEL that follows a failed ADD would take it away."""
    if target.exists and namespaces.is_own(target.path):
        raise Failure(f"{target.path} is the namespace this runs in, the host's: that is no container", LACKING)
    if entry is not None:
        raise Failure(
            f"{target.label} is connected to {chain.network.name} as {chain.ifname} already "
            f"(container ID {chain.container_id}): DEL it first, or choose another --ifname"
        )
    makes_it = chain.network.types[0] != "loopback"  # whose interface is lo, whatever CNI_IFNAME says
    if makes_it and target.exists and namespaces.has_interface(target.path, chain.ifname):
        raise Failure(f"{target.label} has an interface {chain.ifname} already: choose another --ifname")


def add(options: argparse.Namespace, chain: Chain, target: Target) -> int:
    """Connect. All or nothing: also when the cache cannot be written."""
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
    """Disconnect, from a namespace that may be gone; a pid may even have become that of a program of the host."""
    known = target.path or (entry.netns if entry else "")
    there = os.path.exists(known) and not namespaces.is_own(known)
    chain = replace(chain, netns=known if there else "")
    name = target.label or chain.container_id
    where = f"{chain.network.name} ({chain.ifname})"
    if entry is None and not is_connected(chain):  # DEL all the same: it may find what we do not see
        replace(chain, say=lambda _: None).delete(None)
        chain.say(f"nothing of {name} was connected to {where}")
        return 0
    if entry is None:
        chain.say(f"nothing is cached for container ID {chain.container_id}: DEL with the configuration alone")
    chain.delete(chain.prev_result_of(entry))
    cache.remove(entry or Entry(chain.network.name, chain.container_id, chain.ifname))
    chain.say(f"{name} is disconnected from {where}")
    return 0


def is_connected(chain: Chain) -> bool:
    """Whether anything is known of an attachment that is not in the cache: a record of ours, or its interface."""
    key = Attachment(chain.network.name, chain.container_id, chain.ifname)
    there = chain.netns and namespaces.has_interface(chain.netns, chain.ifname)
    return bool(there) or os.path.isdir(key.folder)


def check(chain: Chain, target: Target, entry: Entry | None) -> int:
    """Is everything as ADD made it?"""
    network = chain.network
    if not version.at_least(network.cni_version, "0.4.0"):
        raise Failure(f"network {network.name} is of version {network.cni_version}: CHECK came with 0.4.0")
    if network.disable_check:
        chain.say(f"network {network.name} has disableCheck: nothing was looked at")
        return 0
    if entry is None:
        raise Failure(
            f"no ADD of {target.label or chain.container_id} to {network.name} as {chain.ifname} is known "
            f"(container ID {chain.container_id})"
        )
    chain = replace(chain, netns=target.path or entry.known_netns)
    if not chain.netns:
        raise Failure("CHECK needs NETNS: the cache does not say in which namespace it was", USAGE)
    if not os.path.exists(chain.netns):
        raise Failure(f"no such namespace: {chain.netns}", LACKING)
    for plugin in network.plugins:
        chain.run("CHECK", plugin, chain.prev_result_of(entry))
    chain.say("everything is as ADD made it")
    for note in notes(chain, entry.result):
        chain.say(f"note: {note}")
    return 0


def collect(chain: Chain) -> int:
    """GC: whatever belongs to no attachment in the cache goes. All plugins are asked, then the failures told."""
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
    refuse_partly(network, unable, "GC", "nothing of theirs was collected")
    chain.say(f"whatever belonged to none of the {len(valid)} known attachments is gone")
    return 0


def refuse_partly(network: Network, unable: Sequence[str], verb: str, outcome: str) -> None:
    """Failure for plugins that do not know the verb, after the others have done theirs."""
    if unable:
        raise Failure(
            f"{verb} came with version {GC_SINCE} of the specification, which {' and '.join(unable)} of network "
            f"{network.name} (version {network.cni_version}) cannot speak: {outcome}"
        )


def status(chain: Chain) -> int:
    """STATUS: could an ADD be served now?"""
    network = chain.network
    chain, unable = chain.at_least(GC_SINCE)
    for plugin in chain.network.plugins:
        chain.run("STATUS", plugin)
    refuse_partly(network, unable, "STATUS", "whether they could serve an ADD is not known")
    chain.say("an ADD can be served")
    return 0


def versions(options: argparse.Namespace, chain: Chain) -> int:
    """VERSION of every plugin."""
    quiet = replace(chain, say=lambda _: None)
    answers = {
        name: answer_in(quiet.run("VERSION", plugin), "VERSION", name)
        for name, plugin in zip(chain.network.types, chain.network.plugins, strict=True)
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
            name = netconf.string(plugin, "type")
            operations, prev_result = planned(chain, plugin, path, prev_result)
            chain.say(f"{name}:")
            for line in [text for _, text in operations] or ["nothing"]:
                chain.say(f"  {line}")
            told.append({"plugin": name, "operations": [{**op.to_json(), "text": text} for op, text in operations]})
    if options.json:
        chain.answer(encode(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
