"""Charts of numbers and sheets of images, as PNG files."""

from typing import TYPE_CHECKING

from fastpsl.pipelines.exports import lazy_names

if TYPE_CHECKING:
    from fastpsl.plots.block_bars import draw_accuracies, draw_blocks, draw_precisions
    from fastpsl.plots.class_bars import draw_classes
    from fastpsl.plots.clusters import draw_contents, draw_sizes
    from fastpsl.plots.contact_sheet import save_contact_sheet
    from fastpsl.plots.detections import draw_detections
    from fastpsl.plots.filters import draw_filters
    from fastpsl.plots.label_figures import draw_label_figures
    from fastpsl.plots.masks import draw_found, draw_masks
    from fastpsl.plots.neighbours import draw_neighbours
    from fastpsl.plots.online_probe import draw_probes
    from fastpsl.plots.shot_curve import draw_shots
    from fastpsl.plots.training_curve import draw_curve
    from fastpsl.plots.tsne import draw_map

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "draw_accuracies": "block_bars",
        "draw_blocks": "block_bars",
        "draw_classes": "class_bars",
        "draw_contents": "clusters",
        "draw_curve": "training_curve",
        "draw_detections": "detections",
        "draw_filters": "filters",
        "draw_found": "masks",
        "draw_label_figures": "label_figures",
        "draw_map": "tsne",
        "draw_masks": "masks",
        "draw_neighbours": "neighbours",
        "draw_precisions": "block_bars",
        "draw_probes": "online_probe",
        "draw_shots": "shot_curve",
        "draw_sizes": "clusters",
        "save_contact_sheet": "contact_sheet",
    },
)
__all__ = [
    "draw_accuracies",
    "draw_blocks",
    "draw_classes",
    "draw_contents",
    "draw_curve",
    "draw_detections",
    "draw_filters",
    "draw_found",
    "draw_label_figures",
    "draw_map",
    "draw_masks",
    "draw_neighbours",
    "draw_precisions",
    "draw_probes",
    "draw_shots",
    "draw_sizes",
    "save_contact_sheet",
]
