#!/usr/bin/env bash
# A BatchTopK SAE that dictionary_learning has trained for 1,001 steps or fewer is a ReLU SAE when it is used: its threshold
# is still -1, nothing says so, and several times as many features are active as k asks for.
#
# Versions: dictionary-learning 0.1.0, torch 2.13.0, transformers 5.3.0, Python 3.11; no GPU. Run on 2026-11-30.
# Behaviour: the threshold that `encode` uses by default is learnt from step 1,001 on (`threshold_start_step`), whatever the
#   length of the run; before, it is -1, below every activation. The loss and `effective_l0` are those of k all the time.
# Expected by most: about k active features of a trained SAE, however short the run, or a warning.
# Output seen:
#   900 steps, k = 4: threshold -1.0000, L0 of encode 18.6
#   1002 steps, k = 4: threshold 0.2312, L0 of encode 4.3
#   1500 steps, k = 4: threshold 0.2340, L0 of encode 4.0
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "dictionary-learning==0.1.0" "torch==2.13.0" "transformers==5.3.0"
"$work/venv/bin/pip" uninstall -q -y torchvision # of a dependency's; it is built for CUDA, and nothing here needs it
cat > "$work/short.py" <<'PY'
import torch
from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

N, M, K, BATCH = 16, 80, 4, 256


def rows(step):
    """A few of 40 directions at a time, and a little noise."""
    directions = torch.nn.functional.normalize(torch.randn(40, N, generator=torch.Generator().manual_seed(99)), dim=1)
    generator = torch.Generator().manual_seed(step)
    on = (torch.rand(BATCH, 40, generator=generator) < 0.1) * torch.rand(BATCH, 40, generator=generator)
    return on @ directions + 0.01 * torch.randn(BATCH, N, generator=generator)


found = {}
for steps in (900, 1002, 1500):
    sizes = {"activation_dim": N, "dict_size": M, "k": K, "layer": 0, "lm_name": "rows"}
    trainer = BatchTopKTrainer(steps=steps, lr=1e-3, warmup_steps=10, seed=0, device="cpu", **sizes)
    for step in range(steps):
        trainer.update(step, rows(step))
    found[steps] = (trainer.ae.encode(rows(10**6)) > 0).sum(1).float().mean().item()
    print(f"{steps} steps, k = {K}: threshold {trainer.ae.threshold.item():.4f}, L0 of encode {found[steps]:.1f}")
    assert (trainer.ae.threshold < 0) == (steps < 1002), "the behaviour has changed"
assert found[900] > 3 * K > 1.5 * found[1002], "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/short.py"
