"""Layers that know the largest gradient one example can cause."""

from deel.lipdp.layers._base import DPLayer, NonExpansive
from deel.lipdp.layers.activations import (
    DP_Abs,
    DP_FullSort,
    DP_GroupSort,
    DP_Householder,
    DP_LeakyReLU,
    DP_Modulus,
    DP_ReLU,
)
from deel.lipdp.layers.bias import DP_AddBias
from deel.lipdp.layers.convolutional import (
    DP_ContractiveConv2D,
    DP_Conv1D,
    DP_DepthwiseConv2D,
    DP_PatchEmbedding,
    DP_QuickSpectralConv2D,
    DP_SpectralConv2D,
)
from deel.lipdp.layers.core import (
    DP_BoundedInput,
    DP_Flatten,
    DP_InputLayer,
    DP_Lambda,
    DP_Permute,
    DP_Reshape,
    DP_SpaceToDepth,
)
from deel.lipdp.layers.dense import (
    DP_ContractiveDense,
    DP_QuickFrobeniusDense,
    DP_QuickSpectralDense,
    DP_SpectralDense,
)
from deel.lipdp.layers.dropout import DP_Dropout
from deel.lipdp.layers.embedding import DP_Embedding
from deel.lipdp.layers.factory import DP_GNP_Factory
from deel.lipdp.layers.gradient_clipping import DP_ClipGradient
from deel.lipdp.layers.merging import DP_Add, DP_Concatenate
from deel.lipdp.layers.normalization import DP_GroupNormalization, DP_LayerCentering, DP_NormalizeToBall
from deel.lipdp.layers.pooling import (
    DP_AveragePooling2D,
    DP_GlobalAveragePooling2D,
    DP_MaxPool2D,
    DP_ScaledGlobalL2NormPooling2D,
    DP_ScaledL2NormPooling1D,
    DP_ScaledL2NormPooling2D,
)
from deel.lipdp.layers.residual import (
    DP_MergeResidual,
    DP_SplitResidual,
    DP_WrappedResidual,
    make_mixer_block,
    make_residuals,
)
from deel.lipdp.layers.scattering import DP_Scattering2D

__all__ = [
    "DPLayer",
    "DP_Abs",
    "DP_Add",
    "DP_AddBias",
    "DP_AveragePooling2D",
    "DP_BoundedInput",
    "DP_ClipGradient",
    "DP_Concatenate",
    "DP_ContractiveConv2D",
    "DP_ContractiveDense",
    "DP_Conv1D",
    "DP_DepthwiseConv2D",
    "DP_Dropout",
    "DP_Embedding",
    "DP_Flatten",
    "DP_FullSort",
    "DP_GNP_Factory",
    "DP_GlobalAveragePooling2D",
    "DP_GroupNormalization",
    "DP_GroupSort",
    "DP_Householder",
    "DP_InputLayer",
    "DP_Lambda",
    "DP_LayerCentering",
    "DP_LeakyReLU",
    "DP_MaxPool2D",
    "DP_MergeResidual",
    "DP_Modulus",
    "DP_NormalizeToBall",
    "DP_PatchEmbedding",
    "DP_Permute",
    "DP_QuickFrobeniusDense",
    "DP_QuickSpectralConv2D",
    "DP_QuickSpectralDense",
    "DP_ReLU",
    "DP_Reshape",
    "DP_ScaledGlobalL2NormPooling2D",
    "DP_ScaledL2NormPooling1D",
    "DP_ScaledL2NormPooling2D",
    "DP_Scattering2D",
    "DP_SpaceToDepth",
    "DP_SpectralConv2D",
    "DP_SpectralDense",
    "DP_SplitResidual",
    "DP_WrappedResidual",
    "NonExpansive",
    "make_mixer_block",
    "make_residuals",
]
