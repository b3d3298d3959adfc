"""`-v`: log lines of this package on standard error. Set up here only: a library leaves logging to who uses it."""

from __future__ import annotations

import contextlib
import logging
import platform
from collections.abc import Iterator

import click
from rich.console import Console
from rich.text import Text

from gsae_ray.version import __version__

STDERR = Console(stderr=True)
"""Where progress goes, and log lines beside it: the live display of trials leaves room for what its console prints."""
_PACKAGE = logging.getLogger("gsae_ray")


class _ConsoleHandler(logging.Handler):
    """Prints log records on a console, each as whole lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(Text(self.format(record)), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def log_shown(console: Console) -> Iterator[None]:
    """Within the context, what this package logs from level `info` on is printed; other loggers are left alone."""
    handler, level = _ConsoleHandler(console), _PACKAGE.level
    _PACKAGE.addHandler(handler)
    _PACKAGE.setLevel(logging.INFO)
    try:
        yield
    finally:
        _PACKAGE.setLevel(level)
        _PACKAGE.removeHandler(handler)


def _show_log(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and __name__ not in ctx.meta:  # `gsae-ray -v run -v` asks twice
        ctx.meta[__name__] = True
        ctx.find_root().with_resource(log_shown(STDERR))
        logging.getLogger(__name__).info("gsae-ray %s, Python %s", __version__, platform.python_version())


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_show_log,
    help="show what is done, step by step (log lines, on standard error)",
)
