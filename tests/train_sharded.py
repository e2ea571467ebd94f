"""`guardrail` with its weights in shards on CPUs too: `accelerate launch … tests/train_sharded.py train …`.

accelerate heeds a configuration's FSDP part on accelerators alone: on CPUs it makes plain data parallelism of it. torch
shards there as well, so it is told to.
"""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped,unused-ignore]
from accelerate.utils import DistributedType  # type: ignore[import-untyped,unused-ignore]

from guardrail.__main__ import main

_init = AcceleratorState.__init__


def _sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin
        PartialState._shared_state["distributed_type"] = self.distributed_type


def shard_on_cpus() -> None:
    """From now on, in this process."""
    AcceleratorState.__init__ = _sharded


if __name__ == "__main__":
    shard_on_cpus()
    main()
