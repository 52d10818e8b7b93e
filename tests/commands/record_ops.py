"""What a copy of an installed executable runs before the plugin: every operation that is applied goes into a file.

The file is /run/cni-test-ops, where it exists; one line of JSON for each. Only the copies have this: see test_exec.py.
"""

import json
import os

from cni_py.attachment import engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.attachment.context import Kernel

really_apply = engine.apply_one


def apply_and_record(op: engine.Op, kernel: "Kernel") -> bool | None:
    with open("/run/cni-test-ops", "a", encoding="utf-8") as file:
        file.write(json.dumps(op.to_json()) + "\n")
    return really_apply(op, kernel)


if os.path.exists("/run/cni-test-ops"):
    engine.apply_one = apply_and_record
