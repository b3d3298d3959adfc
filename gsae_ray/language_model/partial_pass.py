"""Forward passes that begin in the middle of the model, at a layer whose input an earlier pass has left.

All else stays the model's own code: its embedding, masks and rotary angles, the layers from there on, and its head. The
layers before are called, and give what was kept in place of what they would compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from gsae_ray.config.site import Site
from gsae_ray.language_model.hooks import Edit, edited, layers_of, locate


def layers_before(model: nn.Module, site: Site) -> int:
    """The number of first layers that passes which differ at `site` alone have in common."""
    module, io = locate(model, site)
    for index, layer in enumerate(layers_of(model) or ()):
        if module is layer:
            return index + (io == "output")
        if any(module is inner for inner in layer.modules()):
            return index
    return 0


def shares_keys(config: PretrainedConfig, skip: int) -> bool:
    """Whether by a model's configuration layers from number `skip` on take keys and values from one before that.

    So do Gemma 3n and Gemma 4: each of the last layers takes those of the last one of its kind before these.
    """
    text = config.get_text_config()
    kinds, shared = getattr(text, "layer_types", None) or (), getattr(text, "num_kv_shared_layers", None) or 0
    first = max(0, len(kinds) - shared)
    source = {kind: layer for layer, kind in enumerate(kinds[:first])}
    return any(source.get(kinds[layer], layer) < skip <= layer for layer in range(first, len(kinds)))


def run_whole(skip: int, layers: int, why: str) -> str:
    """The line that tells the user that evaluations do not begin after the first `skip` of so many layers."""
    return f"evaluations after layer {skip - 1} run all {layers} layers of the model, not only those that follow: {why}"


class _State(NamedTuple):
    """What a layer gives."""

    x_BTn: Tensor
    others: tuple[None, ...] | None
    """What it gives besides the residual stream, as nothing; None where it gives no tuple."""


class PartialPasses:
    """Logits of the same slices of tokens again and again, with other edits each time.

    What layers give is kept up to a number of bytes. Passes begin in the middle only where the logits of the first
    slice then equal those of a whole pass bit for bit: they do not where layers hand each other more than the residual
    stream, keys and values say, or are called several times.
    """

    def __init__(self, model: nn.Module, slices: Sequence[Tensor], max_bytes: int) -> None:
        """Runs no forward pass yet.

        Args:
            model: the language model.
            slices: token ids [B, T] each, on its device.
            max_bytes: of what is kept. What spares fewer layers gives way to what spares more; slices of which nothing
                is kept are run whole.
        """
        self.model = model
        self.slices = slices
        self.room = max_bytes
        self.layers = layers_of(model) or nn.ModuleList()
        self._kept: dict[tuple[int, int], _State] = {}
        """(layers that are left out, slice) -> what the last one of them gave."""
        self._equal: dict[int, bool] = {0: False}
        """Layers that are left out -> whether that changes nothing."""

    def notices(self) -> list[str]:
        """A line for each layer after which passes were to begin so far, and give other logits where they do."""
        why = "passes of this model that begin there give other logits"
        return [run_whole(skip, len(self.layers), why) for skip, equal in self._equal.items() if skip and not equal]

    @torch.no_grad()
    def logits(self, index: int, skip: int, edits: Mapping[Site, Edit]) -> Tensor:
        """Returns the logits [B, T, vocabulary] of a slice.

        Args:
            index: the slice.
            skip: number of first layers that no edit is in; of the last of them, edits may take the output.
            edits: as of `hooks.edited`.
        """
        if skip not in self._equal:
            self._equal[skip] = self._changes_nothing(skip)
        if not self._equal[skip]:
            return self._run(self.slices[index], edits)
        if (kept := self._kept.get((skip, index))) is not None:
            with self._beginning_after(skip, kept):
                return self._run(self.slices[index], edits)
        with self._seeing(skip, lambda state: self._keep(skip, index, state)):
            return self._run(self.slices[index], edits)

    def _run(self, tokens_BT: Tensor, edits: Mapping[Site, Edit]) -> Tensor:
        with edited(self.model, edits):
            logits: Tensor = self.model(tokens_BT, use_cache=False).logits
        return logits

    def _changes_nothing(self, skip: int) -> bool:
        """Whether the logits of the first slice stay the same, to the last bit, where layers are left out."""
        states: list[_State] = []
        with self._seeing(skip, states.append):
            whole_BTV = self._run(self.slices[0], {})
        # Another pass between the two: what layers have left elsewhere, on modules say, is not that of this slice then.
        self._run(self.slices[0].roll(1, dims=1), {})
        try:
            with self._beginning_after(skip, states[0]):
                equal = _same_bits(self._run(self.slices[0], {}), whole_BTV)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the model's own code misses what a layer should have left
            equal = False
        return equal

    @contextmanager
    def _seeing(self, skip: int, see: Callable[[_State], None]) -> Iterator[None]:
        """A context in which a function gets what the last layer to be left out gives, before edits of it."""

        def look(_layer: nn.Module, _args: Any, output: Any) -> None:
            x_BTn, *others = output if isinstance(output, tuple) else (output,)
            if isinstance(x_BTn, Tensor):  # a copy: the model may write to its own, see `Edit`
                see(_State(x_BTn.clone(), (None,) * len(others) if isinstance(output, tuple) else None))

        handle = self.layers[skip - 1].register_forward_hook(look)
        try:
            yield
        finally:
            handle.remove()

    def _keep(self, skip: int, index: int, state: _State) -> None:
        """Keeps what a layer gave, where there is room, or can be made."""
        nbytes = state.x_BTn.nbytes
        sparing_less = sorted(key for key in self._kept if key[0] < skip)
        if nbytes <= self.room + sum(self._kept[key].x_BTn.nbytes for key in sparing_less):
            while nbytes > self.room:
                self.room += self._kept.pop(sparing_less.pop(0)).x_BTn.nbytes
            self._kept[skip, index] = state
            self.room -= nbytes

    @contextmanager
    def _beginning_after(self, skip: int, state: _State) -> Iterator[None]:
        """A context in which the first layers compute nothing, and the last one of them gives what was kept."""

        def as_layers_do(x_BTn: Any) -> Any:
            return x_BTn if state.others is None else (x_BTn, *state.others)

        def pass_on(*args: Any, **kwargs: Any) -> Any:
            return as_layers_do(args[0] if args else next(iter(kwargs.values())))  # hidden states come first

        def give(*_args: Any, **_kwargs: Any) -> Any:
            return as_layers_do(state.x_BTn.clone())  # what comes after may write to it

        with ExitStack() as stack:
            for layer in self.layers[: skip - 1]:
                stack.enter_context(_instead_of_forward(layer, pass_on))
            stack.enter_context(_instead_of_forward(self.layers[skip - 1], give))
            yield


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@contextmanager
def _instead_of_forward(module: nn.Module, forward: Any) -> Iterator[None]:
    """A context in which calls of a module call this; whoever has replaced its `forward` before finds that again."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = before
