"""`-v` shows what this package logs, as whole lines on standard error, and touches no other logger."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.live import Live

from gsae_ray.cli.main import main
from gsae_ray.cli.verbose import log_shown

QUICKSTART = Path(__file__).parents[2] / "sweeps/quickstart.yaml"


@pytest.mark.parametrize("arguments", [["-v", "plan"], ["-v", "run"], ["run", "-v"], ["-v", "run", "-v"]])
def test_v_shows_log_lines_once_and_only_for_that_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """By the real commands; `run` is refused before it starts Ray."""
    monkeypatch.chdir(tmp_path)
    root, package = logging.getLogger(), logging.getLogger("gsae_ray")
    before = [(logger.level, list(logger.handlers)) for logger in (root, package)]
    refused = ["--set", "model.name=./nowhere"] if "run" in arguments else []
    result = CliRunner().invoke(main, [*arguments, str(QUICKSTART), *refused])
    assert result.exit_code == (2 if refused else 0), result.output
    (line,) = [line for line in result.stderr.splitlines() if "gsae_ray.cli.verbose: gsae-ray " in line]
    assert " INFO " in line
    assert "INFO" not in result.stdout
    assert [(logger.level, list(logger.handlers)) for logger in (root, package)] == before
    quiet = CliRunner().invoke(
        main, [argument for argument in [*arguments, str(QUICKSTART), *refused] if argument != "-v"]
    )
    assert "INFO" not in quiet.output


def test_a_launch_tells_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it comes without Ray: there is no launch that could be resumed."""
    monkeypatch.chdir(tmp_path)
    small = [word for value in ("training.tokens=20_000", "evaluation.tokens=4_096") for word in ("--set", value)]
    result = CliRunner().invoke(main, ["run", "-v", "--resume", str(QUICKSTART), *small])
    assert result.exit_code == 2, result.output
    assert re.search(r"^\d\d:\d\d:\d\d INFO gsae_ray\.driver\.launch: 16 trials, ", result.stderr, re.MULTILINE)
    assert "checking quickstart" in result.stderr


def test_a_log_line_stays_whole_beside_a_live_display() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=40)
    line = f"made block 7 of [{'x' * 100}]"  # longer than the terminal, with what rich would take for markup
    with log_shown(console), Live("trials: 4 running", console=console, auto_refresh=False) as live:
        logging.getLogger("gsae_ray.driver").info(line)
        logging.getLogger("gsae_ray.driver").debug("not this")
        logging.getLogger("somebody.else").warning("nor this")
        live.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f" INFO gsae_ray.driver: {line}" in shown
    assert "this" not in shown
    assert "trials: 4 running" in shown.partition(line)[2], "the display is drawn again below the line"
