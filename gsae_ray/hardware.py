"""What kind of machine this is, as far as the last bits of a result depend on it."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


@functools.cache
def machine() -> str:
    """`x86_64 Intel(R) Xeon(R) … (AVX512), torch 2.13.0+cpu, no GPU`: equal for machines that give equal bits."""
    import torch  # here: the store's process loads this module, and does without torch

    capability = torch.backends.cpu.get_cpu_capability()
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()} {_processor()} ({capability}), torch {torch.__version__}, {gpu}"


def _processor() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "?"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "?")
