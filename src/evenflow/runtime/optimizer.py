"""Clipping by one global gradient norm, and AdamW.

The norm is taken for each parameter and combined in whole-model order, so that it does not depend on which
rank holds which parameter: every rank fills its own entries of one vector, the ranks' vectors are summed
(x + 0 is exactly x), and each takes the norm of the same numbers in the same order. A gradient that several processes
hold is entered by one of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from evenflow.runtime.parts import local
from evenflow.runtime.precision import is_rounded

MOMENTS = ("exp_avg", "exp_avg_sq")
WEIGHT = "weight"
_ROW = 1024


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW's settings.

    Attributes:
        beta1: how much of the first moment is kept.
        beta2: of the second.
        epsilon: is added to the second one's root.
        weight_decay: a step takes this share of the weights, times the learning rate; of parameters with two or more
            dimensions.
        undecayed: patterns, as of file names, of parameters that are not decayed either.
        clip_norm: gradients are scaled down to this norm of the whole model's; 0 for never.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    undecayed: tuple[str, ...] = ()

    def decays(self, name: str, dimensions: int) -> bool:
        """Whether a parameter's weights are decayed."""
        return dimensions >= 2 and not any(fnmatchcase(name.partition("@")[0], pattern) for pattern in self.undecayed)


class Optimizer:
    """AdamW over one rank's parameters.

    Of parameters in bf16 it keeps and updates copies in fp32 (master weights); each step rounds them to the parameters.

    Args:
        parameters: this rank's parameters by name; `NAME@7` is a piece of one, from its number 7 on.
        all_names: every parameter's name of the whole model, in its order.
        settings: AdamW's settings.
        uncounted: those whose gradients another process counts in the norm.

    Attributes:
        kinds: what it keeps of each parameter.
    """

    kinds = MOMENTS

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        all_names: Sequence[str],
        settings: OptimizerSettings,
        uncounted: Collection[str] = (),
    ) -> None:
        self.parameters = dict(parameters)
        self.settings = settings
        self._slots = [
            (all_names.index(name.partition("@")[0]), parameter)
            for name, parameter in self.parameters.items()
            if name not in uncounted
        ]
        self._norms = len(all_names)
        self._rounded = [name for name, own in self.parameters.items() if is_rounded(own)]
        self._masters = self.parameters | {
            name: nn.Parameter(self.parameters[name].detach().float()) for name in self._rounded
        }
        decayed = [own for name, own in self._masters.items() if settings.decays(name, own.ndim)]
        plain = [own for name, own in self._masters.items() if not settings.decays(name, own.ndim)]
        groups = [(decayed, settings.weight_decay), (plain, 0.0)]
        self._adamw = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for group, decay in groups if group],
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            fused=True,
        )

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """The squared norm of each of the whole model's gradients [parameters], in host memory, as far as it is here.

        A gradient that one process has alone counts to the bit what it is; those that lie in pieces add up.
        """
        own = [
            (slot, _squared_norm(local(parameter.grad)))
            for slot, parameter in self._slots
            if parameter.grad is not None
        ]
        norms = torch.zeros(self._norms, dtype=torch.float64)
        if own:  # stacked where they are, so that a device is waited for once, not once a parameter
            slots, values = zip(*own, strict=True)
            norms.index_add_(0, torch.tensor(slots), torch.stack(values).to("cpu"))
        return norms

    @torch.no_grad()
    def step(self, norms: Tensor, learning_rate: float) -> float:
        """Clip this rank's gradients, update its parameters, forget the gradients.

        Args:
            norms: the squared gradient norms [parameters], added over all processes.
            learning_rate: this step's.

        Returns:
            The global gradient norm before clipping.
        """
        norm = global_norm(norms)
        factor = self.settings.clip_norm / (norm + 1e-6)
        if self.settings.clip_norm and factor < 1:
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate
        for name in self._rounded:
            self._masters[name].grad, self.parameters[name].grad = self.parameters[name].grad, None
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._round()
        return norm

    def _round(self) -> None:
        """Make the parameters that compute what the optimizer has of them."""
        if self._rounded:
            torch._foreach_copy_(
                [self.parameters[name] for name in self._rounded], [self._masters[name] for name in self._rounded]
            )

    def weights(self) -> dict[str, Tensor]:
        """Every parameter in fp32, as `weight/NAME`: master weights, where there are any."""
        return {f"{WEIGHT}/{name}": own.detach() for name, own in self._masters.items()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take up master weights that `weights` gave, whole, of those parameters that have any."""
        for key in self._rounded:
            name, _, begin = key.partition("@")
            if f"{WEIGHT}/{name}" in weights:
                self._masters[key].copy_(_piece(weights[f"{WEIGHT}/{name}"], begin, self._masters[key]))
        self._round()

    def moments(self) -> dict[str, Tensor]:
        """Both moments of every parameter that has been updated, as `exp_avg/NAME` and `exp_avg_sq/NAME`."""
        return {
            f"{kind}/{name}": self._adamw.state[own][kind]
            for name, own in self._masters.items()
            if own in self._adamw.state
            for kind in MOMENTS
        }

    def set_moments(self, moments: Mapping[str, Tensor], step: int) -> None:
        """Take up the moments that `moments` gave after `step` steps; parameters without any start afresh."""
        for key, parameter in self._masters.items():
            name, _, begin = key.partition("@")
            if f"{MOMENTS[0]}/{name}" not in moments:
                continue
            state = {"step": torch.tensor(float(step), device=parameter.device)}  # where the fused kernel wants it
            for kind in MOMENTS:
                own = _piece(moments[f"{kind}/{name}"], begin, parameter)
                state[kind] = own.to(parameter.device, copy=True)
            self._adamw.state[parameter] = state


def global_norm(norms: Tensor) -> float:
    """The whole model's gradient norm, from the squared ones of its parameters: the same number on every rank."""
    return float(torch.linalg.vector_norm(norms.sqrt()))


def _piece(whole: Tensor, begin: str, parameter: Tensor) -> Tensor:
    """What belongs to a parameter, or to the piece of one that begins at a number of it."""
    return whole.reshape(-1)[int(begin) :][: parameter.numel()].view_as(parameter) if begin else whole


def _squared_norm(gradient: Tensor) -> Tensor:
    """A gradient's squared norm in 64 bits, from those of short rows in 32.

    One sum of a large gradient in 32 bits is off by some 1e-6, and by something else for each way to cut it in pieces.
    """
    flat = gradient.reshape(-1)
    whole = len(flat) // _ROW * _ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1).double()
    rest = torch.linalg.vector_norm(flat[whole:]).double()
    squared: Tensor = rows.square().sum() + rest.square()
    return squared
