"""SAEs by hub id: what is downloaded, from a server that speaks the hub's protocol, and what is said without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import OTHER_TOKEN, Files, Hub, commands, refusal
from public_layouts import LAYOUTS, X, write
from servers import free_ports, serving

from gsae_ray.errors import UserError
from gsae_ray.saes import load
from gsae_ray.saes.hub import HubId, parse_hub_id

FOLDERS = {name: f"layer_1/{name.replace(' ', '_')}" for name in LAYOUTS}
"""Layout -> where its files are in the repository."""
ASK = "Visit https://hub.example/some/gated to ask for access."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("some/saes", ("some/saes", None, "")),
        ("some/saes.v2/a/b c/d", ("some/saes.v2", None, "a/b c/d")),
        ("some/saes@v1.0/a/", ("some/saes", "v1.0", "a")),
        ("some/saes@refs%2Fpr%2F1", ("some/saes", "refs/pr/1", "")),
        ("some/saes/L0_50/layer7.sae.pt", ("some/saes", None, "L0_50/layer7.sae.pt")),
        *(
            (path, None)
            for path in ("saes", "/some/saes", "./some/saes", "../some/saes", "~/some/saes", "some/../saes")
        ),
        *((path, None) for path in ("some/saes/../../etc", "some//saes", "s3://some/saes", "some/saes@/a", "")),
    ],
)
def test_what_a_hub_id_is(text: str, expected: tuple[str, str | None, str] | None) -> None:
    assert parse_hub_id(text) == (expected and HubId(*expected))


def published() -> Files:
    """Every layout in a folder of one repository, each beside a file that no reader needs, and a README."""
    files = {"README.md": b"SAEs"}
    return files | {f"{folder}/events.bin": b"much" for folder in FOLDERS.values()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    files = published()
    folder = tmp_path_factory.mktemp("published")
    for name, (_, layout, _) in LAYOUTS.items():
        write(folder / FOLDERS[name], layout)
    files |= {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serving(Hub()) as server:
        server.publish("some/saes", files)
        server.publish("some/gated", {"cfg.json": b"{}"}, gated=ASK)
        yield server


@pytest.mark.slow
def test_an_sae_in_any_layout_comes_from_the_hub_and_then_from_its_cache(hub: Hub, tmp_path: Path) -> None:
    """Of its folder only what the reader reads; a repository that has gone is no hindrance."""
    files = {name: f"some/saes/{FOLDERS[name]}/{list(layout)[-1]}" for name, (_, layout, _) in LAYOUTS.items()}
    # A pickle is named itself: on the hub its folder has one for each layer.
    ids = {name: file if file.endswith(".sae.pt") else str(Path(file).parent) for name, file in files.items()}
    hub.asked.clear()
    asked = [(None, ["export", hub_id, "--out", tmp_path / name]) for name, hub_id in ids.items()]
    for done in commands(hub.uri, tmp_path, *asked):
        assert done.exit_code == 0 and not done.stderr, done
    for name, (architecture, _, features) in LAYOUTS.items():
        sae = load(tmp_path / name)
        assert sae.architecture == architecture
        found = sae.encode(torch.tensor(X)).detach().double()
        same = torch.isclose(found, torch.tensor(features), rtol=1e-5, atol=1e-5).all(1)
        assert same.float().mean() > (0.9 if architecture == "topk" else 0.999), name  # topk: ties, see public_layouts
    assert not [path for _, path in hub.asked if path.endswith((".bin", ".md"))]

    (port,) = free_ports(1)
    down = f"http://127.0.0.1:{port}"
    again, new = commands(
        down,
        tmp_path,
        (None, ["export", "some/saes/layer_1/sparsify", "--out", tmp_path / "again"]),
        (None, ["export", "some/other/layer_1", "--out", tmp_path / "other"]),
    )
    assert again.exit_code == 0 and load(tmp_path / "again").architecture == "topk"
    line = refusal(new)
    assert "some/other/layer_1: no such path here, and it cannot be had from the hub: " in line
    assert f"the hub ({down}) cannot be reached: " in line and line.endswith("; it needs a network")


REFUSALS = [
    ("some/saes@v2/layer_1", None, "the repository has no such revision"),
    (
        "some/none/layer_1",
        None,
        "the hub has no such repository, or it is private; see that the name is right, and set",
    ),
    ("some/none/layer_1", OTHER_TOKEN, "and see that HF_TOKEN is of an account that may have it"),
    ("some/gated", None, f"it is gated ({ASK}); accept its licence on the hub, and set HF_TOKEN"),
    ("some/gated", OTHER_TOKEN, f"({ASK}); accept its licence on the hub, and see that HF_TOKEN is of an account"),
    (
        "some/saes/layer_1/sparsfy",
        None,
        "no SAE of a known format; did you mean 'layer_1/sparsify'? there is ",
    ),
    ("some/saes", None, "on the hub no SAE of a known format; there is README.md, layer_1/"),
    (
        "some/saes/layer_1/qwen_scope",
        None,
        "there is layer_1/qwen_scope/events.bin, layer_1/qwen_scope/L0_3/layer7.sae.pt",
    ),
    ("some/a--b/layer_1", None, "'some/a--b'"),
]


def test_what_the_hub_does_not_have_or_refuses_is_one_line(hub: Hub, tmp_path: Path) -> None:
    asked = [(token, ["export", hub_id, "--out", tmp_path / "out"]) for hub_id, token, _ in REFUSALS]
    for (hub_id, _, expected), done in zip(REFUSALS, commands(hub.uri, tmp_path, *asked), strict=True):
        line = refusal(done)
        assert line.startswith(f"gsae-ray: {hub_id}: no such path here, and ") and expected in line, line
    assert not (tmp_path / "out").exists()


def test_a_path_that_is_there_wins_and_offline_the_hub_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "some/saes/sparsify", LAYOUTS["sparsify"][1])
    assert load("some/saes/sparsify").architecture == "topk"
    with pytest.raises(UserError) as caught:
        load("some/saes-that-are-nowhere/sparsify")
    expected = "HF_HUB_OFFLINE is set, so the hub is not asked; unset it"
    assert str(caught.value).endswith(f"and it cannot be had from the hub: {expected}")
