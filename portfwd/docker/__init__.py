"""portfwd-docker-proxy: what dockerd starts for each published port.

Floor 6 of 6, beside cli. Imports relay, netns and the modules at the top of portfwd, and those late: handing a port to the
service needs none of them.
"""
