#!/usr/bin/env bash
# A Ray actor that is handed another actor's handle imports the module of that actor's class, with all that it imports:
# a small coordinator that only passes calls on pays for its workers' libraries (torch, say) in time and memory.
#
# Versions: ray 2.60.0, Python 3.11. Run on 2026-11-28.
# Behaviour: a handle that comes in an argument makes Ray load the class in the receiving process, by module and name,
#   before any method of it is called. A class whose module imports the heavy library only inside its methods is loaded
#   without. (A class of __main__, which Ray ships by value, is loaded as well, with whatever its closure needs.)
# Expected by most: a handle is an address and a list of method names; the class is needed by its own process only.
# Output seen:
#   before the handle: sqlite3 loaded: False
#   with a handle of workers.Lazy: workers loaded: True, sqlite3 loaded: False
#   with a handle of heavy_workers.Worker: heavy_workers loaded: True, sqlite3 loaded: True
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "ray==2.60.0"
cat > "$work/heavy_workers.py" <<'PY'
import sqlite3  # stands for a library that takes seconds and hundreds of MiB


class Worker:
    def version(self):
        return sqlite3.sqlite_version
PY
cat > "$work/workers.py" <<'PY'
class Lazy:
    def version(self):
        import sqlite3

        return sqlite3.sqlite_version
PY
cat > "$work/coordinator.py" <<'PY'
import sys


class Coordinator:
    def loaded(self, *names, handles=()):
        return [name in sys.modules for name in names]
PY
cd "$work"
export PYTHONPATH="$work" RAY_USAGE_STATS_ENABLED=0
"$work/venv/bin/python" - <<'PY' 2>"$work/log" || { cat "$work/log"; exit 1; }
import ray
from coordinator import Coordinator
from heavy_workers import Worker
from workers import Lazy

ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
small = {"num_cpus": 0}
coordinator = ray.remote(Coordinator).options(**small).remote()
lazy, worker = (ray.remote(kind).options(**small).remote() for kind in (Lazy, Worker))

(before,) = ray.get(coordinator.loaded.remote("sqlite3"))
print(f"before the handle: sqlite3 loaded: {before}")
assert not before
module, library = ray.get(coordinator.loaded.remote("workers", "sqlite3", handles=[lazy]))
print(f"with a handle of workers.Lazy: workers loaded: {module}, sqlite3 loaded: {library}")
assert module and not library
module, library = ray.get(coordinator.loaded.remote("heavy_workers", "sqlite3", handles=[worker]))
print(f"with a handle of heavy_workers.Worker: heavy_workers loaded: {module}, sqlite3 loaded: {library}")
assert module and library
PY
