"""cni-py and cni-py-exec: the commands that people start. `main` and `exec` are their entry points.

No other package imports this one, so a plugin's call never loads it.

Floor 13 of 13. May import: show, explain, doctor, restore, host, plugins, skel, ownership, ports, iptables, nftables,
firewalld, ipam, interface, attachment, backend, protocol, kernel, base.
"""
