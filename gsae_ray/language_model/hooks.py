"""Reading and splicing the activations of sites in a model, for every supported decoder family.

Points are named as TransformerLens names them; what stands for them in each family is in `families`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from gsae_ray.config.site import IO, POINTS, Site
from gsae_ray.errors import UserError, suggest
from gsae_ray.language_model.families import FAMILIES


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    for name in path.split(".") if path else ():
        model = getattr(model, name, None)  # type: ignore[assignment]
        if not isinstance(model, nn.Module):
            return None
    return model


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The layers of the language model; None where they are not found.

    Outside of the families' table, the first list of as many modules as it has layers.
    """
    family = FAMILIES.get(str(model.config.model_type))  # type: ignore[union-attr]
    if family:  # a vision tower may have as many layers
        found = (_submodule(model, path) for path in family.layers)
        return next((layers for layers in found if isinstance(layers, nn.ModuleList)), None)
    n_layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)  # type: ignore[operator, union-attr]
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers)
    return next(lists, None)


def _without_attention(model: nn.Module, layer: int) -> str | None:
    """The parts of a layer that has no attention (a state-space block, say), in words; None for any other layer.

    For families outside of the table too, hybrids among them: told by how classes and modules are called.
    """
    layers = layers_of(model)
    if layers is None or not 0 <= layer < len(layers):
        return None
    for path, module in layers[layer].named_modules():
        called = path.rpartition(".")[2]  # a linear_attn is no attention with heads
        if "attention" in type(module).__name__.lower() or called in ("attn", "self_attn", "attention"):
            return None
    return ", ".join(name for name, _ in layers[layer].named_children())


def _like(model: nn.Module, path: str) -> list[str]:
    """Up to 40 modules that `path` may stand for.

    Those with the same end, since multimodal classes keep the same layers elsewhere; else those of the same depth.
    """
    names = [name for name, _ in model.named_modules() if name]
    parts = path.split(".")
    for start in range(1, len(parts) - 1):
        end = ".".join(parts[start:])
        if found := [name for name in names if f".{name}".endswith(f".{end}")]:
            return found[:40]
    return [name for name in names if name.count(".") == path.count(".")][:40]


def locate(model: nn.Module, site: Site) -> tuple[nn.Module, IO]:
    """The module whose input or output a site is, and which of the two.

    Raises:
        UserError: the family is not known, the layer is out of range, or there is no such module.
    """
    if site.layer is None:
        path, _, io = site.name.rpartition(":")
        if not path or io not in ("input", "output"):
            raise UserError(
                f"sites: {site.name!r} is neither a point of a layer (blocks.0.{POINTS['resid_post']}) nor a module "
                "with its side (model.layers.0.mlp:output)"
            )
        module = _submodule(model, path)
        if module is None:
            raise UserError(f"sites.modules: no module {path!r} in this model; {suggest(path, _like(model, path))}")
        return module, "input" if io == "input" else "output"
    model_type = str(model.config.model_type)  # type: ignore[union-attr]
    if site.point in ("attn_z", "attn_out") and (parts := _without_attention(model, site.layer)):
        raise UserError(
            f"sites.points: no {site.name} in this {model_type} model: layer {site.layer} has no attention, so no "
            f"attention output matrix W_O (it has {parts}); choose other layers for {site.point}, or name one of its "
            "modules: sites.modules"
        )
    layers = layers_of(model)
    if model_type in FAMILIES and layers is None:
        raise UserError(
            f"sites.points: this {model_type} model keeps its layers elsewhere than others of its family, in none of "
            f"{', '.join(FAMILIES[model_type].layers)}; its modules can be named by path: sites.modules"
        )
    if model_type not in FAMILIES or layers is None:
        raise UserError(
            f"sites.points: the points of model family {model_type!r} are not known; "
            f"{suggest(model_type, FAMILIES)}; any model's modules can be named by path: sites.modules"
        )
    family = FAMILIES[model_type]
    if not 0 <= site.layer < len(layers):
        raise UserError(f"sites.layers: {site.layer} is out of range; this model has layers 0 to {len(layers) - 1}")
    if site.point not in family.points:
        raise UserError(
            f"sites.points: no {site.name} in this {model_type} model: a layer {family.besides}, so that "
            "resid_pre + attn_out + mlp_out is not resid_post; "
            f"choose from {', '.join(family.points)}, or name a module: sites.modules"
        )
    path, io = family.points[site.point]
    module = _submodule(layers[site.layer], path)
    if module is None and site.point == "mlp_post" and _submodule(layers[site.layer], "mlp.experts"):
        raise UserError(
            f"sites.points: no {site.name} in this {model_type} model: layer {site.layer} is a mixture of experts, "
            "which has no MLP neurons that all tokens share; choose mlp_out, or other layers"
        )
    if module is None:
        raise UserError(f"sites.points: {site.point} is not available in this {model_type} model (no {path!r})")
    return module, io


def check_targets(model: nn.Module, targets: Mapping[str, Sequence[Site]]) -> None:
    """Checks that the model has what transcoders are to compute.

    Args:
        model: the language model, without weights if need be.
        targets: key of the sweep file -> points that it names.

    Raises:
        UserError: as `locate`, but that it names the key.
    """
    for key, sites in targets.items():
        for site in sites:
            try:
                locate(model, site)
            except UserError as error:
                raise UserError(f"{key}: {str(error).removeprefix('sites.points: ')}") from error


def by_module(model: nn.Module, site: Site) -> Site:
    """A site as the input or output of a module, by its path.

    Raises:
        UserError: as `locate`.
    """
    module, io = locate(model, site)
    return Site.of_module(next(name for name, found in model.named_modules() if found is module), io)


Edit = Callable[[Tensor], Tensor | None]
"""A function that gets a site's activations [B, T, n] during a forward; what it returns, if anything, replaces them.

It must not change its argument, nor keep a reference to it: models go on writing to tensors that they have passed on
(Falcon adds the attention's output to the MLP's, in place).
"""


def _hook(module: nn.Module, io: IO, edit: Edit) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks that call `edit` with the module's (first) input or output. Tuples keep their other members."""
    if io == "output":

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            is_tuple = isinstance(output, tuple)
            new = edit(output[0] if is_tuple else output)
            return None if new is None else ((new, *output[1:]) if is_tuple else new)

        yield module.register_forward_hook(after)
        return
    replaced: list[tuple[Tensor, Tensor, int]] = []

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = next(iter(kwargs), "")  # the hidden states come first in every family's signature
        old: Any = args[0] if args else kwargs.get(first)
        new = edit(old)
        if new is None:
            return None
        replaced.append((old, new, new._version))
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, first: new})

    def written(_module: nn.Module, _args: Any, _output: Any) -> None:
        """Copies what the module wrote into its replaced input back to the original, which is how it passes it on."""
        for old, new, version in replaced:
            if new._version != version:
                old.copy_(new)
        replaced.clear()

    yield module.register_forward_pre_hook(before, with_kwargs=True)
    yield module.register_forward_hook(written)


@contextmanager
def edited(model: nn.Module, edits: Mapping[Site, Edit]) -> Iterator[None]:
    """A context in which every forward of `model` passes each site's activations through its edit."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            for handle in _hook(*locate(model, site), edit):
                stack.callback(handle.remove)
        yield


class _AllCaptured(Exception):
    """Ends a forward pass early; never leaves `capture`."""


def forward(model: nn.Module, tokens_BT: Tensor) -> Any:
    """Runs `model`, which may be on the meta device, without weights; returns its output."""
    if not tokens_BT.is_meta:
        return model(tokens_BT, use_cache=False)
    # With a cache transformers skips a look at the data for packed sequences, which the meta device has not. Some
    # multimodal classes look before their language model makes the cache, so they are given one.
    text = model.config.get_text_config()  # type: ignore[operator, union-attr]
    takes = () if text is model.config else inspect.signature(model.forward).parameters
    names = [name for name in ("cache", "past_key_values") if name in takes]  # renamed in transformers 5.24
    return model(tokens_BT, use_cache=True, **{name: DynamicCache(config=text) for name in names[:1]})


@torch.no_grad()
def capture(
    model: nn.Module, tokens_BT: Tensor, sites: Sequence[Site], kept_BT: Tensor | None = None
) -> dict[Site, Tensor]:
    """The activations of all `sites` in one forward that stops at the deepest of them.

    Args:
        model: the language model.
        tokens_BT: token ids [B, T], on the model's device.
        sites: where to read; each is reached once in a forward (see `site_widths`).
        kept_BT: the positions to take; default: all of them.

    Returns:
        site -> [R, n], the rows of the kept positions, context by context; without `kept_BT` [B, T, n]. In the model's
        dtype, on its device.
    """
    captured: dict[Site, Tensor] = {}
    kept_R = None if kept_BT is None else kept_BT.flatten().nonzero()[:, 0]

    def keep(site: Site, x_BTn: Tensor) -> None:
        if kept_R is None:
            captured[site] = x_BTn.clone()  # a copy, see `Edit`
        else:  # another; by the mask it takes several times as long (torch 2.13, CPU)
            captured[site] = x_BTn.flatten(0, 1).index_select(0, kept_R.to(x_BTn.device))
        if len(captured) == len(sites):
            raise _AllCaptured

    edits: dict[Site, Edit] = {site: (lambda x, site=site: keep(site, x)) for site in sites}  # type: ignore[misc]
    with edited(model, edits), suppress(_AllCaptured):
        forward(model, tokens_BT)
    missing = [site.name for site in sites if site not in captured]
    if missing:
        raise UserError(f"sites: {missing[0]} is not reached by this model's forward pass on text")
    return captured


@torch.no_grad()
def site_widths(model: nn.Module, sites: Sequence[Site]) -> dict[Site, int]:
    """The width of the activations at each site. The model may be on the meta device, without weights.

    Raises:
        UserError: as `locate`; or a forward pass does not reach the site exactly once (a module that several layers
            share is called more often), or what it carries is not one vector for each position.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device=next(model.parameters()).device)
    carried: dict[Site, list[Any]] = {site: [] for site in sites}

    def record(site: Site, x: Any) -> None:
        carried[site].append(list(x.shape) if isinstance(x, Tensor) else type(x).__name__)

    edits: dict[Site, Edit] = {site: (lambda x, site=site: record(site, x)) for site in sites}  # type: ignore[misc]
    with edited(model, edits):  # the whole forward: calls beyond the deepest site count too
        forward(model, tokens)
    for site, shapes in carried.items():
        if not shapes:
            raise UserError(f"sites: {site.name} is not reached by this model's forward pass on text")
        if len(shapes) > 1:
            raise UserError(
                f"sites: {site.name} is called {len(shapes)} times in a forward pass of this model, so its activations "
                "are not those of one place; name a module that is called once (sites.modules)"
            )
        shape = shapes[0]
        if not isinstance(shape, list) or len(shape) != 3 or shape[:2] != [1, 2]:
            raise UserError(
                f"sites: {site.name} carries {shape} for tokens [1, 2]; a site needs [batch, position, width]"
            )
    return {site: shapes[0][2] for site, shapes in carried.items()}
