"""Drop-in PyTorch losses that resist label noise."""

from noisyloss import noise
from noisyloss._base import PointwiseLoss, RobustLoss
from noisyloss._registry import create_loss, list_losses
from noisyloss.losses import *  # noqa: F403  the families say what is public
from noisyloss.losses import __all__ as _losses

__version__ = "0.1.0"

__all__ = ["PointwiseLoss", "RobustLoss", "create_loss", "list_losses", "noise", *_losses]
