"""Transcoders in a sweep file: `target` and `skip` of an entry, their sites and names, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweep_texts import error_of, expand, load_text

from gsae_ray.config.site import ORDER, POINTS, Site
from gsae_ray.config.trial import TrialSpec
from gsae_ray.tracking.params import trial_params

TEXT = """\
name: test
model: {name: builtin}
dataset: {name: builtin}
sites: {layers: [1, 2], points: [mlp_in, mlp_out]}
saes:
  - {architecture: gated, widths: 32, l1_coefficient: 1, target: {point: mlp_out}, sites: {points: mlp_in}}
  - {architecture: gated, widths: 32, l1_coefficient: 1}
training: {tokens: 10_000, batch_size: 100}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(TEXT)
    return path


def test_every_point_has_a_place_in_the_order_of_a_layer() -> None:
    assert sorted(ORDER) == sorted(POINTS)


def test_a_transcoder_reads_at_one_site_and_writes_at_another(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, TEXT)
    transcoders, saes = expand(sweep)[:2], expand(sweep)[2:]
    assert [trial.site for trial in transcoders] == [f"blocks.{layer}.mlp.hook_in:hook_mlp_out" for layer in (1, 2)]
    assert transcoders[0].sites == ("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out")
    assert (transcoders[0].d_in, transcoders[0].d_out, transcoders[0].skip) == (16, 16, False)
    assert [trial.sites for trial in saes] == [(trial.site,) for trial in saes]
    assert [site.name for site in sweep.trained_sites] == [
        *("blocks.1.mlp.hook_in:hook_mlp_out", "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"),
        *("blocks.2.mlp.hook_in:hook_mlp_out", "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"),
    ]
    both = [Site.of_point(layer, point) for layer in (1, 2) for point in ("mlp_in", "mlp_out")]
    assert sorted(sweep.used_sites) == sorted(both), "each place once, for SAEs and transcoders"


def test_the_target_need_not_be_among_the_sites_and_has_its_own_width(tmp_path: Path) -> None:
    sweep = load_text(tmp_path, TEXT, "sites={layers: [1], points: [mlp_in]}", "saes.0.target.point=mlp_post")
    widths = {Site.of_point(1, "mlp_in"): 16, Site.of_point(1, "mlp_post"): 64}
    assert set(sweep.used_sites) == set(widths)
    trial = sweep.expand(widths, {})[0]
    assert (trial.d_in, trial.d_out, trial.site) == (16, 64, "blocks.1.mlp.hook_in:mlp.hook_post")


def test_skip_is_a_grid(tmp_path: Path) -> None:
    trials = [trial for trial in expand(load_text(tmp_path, TEXT, "saes.0.skip=[false, true]")) if trial.d_out]
    assert [(trial.site[7], trial.skip, trial.variant) for trial in trials] == [
        *(("1", False, "transcoder"), ("1", True, "skip transcoder")),
        *(("2", False, "transcoder"), ("2", True, "skip transcoder")),
    ]


def test_identity_and_name_tell_an_sae_a_transcoder_its_skip_connection_and_its_target_apart(tmp_path: Path) -> None:
    overrides: tuple[list[str], ...] = ([], ["saes.0.skip=true"], ["saes.0.target.point=resid_post"])
    found = [expand(load_text(tmp_path, TEXT, *more))[0] for more in overrides]
    found.append(next(trial for trial in expand(load_text(tmp_path, TEXT)) if trial.site == "blocks.1.mlp.hook_in"))
    assert len({trial.identity for trial in found}) == len({trial.name for trial in found}) == len(found)
    assert found[1].name.startswith("blocks.1.mlp.hook_in-hook_mlp_out_gated_w32_l1-1_skip_norm_weighted")
    assert found[1].variant == "skip transcoder" and found[3].variant == ""
    assert all(TrialSpec.from_json(trial.to_json()) == trial for trial in found)


def test_options_of_the_architecture_follow_in_the_variant(tmp_path: Path) -> None:
    (trial, *_) = expand(load_text(tmp_path, TEXT, "saes.0.tied=false"))
    assert trial.variant == "transcoder,tied=false"


def test_parameters_of_a_run_say_where_it_reads_and_writes(tmp_path: Path) -> None:
    transcoder, _, sae, _ = expand(load_text(tmp_path, TEXT, "saes.0.skip=true", "saes.1.sites.points=mlp_in"))
    params = trial_params(transcoder)
    assert (params["site"], params["layer"], params["point"]) == (transcoder.site, 1, "mlp_in:mlp_out")
    assert (params["target"], params["d_out"], params["skip"]) == ("blocks.1.hook_mlp_out", 16, True)
    assert not {"target", "d_out", "skip"} & trial_params(sae).keys()


def test_a_standard_transcoder_computes_as_much_as_gated_ones(tmp_path: Path) -> None:
    more = "{architecture: standard, widths: {equal_compute_with: gated}, l1_coefficient: 1, target: {point: mlp_out}, "
    text = TEXT.replace(
        "  - {architecture: gated, widths: 32, l1_coefficient: 1}\n", f"  - {more}sites: {{points: mlp_in}}}}\n"
    )
    assert {trial.d_sae for trial in expand(load_text(tmp_path, text)) if trial.architecture == "standard"} == {48}


def test_auto_is_the_dense_engine_for_transcoders(tmp_path: Path) -> None:
    engines = {
        trial.d_out: trial.training.engine for trial in expand(load_text(tmp_path, TEXT, "training.engine=auto"))
    }
    assert engines == {16: "dense", None: "sparse-cpu"}, "SAEs beside it keep the faster one"


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("saes.0.target=mlp_out", ["saes.0.target: 'mlp_out' should be a mapping: target: {point: mlp_out}"]),
        ("saes.0.target={}", ["saes.0.target.point"]),
        ("saes.0.target={pont: mlp_out}", ["saes.0.target.pont", "did you mean 'point'?"]),
        ("saes.0.target.point=mlpout", ["saes.0.target.point", "'mlpout'", "did you mean 'mlp_out'?"]),
        ("saes.0.target.layer=3", ["saes.0.target.layer", "unknown key"]),
        ("saes.0.skip=1", ["saes.0.skip.0", "1"]),
        ("saes.1.skip=true", ["saes.1", "skip: true is for transcoders", "target"]),
        (
            "saes.0={architecture: rescale_shift, widths: 32, l1_coefficient: 1, target: {point: mlp_out}}",
            ["saes.0", "target: rescale_shift starts from a finished standard SAE, and has no transcoders"],
        ),
        # a place without such an output
        ("saes.0.sites={}", ["saes.0.target: mlp_out is what the transcoders would read themselves", "a filter"]),
        (
            "saes.0.target.point=mlp_in",
            ["mlp_in is what the transcoders", "an earlier point (resid_pre, attn_z, attn_out)"],
        ),
        ("saes.0.target.point=resid_pre", ["saes.0.target: resid_pre comes before mlp_in in a layer", "mlp_post"]),
        ("saes.0.target.point=attn_out", ["saes.0.target: attn_out comes before mlp_in in a layer", "take a later"]),
        ("evaluation.pursuit_l0=8", ["evaluation.pursuit_l0: finds the features of what an SAE reads", "leave it out"]),
        ("saes.0.engine=sparse-cpu", ["saes.0.engine: sparse-cpu has no transcoders; engine: dense has"]),
        ("training.engine=sparse-cpu", ["saes.0.engine: sparse-cpu has no transcoders; engine: dense has"]),
    ],
)
def test_one_line_for_every_mistake(path: Path, override: str, parts: list[str]) -> None:
    message = error_of(path, override)
    assert all(part in message for part in parts), message
    assert message.count("comes before") <= 1, "once, not for every layer"


def test_a_module_has_no_output_that_belongs_to_it(path: Path) -> None:
    modules = "sites.modules=[{module: gpt_neox.layers.1.mlp, io: input}]"
    message = error_of(path, modules, "saes.0.sites={modules: [{module: gpt_neox.layers.1.mlp, io: input}]}")
    assert "saes.0.target: gpt_neox.layers.1.mlp:input is not a point of a layer, so there is no mlp_out" in message


def test_nothing_comes_after_the_end_of_a_layer(path: Path) -> None:
    message = error_of(path, "sites.points=[resid_post, mlp_in]", "saes.0.sites.points=resid_post")
    assert message.endswith(
        "saes.0.target: mlp_out comes before resid_post in a layer, and cannot be computed from it; take another point "
        "to read"
    )


def test_a_reference_may_be_at_a_site_of_transcoders(path: Path, tmp_path: Path) -> None:
    site = "blocks.1.mlp.hook_in:hook_mlp_out"
    sweep = load_text(tmp_path, TEXT, f"references=[{{source: theirs, site: '{site}'}}]")
    assert sweep.references[0].site == site
    message = error_of(path, "references=[{source: theirs, site: blocks.1.mlp.hook_in:hook_resid_post}]")
    assert "no SAE of this sweep is at 'blocks.1.mlp.hook_in:hook_resid_post'; did you mean" in message
