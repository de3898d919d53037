"""One optimizer step of one rank.

Nothing here waits for the device: what is to be decided (is the gradient finite?) is decided on it,
on all ranks alike, and the numbers that a host wants to know leave through `StepAgreement`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from daybreak_trainer.clean import CleanReader
from daybreak_trainer.models.text import TextTower
from daybreak_trainer.models.text_to_image import TextToImage
from daybreak_trainer.models.tricks import Tricks
from daybreak_trainer.objectives import draws as chance
from daybreak_trainer.objectives import flow
from daybreak_trainer.objectives.losses import Seers, Sight, StageLosses
from daybreak_trainer.optim.clip import clip
from daybreak_trainer.optim.ema import Ema
from daybreak_trainer.optim.power_ema import PowerEma
from daybreak_trainer.parallel import microbatch
from daybreak_trainer.parallel.agreement import StepNumbers
from daybreak_trainer.parallel.microbatch import Pass, PassPlan
from daybreak_trainer.parallel.process_group import Rank
from daybreak_trainer.prompts import PromptReader, Prompts
from daybreak_trainer.recipe import Recipe

_NOBODY = Seers()


class StepBatch(Protocol):
    """One rank's part of a global batch; what a step reads of it."""

    @property
    def step(self) -> int: ...
    @property
    def positions(self) -> npt.NDArray[np.int64]: ...
    @property
    def whole(self) -> range: ...
    @property
    def tensors(self) -> Mapping[str, Tensor]: ...
    @property
    def captions(self) -> tuple[str, ...]: ...
    @property
    def global_size(self) -> int: ...
    @property
    def own(self) -> int: ...


class Phases(Protocol):
    """Marks where a step's time goes."""

    def phase(
        self, name: Literal["transfer", "forward_backward", "optimizer"], /
    ) -> AbstractContextManager[None]: ...


class Untimed:
    """Marks nothing."""

    def phase(self, name: str, /) -> AbstractContextManager[None]:
        return nullcontext()


class TrainStep:
    """`model` is the sharded `TextToImage`; `before_update` is called once a step, when the
    gradients are there and before weights, optimizer state or average change."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        text: TextTower,
        optimizers: Sequence[torch.optim.Optimizer],
        ema: Ema,
        rank: Rank,
        dtype: torch.dtype,
        clean: CleanReader,
        *,
        device_batch_size: int | None = None,
        before_update: Callable[[], None] = lambda: None,
        phases: Phases | None = None,
        seers: Seers = _NOBODY,
        null_text: Tensor | None = None,
        power: PowerEma | None = None,
    ) -> None:
        """`seers` are what the recipe's objective needs (`losses.load`), and may be replaced before
        a stage is entered; `null_text` as `PromptReader` has it."""
        self._recipe, self._model = recipe, model
        self._prompts = PromptReader(recipe.text, text, rank.device, dtype, null_text)
        self._optimizers, self._ema, self._power = optimizers, ema, power
        self._rank, self._dtype, self._clean = rank, dtype, clean
        self._device_batch_size = device_batch_size
        self._before_update = before_update
        self._phases = phases if phases is not None else Untimed()
        self.seers = seers
        self.enter(0)

    def enter(self, stage: int) -> None:
        """The steps from here on, and rehearsals, are of this stage of the recipe, from 0."""
        recipe, self._stage = self._recipe, stage
        self._objective = recipe.objective.in_stage(recipe.stages[stage])
        cast(TextToImage, self._model).enter(recipe, stage)
        self._tricks = Tricks.of(recipe, recipe.stages[stage])
        self._parts = StageLosses(
            self._objective, self.seers, recipe.pixels_per_token, self._rank.device
        )

    @property
    def stage(self) -> int:
        """The one that was entered."""
        return self._stage

    @property
    def tricks(self) -> Tricks:
        """Of that stage."""
        return self._tricks

    def seers_flops(self, height: int, width: int) -> float:
        """Of the frozen networks that see an image of `height` × `width` pixels in that stage."""
        return self._parts.flops(height, width)

    def run(self, batch: StepBatch, learning_rate: float) -> StepNumbers:
        """Gradients of the global batch's mean loss, clipped, and one update of weights, optimizer
        state and average. Where loss or gradient of any rank is not finite, none of these change on
        any rank."""
        plan = microbatch.plan(batch.global_size, self._rank.world, self._device_batch_size)
        with self._phases.phase("transfer"):
            batch, prompts = self._prompts.read(batch, plan.passes)
            tensors = self._on_device(batch.tensors)
        with self._phases.phase("forward_backward"):
            shares = self._forward_backward(batch, tensors, prompts, plan)
        with self._phases.phase("optimizer"):
            norm = clip(self._model.parameters(), self._recipe.optimizer.clip_norm)
            finite = torch.isfinite(norm)
        self._before_update()
        with self._phases.phase("optimizer"):
            self._update(batch, learning_rate, found_inf=1.0 - finite.float())
        loss_share = self._parts.weights @ shares
        return StepNumbers(loss_share, norm, finite, self._parts.names, shares)

    def rehearse(self, height: int, width: int, global_size: int, tokens: int) -> None:
        """A pass of this step's shape over nothing, with captions padded to `tokens`: compiles what
        the shape needs, and leaves weights, optimizer and random numbers as they are. All ranks
        call it together."""
        plan = microbatch.plan(global_size, self._rank.world, self._device_batch_size)
        nothing = _Nothing(self._clean.blank(height, width), global_size)
        tensors = self._on_device(nothing.tensors)
        prompts = self._prompts.nothing(tokens)
        self._forward_backward(nothing, tensors, prompts, PassPlan(1, plan.rows))
        self._model.zero_grad(set_to_none=True)

    def _on_device(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        device = self._rank.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}

    # --- forward and backward -------------------------------------------------------------------

    def _forward_backward(
        self,
        batch: StepBatch,
        tensors: Mapping[str, Tensor],
        prompts: Prompts,
        plan: PassPlan,
    ) -> Tensor:
        """This rank's share of each part of the global batch's mean loss, `(parts,)`; the gradient
        of the whole is left summed over the passes and averaged over ranks."""
        model = cast(FSDPModule, self._model)
        weights = self._parts.weights
        total = torch.zeros_like(weights)
        parts = microbatch.split(plan, batch.own)
        for number, part in enumerate(parts, start=1):
            last = number == len(parts)
            model.set_requires_gradient_sync(last)
            model.set_is_last_backward(last)
            rows = self._losses(batch, tensors, prompts, part)
            shares = rows[:, : part.counted].sum(dim=1) / batch.global_size
            share = weights @ shares
            # FSDP averages gradients over ranks; the global batch's mean is the sum of the shares.
            # A loss that is not finite makes the gradient so, which all ranks see in its norm.
            scale = torch.where(share.isfinite(), float(self._rank.world), torch.nan).detach()
            (share * scale).backward()  # type: ignore[no-untyped-call]
            total += shares.detach()
        self._fill_gradients()
        return total

    def _fill_gradients(self) -> None:
        """What a stage does not use gets a gradient of zero in the first step: every parameter has
        its state in the optimizer from then on, so all commits of a run hold the same tensors. In
        later steps it has none and stays as it is, momentum and weight decay included."""
        for optimizer in self._optimizers:
            for parameter in chain(*(group["params"] for group in optimizer.param_groups)):
                if parameter.grad is None and parameter not in optimizer.state:
                    parameter.grad = torch.zeros_like(parameter)

    def _losses(
        self,
        batch: StepBatch,
        tensors: Mapping[str, Tensor],
        prompts: Prompts,
        part: Pass,
    ) -> Tensor:
        """The parts' losses of each row of a pass, `(parts, rows)`; the first `part.counted` rows
        count."""
        recipe, device = self._recipe, self._rank.device
        rows = {name: microbatch.rows(tensor, part) for name, tensor in tensors.items()}
        clean = self._clean.clean(rows)
        images = self._clean.images(rows, clean)
        shape = (clean.shape[1], clean.shape[2], clean.shape[3])
        positions = batch.positions[microbatch.row_numbers(len(batch.positions), part)]
        draws = chance.draw(
            self._objective,
            recipe.text.caption_dropout,
            recipe.seed,
            positions,
            batch.whole,
            shape,
            self._clean.tokens(clean),
            device,
        )
        given = prompts.conditioning(part, draws.drop_caption)
        noised = flow.noised(clean, draws.noise, draws.timesteps).to(self._dtype)
        prediction = self._model(
            noised,
            draws.timesteps,
            given.mask,
            input_ids=given.input_ids,
            text=given.text,
            scores=draws.scores,
            tricks=self._tricks,
        )
        return self._parts.per_sample(prediction, Sight(clean, images, part.counted), draws)

    # --- the update -----------------------------------------------------------------------------

    def _update(self, batch: StepBatch, learning_rate: float, found_inf: Tensor) -> None:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["factor"]
            cast(Any, optimizer).found_inf = found_inf  # fused AdamW's and Muon's, not the base's
            optimizer.step()
        self._ema.update(batch.step + 1, found_inf)
        if self._power is not None:
            self._power.update(batch.global_size, found_inf)
        self._model.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class _Nothing:
    """A batch of which no sample counts."""

    tensors: Mapping[str, Tensor]
    global_size: int
    step: int = 0
    own: int = 0
    captions: tuple[str, ...] = ("",)

    @property
    def positions(self) -> npt.NDArray[np.int64]:
        return np.zeros(1, dtype=np.int64)

    @property
    def whole(self) -> range:
        return range(self.global_size)
