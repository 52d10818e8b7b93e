"""portfwd-docker-proxy: the program that dockerd starts for each published port.

It imports late: passing a port to the service needs none of the relay.

Floor 6 of 6. May import: service, relay, steering, netns, base.
"""
