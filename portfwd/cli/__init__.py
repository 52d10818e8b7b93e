"""The command `portfwd`: its command line, its output, and `portfwd run`. `command` is the entry point.

Floor 6 of 6. May import: service, relay, steering, netns, base.
"""


def main() -> int:
    """The command. Programs that were installed by an earlier version start it by this name, too; a reload runs them again."""
    from portfwd.cli.command import main as command

    return command()
