"""The iptables backend: chains and rules as the Go plugins write them.

It is loaded only where a configuration or the host asks for it, or where the kernel says that there are such chains. The
modules with `_rules` in their names decide: they change a listing of the rules, as text. Those without are the operations.
Published ports by iptables are in `ports.by_iptables`.

Floor 7 of 13. May import: nftables, firewalld, ipam, interface, attachment, backend, protocol, kernel, base.
"""
