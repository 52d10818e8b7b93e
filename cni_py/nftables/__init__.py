"""Our nftables tables: rules made once (`ruleset`), and the elements of one attachment (`elements`, and the operations).

A wrong masquerade rule: `masquerade` has the operation, `ruleset` the rule's text.

Floor 6 of 13. May import: attachment, backend, protocol, kernel, base.
"""
