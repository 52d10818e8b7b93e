"""The other backend: rules as the Go plugins write them. Loaded only where a configuration names it, or its chains are there.

Imports nftables, attachment, protocol, kernel and what is below.
"""
