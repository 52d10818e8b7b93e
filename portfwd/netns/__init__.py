"""Sockets in other network namespaces (`sockets`), and sockets to targets, by which a loop is noticed (`legs`).

Floor 2 of 6. May import: base.
"""
