"""The language model and text that come with the package, so that a sweep runs with no network.

A 4-layer GPT-NeoX (d_model 128) trained on the Python standard library by `make.py`; see `model/card.json`.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
"""A checkpoint for `transformers.AutoModelForCausalLM` and `AutoTokenizer`."""

TEXT_FILES = {
    "train": Path(__file__).parent / "text/train.parquet",
    "heldout": Path(__file__).parent / "text/heldout.parquet",
}
"""Split -> a Parquet file with a column `text`; the model saw nothing of `heldout`."""
