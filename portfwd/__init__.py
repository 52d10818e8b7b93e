"""portfwd: publishes ports where the kernel's NAT cannot, by relaying in user space. One asyncio process per host.

A package imports the packages of lower floors, never those above it or beside it:

    6   cli  docker
    5   service
    4   relay
    3   steering
    2   netns
    1   the modules at the top

top
    errors          what can go wrong, and its word in the control protocol
    follow          what a mapping's addresses are taken from: an interface or a host name
    mapping         a mapping as a value: ports of the host, targets, options
    spec            what people write to publish a port (docker's -p)
    values          readers of JSON values
    rights          descriptors in messages of Unix sockets
    no_tls          keeps OpenSSL out of processes that live long
netns
    sockets         sockets in the namespace of a path, a process or a container
    helper          the process inside a namespace of another user namespace
    containers      containers by the names that nerdctl, Docker and podman know
    legs            sockets that dialled a target: a client that is one of them came back
    processes       when a process started
steering
    bpf             bpf(2): maps, programs, links
    lookup          the sk_lookup program that leads ports to a socket
    reserved        the ports in net.ipv4.ip_local_reserved_ports
relay
    publish         all mappings of a process: published, changed, removed, counted
    claims          which mapping has which host port
    holders         who else has a port: a process, a container, portmap
    loops           targets that lead back here, found when publishing
    bind            the sockets that clients find
    listener        accepts clients in batches
    tcp             the TCP side of a mapping: who is let in, and where to
    connection      a client and its target
    pump            one direction of a connection, copied or spliced
    udp             the UDP side of a mapping
    udp_sockets     its listeners, and the sockets of its flows
    flows           which UDP flows there are, and which has to go for a new one
    pktinfo         for which address a datagram came
    admission       who may connect: allow list and limits
    balance         which of several targets is next
    proxyproto      the PROXY protocol's header
    host_only       listeners on loopback addresses serve this host alone
    tentative       IPv6 addresses that are still checked for duplicates
    addresses       which addresses an interface or a host name has now
    following       listeners that come and go with such addresses
    counters        what is counted for each mapping
    poller          the event loop's selector
    runtime         the event loop, the namespaces and the mappings of a process, and how it ends
service
    serve           the process
    control         the control socket, the service's side
    client          the control socket, a command's side
    requests        what may be asked, checked
    registry        the mappings of the service
    store           mappings on disk
    owners          whose a mapping is, and whether they are still there
    descriptors     descriptors that are kept for commands
    sticky          random ports that stay
    portfile        the file that tells which ports were chosen
    reload          starts a successor
    handover        passes all sockets to the successor
    udp_state       UDP flows in that state
    systemd         sd_notify, socket activation
    watch           restores the plugins' rules when nftables was flushed
    returning       gives UDP flows back to NAT after that
    leftovers       what an earlier version left in the kernel
cli
    command         the command `portfwd`
    serving         the command line of `portfwd serve`
    options         options of publish and run; settling which ports they get
    select          which mappings a person means
    metrics         what ls and stats print; Prometheus' text
    foreground      `portfwd run`
docker
    proxy           the command `portfwd-docker-proxy`
    waiter          the program of one page that waits for dockerd's signal
"""
