"""The warm service, `cni-py serve`: a process that has loaded every plugin and forks a child for each call.

cni_py/warm.py is the launcher's side, and has the protocol. Of other packages only dhcp imports from here: `sockets`.

Floor 13 of 13. May import: show, explain, doctor, restore, host, plugins, skel, ownership, ports, iptables, nftables,
firewalld, ipam, interface, attachment, backend, protocol, kernel, base.
"""
