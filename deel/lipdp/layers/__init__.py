"""Layers that know the largest gradient one example can cause."""

from deel.lipdp.layers._base import DPLayer, NonExpansive
from deel.lipdp.layers.activations import DP_Abs, DP_GroupSort
from deel.lipdp.layers.convolutional import DP_QuickSpectralConv2D, DP_SpectralConv2D
from deel.lipdp.layers.core import DP_BoundedInput, DP_Flatten, DP_InputLayer, DP_Reshape
from deel.lipdp.layers.dense import DP_QuickSpectralDense, DP_SpectralDense
from deel.lipdp.layers.gradient_clipping import DP_ClipGradient
from deel.lipdp.layers.normalization import DP_LayerCentering, DP_NormalizeToBall
from deel.lipdp.layers.pooling import DP_ScaledL2NormPooling2D

__all__ = [
    "DPLayer",
    "DP_Abs",
    "DP_BoundedInput",
    "DP_ClipGradient",
    "DP_Flatten",
    "DP_GroupSort",
    "DP_InputLayer",
    "DP_LayerCentering",
    "DP_NormalizeToBall",
    "DP_QuickSpectralConv2D",
    "DP_QuickSpectralDense",
    "DP_Reshape",
    "DP_ScaledL2NormPooling2D",
    "DP_SpectralConv2D",
    "DP_SpectralDense",
    "NonExpansive",
]
