"""The pages that our links open in MLflow's UI, as a browser shows them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from mirrors import LAUNCH_ID, Server, pair
from servers import MLflowServer
from trials import REQUEST, expand, finish

from gsae_ray.cli.main import main
from gsae_ray.results import plots
from gsae_ray.results.frontier import frontier
from gsae_ray.storage.trial_directory import Trial
from gsae_ray.tracking.mirror import Mirror
from gsae_ray.tracking.pages import artifact_page, model_page, run_page, trials_page
from gsae_ray.tracking.run_names import run_names
from gsae_ray.tracking.runs import RecordedExperiment


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_links_open_the_trials_and_the_launchs_page_shows_its_picture(tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        warnings.warn("Debian's chromium is not installed (.ci/run installs it): no look at the pages", stacklevel=1)
        return
    from playwright.sync_api import sync_playwright

    trials = expand(l1_coefficient=[1.0, 2.0])
    names = run_names(trials)
    server = MLflowServer(tmp_path / "mlflow")
    try:
        mirror = Mirror(server.uri, experiment := Server(server.uri).experiment, LAUNCH_ID, REQUEST, names)
        mirror.open_launch("small", {})
        pairs = [pair(tmp_path / "trials", 2, trial) for trial in trials]
        for (trial, directory), l0, recovered in zip(pairs, (10, 30), (0.8, 0.9), strict=True):
            finish(directory, trial, l0=l0, loss_recovered=recovered)
        mirror.sync([Trial(*found) for found in pairs])
        rows = frontier(experiment, tracking_uri=server.uri)
        plots.save_frontier(rows, tmp_path / "frontier.png", None)
        (tmp_path / "frontier.json").write_text(rows.to_json(orient="split", index=False))
        files = ["frontier.png", "frontier.json"]
        mirror.log_launch({}, [tmp_path / name for name in files])
        models = mirror.register(set(rows["run_id"]), tmp_path / "small/launches" / LAUNCH_ID)
        table = [["architecture", "L0"], ["gated", "10.125"], ["gated", "30"]]
        mirror.describe(["gated needs 0.5× [0.4, 0.6] the features"], table, files, files[1:], models)
        mirror.close("FINISHED")
        where = server.uri, mirror.experiment_id
        told = CliRunner().invoke(main, ["ui", "--tracking-uri", server.uri])
        assert f"{experiment}: {trials_page(*where)}" in told.output, told.output
        pages = trials_page(*where, LAUNCH_ID), run_page(*where, mirror.parent_id)
        assert RecordedExperiment(server.uri, experiment).pages(LAUNCH_ID) == pages and mirror.page == pages[0]
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            page = chromium.new_page(viewport={"width": 1600, "height": 1200})
            page.set_default_timeout(60_000)
            page.goto(pages[0])
            for name in names.values():  # not folded away below the launch
                page.get_by_text(name).first.wait_for()
            page.goto(pages[1])
            page.get_by_text("gated needs 0.5× [0.4, 0.6] the features").wait_for()
            picture = page.locator("img[src*='get-artifact']")
            picture.wait_for()
            page.wait_for_function("image => image.complete && image.naturalWidth > 300", arg=picture.element_handle())
            page.get_by_role("cell", name="10.125").wait_for()
            page.goto(artifact_page(*where, mirror.parent_id, "frontier.json"))
            page.get_by_text("View as table").wait_for()
            page.get_by_text("loss_recovered").first.wait_for(state="attached")
            page.goto(model_page(server.uri, models[0]))
            page.get_by_text("best-l0-16").first.wait_for()
            chromium.close()
    finally:
        server.kill()
