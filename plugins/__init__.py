"""The CNI plugins, installed as the package cni_py.plugins: a module for each executable, and the parts that it needs.

A plugin reads its configuration (`*_conf`), decides (`*_plan`: operations, by value) and hands the operations to the engine.

Floor 10 of 13. May import: skel, ownership, ports, iptables, nftables, firewalld, ipam, interface, attachment, backend,
protocol, kernel, base.
"""
