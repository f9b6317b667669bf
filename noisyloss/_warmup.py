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

SPAN = 2560  # samples after which a batch has faded to a third or so: twenty batches of 128


class Warmup(nn.Module):
    """The share of cross entropy in each sample's loss.

    It is ``(1 - i**2) ** (1000 d**16 (kappa r**8 + (2000 kappa u**2 (0.3 - u) (1 - r)**2)**3))``.

    i is what a prediction says of its sample, its divergence from the mean prediction over the most that can be.
    Sureness alone would not do: a network that is sure of one class whatever the sample has learned nothing.
    kappa is Cohen's, how far predictions agree with their targets beyond chance, which is what their shares of the
    classes give alone: as long as they do not, who is wrong cannot be told.
    r is how far the surest predictions contradict their targets over how far all do. Where labels are right,
    predictions err the less the surer they are; wrong labels contradict sure and unsure ones alike.
    But a network that memorises wrong labels while it learns is the surer the more it has memorised, so r says that
    all is well. u tells: it is how many labels predictions hold for less likely than the average class, where they say
    much. A hard sample's label is seldom among those, and half of the wrong ones are, until they are memorised. So with
    right labels u is small; it is near 0.3 where four labels of ten are wrong and none is memorised yet, so that cross
    entropy, which learns faster, does no harm; in between it has begun to. (The first steps at a high learning rate
    look like that as well, but there the surest err nearly as often as the others: hence 1 - r. And so do two wrong
    labels of ten of which none is memorised: those it cannot tell from four of which half are, and starts too early.)
    d is the entropy of the mean prediction over that of the mean target: a network that has lost some of the classes
    is sure and wrong, whatever the labels, and the robust loss would never find them again.

    kappa, r, u and d are those of the last few thousand samples. In one batch the surest are a handful, and where those
    err the loss would pass to the robust one, which makes sure of what it believes: too early, and for good.
    """

    tally: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tally", torch.zeros(9))

    @torch.no_grad()
    def share(self, seen: Spread, p_y: Tensor, unlikely: Tensor, mean_target: Tensor, counted: Tensor | None) -> Tensor:
        """Return the share for each sample, and count those ``counted``, all if None."""
        divergence, _, mean = seen
        most = math.log(max(2, min(mean.numel(), divergence.numel())))
        i2 = (divergence / most).square().clamp(max=1)
        wrong, i8 = 1 - p_y, i2.pow(4)
        samples = torch.stack([p_y, wrong, i2, i2 * unlikely, i8, i8 * wrong])
        if counted is not None:
            samples = samples.where(counted, 0.0)
        entropies = torch.special.entr(mean), torch.special.entr(mean_target)
        classes = torch.stack([*entropies, mean * mean_target]).flatten(1).sum(1)
        if counted is not None:
            classes = classes * counted.to(i2.dtype).mean()
        all_right, all_wrong, sum_i2, unlikely_i2, sum_i8, wrong_i8, entropy, most_entropy, chance = self._tallied(
            torch.cat([samples.flatten(1).mean(1), classes]), i2.numel()
        )
        total, tiny = all_right + all_wrong, torch.finfo(i2.dtype).tiny
        kappa = _clip(1 - all_wrong / (total - chance + tiny), 1.0)
        r = _clip(wrong_i8 * total / (sum_i8 * all_wrong + tiny), 1.0)
        u = _clip(unlikely_i2 / (sum_i2 + tiny), 0.3)
        d = _clip(entropy / (most_entropy + tiny), 1.0)
        memorising = 2000 * kappa * u**2 * (0.3 - u) * (1 - r) ** 2
        return (1 - i2).pow(1000 * d**16 * (kappa * r**8 + memorising**3))

    def _tallied(self, batch: Tensor, size: int) -> Sequence[float] | Sequence[Tensor]:
        """Mix the means of a batch into the tally; return it, as floats where these cost less than tensors."""
        if is_transformed():  # no state leaves a transform: each batch stands for itself
            return batch.unbind()
        tally = self.tally
        if tally.device != batch.device or tally.dtype != batch.dtype:
            tally = self.tally = tally.to(batch)
        # A step that overflows, and that a gradient scaler skips, must not be remembered.
        rate = size / (SPAN + size)
        if is_eager() and tally.device.type == "cpu":
            if math.isfinite(sum(batch.tolist())):
                tally.lerp_(batch, rate)
            return tally.tolist()
        tally.lerp_(batch.where(batch.isfinite().all(), tally), rate)
        return tally.unbind()


def _clip(x: float | Tensor, high: float) -> float | Tensor:
    return x.clamp(0, high) if isinstance(x, Tensor) else min(max(x, 0.0), high)
