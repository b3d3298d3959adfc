#!/usr/bin/env bash
# A local file that is rewritten with its time stamp kept (cp -p, rsync -t, tar, images with a fixed date) is not read
# again: datasets' cache is keyed by path and modification time, not by content, nor by size.
#
# Versions: datasets 5.2.0, Python 3.11. Run on 2026-11-28.
# Behaviour: see "Output seen". `keep_in_memory` makes no difference; another cache_dir or another time stamp does.
# Expected by most: a changed file is noticed, at least when its size differs.
# Output seen:
#   first: ['old text']
#   rewritten, same time: ['old text']
#   rewritten, new time: ['quite another text']
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "datasets==5.2.0"
cd "$work"
HF_HOME=$work/home HF_HUB_OFFLINE=1 "$work/venv/bin/python" - <<'PY'
import json
import os
from pathlib import Path

import datasets

datasets.disable_progress_bars()
path = Path("text.jsonl")


def read(text, when):
    path.write_text(json.dumps({"text": text}) + "\n")
    os.utime(path, (when, when))
    return datasets.Dataset.from_json(str(path))["text"][:]


first = read("old text", 1_700_000_000)
same = read("quite another text", 1_700_000_000)
new = read("quite another text", 1_700_000_001)
print("first:", first)
print("rewritten, same time:", same)
print("rewritten, new time:", new)
assert (first, same, new) == (["old text"], ["old text"], ["quite another text"])
PY
