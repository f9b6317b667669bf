"""Drop-in PyTorch losses that resist label noise."""

from noisyloss import noise
from noisyloss._base import PointwiseLoss, RobustLoss
from noisyloss._registry import create_loss, list_losses
from noisyloss.losses import combined, linked, normalized, pointwise
from noisyloss.losses.combined import *  # noqa: F403
from noisyloss.losses.linked import *  # noqa: F403
from noisyloss.losses.normalized import *  # noqa: F403
from noisyloss.losses.pointwise import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["PointwiseLoss", "RobustLoss", "create_loss", "list_losses", "noise"]
__all__ += combined.__all__
__all__ += linked.__all__
__all__ += normalized.__all__
__all__ += pointwise.__all__
