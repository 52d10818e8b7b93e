"""`cni-py completion`: what a shell needs to complete our command lines, made of the parsers by shtab."""

import argparse
from collections.abc import Callable, Mapping

SUMMARY = "print the completion script of a shell"
SHELLS = ("bash", "zsh", "fish")
DESCRIPTION = """\
Print the script with which a shell completes commands and options.

examples:
  {0} completion bash > /etc/bash_completion.d/{0}
  {0} completion zsh > /usr/local/share/zsh/site-functions/_{0}
  {0} completion fish > /etc/fish/completions/{0}.fish
"""
Programs = Mapping[str, Callable[[], argparse.ArgumentParser]]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", programs: Programs) -> None:
    """The command's options; `programs`: what it can complete, this one first."""
    names = list(programs)
    parser = commands.add_parser(
        "completion",
        help=SUMMARY,
        description=DESCRIPTION.format(names[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=", ".join(SHELLS))
    if len(names) > 1:
        words = f"for which program: {' or '.join(names)} (default: {names[0]})"
        parser.add_argument("--program", choices=names, default=names[0], metavar="NAME", help=words)
    parser.set_defaults(run=lambda options: run(options, programs), asked=True, parser=parser)


def run(options: argparse.Namespace, programs: Programs) -> int:
    """Print the script."""
    import shtab

    chosen = getattr(options, "program", next(iter(programs)))
    print(shtab.complete(programs[chosen](), shell=options.shell))
    return 0
