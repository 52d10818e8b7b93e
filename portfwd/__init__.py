"""portfwd: publishes ports where the kernel's NAT cannot, by relaying in user space. One asyncio process for a host.

One connection: relay/listener, relay/tcp (admitted? which target?), netns/sockets, relay/connection, relay/pump.

Where is what you look for?

  A refused client            relay/admission (--allow, limits), relay/tcp; loops: netns/legs
  A port conflict is decided  relay/claims (mappings), relay/bind (bind(2)); relay/holders names who has the port
  A mapping after a restart   service/registry, service/store
  Sockets across a reload     service/reload, service/handover

The floors, lowest first. A module imports from the floors below its own (tests/house.py, docs/architecture.md).

base            modules that all others may import
  errors      errors, and their words in the control protocol
  follow      the interface or host name whose addresses a mapping has
  mapping     a mapping as a value: ports of the host, targets, options
  spec        the grammar of SPEC, docker's -p
  values      readers of JSON values
  rights      descriptors in messages of Unix sockets
  no_tls      keeps OpenSSL from being imported: 2 MB
netns/          sockets in other network namespaces
  sockets     sockets in the namespace of a path, a process or a container
  helper      the process inside a namespace of another user namespace
  containers  container names of nerdctl, Docker and podman
  legs        our sockets to targets; a client that is one of them is in a loop
  processes   when a process started
steering/       many ports, one socket: sk_lookup
  bpf         bpf(2): maps, programs, links
  lookup      the sk_lookup program, which assigns ports to a socket
  reserved    net.ipv4.ip_local_reserved_ports
relay/          mappings, listeners, connections and flows
  publish     all mappings of a process: published, changed, removed, counted
  claims      which mapping has which host port
  holders     who else has a port: a process, a container, portmap
  loops       targets that lead back here, refused at publish
  bind        listening sockets: bind(2), and why it failed
  listener    accepts clients in batches
  tcp         the TCP side of a mapping: admits clients, chooses targets
  connection  a client and its target
  pump        one direction of a connection, copied or spliced
  udp         the UDP side of a mapping
  udp_sockets  its listeners, and the sockets of its flows
  flows       the table of UDP flows, and which one a new flow replaces
  pktinfo     the address to which a datagram was sent
  admission   who may connect: allow list and limits
  balance     which target is next
  proxyproto  the PROXY protocol's header
  host_only   listeners on loopback addresses serve this host alone
  tentative   IPv6 addresses under duplicate address detection
  addresses   present addresses of an interface or a host name
  following   listeners that come and go with such addresses
  counters    counters of a mapping
  poller      the event loop's selector
  runtime     the event loop, the namespaces and the mappings of a process, and how it ends
service/        `portfwd serve`: the process around the relay
  serve       the process
  control     the control socket, the service's side
  client      the control socket, a command's side
  requests    requests, parsed and checked
  registry    the mappings of the service
  store       mappings on disk
  owners      containers and processes that mappings belong to, and their end
  descriptors  descriptors reserved for commands
  sticky      --sticky
  portfile    --port-file
  reload      starts a successor
  handover    passes all sockets to the successor
  udp_state   UDP flows as passed to a successor
  systemd     sd_notify, socket activation
  watch       runs `cni-py restore` after a flush of nftables
  returning   UDP flows that go by NAT again after that
  leftovers   rules that an earlier version left in the kernel
cli/            the command `portfwd`
  command     its entry point
  serving     the command line of `portfwd serve`
  options     options of publish and run
  select      names and ports on the command line: which mappings
  metrics     output of ls and stats, as a table and for Prometheus
  foreground  `portfwd run`
docker/         `portfwd-docker-proxy`
  proxy       its entry point
  waiter      a program of one page of memory that waits for dockerd's signal
__main__        `python3 -m portfwd`
"""
