"""The losses, a family a file."""

from noisyloss.losses.combined import APLLoss, SCELoss, WeightedSum
from noisyloss.losses.normalized import NCELoss, NFLLoss, NGCELoss, NMAELoss, Normalized, NRCELoss
from noisyloss.losses.pointwise import CELoss, FocalLoss, GCELoss, MAELoss, RCELoss

__all__ = [
    "APLLoss",
    "CELoss",
    "FocalLoss",
    "GCELoss",
    "MAELoss",
    "NCELoss",
    "NFLLoss",
    "NGCELoss",
    "NMAELoss",
    "NRCELoss",
    "Normalized",
    "RCELoss",
    "SCELoss",
    "WeightedSum",
]
