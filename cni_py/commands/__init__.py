"""cni-py and cni-py-exec: what people start. The highest floor: imports everything, and nothing imports it."""
