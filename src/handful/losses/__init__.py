"""Losses as pure functions: tensors in, a scalar out."""

from handful.losses.anatomical import (
    bank_anchors,
    bank_contrast,
    bank_keys,
    certainty,
    class_masks,
    draw_from_banks,
    draw_hard_queries,
    entropy_percent,
    hard_queries,
    query_contrast,
)
from handful.losses.consistency import (
    confident,
    divergence_consistency,
    linear_ramp,
    sigmoid_ramp,
    squared_consistency,
)
from handful.losses.contrastive import (
    info_nce,
    nt_xent,
    partition_contrast,
    partition_of_slices,
    positional_contrast,
    relative_position,
)
from handful.losses.entropy import mean_entropy
from handful.losses.equivariance import anatomy, masked_divergence, warp_consistency
from handful.losses.gathered import pixel_contrast_across_processes
from handful.losses.global_local import global_contrast, local_contrast
from handful.losses.identity import byol_distance, negative_cosine, queue_info_nce
from handful.losses.local_across import local_contrast_across
from handful.losses.mixcl import (
    identity_contrast,
    label_contrast,
    label_segmentation,
    mixed_identity,
    soft_label_contrast,
)
from handful.losses.mixed_labels import mixed_supervision
from handful.losses.neighbours import nearest_neighbours
from handful.losses.pixel import pixel_contrast
from handful.losses.pseudo_label import pseudo_label, pseudo_label_cross_entropy
from handful.losses.pyramid import pyramid_consistency
from handful.losses.reconstruction import reconstruction_error
from handful.losses.relational import relation, window_relation

__all__ = [
    "anatomy",
    "bank_anchors",
    "bank_contrast",
    "bank_keys",
    "byol_distance",
    "certainty",
    "class_masks",
    "confident",
    "divergence_consistency",
    "draw_from_banks",
    "draw_hard_queries",
    "entropy_percent",
    "global_contrast",
    "hard_queries",
    "identity_contrast",
    "info_nce",
    "label_contrast",
    "label_segmentation",
    "linear_ramp",
    "local_contrast",
    "local_contrast_across",
    "masked_divergence",
    "mean_entropy",
    "mixed_identity",
    "mixed_supervision",
    "nearest_neighbours",
    "negative_cosine",
    "nt_xent",
    "partition_contrast",
    "partition_of_slices",
    "pixel_contrast",
    "pixel_contrast_across_processes",
    "positional_contrast",
    "pseudo_label",
    "pseudo_label_cross_entropy",
    "pyramid_consistency",
    "query_contrast",
    "queue_info_nce",
    "reconstruction_error",
    "relation",
    "relative_position",
    "sigmoid_ramp",
    "soft_label_contrast",
    "squared_consistency",
    "warp_consistency",
    "window_relation",
]
