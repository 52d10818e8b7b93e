"""cni-py and cni-py-exec: the commands that people start. `main` and `exec` are their entry points.

No other package imports this one, so a plugin's call never loads it.

Floor 11 of 11. May import: plugins, skel, ownership, ports, iptables, nftables, ipam, interface, attachment, backend, protocol,
kernel, base.
"""
