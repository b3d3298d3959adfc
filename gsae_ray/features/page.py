"""The page of an SAE's features: HTML beside a folder of data, or one file with the data inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gsae_ray.feature_tables import FeatureTables
from gsae_ray.features.matching import Matches
from gsae_ray.features.shards import LEVELS, SHARD, Vocabulary, list_of, shards_of
from gsae_ray.pages import embedded, page_file
from gsae_ray.version import __version__


@dataclasses.dataclass(frozen=True)
class Other:
    """Another SAE of the site, whose features are compared."""

    label: str
    href: str
    """Of its page, as seen from this one."""
    matches: Matches
    """Of this page's features in that SAE."""


def page_of(
    tables: FeatureTables, name: str, others: Sequence[Other] = (), index: str | None = None, data: str = ""
) -> str:
    """The page as HTML. All text is escaped, in JSON too: tokens are whatever somebody wrote.

    Args:
        tables: of the SAE.
        name: of its trial.
        others: the SAEs beside it.
        index: the address of the page of all SAEs, as seen from this one.
        data: elements that hold what else would be loaded from files; see `one_file`.
    """
    alive = int((tables.features["fired"].to_numpy() > 0).sum())
    known = {
        "edges": tables.about["histogram_edges"],
        "positions": tables.about["position_edges"],
        "rows": tables.about["rows"],
        "features": tables.about["d_sae"],
        "shard": SHARD,
        "levels": LEVELS,
        "logits": tables.about["logit_effects"],
        "others": [{"label": other.label, "href": other.href} for other in others],
    }
    told = {
        **{"label": tables.about["label"], "trial": name, "site": tables.about["site"], "index": index},
        **{"features": tables.about["d_sae"], "alive": alive, "rows": tables.about["rows"], "version": __version__},
    }
    script = page_file("shading.js") + _file("page.js")
    parts = {"known": embedded(known), "data": data, "script": script}
    return rendered("page.html", told, **{part: Markup(text) for part, text in parts.items()})


def rendered(name: str, told: Mapping[str, Any], **parts: Markup) -> str:
    """A page from its template; what is Markup is ours, or JSON that cannot end its element."""
    style = "".join(map(page_file, ("colours.css", "shading.css"))) + _file("page.css")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_file(name)).render(page=told, style=Markup(style), **parts)


def data_of(tables: FeatureTables, others: Sequence[Other] = ()) -> Iterator[tuple[str, Any]]:
    """What the page loads, by name: `list`, `tokens`, and the shards from `features_0` on."""
    vocabulary = Vocabulary.of(tables)
    yield "list", list_of(tables, vocabulary)
    yield "tokens", vocabulary.texts
    for number, shard in shards_of(tables, vocabulary, [other.matches for other in others]):
        yield f"features_{number}", shard


def script_of(name: str, value: Any) -> str:
    """A script that hands a part of the data to its page. A page that is opened from disk may load nothing else."""
    return f'gsaeData("{name}",{embedded(value)});\n'


def one_file(tables: FeatureTables, name: str, most: int) -> str | None:
    """The page with all its data inside; None where that is more than so many bytes of UTF-8."""
    elements, size = [], 0
    for part, value in data_of(tables):
        elements.append(f'<script type="application/json" id="data-{part}">{embedded(value)}</script>\n')
        size += len(elements[-1].encode())
        if size > most:
            return None
    return page_of(tables, name, data="".join(elements))


def _file(name: str) -> str:
    return page_file(name, "gsae_ray.features")
