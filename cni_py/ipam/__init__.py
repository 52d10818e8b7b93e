"""Addresses: which ones a range has (`ranges`), and which are reserved, in host-local's files (`reservations`).

A leaked address: `reservations` adds and removes the files, `leaving` finds what a DEL has to release.

Floor 6 of 13. May import: attachment, backend, protocol, kernel, base.
"""
