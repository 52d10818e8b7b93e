"""One attachment (a network, a container, an interface) from plan to undo. Begin with `engine`: what an operation is.

`call` is what a plugin is given; `records` has what an ADD made, written before the first effect and removed after the last;
`gc` undoes the records of attachments that the runtime no longer lists. Operations of the floors above are loaded by the
names that a record has: no module here imports one.

Floor 5 of 13. May import: backend, protocol, kernel, base.
"""
