"""portfwd: publishes ports where the kernel's NAT cannot, by relaying in user space. One asyncio process per host."""
