"""`portfwd serve`: the process around the relay, with its control socket, its files, its successor and systemd.

`serve` is the process, `registry` has its mappings. `client` is the commands' side of the control socket.

Floor 5 of 6. May import: relay, steering, netns, base.
"""
