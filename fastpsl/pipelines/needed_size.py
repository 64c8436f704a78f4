"""The size of stored images that suffices for the crops of views."""

from collections.abc import Sequence

from fastpsl.kernels.crops import RandomResizedCrop, ShorterSideCrop
from fastpsl.pipelines.views import ViewSpec

# As in ImageNet's usual recipe: images of 256 px for crops of 224 px.
_SHORT_SIDE_OVER_CROP = 256 / 224


def short_side_px(views: Sequence[ViewSpec]) -> int | None:
    """Return the shorter side, in px, that suffices for all views, or None if a crop does not tell."""
    needed = []
    for view in views:
        if isinstance(view.crop, ShorterSideCrop):
            needed.append(view.crop.shorter_px)
        elif isinstance(view.crop, RandomResizedCrop):
            needed.append(round(view.crop.size_px * _SHORT_SIDE_OVER_CROP))
        else:
            return None
    return max(needed, default=None)
