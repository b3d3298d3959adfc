"""`cfg.json` of a saved SAE: a configuration of SAELens, with all that is ours under the key `gsae`.

`gsae-1`, the format before it, had the fields of `SAEConfig` at the top; it is read, and no longer written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic
import pydantic_core

from gsae_ray.errors import shown
from gsae_ray.saes.sae_config import SAEConfig
from gsae_ray.saes.saelens_config import NO_FORM, saelens_config

CONFIG_FILE = "cfg.json"
FORMAT = "gsae-2"
FIRST_FORMAT = "gsae-1"
OURS = "gsae"
"""The key of what SAELens does not have."""
CHECKED = ("architecture", "apply_b_dec_to_input", "normalize_activations", "reshape_activations")
"""Keys of SAELens, beside those of the architecture, that say what function of which activations an SAE is."""


def encode(cfg: SAEConfig, form: Mapping[str, Any]) -> str:
    """The text of `cfg.json`.

    Args:
        cfg: the SAE's configuration.
        form: see `saelens_config`.
    """
    exclude = {"d_in", "d_sae", "d_out", *(() if cfg.is_transcoder else ("target", "skip"))}
    own = {"format": FORMAT, **cfg.model_dump(mode="json", exclude=exclude)}
    return json_text({**saelens_config(cfg, form), OURS: own})


def json_text(value: Mapping[str, Any]) -> str:
    """A JSON object to read; NaN and infinities, which JSON does not have, become null."""
    return pydantic_core.to_json(value, indent=2, inf_nan_mode="null").decode()


def is_ours(text: str | bytes) -> bool:
    """Whether a `cfg.json` is of an SAE of ours: it has `gsae`, or a `format` that is one of ours, of any version.

    Raises:
        ValueError: it is no JSON object.
    """
    found = json_object(text)
    return OURS in found or str(found.get("format")).startswith(OURS)


def decode(text: str | bytes) -> tuple[SAEConfig, dict[str, Any]]:
    """The configuration of a saved SAE, and what the file says for SAELens: of gsae-1 nothing.

    Raises:
        ValueError: it is none of ours, or damaged; in one line.
    """
    found = json_object(text)
    own = found.get(OURS, found)
    if not isinstance(own, dict):
        raise ValueError(f"{CONFIG_FILE}: {OURS} is {shown(own)}, no JSON object")
    expected = FORMAT if OURS in found else FIRST_FORMAT
    if "format" not in own:
        raise ValueError(f"{CONFIG_FILE}: no format; this is not an SAE of ours")
    if (version := own["format"]) != expected:
        raise ValueError(f"{CONFIG_FILE}.format: {shown(version)} is not {expected}; a newer gsae-ray may read it")
    sizes = {key: found[key] for key in ("d_in", "d_sae", "d_out") if key in found}
    fields = {key: value for key, value in own.items() if key != "format"}
    try:
        cfg = SAEConfig.model_validate({**fields, **sizes})
    except pydantic.ValidationError as error:
        raise one_line(error) from error
    return cfg, found if OURS in found else {}


def with_metadata(text: str | bytes, entries: Mapping[str, Any]) -> str:
    """The text of a `cfg.json` with more entries in the metadata of its SAE, which nothing else in it depends on.

    Raises:
        ValueError: as `decode`.
    """
    decode(text)
    found = json_object(text)
    own = found.get(OURS, found)
    own["metadata"] = {**own.get("metadata", {}), **entries}
    return json_text(found)


def one_line(error: pydantic.ValidationError, *within: str) -> ValueError:
    """The first thing that is wrong with a value of `cfg.json`; `within` are the keys that lead to it."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in (CONFIG_FILE, *within, *first["loc"]))
    return ValueError(f"{shown(key, quoted=False)}: {shown(first['input'])}: {first['msg']}")


def check_agreement(cfg: SAEConfig, form: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Checks that SAELens' keys of a file are those of the SAE that `gsae` says.

    Raises:
        ValueError: they are not, so that SAELens would read another SAE.
    """
    if str(found.get("architecture")).startswith(NO_FORM):  # another version of us may find one, or other words
        return
    expected = saelens_config(cfg, form)
    for key in {**dict.fromkeys(CHECKED), **form}:
        if key in found and found[key] != expected[key]:
            raise ValueError(
                f"{CONFIG_FILE}: {key} is {shown(found[key])}, but {shown(expected[key])} by what {OURS} says; "
                f"mend it, or remove {OURS} where SAELens' keys are right"
            )


def json_object(text: str | bytes, file: str = CONFIG_FILE) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: it holds something else; in one line.
    """
    try:
        found = pydantic_core.from_json(text)
    except ValueError as error:
        raise ValueError(f"{file}: {shown(error, quoted=False)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: {shown(found)} is no JSON object")
    return found
