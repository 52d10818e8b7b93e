"""`portfwd`: publish ports, list, count and end them. All commands but `run` and `serve` ask the service.

Results go to stdout, notes for people to stderr.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from cni_py import __version__
from cni_py.commands import completion, manual, report
from portfwd import no_tls
from portfwd.cli import metrics, options, select
from portfwd.errors import PortfwdError, Usage
from portfwd.mapping import Mapping
from portfwd.service import portfile

if TYPE_CHECKING:
    from portfwd.service.client import Client

DRAIN_S = 10.0  # for connections to end by themselves, as docker stop gives a container
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

DESCRIPTION = """\
Publish ports of this host by relaying them, where the kernel's NAT cannot: [::1], IPv6 clients of an IPv4 container,
ports of containers that already run, services on a container's own loopback, rootless namespaces.
"""
STATUS = (
    "exit status: 0 success, 1 the operation failed, 2 usage, 3 the environment lacks something, 4 a port is in use\n"
)
COMMANDS = {
    "publish": "publish ports through the service",
    "rm": "end mappings",
    "ls": "list mappings",
    "stats": "bytes, connections and errors of each mapping",
    "run": "publish ports in the foreground, without the service",
    "serve": "run the service",
    "reload": "replace the service by a new process, without losing a connection",
}
ASKED = ("ls", "stats", "completion", "man")  # run for their output: they fail when it cannot be written
SPECS = """\
SPEC: [[HOST_IP:][HOST_PORT[-LAST]]:]CONTAINER_PORT[-LAST][/PROTOCOL]
  8080:80               port 8080 on every address of this host leads to port 80 of the target
  127.0.0.1:8080:80     on this address only             [::1]:8080:80         brackets may be left out
  eth0:8080:80          on the addresses of an interface, also later ones (or if=NAME:8080:80)
  name=db.lan:8080:80   on the addresses of a host name that this host has
  80                    a random port of the host        127.0.0.1::80         the same on this address
  8000-8010:8000-8010   a range, port by port            8000-8010:80          the first free port of a range
  80-82                 random ports, one for each       53:53/udp             tcp unless udp is written
"""
EXAMPLES = {
    "publish": """
examples:
  portfwd publish 8080:80 --to 192.0.2.2
  portfwd publish -p [::1]:8080:80 -p 8443:443 --to 192.0.2.2 --allow 2001:db8::/32
  portfwd publish 80 --to 192.0.2.2 --to 192.0.2.3 --balance source
  portfwd publish 5432:5432 --container db     a database that listens on its own loopback only
  portfwd publish 80 --to 192.0.2.2 --sticky web --port-file web.port     the same random port as before, written to a file
  portfwd publish --replace --name web 8080:80 --to 192.0.2.9     new connections go there, running ones stay
""",
    "run": """
examples:
  portfwd run -p [::1]:8080:80 --to 192.0.2.2
  portfwd run 127.0.0.1:8080:80 --netns web

SIGTERM and SIGINT end it: no new connections, running ones get --drain seconds; a second signal cuts them.
It does not steer ranges by BPF: each port has a socket of its own, two where both families are published.
""",
    "rm": """
examples:
  portfwd rm web
  portfwd rm 8080/tcp [::1]:8443/tcp --now
""",
    "stats": """
example, for the node exporter's textfile collector:
  portfwd stats --prometheus > portfwd.prom.new && mv portfwd.prom.new portfwd.prom
""",
}


class Parser(report.Parser):
    """Leaves unknown arguments to read()."""

    refuses_rest = False


Command = Callable[[argparse.Namespace], int]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top: argparse.ArgumentParser = Parser(
        prog="portfwd",
        description=DESCRIPTION,
        epilog=STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"portfwd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_publish(_command(commands, "publish", publish))
    _add_rm(_command(commands, "rm", rm))
    _with_socket(_json(_command(commands, "ls", ls)))
    _add_stats(_command(commands, "stats", stats))
    _add_run(_command(commands, "run", run))
    # The service has options of its own: see main()
    commands.add_parser("serve", help=COMMANDS["serve"], add_help=False)
    _with_socket(_command(commands, "reload", reload))
    completion.add_parser(commands, {"portfwd": described})
    manual.add_parser(commands, lambda: (described(),))
    return top


def described() -> argparse.ArgumentParser:
    """The command line, with the options of `serve`, which read() leaves to the service."""
    from portfwd.cli import serving

    top = parser()
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            action.choices["serve"] = serving.parser()
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, function: Command
) -> argparse.ArgumentParser:
    known = SPECS if name in ("publish", "run") else ""
    one = commands.add_parser(
        name,
        help=COMMANDS[name],
        description=COMMANDS[name][0].upper() + COMMANDS[name][1:] + ".",
        epilog=known + EXAMPLES.get(name, "") + "\n" + STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an option to come must not change what a script of today means
    )
    one.set_defaults(run=function, parser=one)
    return one


def _json(one: argparse.ArgumentParser) -> argparse.ArgumentParser:
    one.add_argument("--json", action="store_true", help="print JSON")
    return one


def _with_socket(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--socket", default="", metavar="PATH", help="the service's control socket, if not at its usual place"
    )


def _add_publish(one: argparse.ArgumentParser) -> None:
    options.add_to(one)
    one.add_argument(
        "--replace",
        action="store_true",
        help="give a live mapping (that of --name, or of the same ports) another target, at once; "
        "running connections stay; publish if there is no such mapping",
    )
    one.add_argument(
        "--wait",
        action="store_true",
        help="publish also for a container, namespace, process, interface or host name that does not exist yet; "
        "clients are reset, or the ports stay closed, until it does",
    )
    _with_socket(_json(one))


def _add_rm(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "name", nargs="*", metavar="NAME|[IP:]PORT[-LAST][/PROTOCOL]", help="a mapping, by its name or its ports"
    )
    one.add_argument("--all", action="store_true", help="all mappings but those of portmap and Docker")
    end = one.add_mutually_exclusive_group()
    end.add_argument(
        "--drain",
        type=options.seconds,
        default=DRAIN_S,
        metavar="S",
        help=f"seconds for running connections to end by themselves (default: {DRAIN_S:g})",
    )
    end.add_argument("--now", action="store_true", help="cut running connections")
    _with_socket(_json(one))


def _add_stats(one: argparse.ArgumentParser) -> None:
    form = one.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--prometheus", action="store_true", help="print Prometheus' text format")
    _with_socket(one)


def _add_run(one: argparse.ArgumentParser) -> None:
    options.add_to(one)
    one.add_argument(
        "--drain",
        type=options.seconds,
        default=DRAIN_S,
        metavar="S",
        help=f"seconds for running connections to end after a signal (default: {DRAIN_S:g})",
    )
    _json(one)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    report.open_streams()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["serve"]:
        no_tls.without_tls()
        from portfwd.cli import serving

        return serving.main(given[1:])
    chosen = read(given)
    logging.basicConfig(format=f"portfwd {chosen.command}: %(message)s", level=logging.INFO)
    try:
        function: Command = chosen.run
        status = function(chosen)
    except PortfwdError as error:
        status = complain(chosen.command, error)
    except report.Failure as error:
        report.complain(f"portfwd {chosen.command}: {error}")
        status = error.status
    except KeyboardInterrupt:
        status = INTERRUPTED
    return report.ended(f"portfwd {chosen.command}", status, asked=chosen.command in ASKED)


def read(given: Sequence[str]) -> argparse.Namespace:
    """Read the command line; argparse takes positional arguments in one place only, so others are added here."""
    top = parser()
    chosen, rest = top.parse_known_args(given)
    positional = {"publish": "spec", "run": "spec", "rm": "name"}.get(chosen.command)
    if rest and (positional is None or any(word.startswith("-") for word in rest)):
        chosen.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if positional is not None:
        getattr(chosen, positional).extend(rest)
    return chosen


def complain(command: str, error: PortfwdError) -> int:
    """Print an error; returns its exit status."""
    sys.stderr.write(f"portfwd {command}: {error}\n")
    return error.status


def connect(chosen: argparse.Namespace) -> closing[Client]:
    """A connection to the service. Lacking when there is none."""
    from portfwd.service import control
    from portfwd.service.client import Client

    return closing(Client.connect(chosen.socket or control.socket_path()))


def listing(client: Client) -> list[dict[str, object]]:
    """The service's answer to `list`: mappings with their state."""
    raw = client.request({"verb": "list"}).get("mappings")
    return [one for one in raw if isinstance(one, dict)] if isinstance(raw, list) else []


def _texts(raw: object) -> list[str]:
    return list(map(str, raw)) if isinstance(raw, list) else []


def put(text: str) -> None:
    """Print a result to stdout."""
    sys.stdout.write(text)
    sys.stdout.flush()


def put_json(value: object) -> None:
    """Print a result as JSON."""
    put(json.dumps(value, indent=2) + "\n")


def note(texts: Sequence[str]) -> None:
    """Print notes to stderr, each once."""
    for text in dict.fromkeys(texts):
        sys.stderr.write(f"note: {text}\n")


def publish(chosen: argparse.Namespace) -> int:
    """Publish ports through the service, or replace mappings."""
    wish = options.read(chosen)
    wish, unresolved = options.resolved(wish, must_exist=not chosen.wait)
    notes = [*options.source_notes(wish.template), *unresolved]
    left_out: set[str] = set()
    places = any(destination.place for destination in wish.template.destinations)
    follows = any(publish.follow for publish in wish.publishes)
    # left out where it changes nothing: a service of an earlier version refuses the field
    must_exist = {"must_exist": True} if (places or follows) and not chosen.wait else {}

    with portfile.PortFile(wish.port_file) as port_file, connect(chosen) as client:

        def offer(mappings: list[Mapping], *, replace: bool = False) -> None:
            raw = [mapping.to_json() for mapping in mappings]
            answer = client.request({"verb": "publish", "mappings": raw, "replace": replace, **must_exist})
            notes.extend(_texts(answer.get("notes")))
            left_out.update(_texts(answer.get("left_out")))

        def withdraw(mappings: list[Mapping]) -> None:
            client.request({"verb": "remove", "ids": [mapping.id for mapping in mappings], "drain_s": 0.0})

        if chosen.replace:
            live = [mapping for raw in listing(client) if (mapping := metrics.as_mapping(raw)) is not None]
            done = options.replacements(wish, live)
            offer(done, replace=True)
            port_file.write(done)
            drop_port_files([one for one in live if one.id in {mapping.id for mapping in done}], keep=wish.port_file)
        else:
            done = options.settle(wish, offer, withdraw, remembered(client, wish.template.sticky), notes)
            try:
                port_file.write(done)
            except PortfwdError:
                withdraw(done)
                raise
    done = [mapping.without(left_out) for mapping in done]
    if chosen.json:
        put_json({"mappings": [mapping.to_json() for mapping in done], "notes": list(dict.fromkeys(notes))})
    else:
        put("".join(f"{mapping.id}  {mapping}\n" for mapping in done))
        note(notes)
    return 0


def remembered(client: Client, name: str) -> dict[str, int]:
    """The ports that are remembered under a sticky name, by container port (80/tcp)."""
    raw = client.request({"verb": "sticky", "name": name}).get("ports") if name else None
    return {key: port for key, port in raw.items() if isinstance(port, int)} if isinstance(raw, dict) else {}


def drop_port_files(ended: Sequence[Mapping], keep: str | Sequence[str]) -> None:
    """Remove the port files of ended mappings; notes for those that cannot be removed."""
    kept = {keep} if isinstance(keep, str) else set(keep)
    for path in dict.fromkeys(one.port_file for one in ended if one.port_file and one.port_file not in kept):
        try:
            portfile.remove(path)
        except PortfwdError as error:
            note([str(error)])


def rm(chosen: argparse.Namespace) -> int:
    """End mappings."""
    if bool(chosen.name) == chosen.all:
        raise Usage("name the mappings to end, or give --all")
    with connect(chosen) as client:
        live = listing(client)
        ids = select.of_people(live) if chosen.all else select.ids(chosen.name, live)
        drain_s = 0.0 if chosen.now else chosen.drain
        answer = client.request({"verb": "remove", "ids": ids, "drain_s": drain_s}) if ids else {}
    removed = _texts(answer.get("ids"))
    known = [mapping for raw in live if (mapping := metrics.as_mapping(raw)) is not None]
    drop_port_files(
        [one for one in known if one.id in removed], [one.port_file for one in known if one.id not in removed]
    )
    if chosen.json:
        put_json({"removed": removed})
    else:
        put("".join(f"{name}\n" for name in removed))
        note(_texts(answer.get("notes")))
    if chosen.all and len(live) > len(ids):
        note([f"{len(live) - len(ids)} mappings of portmap or Docker stay; they end with their containers, or by name"])
    return 0


def ls(chosen: argparse.Namespace) -> int:
    """List mappings."""
    with connect(chosen) as client:
        live = listing(client)
    if chosen.json:
        put_json({"mappings": [{**raw, "host_ips": _shown_ips(raw)} for raw in live]})
    else:
        put(metrics.ls(live))
        note(metrics.unheard(live))
    return 0


def _shown_ips(raw: dict[str, object]) -> object:
    mapping = metrics.shown(raw)
    return raw.get("host_ips") if mapping is None else list(mapping.host_ips)


def stats(chosen: argparse.Namespace) -> int:
    """Print the counters."""
    with connect(chosen) as client:
        answer = client.request({"verb": "stats"})
        live = listing(client)
    raw = answer.get("service")
    service = raw if isinstance(raw, dict) else {}
    if chosen.json:
        put_json({"service": service, "mappings": answer.get("mappings", {})})
    elif chosen.prometheus:
        put(metrics.prometheus(service, live))
    else:
        put(metrics.stats(service, live))
    return 0


def run(chosen: argparse.Namespace) -> int:
    """Serve mappings here, until a signal."""
    no_tls.without_tls()
    from portfwd.cli import foreground

    wish, unresolved = options.resolved(options.read(chosen), must_exist=False)

    def ready(done: Sequence[Mapping], notes: Sequence[str]) -> None:
        port_file.write(done)
        every = [*options.source_notes(wish.template), *unresolved, *notes]
        if chosen.json:
            put_json({"mappings": [mapping.to_json() for mapping in done], "notes": list(dict.fromkeys(every))})
        else:
            note(every)
            put("".join(f"{mapping.id}  {mapping}\n" for mapping in done))

    with portfile.PortFile(wish.port_file) as port_file:
        return foreground.serve(wish, chosen.drain, ready, lambda done: drop_port_files(done, keep=""))


def reload(chosen: argparse.Namespace) -> int:
    """Have the service replaced by a new process."""
    with connect(chosen) as client:
        answer = client.request({"verb": "reload"})
    note(_texts(answer.get("notes")))
    return 0
