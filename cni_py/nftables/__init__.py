"""Our nftables tables: their constant rules, and the elements that an attachment has in them.

A wrong masquerade rule is looked for here. Imports attachment, protocol, kernel and what is below.
"""
