"""The command `portfwd`: its command line, what it prints, and `portfwd run`.

Floor 6 of 6, beside docker. Imports service, relay, netns and the modules at the top of portfwd.
"""


def main() -> int:
    """The command. Programs that were installed by an earlier version start it by this name, too; a reload runs them again."""
    from portfwd.cli.command import main as command

    return command()
