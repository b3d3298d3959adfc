"""The recipe of a trial: what is minimised (objective), and how rates and coefficients change (schedule).

`TrainingSettings` is what a sweep file says, with grids and open defaults; `TrialTraining` is what one trial does, with
every setting resolved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from gsae_ray.errors import shown
from gsae_ray.fields import AtMost, Count, Finite32, Fraction, Grid, InMemory, Seed, Settings, unique
from gsae_ray.saes.objective import Choice, Objective

Schedule = Literal["paper", "modern"]
EngineName = Literal["dense", "sparse-cpu", "sparse-cuda"]
EngineChoice = Literal["auto", EngineName]
Precision = Literal["float32", "tf32", "bf16"]

PAPER_WARMUP_STEPS = 1000
"""Steps of the paper's lr warm-up, at the start and after every resampling (inferred for the start)."""
BRICKEN_STEPS = (25_000, 50_000, 75_000, 100_000)
BRICKEN_INPUTS = 819_200
"""Optimiser steps before which features are resampled, and rows that are looked at, in Bricken et al. 2023."""


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class ResamplingSettings(Settings):
    """Resampling of silent features (Bricken et al. 2023); `resampling: true` is all of its defaults, `false` none."""

    at_steps: Annotated[tuple[Count, ...], BeforeValidator(_as_tuple)] = Field(
        BRICKEN_STEPS, description="optimiser steps before which features are resampled; [] for never"
    )
    window_steps: Count | None = Field(
        None,
        description="features that were silent for this many steps are resampled; default: half of the first of "
        "at_steps (Bricken: 12,500)",
    )
    inputs: InMemory = Field(
        BRICKEN_INPUTS, description="rows just before the event among which new directions are drawn, by loss squared"
    )
    direction: Literal["centred", "input"] = Field(
        "centred", description="of a new feature: x - b_dec (centred), or x itself (input)"
    )
    rewarm_steps: Annotated[int, Field(ge=0), AtMost(10**15, "no run has more")] | None = Field(
        None,
        description="steps over which lr rises again after each event (cosine, from 0.1 x); default: a 25th of the "
        "first of at_steps (1,000)",
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ResamplingSettings:
        if list(self.at_steps) != sorted(set(self.at_steps)):
            raise ValueError(f"at_steps: {shown(list(self.at_steps))}; they must rise")
        gap = min((b - a for a, b in itertools.pairwise((0, *self.at_steps))), default=math.inf)
        if self.window_steps is not None and self.window_steps > gap:
            raise ValueError(
                f"window_steps: {self.window_steps} is more than the {gap} steps between two of at_steps (or before "
                "the first)"
            )
        return self

    def resolve(self, steps: int) -> Resampling | None:
        """What happens of it in a run of so many steps; None for nothing."""
        events = tuple(step for step in self.at_steps if step < steps)
        if not events:
            return None
        gap = min(b - a for a, b in itertools.pairwise((0, *self.at_steps)))
        return Resampling(
            at_steps=events,
            window_steps=self.window_steps or max(1, min(self.at_steps[0] // 2, gap)),
            inputs=self.inputs,
            direction=self.direction,
            rewarm_steps=self.at_steps[0] // 25 if self.rewarm_steps is None else self.rewarm_steps,
        )


class Resampling(Settings):
    """`ResamplingSettings` of one trial."""

    at_steps: tuple[int, ...]
    window_steps: int
    inputs: int
    direction: Literal["centred", "input"]
    rewarm_steps: int


def _resampling(value: object) -> object:
    return {True: {}, False: {"at_steps": []}}[value] if isinstance(value, bool) else value


def _listed(seeds: object) -> object:
    if isinstance(seeds, int):
        raise ValueError(f"{shown(seeds)} could be one seed, or so many; give a list: [{shown(seeds)}], or [0, 1, 2]")
    return _as_tuple(seeds)


class TrainingSettings(Settings):
    """How an SAE is trained. Every entry of `saes` may override any of these."""

    tokens: Count = Field(description="rows that a trial trains on")
    batch_size: InMemory = Field(4096, description="rows of an optimiser step")
    lr: Grid[Annotated[Finite32, Field(gt=0)]] = Field((3e-4,), description="peak learning rate; a list is a grid")
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), AfterValidator(unique)] = Field(
        (0,), description="seeds of the initialisation, as a list; it is a grid"
    )
    objective: Grid[Choice] = Field(
        ("norm_weighted",),
        description="paper: plain L1 and a unit-norm decoder; norm_weighted: L1 weighted by free decoder norms; a "
        "grid. Of standard and gated SAEs; the others have one loss each and a unit-norm decoder (unit_norm)",
    )
    schedule: Grid[Schedule] = Field(
        ("modern",),
        description="defaults of the keys below. paper: raw inputs, constant lr after 1,000 steps of warm-up (at most "
        "a tenth of the run), resampling. modern: scaled inputs, lr_warmup 0.01, l1_warmup 0.05, lr_decay 0.2, "
        "gradient_clip 1, unit_biases; a grid",
    )
    l1_units: Literal["sum", "paper"] = Field(
        "sum",
        description="units of l1_coefficient. sum: of L2 summed over coordinates, on activations scaled to "
        "E||x||^2 = n, whether or not training scales them; paper: of L2 averaged over coordinates, on raw activations",
    )
    input_scaling: bool | None = Field(None, description="train on activations scaled to E||x||^2 = n")
    lr_warmup: Fraction | None = Field(None, description="fraction of the run over which lr rises (cosine, from 0.1 x)")
    lr_decay: Fraction | None = Field(
        None, description="fraction of the run, at its end, over which lr falls to 0 (linear)"
    )
    l1_warmup: Fraction | None = Field(
        None, description="fraction of the run over which the sparsity coefficient rises"
    )
    gradient_clip: Annotated[Finite32, Field(ge=0)] | None = Field(
        None, description="norm to which the whole gradient is cut; 0: never"
    )
    resampling: Annotated[ResamplingSettings | None, BeforeValidator(_resampling)] = Field(
        None, description="resampling of silent features: true, false, or any of"
    )
    unit_biases: bool | None = Field(
        None, description="learn biases as fast as on activations of E||x||^2 = 1: with lr times the rms norm of x"
    )
    adam_betas: tuple[float, float] = Field((0.0, 0.999), description="Adam's beta 1 and 2 (the paper: 0, 0.999)")
    engine: EngineChoice = Field(
        "dense",
        description="what computes training steps. dense: PyTorch's autograd; sparse-cpu: after the encoder's product "
        "only active features, by kernels that Numba compiles, for trials on CPUs; sparse-cuda: the same on GPUs, by "
        "kernels that Triton compiles; auto: that of the sweep's newest launch, in a first one sparse-cpu for the "
        "SAEs that can have it, else dense (on GPUs always, until sparse-cuda has been measured). Resolved when a "
        "launch begins, and written into it",
    )
    precision: Precision = Field(
        "float32",
        description="of the dense engine's products on GPUs. tf32, bf16: faster, on compute capability 8.0 and later; "
        "sums of products, weights and Adam stay float32 (of bf16 each product's result is rounded, gradients too). "
        "float32 is the default because features near their threshold come out differently otherwise, and what that "
        "does to an SAE has not been measured",
    )
    log_every_tokens: Count | None = Field(
        None, description="rows between two metric rows; default: a fortieth of the run"
    )
    checkpoint_every_tokens: Count | None = Field(
        None, description="rows between two checkpoints, a multiple of log_every_tokens; default: ten intervals"
    )
    snapshots_at: Annotated[tuple[Count, ...], BeforeValidator(_as_tuple)] = Field(
        (),
        description="tokens, as a list that rises: the SAE as it is then is kept and evaluated, too "
        "(`frontier --tokens N`). Training goes on as without; its lr has not decayed by then. A trial has those below "
        "its own tokens",
    )

    @pydantic.field_validator("adam_betas", mode="before")
    @classmethod
    def _betas(cls, value: object) -> object:
        # [0, 0.999] in YAML starts with an int, which torch refuses.
        if not isinstance(value, list):
            return value
        return tuple(float(v) if type(v) is int and 0 <= v <= 1 else v for v in value)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> TrainingSettings:
        if self.tokens < self.batch_size:
            raise ValueError(f"tokens: {self.tokens} is less than one batch of {self.batch_size}")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas: {list(self.adam_betas)}; each must be at least 0 and below 1")
        for schedule in self.schedule:
            values = self._scheduled(schedule)
            if values["lr_warmup"] + values["lr_decay"] > 1:
                raise ValueError(
                    f"lr_warmup + lr_decay = {values['lr_warmup'] + values['lr_decay']:g}; they may take at most 1"
                )
        window = self.resampling.window_steps if self.resampling else None
        if window is not None and window > self.steps:
            raise ValueError(f"resampling.window_steps: {window} is more than the {self.steps} steps of the run")
        self._check_snapshots()
        return self

    def _check_snapshots(self) -> None:
        """Checks each by itself, and their order: which of a sweep's trials has them is another matter.

        Raises:
            ValueError: something is wrong.
        """
        snapshots = list(self.snapshots_at)
        if snapshots != sorted(set(snapshots)):
            raise ValueError(f"snapshots_at: {shown(snapshots)}; they must rise")
        if snapshots and snapshots[0] < self.batch_size:
            raise ValueError(f"snapshots_at: {snapshots[0]} is less than one batch of {self.batch_size}")
        for first, second in itertools.pairwise(snapshots):
            if first // self.batch_size == second // self.batch_size:
                raise ValueError(
                    f"snapshots_at: {first} and {second} are the same step, with batches of {self.batch_size}; leave "
                    "one out"
                )

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_size

    @property
    def snapshots_before_end(self) -> tuple[int, ...]:
        """Those of `snapshots_at` that come before the last step. They are rounded down to steps as `tokens` is."""
        return tuple(tokens for tokens in self.snapshots_at if tokens // self.batch_size < self.steps)

    def _scheduled(self, schedule: Schedule) -> dict[str, Any]:
        """The keys that a schedule sets: the file's values, and for the others the schedule's defaults."""
        given = {key: getattr(self, key) for key in SCHEDULED}
        return {key: default if given[key] is None else given[key] for key, default in preset(schedule, self.steps)}

    def resolve(self, lr: float, seed: int, objective: Objective, schedule: Schedule) -> TrialTraining:
        """The training of one trial of the grid; intervals are rounded to whole numbers of batches."""
        assert self.engine != "auto", "resolved for the whole sweep (`Sweep.with_engine`)"

        def whole_batches(tokens: float) -> int:
            return max(1, round(tokens / self.batch_size)) * self.batch_size

        scheduled = self._scheduled(schedule)
        resampling: ResamplingSettings | None = scheduled.pop("resampling")
        log_every = whole_batches(self.log_every_tokens or self.tokens / 40)
        checkpoint_every = self.checkpoint_every_tokens or 10 * log_every
        return TrialTraining(
            tokens=self.tokens,
            batch_size=self.batch_size,
            lr=lr,
            seed=seed,
            objective=objective,
            schedule=schedule,
            l1_units=self.l1_units,
            adam_betas=self.adam_betas,
            engine=self.engine,
            precision=self.precision,
            resampling=resampling.resolve(self.steps) if resampling else None,
            log_every_tokens=log_every,
            checkpoint_every_tokens=max(1, round(checkpoint_every / log_every)) * log_every,
            snapshots_at=self.snapshots_before_end,
            **scheduled,
        )

    def notices(self, resamples: bool = True) -> Iterator[str]:
        """Lines on what of the schedules does not fit into the run."""
        for schedule in self.schedule:
            if schedule == "paper" and self.lr_warmup is None and self.steps < 10 * PAPER_WARMUP_STEPS:
                yield (
                    f"schedule paper: its {PAPER_WARMUP_STEPS:,} steps of lr warm-up are shortened to a tenth of the "
                    f"run ({self.steps:,} steps); lr_warmup sets another fraction"
                )
            resampling: ResamplingSettings | None = self._scheduled(schedule)["resampling"]
            dropped = [step for step in resampling.at_steps if step >= self.steps] if resampling else []
            if dropped and resamples:
                yield (
                    f"resampling: at_steps {', '.join(f'{step:,}' for step in dropped)} dropped: the run ends after "
                    f"{self.steps:,} steps"
                )


def preset(schedule: Schedule, steps: int) -> Iterator[tuple[str, Any]]:
    """The defaults of a schedule for a run of so many steps, as (key, value); `resampling` is not resolved."""
    modern = schedule == "modern"
    yield "input_scaling", modern
    yield "lr_warmup", 0.01 if modern else min(PAPER_WARMUP_STEPS / steps, 0.1)
    yield "lr_decay", 0.2 if modern else 0.0
    yield "l1_warmup", 0.05 if modern else 0.0
    yield "gradient_clip", 1.0 if modern else 0.0
    yield "unit_biases", modern
    yield "resampling", None if modern else ResamplingSettings()


SCHEDULED = tuple(key for key, _ in preset("modern", 1))
"""The keys that a schedule sets."""


class TrialTraining(Settings):
    """`TrainingSettings` of one trial: every setting resolved to one value, intervals to whole numbers of batches."""

    tokens: int
    batch_size: int
    lr: float
    seed: int
    objective: Objective
    schedule: Schedule
    l1_units: Literal["sum", "paper"]
    input_scaling: bool
    lr_warmup: float
    lr_decay: float
    l1_warmup: float
    gradient_clip: float
    unit_biases: bool
    resampling: Resampling | None
    adam_betas: tuple[float, float]
    engine: EngineName = "dense"
    """Trials from before there was another name none."""
    precision: Precision = "float32"
    """Nor this one."""
    log_every_tokens: int
    checkpoint_every_tokens: int
    snapshots_at: tuple[int, ...] = ()
    """Those of its own; trials from before there were any have none."""

    @property
    def steps(self) -> int:
        """Optimiser steps; rows that do not fill a batch are left out."""
        return self.tokens // self.batch_size

    @property
    def trained_tokens(self) -> int:
        """Rows of the stream that the trial reads."""
        return self.steps * self.batch_size

    @property
    def snapshot_steps(self) -> dict[int, int]:
        """Number of steps after which the SAE is kept -> the tokens by which `snapshots_at` names that."""
        return {tokens // self.batch_size: tokens for tokens in self.snapshots_at}

    @property
    def recipe(self) -> str:
        """`objective/schedule`, with every deviation from the schedule: `norm_weighted/modern+lr_decay=0`."""
        changed = [
            f"{key}={show(getattr(self, key))}" for key, default in self._preset() if getattr(self, key) != default
        ]
        if self.adam_betas != (0.0, 0.999):
            changed.append(f"adam_betas={show(self.adam_betas)}")
        return "+".join([f"{self.objective}/{self.schedule}", *changed])

    def _preset(self) -> Iterator[tuple[str, Any]]:
        for key, default in preset(self.schedule, self.steps):
            yield key, default.resolve(self.steps) if isinstance(default, ResamplingSettings) else default


def show(value: object) -> str:
    """A setting as text, for a name or a table."""
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, pydantic.BaseModel):
        value = value.model_dump()
    if isinstance(value, Mapping):
        return ",".join(f"{key}:{show(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return "-".join(map(show, value))
    return _shortest(value) if isinstance(value, float) else str(value)


def _shortest(value: float) -> str:
    """A number as short text that no other number has: 0.1, 1e-06, 1e06."""
    digits = (f"{value:.{n}g}" for n in range(6, 18))
    return next((text for text in digits if float(text) == value), str(value)).replace("e+", "e")
