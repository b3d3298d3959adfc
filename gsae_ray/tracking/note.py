"""The note on a launch's page in MLflow: sentences, the frontier's picture, a table, links. Does not import MLflow."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from gsae_ray.tracking.pages import artifact_file, artifact_page, model_page, trials_page

MAX_NOTE = 8000
"""Characters of a tag's value, which a note is: MLflow 3.17 cuts what is longer."""
SHOWN = 8
"""Sentences, and registered models, that are shown."""
_BEGIN, _END = "<!-- gsae-ray -->", "<!-- /gsae-ray -->"
"""Between these stands ours, which the UI does not show; what people write before and after it stays."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]|~!])")


def compose(
    experiment_id: str,
    launch: str,
    run_id: str,
    sentences: Sequence[str],
    table: Sequence[Sequence[str]],
    files: Sequence[str],
    models: Sequence[str] = (),
    room: int = MAX_NOTE,
) -> str:
    """The note as Markdown, within `room`; a long table loses its last rows.

    Args:
        experiment_id: of the launch.
        launch: its id.
        run_id: of its run.
        sentences: what the launch comes to.
        table: its frontier, as text; the first row is its head.
        files: artifacts of the run; pictures among them are shown.
        models: names of registered models.
        room: characters.
    """
    above = _first(list(map(plain, sentences)), "gsae-ray compare prints them")  # first: the UI folds the rest away
    above += [f"![{plain(path)}]({artifact_file(run_id, path)})" for path in files if path.endswith(".png")]
    links = [f"[the trials]({trials_page('', experiment_id, launch)})"]
    links += [f"[{plain(path)}]({artifact_page('', experiment_id, run_id, path)})" for path in files]
    below = [" · ".join(links)]
    if models:
        named = [f"[{plain(name)}]({model_page('', name)})" for name in models]
        below.append(f"In the model registry: {' · '.join(_first(named, 'Models lists them'))}")

    def joined(*between: str) -> str:
        return "\n\n".join([_BEGIN, *above, *filter(None, between), *below, _END])

    while len(joined()) > room and (above or below):
        (below or above).pop()
    whole = joined(_markdown_table(table, room - len(joined()) - len("\n\n")))
    return whole if len(whole) <= room else ""


def merged(before: str, ours: str) -> str:
    """A note with ours in the place of what was ours in it before; what people have written stays."""
    start, end = before.find(_BEGIN), before.find(_END)
    if start < 0 or end < start:
        return f"{ours}\n\n{before}" if before else ours
    return before[:start] + ours + before[end + len(_END) :]


def room_beside(before: str) -> int:
    """How long ours may be, so that it fits beside what people have written."""
    return MAX_NOTE - len(merged(before, ""))


def plain(text: str) -> str:
    """Text as Markdown that shows it as it is."""
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def _first(texts: list[str], where: str) -> list[str]:
    """The first texts, and how many more there are, and where."""
    more = len(texts) - SHOWN
    return [*texts[:SHOWN], f"… and {more} more: {where}"] if more > 0 else texts


def _markdown_table(table: Sequence[Sequence[str]], room: int) -> str:
    """As many rows of a table as there is room for, and how many are left out; empty where not one fits."""
    lines = [f"| {' | '.join(map(plain, row))} |" for row in table]
    if len(lines) < 2:
        return ""
    head = [lines[0], f"|{' --- |' * len(table[0])}"]
    for count in range(len(lines) - 1, 0, -1):
        left_out = len(lines) - 1 - count
        more = f"\n\n… and {left_out} more" if left_out else ""
        if len(text := "\n".join([*head, *lines[1 : 1 + count]]) + more) <= room:
            return text
    return ""
