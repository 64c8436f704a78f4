"""Train image rotation in levels (PSL, section 3.3.2 and Table 2; section 4.1 "Image rotation")."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.crops import ShorterSideCrop
from fastpsl.kernels.geometry import AllTurns, Rotate45, Rotate90
from fastpsl.kernels.normalise import joined
from fastpsl.kernels.rotation_crops import RotationCrop
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.classify import cross_entropies, scored

NUM_ROTATIONS = (2, 4, 8)
_GAP_PX = 4


class Rotation(Task):
    """A task that names the angle by which an image was turned: one of 2, 4 or 8, at levels 1, 2 and 3.

    Its source is PSL, section 3.3.2, Table 2 and section 4.1 "Image rotation". Compared with the paper:

    - The paper resizes the shorter side to 256 and rotates. It takes "a center crop on the rotated image
      remaining the resolution" and a random 224 of it. It does not state how the corners of a turn by 45
      degrees are filled. Here, no corner is ever shown. At level 3, windows have 224/256 of the largest side
      that lies in the image at all eight angles (`fastpsl.ops.RotationCrop`), upright or turned. So neither a
      border nor the scale tells the angle. At levels 1 and 2, the window is cut first and turned exactly.
      Windows may lie anywhere in the image, as in the jigsaw task. So level 3 also shows less of an image,
      enlarged and less sharp, unless `same_window` is set.
    - No image is mirrored, as in the paper.
    - The paper does not state how many rotations of an image are shown, nor whether its batch counts images
      or rotated copies. Here, it counts images.

    Args:
        shorter_px: The image's shorter side after resizing, in pixels.
        size_px: Side of the window in pixels, at most `shorter_px`.
        rotations_per_image: "one", drawn for each image, or "all" rotations of each image from one decode.
        same_window: Whether levels 1 and 2 have the windows and the kernel of level 3, so that levels differ
            in their angles alone. Otherwise, their windows are wider and sharper.

    Raises:
        ValueError: A value is out of range.
    """

    num_levels = len(NUM_ROTATIONS)
    accuracy_name = "rotation accuracy"

    def __init__(
        self,
        *,
        shorter_px: int,
        size_px: int,
        rotations_per_image: Literal["one", "all"] = "one",
        same_window: bool = False,
    ):
        if not 1 <= size_px <= shorter_px:
            raise ValueError(
                f"a window of {size_px} px given for a shorter side of {shorter_px} px; "
                "allowed are windows of 1 px up to the shorter side: lower --size-px or raise --short-side"
            )
        if rotations_per_image not in ("one", "all"):
            raise ValueError(
                f"rotations_per_image {rotations_per_image!r} given; allowed are 'one' and 'all'"
            )
        self.shorter_px, self.size_px = shorter_px, size_px
        self.rotations_per_image, self.same_window = rotations_per_image, same_window

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return one view, or two for all eight rotations: upright and turned by 45°, four turns each."""
        num, every = NUM_ROTATIONS[level - 1], self.rotations_per_image == "all"
        share = self.size_px / self.shorter_px
        if num < 8:
            turns = (AllTurns(num) if every else Rotate90(num),)
            if self.same_window:
                return (ViewSpec(RotationCrop(self.size_px, share, base=0), turns),)
            return (ViewSpec(ShorterSideCrop(self.shorter_px, self.size_px), turns),)
        if every:
            crops = (RotationCrop(self.size_px, share, base=0), RotationCrop(self.size_px, share, base=45))
            return tuple(ViewSpec(crop, (AllTurns(4),)) for crop in crops)
        return (ViewSpec(RotationCrop(self.size_px, share), (Rotate45(),)),)

    @override
    def inputs_per_image(self, level: int) -> int:
        return NUM_ROTATIONS[level - 1] if self.rotations_per_image == "all" else 1

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        return RotationHead(channels, NUM_ROTATIONS[level - 1])

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return the cross-entropy over the level's angles; accuracy is the share of correct angles."""
        logits, labels = _answers(blocks, head, inputs, batch)
        valid = (batch.indices >= 0).float()[:, None].expand_as(labels).flatten()
        return scored(logits, labels.flatten(), valid)

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        logits, labels = _answers(blocks, head, inputs, batch)
        return cross_entropies(logits, labels.flatten()).view(labels.shape).mean((0, 2))

    @override
    def chance(self, level: int) -> float:
        return 1 / NUM_ROTATIONS[level - 1]

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return one image of each sample, or all of its rotations in one or two rows."""
        images = self.views(1)[0].denormalise(joined(inputs))
        images = F.pad(images, (0, _GAP_PX, 0, _GAP_PX), value=1.0)
        images = _in_rows(images.unflatten(0, image_degrees(batch).shape))
        # [B, rows, columns, 3, h, w] → [B, 3, rows*h, columns*w]
        images = images.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return images[..., :-_GAP_PX, :-_GAP_PX]

    @override
    def captions(self, batch: Batch) -> list[str]:
        """Return the angles of the contact sheet's images, counter-clockwise."""
        angles = _in_rows(image_degrees(batch)).tolist()
        return ["\n".join(" ".join(f"{angle}°" for angle in row) for row in rows) for rows in angles]


def _answers(
    blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return logits [V * B * k, num_rotations], and their labels int64 [V, B, k] in this order."""
    assert isinstance(head, RotationHead)
    labels = image_degrees(batch) * head.num_rotations // 360
    return head(blocks(joined(inputs))).float(), labels


def image_degrees(batch: Batch) -> Tensor:
    """Return the counter-clockwise angle of each image, int64 [V, B, k]."""
    steps = torch.stack([d["label"] if "label" in d else 2 * d["turns"] for (d,) in batch.draws])
    if steps.ndim == 2:
        steps = steps[:, :, None]
    # The second view's images are turned by 45 degrees more.
    return 45 * (steps + torch.arange(len(steps), device=steps.device)[:, None, None])


def _in_rows(values: Tensor) -> Tensor:
    """Map [V, B, k, ...] to [B, rows, columns, ...]: each sample's, by angle, in at most four columns."""
    by_angle = values.movedim(0, 2).flatten(1, 2)
    return by_angle.unflatten(1, (-1, min(4, by_angle.shape[1])))


class RotationHead(nn.Module):
    """A head of average pool and a linear layer, as VISSL's; the paper does not state its head."""

    def __init__(self, channels: int, num_rotations: int):
        super().__init__()
        self.num_rotations = num_rotations
        self.classify = nn.Linear(channels, num_rotations)

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, num_rotations] of [B, C, h, w]; class l is l * 360 / num_rotations degrees."""
        return self.classify(mean_of_positions(features))
