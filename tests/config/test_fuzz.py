"""The first of the mutated sweep files that .ci/run goes through (`fuzz_sweep_files`)."""

from __future__ import annotations

import fuzz_sweep_files


def test_a_mutated_sweep_file_is_a_sweep_or_is_refused_in_a_few_lines_that_name_its_key() -> None:
    said: list[str] = []
    assert fuzz_sweep_files.run(0, range(200), said.append), "\n".join(said)
    assert "sweeps" in said[-1] and "refused" in said[-1]
