"""What a hub that refuses says is told, and the token goes there: a server on loopback that answers as the hub does."""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_server import Hub, commands, refusal
from servers import serving

MODEL = "Access to model some/gated is restricted. Visit https://hub.example/some/gated to ask for access."
REMEDIES = {"hf_mine": "see that HF_TOKEN is of an account that may have it", None: "set HF_TOKEN"}


@pytest.mark.slow
def test_a_gated_model_is_told_of_in_the_hubs_words(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    sweep = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
    file.write_text(sweep.read_text().replace("name: builtin", "name: some/gated", 1))
    assert "some/gated" in file.read_text()
    with serving(Hub()) as hub:
        hub.publish("some/gated", {"config.json": b"{}"}, gated=MODEL)
        answers = commands(hub.uri, tmp_path, *((token, ["plan", file]) for token in REMEDIES))
    for done, remedy in zip(answers, REMEDIES.values(), strict=True):
        line = refusal(done)
        assert f"({MODEL}); accept its licence on the hub, and {remedy}" in line, line
    assert hub.tokens == {"Bearer hf_mine", None}
