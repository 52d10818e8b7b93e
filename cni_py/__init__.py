"""cni_py: what the CNI plugins, the commands and other people's plugins share. This is its map.

One call: run, skel, a module of plugins/ (decides), attachment/engine (records, applies, undoes), kernel/, protocol/result.

Where is what you look for?

  A wrong masquerade rule         nftables/masquerade, its chains in nftables/ruleset; iptables/masquerade_rules
  A leaked address                ipam/reservations (files); DEL: plugins/container.release_addresses
  A port conflict is decided      ports/conflicts (containers), ports/host_listeners (programs of the host)
  A result between versions       protocol/result: to_json, from_json
  The iptables backend            iptables/, ports/by_iptables; which backend serves: backend, plugins/backends
  How GC finds stale attachments  attachment/gc.collect; lost records: `gc` of each plugin

The floors, lowest first. A module imports from the floors below its own (tests/house.py, docs/architecture.md).

base            modules that all others may import
  errors      the CNI error object and its codes; warn()
  addr        IP and MAC addresses as bytes
  sha         SHA-2 without hashlib
  version     versions of the specification; the reply to VERSION
  files       files below /run/cni-py, written atomically
  run         start of an executable: which plugin it is
  image       the modules' code in one file
  lean        `os`, or instead of it
  os_lean     what plugins use of `os`
  warm        hands a call to the warm service
kernel/         netlink, namespaces, sysctls, /proc
  netlink     messages, attributes, dumps, batches
  rtnl        links and bridge ports
  vlans       VLANs of bridges and their ports
  inet        addresses, routes, neighbours
  rules       rules of policy routing
  linksettings  MAC, MTU, flags and queue length of one link
  macvlan     macvlan links
  tc          token buckets, ifb, filters
  htb         limits of some networks
  nf_tables   elements of our nftables tables
  libnftables  tables, chains and rules, in nft's language
  xtables     whether iptables has a chain, without running it
  conntrack   forgetting tracked UDP flows
  sock_diag   sockets that wait for clients
  modules     whether asking would load a kernel module
  procnet     the same from /proc/net
  processes   which process has a socket
  netns       network namespaces: open, enter, compare
  nsid        their numbers, by which it is known whether one exists
  sysctl      /proc/sys/net
  spawn       starting a program
  sd_notify   telling the service manager
protocol/       the CNI specification, and JSON as Go has it
  gojson      JSON text
  netconf     typed reading of a configuration
  result      results, in the form of each version
  conflist    network configuration lists
  injection   what a runtime puts into a plugin's configuration
  cache       libcni's cache
backend         /etc/cni-py/config.yaml: nftables or iptables
attachment/     one attachment, from plan to undo
  naming      names, marks and MACs made of an attachment
  records     what was made, on disk
  holders     records of other attachments, and whether they live
  locks       flock with a limit
  context     the two namespaces and nftables of one call
  engine      operations: apply, record, undo, check
  gc          what stale attachments and killed calls left
  call        what a plugin is given
  delegate    running the IPAM plugin, or one that is not ours
  log         the key `log`
nftables/       our constant tables, and what changes in them
  ruleset     chains and rules, as text
  completeness  whether one has all that its attachments share
  elements    adding, removing and sweeping elements
  masquerade  ipMasq
  spoof_check  macspoofchk
  policy      firewall: FORWARD, ingressPolicy
  bridge_users  whether a bridge's policy is still needed
firewalld/      the firewall of that name
  bus         D-Bus: calls and answers
  zones       its zones
  sources     firewall: operation
ipam/           addresses
  ranges      which there are, and which comes next
  reservations  which are taken: host-local's files
  leaving     DEL: which addresses a container had
  resolvconf  resolv.conf
  dhcp        calls of the DHCP daemon
  dhcp_options  what a configuration asks of servers
  gob         Go's encoding of these calls
interface/      operations on links, addresses, routes, sysctls
  common      veth, addresses, routes, forwarding
  addressing  plan: addresses and routes of the container
  bridge      bridge, its ports, VLANs, gateway
  vlan_gateway  gateway in a VLAN
  ptp         pairs without a bridge
  child       an interface on a master: operation
  macvlan     macvlan
  ipvlan      ipvlan
  vlan        vlan
  dummy       dummy
  tap         tap
  hostdevice  host-device
  tuning      sysctls and settings, and the backup of both
  shaping     bandwidth
  network_limits  bandwidth, of some networks
  source_routing  rules and tables for addresses
  vrf         vrf
  tables      which routing tables are free; routes that move
iptables/       the other packet filter, loaded when needed
  names       chains of ours and of the Go plugins
  tool        iptables-save, iptables-restore
  masquerade  ipMasq: operation
  masquerade_rules  its rules
  forward     firewall: operation
  forward_rules  its rules
  goplugins   nftables tables of newer Go plugins
ports/          published ports
  config      portmap's configuration
  options     its key `ports`
  pod_ports   host ports by a pod's annotation
  mapping     which host port leads where
  plan        configuration to operations: begin here
  publish     operation by nftables
  claims      who holds a port, in the nftables maps
  conflicts   who may have a port: decided here
  draft       a transaction on the maps
  shares      ports of several containers
  successors  who takes a port over
  by_iptables  operation by iptables
  iptables_rules  its rules
  chains      iptables' chains of a container, ours and Go's
  relay       operation by portfwd
  host_clients  clients on the host: 127.0.0.1, hairpin
  flows       UDP flows of a port
  host_listeners  programs of the host on a port
  listener_owners  who they are
  random_ports  hostPort 0
  local_ports  which ports may be chosen
  sticky_ports  the number a name had before
  index       who publishes for an address
  publication  an entry of it
  survey      makes it anew
  go_tables   nftables tables of newer Go plugins
  leftovers   removes ports that nobody stands behind
skel            one call: stdin in, result or error out
ownership       whose namespace CNI_NETNS leads to
plugins/        the CNI plugins (plugins/ of the source tree)
  bridge      ADD, DEL, CHECK, GC, STATUS
  bridge_conf  its configuration
  bridge_plan  its operations
  bridge_check  its CHECK
  ptp         ptp
  macvlan     macvlan
  ipvlan      ipvlan
  vlan        vlan
  dummy       dummy
  tap         tap
  host_device  host-device
  device_conf  its device, by name, MAC address or sysfs
  child       what these four share
  container   what all of these share
  loopback    loopback
  host_local  host-local
  static      static
  dhcp        dhcp, and how its daemon starts
  portmap     portmap
  firewall    firewall
  firewall_conf  its configuration
  backends    which backend; masquerading
  tuning      tuning
  tuning_conf  its configuration
  tuning_plan  its operations
  chain       runs a list of plugins in one process
  chain_conf  its list, and what each plugin of it is given
  bandwidth   bandwidth
  bandwidth_conf  its configuration
  sbr         sbr
  vrf         vrf
  known_keys  every key, for notes on misspelt ones
host/           one model of a host's container networks
  model       what it holds
  saved       as JSON, and back
  printable   names of others, made fit to print
  collect     collects it
  spaces      which namespaces there are
  inside      one namespace, from inside
  dumps       of rtnetlink, decoded by pyroute2
  interfaces  links, addresses, VLANs, FDB
  routing     routes, rules, neighbours
  sockets     sockets that wait
  sysctls     which sysctls it has
  rulesets    nftables and iptables, as text
  attachments  records and libcni's cache
  health      what is wrong: findings
  health_ports  of published ports
  health_records  of what records name
  findings    their codes
  networks    configurations and pools
  owners      whose address is it
  makers      who made an interface
  listing     nft's JSON, read
  nftables_ports  published ports in nftables
  iptables_ports  published ports in iptables
  relays      portfwd's mappings, docker-proxy
  publishing  all ports together
  flows       tracked connections
  containers  asks containerd, CRI-O, podman, docker
  grpc        one call of a gRPC service
  census      all network namespaces, and what holds them
  liveness    is an attachment alive: decided here
show/           `cni-py show`: the model as a picture
  view        sorts it: links, and what hangs on each
  words       its objects in words
  lines       a tree as lines of a terminal
  text        the picture in text
  dot         as a graph
  diff        what differs between two
  events      notifications of changes
  choice      the part that is about one name
  scene       what the drawing holds
  sight       findings and ports, by what they belong to
  parts       values of the scene
  ids         names of objects, in drawing and page
  layout      the drawing, with coordinates
  measure     widths of texts
  svg         the drawing as SVG
  objects     all objects, for the page
  page        one HTML file
  serving     the page over HTTP, live
explain/        `cni-py explain`: the way of a packet
  packet      a packet, and what a hook does with it
  codes       what a hop may say: code, cause, remedy
  question    PORT, ADDRESS:PORT
  clients     kinds of clients, and where they begin
  whom        --from
  walk        there and back: begin here
  way         hops of a way
  world       the model with look-ups
  promises    ports that records publish
  stack       sending, receiving, forwarding
  checks      martians, rp_filter, forwarding, flows
  routing     rules, tables, source addresses
  segment     links, bridges, neighbours
  absence     why a route or an address is missing
  delivery    which socket; relays
  hooks       a packet at a hook; answers
  advice      the command that lets it pass
  text        for a terminal, and as JSON
  netfilter   what a hook does, by all tables: decide
  chains      tables, chains, branches that are open
  ruleset     nft's JSON as tables
  rules       one rule of nft: matches
  evaluation  what its expressions yield and look up
  statements  marks, sets, tracking
  nat         translations
  fields      what a rule loads from a packet
  fib         what it asks of the routes
  sets        sets and maps
  values      numbers, and those that are not known
  nft_text    nft's JSON in nft's words
  iptables_save  iptables-save's text as tables
  iptables_rules  its rules, as those of nft
  iptables_matches  matches
  iptables_targets  targets
  owners      who made a rule
  tracing     `--trace`: the kernel's messages as values
  marking     which packets are traced: rules of a table of ours
  journeys    packets, and the rules that they met
  trace_text  the same as a tree, and as JSON
doctor/         `cni-py doctor`: what is wrong, and the remedy
  values      facts beyond the model
  machine     collects them: kernel, programs, disks
  installed   collects them: files
  facts       collects all
  checks      what a check is; the report
  schemas     conf/schemas
  parsers     what plugins refuse
  kernel      checks
  sysctls     checks
  firewalls   checks
  executables  checks
  units       checks
  state       checks
  configs     checks
  everything  all checks, all codes
  text        the report for people
restore/        `cni-py restore`: what attachments lost
  restoration  puts it back: begin here
  ledger      our nftables tables in memory
  links       bridges, ports, addresses
  sources     firewalld's zones
  reloads     what firewalld says of itself
  losses      what the kernel's messages say is gone
  link_losses  the same of links and addresses
  watch       `--watch`
  outcome     what was done
commands/       cni-py and cni-py-exec
  main        `cni-py`
  explain     `cni-py explain`
  explain_trace  its --trace: sends, waits, listens
  exec        `cni-py-exec`
  arguments   its command line
  portspec    -p
  hosts       --from
  chain       runs the plugins of a list
  describe    the result for people
  completion  `cni-py completion`
  manual      `cni-py man`: pages made of the parsers
  convert     `cni-py convert`: list to chain, and back
  keys        notes on unknown keys
  overlaps    subnets that are taken
  listeners   ports that are taken
  namespaces  network namespaces by name
  report      output and exit status
  install     `cni-py install`
  uninstall   `cni-py uninstall`
  launchers   text of the executables
  images      writes the image of the modules
  native      compiled executables (launcher.c)
  serve       `cni-py serve`
  manifest    which files were installed
  runtimes    where runtimes look for plugins
  default_network  the network that install writes
  leftovers   what stays after uninstall; --purge
  outcome     output of adopt and restore
  adopt       `cni-py adopt`
  adoption    records for what the Go plugins made
  gc          `cni-py gc`
  ipam        `cni-py ipam`
  enter       `cni-py enter`
  places      whose network is meant
  collection  judges and removes
  traces      what attachments have, and what is known of them
  own_traces  found by our records, marks and files
  go_traces   found by what the Go plugins make
  restore     `cni-py restore`
  doctor      `cni-py doctor`
  show        `cni-py show`
  show_output  what it prints
  show_watch  its --watch
  show_serve  its --serve
dhcp/           the DHCP daemon
  daemon      the process: arguments, signals
  rpc         calls of the plugin
  leases      all leases, and whom they serve
  holder      one lease: namespace, timer
  machine     states of the client: decided here
  message     messages
  frame       headers around them
  wire        socket in a container
  answer      what the plugin is told
  store       leases on disk
serve/          the warm service
  service     its parent process
  call        a child: one call
  package     loading all modules, and noticing an upgrade
  sockets     its socket
  statistics  what --status tells
"""

__version__ = "0.1.0"
REFERENCE_VERSION = "1.9.1"  # of the Go plugins, whose configurations and results ours are
