"""`gsae-ray features` from a storage to a folder of pages, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from dashboards import FEATURES, GATED, STANDARD, made_up, storage_of
from recorder import NEWER

from gsae_ray.cli.main import main
from gsae_ray.errors import UserError
from gsae_ray.feature_tables.folder import ABOUT
from gsae_ray.features.chosen import choose_saes
from gsae_ray.features.folder import MARK
from gsae_ray.features.matching import matches
from gsae_ray.features.survival import compare_features
from gsae_ray.results.features import with_features
from gsae_ray.results.saved import load_finished

FILES = ["index.html", "matches.parquet", "survival.parquet"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return storage_of(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def written(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "features"
    result = invoke("small", "--out", out, "--storage", storage, "--neuronpedia")
    assert result.exit_code == 0, result.output
    assert "4 SAEs (the SAEs on the frontier of L0 and quality)" in result.output
    assert f"open {out / 'index.html'} in a browser" in result.output
    return out


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["features", *map(str, arguments)])


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def loaded(script: Path) -> Any:
    """What a page is handed by a script."""
    return json.loads(script.read_text("utf-8").partition(",")[2].removesuffix(");\n"))


def test_each_sae_of_the_frontier_has_a_page_and_the_index_leads_to_it(written: Path) -> None:
    index = (written / "index.html").read_text("utf-8")
    links = re.findall(r'<a href="([^"]+)/index.html">', index)
    assert len(links) == len(set(links)) == 4 and {*links} == {trial.name for trial in GATED}
    assert STANDARD[0].name not in index
    for folder in links:
        names = {path.name for path in (written / folder / "data").iterdir()}
        assert names == {"list.js", "tokens.js", "features_0.js", "features_1.js"}
        page = (written / folder / "index.html").read_text("utf-8")
        assert "292 of 300 features fire on 10,000 held-out rows" in page and 'href="../index.html"' in page
    assert sorted(json.loads((written / MARK).read_bytes())["files"]) == sorted([*FILES, *links])
    assert not [path for path in written.parent.iterdir() if path != written], "nothing is left beside it"


def test_features_are_compared_within_their_site(written: Path, storage: Path) -> None:
    first, second = (
        load_finished(storage / "small" / "trials" / trial.directory_name).W_dec.detach() for trial in GATED[:2]
    )
    assert GATED[0].site == GATED[1].site != GATED[2].site
    alive = made_up(GATED[0], 0).features["fired"].to_numpy() > 0
    here, _ = matches(first, second, alive, alive)
    index = (written / "index.html").read_text("utf-8")
    assert f"{here.cosine[alive].mean():.3f} <span>[" in index and index.count("Which features survive") == 2
    page, told = (written / GATED[0].name / name for name in ("index.html", "data/features_0.js"))
    assert f'"href":"../{GATED[1].name}/index.html"' in page.read_text("utf-8")
    assert GATED[2].name not in page.read_text("utf-8")
    others = [feature["others"] for feature in loaded(told)["features"]]
    assert others[:8] == [[]] * 8, "dead"
    assert others[100] == [[0, int(here.feature[100]), pytest.approx(float(here.cosine[100]), rel=1e-3)]]


def test_what_survives_is_there_as_numbers(written: Path, storage: Path) -> None:
    pairs, found = (pd.read_parquet(written / name) for name in ("survival.parquet", "matches.parquet"))
    assert [*zip(pairs["trial"], pairs["other"], strict=True)] == [
        (GATED[a].name, GATED[b].name) for a, b in ((1, 0), (0, 1), (3, 2), (2, 3))
    ]
    shown = [f"{row.mean:.3f} <span>[{row.low:.3f}, {row.high:.3f}]" for row in pairs.itertuples(index=False)]
    index = (written / "index.html").read_text("utf-8")
    assert all(cell in index for cell in shown) and 'href="matches.parquet"' in index
    here = found[found["trial"] == GATED[0].name]
    first, second = (
        load_finished(storage / "small" / "trials" / trial.directory_name).W_dec.detach() for trial in GATED[:2]
    )
    cosines = torch.nn.functional.cosine_similarity(first[8:, None], second[None, 8:], dim=2)  # 0 to 7 never fire
    assert here["feature"].tolist() == [*range(8, FEATURES)] and {*here["other"]} == {GATED[1].name}
    assert here["match"].tolist() == (cosines.argmax(1) + 8).tolist()
    assert here["cosine"].tolist() == pytest.approx(cosines.amax(1).tolist(), abs=1e-5)
    meaning = pq.read_schema(written / "survival.parquet").field("mean").metadata[b"meaning"]
    assert meaning.startswith(b"of their largest cosines")
    again = compare_features("small", storage=storage)
    assert again[0].equals(pairs) and again[1].equals(found)
    with pytest.raises(UserError, match="--trial: no finished SAE"):
        compare_features("small", trials=["x"], storage=storage)


def test_one_sae_is_shown_as_best_chooses_it(storage: Path, tmp_path: Path) -> None:
    out = tmp_path / "one"
    result = invoke("small", "--out", out, "--storage", storage, "--site", GATED[0].site, "--max-l0", 30)
    assert result.exit_code == 0, result.output
    assert "1 SAE (the highest loss recovered of 1 with L0 <= 30" in result.output
    assert {path.name for path in out.iterdir()} == {*FILES, MARK, GATED[1].name}
    assert "Which features survive" not in (out / "index.html").read_text("utf-8"), "there is nothing to compare with"
    again = invoke("small", "--out", out, "--storage", storage, "--max-l0", 30)
    assert again.exit_code == 0 and "2 SAEs" in again.output, "the best of each site takes its place"
    assert {path.name for path in out.iterdir()} == {*FILES, MARK, GATED[1].name, GATED[3].name}


def test_saes_off_the_frontier_are_shown_by_name_or_with_all_others(storage: Path, tmp_path: Path) -> None:
    where = ("--storage", storage, "--site", STANDARD[0].site)
    everything = invoke("small", "--out", tmp_path / "all", *where, "--all")
    assert everything.exit_code == 0 and "3 SAEs (all that have tables" in everything.output
    folders = {path.name for path in (tmp_path / "all").iterdir() if path.is_dir()}
    assert folders == {GATED[0].name, GATED[1].name, STANDARD[0].name}
    named = invoke(
        *("small", "--out", tmp_path / "named", *where, "--trial", STANDARD[0].name, "--trial", GATED[1].name)
    )
    assert named.exit_code == 0 and "2 SAEs (the trials that were named)" in named.output
    assert "Which features survive" in (tmp_path / "named/index.html").read_text("utf-8")
    out = ("--out", tmp_path / "none", *where)
    assert f"--trial: no finished SAE 'x' here; one of: {GATED[1].name}" in refused("small", *out, "--trial", "x")
    assert "--all: it says which SAEs, as --trial does" in refused("small", *out, "--all", "--trial", "x")
    assert "--trial: it says which SAEs, as a limit does" in refused("small", *out, "--trial", "x", "--max-l0", 3)
    assert "--all: it says which SAEs, as --alias does" in refused("small", *out, "--all", "--alias", "best-l0-8")


def test_all_shows_those_with_tables_only(tmp_path: Path) -> None:
    storage = storage_of(tmp_path / "runs")
    shutil.rmtree(storage / "small/trials" / GATED[0].directory_name / "features")
    chosen = choose_saes("small", storage=storage, everything=True)
    assert {*chosen.rows["trial"]} == {trial.name for trial in [*GATED[1:], *STANDARD]} and chosen.missing() == []
    bare = storage_of(tmp_path / "bare", tables=None)
    assert "--all: no SAE of 'small' has tables" in refused(
        "small", "--out", tmp_path / "x", "--storage", bare, "--all"
    )


def test_what_is_in_the_way_stays_as_it_is(storage: Path, tmp_path: Path) -> None:
    file, folder, ours = tmp_path / "file", tmp_path / "folder", tmp_path / "ours"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    where = ("--storage", storage, "--max-l0", 50)
    assert "is there, and no folder" in refused("small", "--out", file, *where)
    assert "is not empty, and no folder of dashboards" in refused("small", "--out", folder, *where)
    assert invoke("small", "--out", ours, *where).exit_code == 0
    (ours / "notes.txt").write_text("mine")
    assert "something beside its dashboards, notes.txt" in refused("small", "--out", ours, *where)
    assert (folder / "mine.txt").read_text() == (ours / "notes.txt").read_text() == file.read_text() == "mine"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    storage = storage_of(tmp_path / "runs")
    out = tmp_path / "out"
    assert invoke("small", "--out", out, "--storage", storage).exit_code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    last = storage / "small/trials" / GATED[3].directory_name / "features/contexts.parquet"
    last.write_bytes(b"damaged")
    failed = invoke("small", "--out", out, "--storage", storage)
    assert failed.exit_code == 2 and "contexts.parquet: this file is damaged" in failed.stderr, "after three pages"
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out"}


def test_what_cannot_be_shown_is_refused_in_one_line(storage: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    out = ("--out", tmp_path / "out", "--storage", storage)
    assert "site: no 'blocks.9.hook_resid_post'" in refused("small", *out, "--site", "blocks.9.hook_resid_post")
    assert "launch: name one" in refused("small", *out, "--launch", "all")
    assert "--by: it says" in refused("small", *out, "--by", "fvu")
    assert "either max_l0" in refused("small", *out, "--knee", "--max-l0", 3)
    assert "leave knee out" in refused("small", *out, "--knee", "--alias", "best-l0-32")
    assert not (tmp_path / "out").exists()


def test_tables_that_cannot_be_made_are_said_in_one_line(tmp_path: Path) -> None:
    storage = storage_of(tmp_path / "runs", trials=GATED, tables=None)
    said = refused("small", "--out", tmp_path / "out", "--storage", storage)  # the launch has no sweep that can be read
    assert said.startswith(f"gsae-ray: experiment: launch {NEWER} was begun by another version of gsae-ray (")
    assert "--like" not in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["sae", "heldout", "version", "file"])
def test_tables_of_something_else_are_missing_ones(tmp_path: Path, key: str) -> None:
    storage = storage_of(tmp_path / "runs")
    assert choose_saes("small", storage=storage).missing() == []
    folder = storage / "small/trials" / GATED[1].directory_name / "features"
    if key == "file":
        (folder / "tokens.parquet").unlink()
    else:
        about = ABOUT.read(folder / "about.json")
        assert about is not None
        other: Any = {**about, key: about["version"] - 1 if key == "version" else "0" * 64}
        ABOUT.write(folder / "about.json", other)
    chosen = choose_saes("small", storage=storage)
    assert chosen.missing() == [GATED[1].name], "they are made again"
    assert len(with_features(chosen.rows, None, storage)) == 3, "studies and raters see the others"


def test_neuronpedia_gets_every_feature(written: Path) -> None:
    folder = written / GATED[0].name / "neuronpedia"
    batches = [json.loads((folder / f"batch-{number}.json").read_text("utf-8")) for number in range(3)]
    assert [f["feature_index"] for batch in batches for f in batch["features"]] == list(range(FEATURES))
    assert {batch["layer"] for batch in batches} == {1} and batches[0]["sae_id_suffix"] == GATED[0].name
