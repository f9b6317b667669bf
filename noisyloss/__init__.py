"""Drop-in PyTorch losses that resist label noise."""

from noisyloss import noise
from noisyloss._base import PointwiseLoss, RobustLoss
from noisyloss._recommended import recommended
from noisyloss._registry import create_loss, list_losses
from noisyloss.losses import asymmetric, bounded, combined, normalized, pointwise, shifted
from noisyloss.losses.asymmetric import *  # noqa: F403
from noisyloss.losses.bounded import *  # noqa: F403
from noisyloss.losses.combined import *  # noqa: F403
from noisyloss.losses.normalized import *  # noqa: F403
from noisyloss.losses.pointwise import *  # noqa: F403
from noisyloss.losses.shifted import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["PointwiseLoss", "RobustLoss", "create_loss", "list_losses", "noise", "recommended"]
__all__ += asymmetric.__all__
__all__ += bounded.__all__
__all__ += combined.__all__
__all__ += normalized.__all__
__all__ += pointwise.__all__
__all__ += shifted.__all__
