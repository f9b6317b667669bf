"""The warm-up: how much of each sample's loss is cross entropy, by what the network has learned so far."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from noisyloss._log_probs import is_eager, is_transformed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from noisyloss._log_probs import Spread

SPAN = 10240  # samples after which a batch has faded to a third or so: eighty batches of 128
FADING = 10 * SPAN  # v - u falls like 1 / (these and all samples so far)


class Warmup(nn.Module):
    """The share of cross entropy in each sample's loss.

    It is ``(1 - i**2) ** (14 (v - u) / v**0.5 min(1, 10 w)**8 min(1, 1.25 r)**4)**16``.

    i is what a prediction says of its sample, its divergence from the mean prediction over the most that can be.
    Sureness alone would not do: a network that is sure of one class whatever the sample has learned nothing.
    u is how many labels predictions hold for unlikely, where they say much. A hard sample's label is seldom among
    those, and half of the wrong ones are, or more, until they are memorised. Where predictions know little others are
    as well, so much the less is counted. kappa is Cohen's, how far predictions agree with their targets beyond chance.
    c is what predictions tell of their targets over what they claim to tell, both in nats. The first steps at a high
    learning rate make a network sure and wrong, whatever the labels are like: what claims too much is no witness.
    w is the highest u has been; with right labels it is small. v is the same, and fades. As long as u stays there no
    wrong label is memorised, and cross entropy, which learns faster, does no harm. When u falls, wrong labels are being
    memorised, and the robust loss takes over; what the network has learned by then it holds, and u with it. A network
    that learns to tell more makes u fall, too, but slowly: until the robust loss takes over, v fades towards u, the
    more samples were seen the slower, so that a slow fall is the same in a small and in a large data set.
    r is the entropy of the mean prediction over its cross entropy with the mean target: 1 where every class is
    predicted as often as it is a target, less where classes are lost, which the robust loss does not bring back.

    kappa, u, c and r are those of the last ten thousand samples or so.
    """

    tally: Tensor
    highest: Tensor
    faded: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tally", torch.zeros(10))
        self.register_buffer("highest", torch.zeros(()))  # w
        self.register_buffer("faded", torch.zeros(()))  # v
        self.register_buffer("samples", torch.zeros(()))  # n

    def share(self, seen: Spread, of_targets: Sequence[Tensor], counted: Tensor | None) -> Tensor | None:
        """Return the share for each sample, None if it is known to be 1 for all; count those ``counted``, or else all.

        ``of_targets`` are the log-probability by the sample's prediction and by the mean prediction, these two
        probabilities, and whether it is unlikely, each a mean over the target. None of it must require a gradient.
        """
        log_p_y, log_mean_y, p_y, mean_y, unlikely = of_targets
        divergence, log_mean = seen
        added = p_y.numel() if counted is None else counted.sum(dtype=p_y.dtype)
        i2 = (divergence / _log(_clip(added, 2, log_mean.numel()))).clamp(max=1).square()
        ones = torch.ones_like(p_y)
        # A class of which the batch has no sample is not lost: none counts as rarer than half a sample.
        of_mean = [
            (log_mean.exp() * log_mean).sum().expand_as(ones),
            log_mean_y.clamp(min=-_log(_clip(2 * added, 2, math.inf))),
        ]
        of_labels = [ones, p_y, mean_y, log_p_y.clamp(min=-100), log_mean_y]
        tally = self._tallied([*of_labels, divergence, i2, i2 * unlikely, *of_mean], counted, added)
        all_, right, chance, log_right, log_chance, claimed, sum_i2, unlikely_i2, predicted, labelled = tally
        tiny = torch.finfo(i2.dtype).tiny
        kappa = _clip((right - chance) / (all_ - chance + tiny))
        c = (log_right - log_chance) / (claimed + tiny)
        u = _clip(unlikely_i2 / (sum_i2 + tiny) - 0.0005 / (kappa**2 + tiny)) * _clip((1 + c) / 2)
        r = predicted / (labelled - tiny)
        exponent = self._exponent(u, u * _clip(10 * all_), _clip(30 * kappa), added)
        is_known = isinstance(exponent, float)
        if is_known and exponent == 0:  # as long as u does not fall, which needs no look at each sample
            return None
        share = (1 - i2).pow(exponent * _clip(1.25 * r) ** 64)
        return None if is_known and (share == 1).all() else share

    @staticmethod
    def likely(num_classes: int) -> int:
        """Return how many of the classes are likely: 1 of 2, 5 of 10, 100 of 1000."""
        return math.ceil(math.pow(num_classes - 1, 2 / 3))

    def _tallied(
        self, samples: list[Tensor], counted: Tensor | None, added: float | Tensor
    ) -> Sequence[float] | Sequence[Tensor]:
        """Mix the means of the samples into the tally; return it, as floats where these cost less than tensors."""
        of_samples = torch.stack(samples).flatten(1)
        batch = of_samples.mean(1) if counted is None else of_samples.where(counted.flatten(), 0.0).sum(1) / added
        rate = added / (SPAN + added)
        if self.tally.device != batch.device or self.tally.dtype != batch.dtype:
            for name, state in self.named_buffers():
                setattr(self, name, state.to(batch))
        if is_transformed():  # no state leaves a transform: it uses what there is
            return self.tally.lerp(batch, rate).unbind()
        # A step that overflows, and that a gradient scaler skips, must not be remembered.
        if is_eager() and batch.device.type == "cpu":
            if math.isfinite(sum(batch.tolist())):
                self.tally.lerp_(batch, rate)
                self.samples.add_(added)
            return self.tally.tolist()
        finite = batch.isfinite().all()
        self.tally.lerp_(batch.where(finite, self.tally), rate)
        self.samples.add_(finite * added)
        return self.tally.unbind()

    def _exponent(
        self, u: float | Tensor, enters: float | Tensor, kept: float | Tensor, added: float | Tensor
    ) -> float | Tensor:
        """Return the exponent of the share, and remember w and v, the highest so far, of which so much is kept."""
        state = self.highest, self.faded, self.samples
        w, v, n = state if isinstance(u, Tensor) else [x.item() for x in state]
        w, v = _max(enters, kept * w), _max(enters, kept * v)
        above = _clip(v - u)
        exponent = (14 * above / (v + 1e-30) ** 0.5 * _clip(10 * w) ** 8) ** 16
        if not is_transformed():
            self.highest.fill_(w)
            self.faded.fill_(v - added / (FADING + n) * above * (exponent < 1))
        return exponent


def _max(x: float | Tensor, y: float | Tensor) -> float | Tensor:
    return torch.maximum(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else max(x, y)


def _clip(x: float | Tensor, low: float = 0.0, high: float = 1.0) -> float | Tensor:
    return x.clamp(low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def _log(x: float | Tensor) -> float | Tensor:
    return x.log() if isinstance(x, Tensor) else math.log(x)
