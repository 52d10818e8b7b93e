"""Operations on links, addresses, routes and sysctls: bridge, ptp, macvlan, tuning and bandwidth plan them.

`common` has those that several plugins use, the other modules those of one plugin or subject.

Floor 6 of 13. May import: attachment, backend, protocol, kernel, base.
"""
