"""One model of a host's container networks: collected once and without side effects, then a value.

The commands that explain a host (show, explain, doctor, gc) read the model; none of them asks the kernel again. A model can be
saved and read back, so a user can send it with a report.

Floor 11 of 13. May import: plugins, skel, ownership, ports, iptables, nftables, firewalld, ipam, interface, attachment,
backend, protocol, kernel, base.
"""
