"""The other packet filter: rules as the Go plugins write them, loaded only where somebody asked for them or has them.

Imports nftables, attachment, protocol, kernel and what is below.
"""
