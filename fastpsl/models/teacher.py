"""The teacher of a distillation: a frozen network, whose features a student learns."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from typing_extensions import Self

from fastpsl.files.system_errors import UnreadableError
from fastpsl.models.backbone import cast_layers, check_size
from fastpsl.models.convolutional import mean_of_positions
from fastpsl.models.factory import make_backbone
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.names import MAX_DOWNLOAD_GB, is_own, without_folder
from fastpsl.models.weights import Pretrained, record_of, sha256_of_tensors, usual_input
from fastpsl.pipelines.views import Input


def open_teacher(
    source: str, backbone: str | None = None, max_download_gb: float = MAX_DOWNLOAD_GB
) -> Pretrained:
    """Read a network to learn from.

    Args:
        source: The value of --teacher: timm/NAME, an address, a run, a file of weights, or FILE.py:CLASS,
            whose weights are those that it makes.
        backbone: The value of --teacher-backbone, for weights that record no backbone.
        max_download_gb: The largest file that is downloaded, in 10^9 bytes.

    Returns:
        The network and the input that it expects. Where nothing tells the input, it is ImageNet's usual.

    Raises:
        ValueError: It cannot be read or made, or is of another network than `backbone`.
    """
    try:
        if is_own(source):
            return _own(source, backbone)
        return load_pretrained(source, backbone, None, max_download_gb)
    except UnreadableError:
        raise
    except ValueError as error:
        # The readers of weights name --backbone, the option of evaluations.
        if is_own(source):
            raise ValueError(str(error).replace("--backbone", "--teacher")) from None
        raise ValueError(f"--teacher: {error}".replace("--backbone", "--teacher-backbone")) from None


def _own(source: str, backbone: str | None) -> Pretrained:
    """Return a network of the user's file, with the weights that its class makes."""
    if backbone is not None:
        raise ValueError(
            f"{source} with --teacher-backbone {backbone}: the file is the network; leave it out"
        )
    network = make_backbone(source)
    input = usual_input(network, Input())
    digest = sha256_of_tensors(network.state_dict())
    return Pretrained(network, input, record_of(source, digest, "own", source, input))


def _patch_px(backbone: nn.Module) -> int:
    """Return the side of the patches of a vision transformer of timm; 1 for other networks."""
    embedding = getattr(getattr(backbone, "network", None), "patch_embed", None)
    sides = getattr(embedding, "patch_size", None)
    return max(sides) if isinstance(sides, tuple) else 1


class Teacher:
    """A frozen network in evaluation mode, whose weights and statistics never change.

    It is no module, so that neither DDP nor an optimizer nor a checkpoint sees its weights. Copies are the
    teacher itself: a task in parts (`--plan blockwise`) has one. Its blocks run once for a batch. A call for
    a deeper block goes on from where the one before ended.

    On a GPU in half precision, its convolutions and linear layers have weights of that type. Autocast would
    cast weights without gradients anew in each step.

    Args:
        pretrained: The network and its input.
        size_px: The side of its images, in pixels.

    Raises:
        ValueError: The network reads no images of this size.
    """

    def __init__(self, pretrained: Pretrained, size_px: int):
        self.network, self.input, self.record = pretrained.backbone, pretrained.input, pretrained.record
        self.size_px, self.channels = size_px, pretrained.backbone.channels
        try:
            check_size(size_px, self.network.min_px)
        except ValueError as error:
            raise ValueError(f"--teacher-px {size_px}: {error}".replace("--backbone", "--teacher")) from None
        patch_px = _patch_px(self.network)
        if size_px % patch_px:
            lower = size_px // patch_px * patch_px
            raise ValueError(
                f"--teacher-px {size_px}: the teacher's patches of {patch_px} px do not divide it; give "
                f"{lower or patch_px} or {lower + patch_px}"
            )
        self.network.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        # Images → the last block that has read them, and its maps, for as long as the images live.
        self._known = WeakTensorKeyDictionary()
        self._dtype = torch.float32

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def science(self) -> dict[str, Any]:
        """Return what must not change on resume: the weights, their backbone, and the images' input."""
        return {
            "teacher": self.record["sha256"],
            "teacher_backbone": without_folder(self.record["backbone"]),
            "teacher_input": self.input.as_dict() | {"size_px": self.size_px},
        }

    def block_beside(self, block: int, num_blocks: int) -> int:
        """Return the block at the depth of block `block` of `num_blocks` of another network."""
        return max(1, round(block * self.network.num_blocks / num_blocks))

    @torch.no_grad()
    def features(self, images: Tensor, block: int) -> Tensor:
        """Return a block's outputs, averaged over all positions.

        Args:
            images: float [B, C, S, S] as `input` has them, on the network's device.
            block: The block, from 1; for the same images none before that of an earlier call.

        Returns:
            float32 [B, channels[block - 1]], without gradients.
        """
        self._cast(images.device.type)
        done, maps = self._known.get(images, (0, images))
        assert done <= block, "its blocks may have computed in place"
        for layer in self.network.blocks()[done:block]:
            maps = layer(maps)
        self._known[images] = block, maps.clone() if maps is images else maps  # a value must not keep its key
        return mean_of_positions(maps).float()

    def _cast(self, device_type: str) -> None:
        """Give the weights of convolutions and linear layers autocast's type."""
        dtype = torch.get_autocast_dtype(device_type)
        if torch.is_autocast_enabled(device_type) and dtype != self._dtype:
            cast_layers(self.network, dtype)
            self._dtype = dtype
