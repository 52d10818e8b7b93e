"""The warm service, `cni-py serve`: a process that has loaded every plugin and forks a child for each call.

cni_py/warm.py is the launcher's side, and has the protocol. No other package imports this one.

Floor 11 of 11. May import: plugins, skel, ownership, ports, iptables, nftables, ipam, interface, attachment, backend, protocol,
kernel, base.
"""
