"""The warm-up: how much of each sample's loss is cross entropy, by what the network has learned so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.special import entr

from noisyloss._log_probs import finite_log, is_eager, is_transformed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noisyloss._log_probs import Spread

SPAN = 10240  # samples after which a batch has faded to a third or so: eighty batches of 128


class Warmup(nn.Module):
    """The share of cross entropy in each sample's loss.

    It is ``(1 - i**2) ** (1000 d**16 kappa r**8 + (200 v (v - u))**8)``.

    i is what a prediction says of its sample, its divergence from the mean prediction over the most that can be.
    Sureness alone would not do: a network that is sure of one class whatever the sample has learned nothing.
    The first term is for labels that all contradict alike. kappa is Cohen's, how far predictions agree with their
    targets beyond chance, so how much they know. r is how far the surest contradict their targets over how far all do:
    where labels are right predictions err the less the surer they are, and cross entropy stays.
    d is the entropy of the mean prediction over that of the mean target: a network that has lost some of the classes
    is sure and wrong, whatever the labels, and the robust loss would never find them again.
    The second is for a network that memorises wrong labels while it learns, which is the surer the more it has
    memorised, so that r is small. u is how many labels predictions hold for less likely than the average class, where
    they say much. A hard sample's label is seldom among those, and half of the wrong ones are, or more, until they are
    memorised. Where predictions know little others are as well, so much the less is counted.
    v is the highest u has been. As long as u stays there no wrong label is memorised, and cross entropy, which learns
    faster, does no harm. When u falls, wrong labels are being memorised, and the robust loss takes over; what the
    network has learned by then it holds, and u with it. With right labels v is small.
    c is what predictions tell of their targets over what they claim to tell, both in nats. The first steps at a high
    learning rate make a network sure and wrong, whatever the labels are like: what claims too much is no witness.

    kappa, r, d, u and c are those of the last ten thousand samples or so.
    """

    tally: Tensor
    highest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tally", torch.zeros(12))
        self.register_buffer("highest", torch.zeros(()))  # v

    @torch.no_grad()
    def share(self, seen: Spread, of_targets: Sequence[Tensor], mean_target: Tensor, counted: Tensor | None) -> Tensor:
        """Return the share for each sample, and count those ``counted``, all if None.

        ``of_targets`` are their probability, its logarithm, and whether it is unlikely, each a mean over the target.
        """
        p_y, log_p_y, unlikely = of_targets
        divergence, _, mean = seen
        most = math.log(max(2, min(mean.numel(), divergence.numel())))
        i2 = (divergence / most).square().clamp(max=1)
        i8 = i2.pow(4)
        samples = torch.stack([p_y, log_p_y.clamp(min=-100), divergence, i2, i2 * unlikely, i8, i8 * p_y])
        if counted is not None:
            samples = samples.where(counted, 0.0)
        log_mean = finite_log(mean)
        of_classes = [mean_target, mean_target * mean, mean_target * log_mean, mean * log_mean, entr(mean_target)]
        classes = torch.stack(of_classes).flatten(1).sum(1)
        if counted is not None:
            classes = classes * counted.to(i2.dtype).mean()
        tally = self._tallied(torch.cat([samples.flatten(1).mean(1), classes]), i2.numel())
        right, log_right, claimed, sum_i2, unlikely_i2, sum_i8, right_i8 = tally[:7]
        all_, chance, log_chance, minus_entropy, most_entropy = tally[7:]
        tiny = torch.finfo(i2.dtype).tiny
        kappa = _clip((right - chance) / (all_ - chance + tiny))
        c = (log_right - log_chance) / (claimed + tiny)
        d = _clip(-minus_entropy / (most_entropy + tiny))
        r = _clip((sum_i8 - right_i8) * all_ / (sum_i8 * (all_ - right) + tiny))
        u = _clip(unlikely_i2 / (sum_i2 + tiny) - 0.0002 / (kappa * kappa + tiny))
        v = self._highest(u * _clip((1 + c) / 2) * _clip(10 * all_), _clip(30 * kappa))
        return (1 - i2).pow(1000 * d**16 * kappa * r**8 + (200 * v * _clip(v - u)) ** 8)

    def _tallied(self, batch: Tensor, size: int) -> Sequence[float] | Sequence[Tensor]:
        """Mix the means of a batch into the tally; return it, as floats where these cost less than tensors."""
        rate = size / (SPAN + size)
        if self.tally.device != batch.device or self.tally.dtype != batch.dtype:
            self.tally, self.highest = self.tally.to(batch), self.highest.to(batch)
        if is_transformed():  # no state leaves a transform: it uses what there is
            return self.tally.lerp(batch, rate).unbind()
        # A step that overflows, and that a gradient scaler skips, must not be remembered.
        if is_eager() and batch.device.type == "cpu":
            if math.isfinite(sum(batch.tolist())):
                self.tally.lerp_(batch, rate)
            return self.tally.tolist()
        self.tally.lerp_(batch.where(batch.isfinite().all(), self.tally), rate)
        return self.tally.unbind()

    def _highest(self, u: float | Tensor, kept: float | Tensor) -> float | Tensor:
        """Return the highest so far, of which so much is kept."""
        if not isinstance(u, Tensor):
            before = self.highest.item()
            highest = max(u, kept * before)
            if highest != before:
                self.highest.fill_(highest)
            return highest
        highest = torch.maximum(u, kept * self.highest)
        if not is_transformed():
            self.highest.copy_(highest)
        return highest


def _clip(x: float | Tensor) -> float | Tensor:
    return x.clamp(0, 1) if isinstance(x, Tensor) else min(max(x, 0.0), 1.0)
