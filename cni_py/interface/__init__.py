"""Operations on links, addresses, routes and sysctls: what bridge, ptp, macvlan, tuning and bandwidth plan.

Imports attachment, protocol, kernel and what is below.
"""
