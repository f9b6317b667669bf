"""Drop-in PyTorch losses that resist label noise."""

from noisyloss import noise, regularizers
from noisyloss._base import PointwiseLoss, RobustLoss
from noisyloss._recommended import recommended
from noisyloss._registry import create_loss, list_losses
from noisyloss.losses import (
    asymmetric,
    bounded,
    combined,
    correction,
    linked,
    more_inputs,
    normalized,
    pointwise,
    shifted,
)
from noisyloss.losses.asymmetric import *  # noqa: F403
from noisyloss.losses.bounded import *  # noqa: F403
from noisyloss.losses.combined import *  # noqa: F403
from noisyloss.losses.correction import *  # noqa: F403
from noisyloss.losses.linked import *  # noqa: F403
from noisyloss.losses.more_inputs import *  # noqa: F403
from noisyloss.losses.normalized import *  # noqa: F403
from noisyloss.losses.pointwise import *  # noqa: F403
from noisyloss.losses.shifted import *  # noqa: F403
from noisyloss.regularizers import *  # noqa: F403

__version__ = "0.1.0"

__all__ = ["PointwiseLoss", "RobustLoss", "create_loss", "list_losses", "noise", "recommended"]
__all__ += asymmetric.__all__
__all__ += bounded.__all__
__all__ += combined.__all__
__all__ += correction.__all__
__all__ += linked.__all__
__all__ += more_inputs.__all__
__all__ += normalized.__all__
__all__ += pointwise.__all__
__all__ += shifted.__all__
__all__ += regularizers.__all__
