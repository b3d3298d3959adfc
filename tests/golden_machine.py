"""The machine on which weights were recorded that tests compare bit for bit."""

from __future__ import annotations

import hashlib

import torch

from gsae_ray.hardware import machine

MACHINE = "x86_64 Intel(R) Xeon(R) Processor (AVX512), torch 2.13.0+cpu, no GPU"
PROBE = "d6881bc9adfff5d7"


def is_golden() -> bool:
    """Whether this machine computes the same bits; it is left with one thread."""
    return (machine(), probe()) == (MACHINE, PROBE)


def probe() -> str:
    """A hash of products as training has them: processors of one name may have other kernels chosen for them."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(128, 128, generator=generator), torch.randn(128, 768, generator=generator)
    out = torch.cat([(x @ w).exp().flatten(), (w @ w.T).flatten(), (x @ w).relu().sum(0)])
    return hashlib.sha256(out.numpy().tobytes()).hexdigest()[:16]
