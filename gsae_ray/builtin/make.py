"""Makes what `gsae_ray.builtin` ships: the text, its tokenizer and the tiny language model trained on it.

    python -m gsae_ray.builtin.make --seed 0 --steps 6000 --batch 16 --lr 3e-3

Text: the modules of CPython 3.11.7's standard library (PSF licence, shipped beside it) and one in five of its tests,
without encoding tables and generated files. A document is a run of top-level definitions of one file. One document in
twelve, by the hash of its text, is held out: neither the tokenizer nor the model ever saw it. Tokenizer: byte-level
BPE, 4096 entries, trained on the training part. Model: GPT-NeoX (the Pythia architecture), 4 layers, d_model 128,
trained on contexts of 128 tokens with AdamW.

Result (2026-11-23, 2 cores not all its own, torch 2.13.0): 20 minutes, 2593 + 213 documents, 3.98 M + 0.25 M tokens,
held-out cross-entropy 2.92 nats a token; `model/card.json` has the figures. With glibc, these two in the environment
save a quarter of the time (page faults of the logits): MALLOC_MMAP_THRESHOLD_=4000000000
MALLOC_TRIM_THRESHOLD_=8000000000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import shutil
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
CONTEXT_SIZE = 128
DOCUMENT_CHARACTERS = 2000
SKIPPED_FOLDERS = {"idle_test", "site-packages", "encodings", "__pycache__", "__phello__"}
SKIPPED_FILES = ("_sysconfigdata", "cp65001")


def one_in(n: int, text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % n == 0


def split_documents(text: str) -> Iterator[str]:
    """Cuts a file before top-level definitions, into pieces of at least DOCUMENT_CHARACTERS."""
    piece = ""
    for part in re.split(r"(?m)^(?=(?:async def|def|class|@)\b|@)", text):
        piece += part
        if len(piece) >= DOCUMENT_CHARACTERS:
            yield piece
            piece = ""
    if piece.strip():
        yield piece


def collect_documents(stdlib: Path) -> tuple[list[str], list[str]]:
    """The (training, held-out) documents."""
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib)
        if SKIPPED_FOLDERS & set(name.parts) or path.name.startswith(SKIPPED_FILES):
            continue
        if {"test", "tests"} & set(name.parts) and not one_in(5, name.as_posix()):
            continue
        for document in split_documents(path.read_text(encoding="utf-8", errors="ignore")):
            (held_out if one_in(12, document) else train).append(document)
    return train, held_out


def write_text(documents: list[str], path: Path) -> None:
    table = pa.table({"text": documents})
    pq.write_table(table, path, compression="zstd", compression_level=22, row_group_size=len(documents))


def train_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def pack(tokenizer: transformers.PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """One long row of tokens, every document followed by the end-of-text token."""
    return torch.tensor([t for text in texts for t in [*tokenizer.encode(text), tokenizer.eos_token_id]])


@torch.no_grad()
def cross_entropy(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> float:
    """Mean next-token loss in nats over contexts of 128 tokens."""
    contexts = tokens[: len(tokens) // CONTEXT_SIZE * CONTEXT_SIZE].view(-1, CONTEXT_SIZE)
    losses = [model(batch, labels=batch).loss.double() * len(batch) for batch in contexts.split(64)]
    return float(sum(losses) / len(contexts))


def train_model(
    tokens: torch.Tensor, held_out: torch.Tensor, vocab_size: int, seed: int, steps: int, batch: int, lr: float
) -> transformers.PreTrainedModel:
    transformers.set_seed(seed)
    config = transformers.GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPTNeoXForCausalLM(config)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    warm_up = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: (
            (s + 1) / warm_up if s < warm_up else 0.5 + 0.5 * math.cos(math.pi * (s - warm_up) / (steps - warm_up))
        ),
    )
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.arange(CONTEXT_SIZE)
    started = time.monotonic()
    for step in range(steps):
        starts = torch.randint(len(tokens) - CONTEXT_SIZE, (batch, 1), generator=draw)
        contexts = tokens[starts + offsets]
        loss = model(contexts, labels=contexts).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 500 == 0:
            seconds = time.monotonic() - started
            losses = f"loss {loss.item():.3f}, held out {cross_entropy(model, held_out):.3f}"
            print(f"step {step}/{steps}: {losses}, {seconds:.0f} s", flush=True)
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16, help="contexts of 128 tokens a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    started = time.monotonic()

    stdlib = Path(sysconfig.get_paths()["stdlib"])
    train, held_out = collect_documents(stdlib)
    text_dir, model_dir = args.out / "text", args.out / "model"
    text_dir.mkdir(parents=True, exist_ok=True)
    write_text(train, text_dir / "train.parquet")
    write_text(held_out, text_dir / "heldout.parquet")
    shutil.copy(stdlib / "LICENSE.txt", text_dir / "LICENSE-PSF.txt")

    tokenizer = train_tokenizer(train)
    train_tokens, held_out_tokens = (pack(tokenizer, part) for part in (train, held_out))
    print(f"{len(train)} + {len(held_out)} documents, {len(train_tokens)} + {len(held_out_tokens)} tokens", flush=True)

    # Shuffled documents, so that one document is not always followed by its file's next.
    order = np.random.default_rng(args.seed).permutation(len(train))
    texts = train
    model = train_model(
        pack(tokenizer, [texts[i] for i in order]),
        held_out_tokens[:32768],
        len(tokenizer),
        args.seed,
        args.steps,
        args.batch,
        args.lr,
    )
    loss = cross_entropy(model, held_out_tokens)
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    minutes = (time.monotonic() - started) / 60
    card = {
        "command": "python -m gsae_ray.builtin.make "
        f"--seed {args.seed} --steps {args.steps} --batch {args.batch} --lr {args.lr}",
        "held_out_cross_entropy_nats": round(loss, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_tokens": len(train_tokens),
        "held_out_tokens": len(held_out_tokens),
        "minutes": round(minutes, 1),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "text": "CPython 3.11.7 standard library",
    }
    (model_dir / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
