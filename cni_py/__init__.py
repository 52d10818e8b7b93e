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
  inet        addresses, routes, neighbours
  linksettings  MAC, MTU, flags and queue length of one link
  macvlan     macvlan links
  tc          token buckets, ifb, filters
  nf_tables   elements of our nftables tables
  libnftables  tables, chains and rules, in nft's language
  xtables     whether iptables has a chain, without running it
  conntrack   forgetting tracked UDP flows
  sock_diag   sockets that wait for clients
  procnet     the same from /proc/net
  processes   which process has a socket
  netns       network namespaces: open, enter, compare
  sysctl      /proc/sys/net
  spawn       starting a program
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
  elements    adding, removing and sweeping elements
  masquerade  ipMasq
  spoof_check  macspoofchk
  policy      firewall: FORWARD, ingressPolicy
  bridge_users  whether a bridge's policy is still needed
ipam/           addresses
  ranges      which there are, and which comes next
  reservations  which are taken: host-local's files
  leaving     DEL: which addresses a container had
  resolvconf  resolv.conf
interface/      operations on links, addresses, routes, sysctls
  common      veth, addresses, routes, forwarding
  addressing  plan: addresses and routes of the container
  bridge      bridge, its ports, VLANs, gateway
  vlan_gateway  gateway in a VLAN
  ptp         pairs without a bridge
  macvlan     macvlan
  tuning      sysctls and settings, and the backup of both
  shaping     bandwidth
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
  container   steps that these three share
  loopback    loopback
  host_local  host-local
  static      static
  portmap     portmap
  firewall    firewall
  backends    which backend; masquerading
  tuning      tuning
  tuning_conf  its configuration
  tuning_plan  its operations
  chain       runs a list of plugins in one process
  chain_conf  its list, and what each plugin of it is given
  bandwidth   bandwidth
  bandwidth_conf  its configuration
  known_keys  every key, for notes on misspelt ones
commands/       cni-py and cni-py-exec
  main        `cni-py`
  exec        `cni-py-exec`
  arguments   its command line
  portspec    -p
  chain       runs the plugins of a list
  describe    the result for people
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
  restore     `cni-py restore`
  restoration  what the packet filters lost
serve/          the warm service
  service     its parent process
  call        a child: one call
  package     loading all modules, and noticing an upgrade
  sockets     its socket; systemd
  statistics  what --status tells
"""

__version__ = "0.1.0"
REFERENCE_VERSION = "1.9.1"  # of the Go plugins, whose configurations and results ours are
