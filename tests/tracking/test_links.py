"""Links to MLflow's pages."""

from __future__ import annotations

import pytest

from gsae_ray.tracking.pages import page_of


@pytest.mark.parametrize("server", ["http://there:5000", "http://user:secret@there:5000/"])
def test_a_run_of_a_server_has_a_page_whose_address_tells_no_secret(server: str) -> None:
    page = page_of(server, "1", "abc")
    assert page is not None and "secret" not in page
    assert page.endswith("there:5000/#/experiments/1/runs/abc?workflowType=machine_learning")


@pytest.mark.parametrize("uri", ["sqlite:////home/somebody/mlflow.db", "postgresql://there/mlflow"])
def test_what_is_no_server_has_no_pages(uri: str) -> None:
    assert page_of(uri, "1", "abc") is None
