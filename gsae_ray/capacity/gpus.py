"""Memory and speed of GPUs, by the names that Ray gives them: a node that is still to be started cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class GPU(NamedTuple):
    """A kind of GPU, by its data sheet."""

    mib: int
    """MiB of memory, as the driver counts it, of the smallest that goes by this name."""
    float32: float
    """TFLOP/s of dense products, without tensor cores."""
    bfloat16: float
    """TFLOP/s of dense products, with tensor cores where they have the type."""
    largest_mib: int = 0
    """MiB of memory of the largest of this name, where there are several sizes."""
    ampere: bool = True
    """Whether it has products of TF32 and bfloat16, which compute capability 8.0 brought."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it certainly has: so much may be filled."""
        return self.mib * 2**20

    @property
    def most_nbytes(self) -> int:
        """Bytes of memory that it has at most: what needs more cannot run."""
        return max(self.mib, self.largest_mib) * 2**20


_KNOWN = {
    # Ray takes the first word of the device's name after "Tesla" or "NVIDIA": sizes of one model share it.
    "P100": GPU(12_198, 9.3, 9.3, 16_280, ampere=False),
    "V100": GPU(16_160, 15.7, 15.7, 32_768, ampere=False),
    "T4": GPU(15_360, 8.1, 8.1, ampere=False),
    "A10G": GPU(23_028, 31.2, 70),
    "L4": GPU(23_034, 30.3, 121),
    "L40S": GPU(46_068, 91.6, 362),
    "A100": GPU(40_960, 19.5, 312, 81_920),
    "A100-40G": GPU(40_960, 19.5, 312),
    "A100-80G": GPU(81_920, 19.5, 312),
    "H100": GPU(81_559, 67, 989, 95_830),
    "H200": GPU(143_771, 67, 989),
    "B200": GPU(183_359, 75, 2250),
}
_PREFIX = "accelerator_type:"


def gpu_of(resources: Mapping[str, float]) -> GPU | None:
    """The kind of GPU of a node with these resources (`accelerator_type:NAME`); None where it is not known.

    A node may name it twice, as A100 and A100-40G: the name that stands for one size is taken.
    """
    names = [key.removeprefix(_PREFIX) for key in resources if key.startswith(_PREFIX)]
    known = [_KNOWN[name] for name in names if name in _KNOWN]
    return min(known, key=lambda gpu: gpu.most_nbytes - gpu.nbytes, default=None)
