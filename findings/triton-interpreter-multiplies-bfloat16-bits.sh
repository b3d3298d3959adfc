#!/usr/bin/env bash
# In Triton's interpreter arithmetic on bfloat16 is done on the bits of the numbers, as integers, and nothing says so: a
# kernel that is right on every GPU is off by nine orders of magnitude in the tests that the interpreter is there for.
#
# Versions: triton 3.9.0 (the same with 3.7.1), torch 2.13.0, numpy 2.4.6, Python 3.11; no GPU. Run on 2026-11-29.
# Behaviour: tl.dot gives the product of the two arrays' 16-bit patterns, and so do `+` and `*`, which keep 16 bits of it.
#   Loads, stores, and casts to and from float32 are right: with operands cast to float32 first all of it is, and in
#   float16 it is without.
# Expected by most: exact, slow arithmetic, or an error for a type that NumPy does not have.
# Output seen:
#   float32 after a cast: largest error 4.8e-07
#   float16: largest error 4.8e-07
#   bfloat16: largest error 2.4e+10 of numbers up to 16.2; from the product of their bits: 0.0e+00
#   a + b and a * b: [256, 256] of 256 wrong; those of their bits: [True, True]
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "torch==2.13.0" "triton==3.9.0" "numpy==2.4.6"
cat > "$work/dots.py" <<'PY'
import torch
import triton
import triton.language as tl

N = 16


@triton.jit
def dot(a, b, c, N: tl.constexpr, CAST: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    if CAST:
        x, y = x.to(tl.float32), y.to(tl.float32)
    tl.store(c + at, tl.dot(x, y))


@triton.jit
def elementwise(a, b, sums, products, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    x, y = tl.load(a + at), tl.load(b + at)
    tl.store(sums + at, x + y)
    tl.store(products + at, x * y)


def run(a, b, cast):
    c = torch.empty(N, N)
    dot[(1,)](a, b, c, N, cast)
    return c.double()


torch.manual_seed(0)
a, b = (torch.randn(N, N).bfloat16() for _ in range(2))
true = a.double() @ b.double()
cast = (run(a, b, True) - true).abs().max().item()
print(f"float32 after a cast: largest error {cast:.1e}")
half_a, half_b = a.half(), b.half()
half = (run(half_a, half_b, False) - half_a.double() @ half_b.double()).abs().max().item()
print(f"float16: largest error {half:.1e}")
found = run(a, b, False)
bits_a, bits_b = ((x.view(torch.int16).long() & 0xFFFF).float() for x in (a, b))
error, of_bits = ((found - other).abs().max().item() for other in (true, (bits_a @ bits_b).double()))
print(f"bfloat16: largest error {error:.1e} of numbers up to {true.abs().max():.1f}; from the product of their bits: {of_bits:.1e}")
sums, products = torch.empty_like(a), torch.empty_like(a)
elementwise[(1,)](a, b, sums, products, N)
integers_a, integers_b = a.view(torch.int16), b.view(torch.int16)
wrong = [int((found != true).sum()) for found, true in ((sums, a + b), (products, a * b))]
integer = [
    torch.equal(sums.view(torch.int16), integers_a + integers_b),
    torch.equal(products.view(torch.int16), integers_a * integers_b),
]
print(f"a + b and a * b: {wrong} of {N * N} wrong; those of their bits: {integer}")
assert cast < 1e-5 and half < 1e-5
assert error > 1e6 and of_bits <= 1e-5 * found.abs().max().item(), "the behaviour has changed"
assert min(wrong) > N and all(integer), "the behaviour has changed"
PY
TRITON_INTERPRET=1 "$work/venv/bin/python" "$work/dots.py"
