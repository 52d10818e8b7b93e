"""`cni-py convert`: a network's list of plugins as one plugin of the type chain, and back.

    list     {"plugins": [{"type": "bridge"}, {"type": "portmap"}]}
    chain    {"plugins": [{"type": "chain", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}]}

Nothing but the list changes. Running containers stay connected: DEL, CHECK and GC of either form know what the other made.
"""

import argparse
import json
import os
from pathlib import Path

from cni_py.commands import keys, outcome, runtimes
from cni_py.commands.manifest import write
from cni_py.commands.report import FAILED, LACKING, Failure, complain
from cni_py.errors import CniError
from cni_py.files import read
from cni_py.protocol import conflist, netconf
from cni_py.protocol.conflist import Network
from cni_py.protocol.gojson import Object, decode
from cni_py.protocol.injection import capabilities
from cni_py.protocol.netconf import CHAIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.protocol.gojson import Value

SUMMARY = "make a network's list of plugins one plugin (chain), and back"
DESCRIPTION = """\
Print a network's configuration with its plugins as one of the type chain, which runs them in one process, or as a list again.
With --write the file is replaced, and the file before is kept beside it. Running containers stay connected.

examples:
  cni-py convert cni-py --to list
  cni-py convert /etc/cni/net.d/10-mynet.conflist --to chain --write
"""
BIN_DIRS = runtimes.NERDCTL  # all that runtimes look in by default
SWITCHES = ("disableCheck", "disableGC")  # keys of a list that a chain has, too
WRITERS = {  # keys of lists that a program has written, which reads and writes them again
    "nerdctl": ("nerdctlID", "nerdctlLabels"),
    "podman": ("podman_labels", "podman_options"),
}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's options."""
    parser = outcome.add_parser(commands, "convert", SUMMARY, DESCRIPTION)
    add = parser.add_argument
    add("network", metavar="NETWORK", help="a configuration file, or the name of a network in --conf-dir")
    add("--to", choices=("chain", "list"), required=True, help="the form to convert it to")
    add("--write", action="store_true", help="replace the file; the one before is kept as FILE.bak")
    add(
        "--force",
        action="store_true",
        help="also where a runtime writes the file itself, or the plugin chain is missing",
    )
    add(
        "--conf-dir",
        type=Path,
        metavar="DIR",
        default=Path(conflist.CONF_DIR),
        help="folder of network configurations (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print or write the network in the other form; returns the exit status."""
    try:
        path = Path(options.network)
        if not conflist.is_path(options.network):
            path = Path(conflist.find(options.conf_dir, options.network).network.source)
        text = read(str(path), follow=True)
        network = conflist.parse(text, str(path))  # without its drop-ins, which stay files of their own
        raw = checked(network, decode(text), force=options.force)
        found = to_chain(raw) if options.to == "chain" else to_list(raw)
    except conflist.NoSuchNetwork as error:
        raise Failure(str(error), LACKING) from error
    except CniError as error:
        raise Failure(str(error), FAILED) from error
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}", LACKING) from error
    if options.to == "chain" and not (options.force or is_installed()):
        where = ", ".join(BIN_DIRS)
        raise Failure(f"there is no plugin {CHAIN} in {where}: run `cni-py install` first, or add --force", LACKING)
    new = (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode()
    if not options.write:
        print(new.decode(), end="")
    elif found == raw:
        print(f"leave {path} as it is: it is a {options.to} already")
    else:
        replaced(path.resolve(), text, new)
        print(f"{path} is a {options.to} now")
    return 0


def checked(network: Network, raw: "Value", *, force: bool) -> Object:
    """The list to convert. Failure for what has no other form, or has an owner."""
    assert isinstance(raw, Object)  # conflist.parse() has refused anything else
    if netconf.string(raw, "type"):
        raise Failure(f"{network.source} holds one plugin, not a list of plugins: only a list has two forms")
    twice = keys.repeated(network)
    if twice:
        raise Failure(twice[0])
    args = raw.get("args")
    named = {*raw, *(args if isinstance(args, Object) else ())}
    for program, marks in WRITERS.items():
        if named & set(marks) and not force:
            raise Failure(
                f"{network.source} is a network of {program}, which reads the plugins of its lists and writes them anew: "
                "it has to stay a list (--force converts it all the same)"
            )
    return raw


def to_chain(raw: Object) -> Object:
    """The list with all its plugins in one chain, which declares the capabilities of all."""
    plugins = netconf.objects(to_list(raw), "plugins")
    declared = dict.fromkeys(name for plugin in plugins for name in capabilities(plugin))
    chain: list[tuple[str, Value]] = [("type", CHAIN)]
    if declared:
        chain.append(("capabilities", Object([(name, True) for name in declared])))
    return with_plugins(to_list(raw), [Object([*chain, ("plugins", [*plugins])])])


def to_list(raw: Object) -> Object:
    """The list with the plugins of each chain in its place. Failure for a key of a chain that has no place there."""
    found: list[Value] = []
    switches: list[tuple[str, Value]] = []
    plugins = netconf.objects(raw, "plugins")
    for plugin in plugins:
        found += conflist.unchained(plugin)
        if netconf.string(plugin, "type") != CHAIN:
            continue
        for key, value in plugin.items():
            if key in SWITCHES and len(plugins) == 1:
                switches += [(key, value)] if netconf.boolean(plugin, key) else []  # false does not undo the list's own
            elif key not in ("type", "capabilities", "plugins"):
                raise Failure(f'the {CHAIN} has the key "{key}", which has no place in a list: take it out first')
    if not found:
        raise Failure("the list has no plugins")
    return with_plugins(Object([*raw.items(), *switches]), found)


def with_plugins(raw: Object, plugins: "list[Value]") -> Object:
    """The list with other plugins, at the same place."""
    return Object([(key, plugins if key.lower() == "plugins" else value) for key, value in raw.items()])


def is_installed() -> bool:
    """Whether the plugin chain is in one of the folders in which runtimes look."""
    return any(os.path.isfile(f"{folder}/{CHAIN}") for folder in BIN_DIRS)


def replaced(path: Path, before: bytes, new: bytes) -> None:
    """Write the file, whole or not at all, and keep the one before under a name that no runtime reads. Failure."""
    numbers = ("", *map(str, range(1, 100)))
    backup = next((name for one in numbers if not (name := Path(f"{path}.bak{one}")).exists()), None)
    if backup is None:
        raise Failure(f"{path}.bak to {path}.bak99 exist: remove some")
    try:
        mode = path.stat().st_mode & 0o777
        write(backup, before, mode)
        write(path, new, mode)
    except OSError as error:
        raise Failure(f"cannot write {error.filename or path}: {error.strerror}", LACKING) from error
    complain(f"cni-py convert: the file before is {backup}")
