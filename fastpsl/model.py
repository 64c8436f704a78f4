"""`fastpsl.load`: a trained backbone as a module, with the transform that its weights expect."""

import copy
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.console.offered import named_arguments
from fastpsl.console.words import at_home, number_of, warn
from fastpsl.evaluation.options import given_input
from fastpsl.evaluation.protocols import applied, block_number
from fastpsl.files.paths import WEIGHTS, require_path
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.models.backbone import Backbone, check_size
from fastpsl.models.export import export
from fastpsl.models.given import given
from fastpsl.models.initial_weights import load_pretrained
from fastpsl.models.weights import Pretrained, sha256_of_tensors
from fastpsl.pipelines.image.image_file import convert_pillow, decode_any, read_image_file
from fastpsl.pipelines.interface.dataset import BadImage
from fastpsl.pipelines.interface.reading import Reading
from fastpsl.pipelines.views import SHORTER_OF_SIZE, Input, center_view
from fastpsl.scripts.call import tensors_on_cpu, user_errors

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
Channels = Literal["RGB", "L", "Sobel", "SobelXY"]


class Transform:
    """A callable that turns the middle of an image into a tensor that a model reads.

    It shows what `fastpsl.embed` and the evaluations show. It resizes and crops by torchvision's v2
    transforms. The loaders' decoders resize in another way, so their pixels differ by rounding wherever an
    image is resized. Files and PIL images become RGB as in folders: turned upright, with alpha over white,
    and by the range and the bands of the weights' training images.

    Attributes:
        input: The input that the weights expect: channels, mean, standard deviation and side.
        size_px: The side of the result, in pixels.
        whole: Whether the result shows the whole middle square of the image. Otherwise, it shows the middle
            224/256 of it, as is usual for ImageNet.
    """

    input: Input
    size_px: int
    whole: bool

    def __init__(self, input: Input, size_px: int | None = None, whole: bool = False):
        self.input, self.whole = input, whole
        self.size_px = input.size_px if size_px is None else size_px
        self._view = center_view(input, self.size_px, whole)
        from torchvision.transforms import v2  # imports torch._dynamo, which takes 2 s

        shorter_px = self.size_px if whole else round(self.size_px * SHORTER_OF_SIZE)
        self._crop = v2.Compose([v2.Resize(shorter_px, antialias=True), v2.CenterCrop(self.size_px)])

    def __call__(self, picture: Picture) -> Tensor:
        """Return one image as the model reads it: float32 [C, size_px, size_px], normalised.

        The image is a path, a PIL image, a uint8 array [H, W, 3] or [H, W], or a uint8 tensor [3, H, W].
        """
        pixels: Tensor = self._crop(_pixels(picture, self.input.reading))[None].contiguous(
            memory_format=torch.channels_last
        )
        return applied(self._view, pixels)[0].contiguous()

    @override
    def __repr__(self) -> str:
        return f"Transform({self.input}, size_px={self.size_px}, whole={self.whole})"


class Model(nn.Module):
    """A trained backbone as a torch module, in eval mode.

    Attributes:
        backbone: The backbone, a sequence of blocks.
        input: The input that its weights expect: channels, mean, standard deviation and side.
        transform: Turns one image into what the model reads.
        record: The weights' origin. Its keys include "path", "sha256", "kind", "backbone", "run_step",
            "science" and "cut".
    """

    backbone: Backbone
    input: Input
    record: dict[str, Any]
    transform: Transform

    def __init__(self, pretrained: Pretrained, size_px: int | None = None):
        super().__init__()
        self.backbone, self.input, self.record = pretrained.backbone, pretrained.input, pretrained.record
        self.transform = Transform(self.input, size_px)
        self._digest = sha256_of_tensors(self.backbone.state_dict())
        self.eval()

    @override
    def __repr__(self) -> str:
        backbone, millions = self.backbone, sum(each.numel() for each in self.parameters()) / 1e6
        blocks = number_of(backbone.num_blocks, "block")
        numbers = f"{blocks}, {backbone.channels[-1]:,} features, {millions:.3g} million parameters"
        return f"Model({Pretrained(backbone, self.input, self.record)}; {numbers})"

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the feature maps of the last block.

        Args:
            images: Float [B, C, H, W], normalised as by `transform`, on the model's device.

        Returns:
            The maps, float [B, channels, h, w].

        Raises:
            ValueError: The images have another number of channels, or are too small for the backbone.
        """
        self._check(images)
        maps: Tensor = self.backbone(images)
        return maps

    @user_errors()
    def features(self, images: Tensor, block: str = "final") -> Tensor:
        """Return a block's feature maps, averaged over all positions.

        Args:
            images: Float [B, C, H, W], normalised as by `transform`, on the model's device.
            block: "final" (the last block), "B1", "B2", …, or the network's own name, such as "conv5".

        Returns:
            The features, float32 [B, channels].

        Raises:
            ValueError: There is no such block, or the images do not fit the network.
        """
        number = block_number(block, self.backbone.num_blocks, self.backbone.block_names)
        self._check(images)
        for module in self.backbone.blocks()[:number]:
            images = module(images)
        return images.float().mean((2, 3))

    def blocks(self) -> list[nn.Module]:
        """Return the blocks B1, B2, … in order. They share this model's parameters."""
        return self.backbone.blocks()

    @user_errors()
    @tensors_on_cpu()
    def export(
        self, path: str | os.PathLike[str], to: str = "torchvision", *, overwrite: bool = False
    ) -> Path:
        """Write the present weights for another library.

        Args:
            path: The file to write; for "hf", a new folder.
            to: The library: "torchvision", "timm", "detectron2", "safetensors", "onnx" or "hf" (a folder for
                the Hugging Face Hub).
            overwrite: Whether to replace an existing file.

        Returns:
            The path.

        Raises:
            ValueError: The library lacks this backbone or needs another file ending, the file exists, or a
                package is missing.
        """
        path = Path(at_home(path))
        export(self.pretrained(), to, path, overwrite=overwrite)
        return path

    def pretrained(self) -> Pretrained:
        """Return a copy of the weights with their record, on the CPU and in float32.

        If the weights were changed after loading, the record's "kind" is "changed", and its "sha256" is new.
        """
        backbone, record = copy.deepcopy(self.backbone).cpu().float(), dict(self.record)
        digest = sha256_of_tensors(backbone.state_dict())
        if digest != self._digest:
            record |= {"sha256": digest, "kind": "changed"}
        return Pretrained(backbone, self.input, record)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.input.num_channels:
            raise ValueError(
                f"images of shape {tuple(images.shape)}: the model reads [B, {self.input.num_channels}, H, "
                "W], such as model.transform(image)[None]"
            )
        check_size(min(images.shape[2:]), self.backbone.min_px)


@named_arguments()
@user_errors()
@tensors_on_cpu()
def load(
    weights: str | os.PathLike[str],
    backbone: str | nn.Module | None = None,
    *,
    size_px: int | None = None,
    input_channels: Channels | None = None,
    input_mean: tuple[float, ...] | None = None,
    input_std: tuple[float, ...] | None = None,
) -> Model:
    """Load a trained backbone.

    Args:
        weights: A run's folder (its newest checkpoint), the result of `fastpsl.pretrain`, a checkpoint or a
            file of `fastpsl export`. Or another project's file, "timm/NAME[.TAG]", or an address such as
            "hf://ORG/NAME".
        backbone: The backbone's name or a module, for another project's weights. fastpsl's own files record
            it. A file of Python code in them ("my_net.py:MyNet") runs only if you name it here as well. A
            module of your program must be given again.
        size_px: Side of the images of `Model.transform`, in pixels. By default, that of the weights' record.
        input_channels: What another project's weights were trained on: "RGB", "L" (lightness), "Sobel" or
            "SobelXY". Give it together with `input_mean` and `input_std`, or give none of the three. Then
            they are timm's of a model of timm, or ImageNet's usual, and a warning tells them.
        input_mean: The mean that was subtracted from pixels in [0, 1], one value per channel.
        input_std: The standard deviation that pixels were divided by, one value per channel.

    Returns:
        The model, in eval mode on the CPU.

    Raises:
        ValueError: There are no such weights, they do not fit the backbone, or `size_px` is below 1. Or they
            name a Python file, and `backbone` does not.
    """
    require_path("weights", weights, WEIGHTS)
    if backbone is None:
        backbone = getattr(weights, "backbone", None)  # of the result of `fastpsl.pretrain`
    elif not isinstance(backbone, str):
        backbone = given(backbone)
    if size_px is not None and size_px < 1:
        raise ValueError(f"size_px is {size_px}; it must be 1 or more")
    input = given_input(input_channels, input_mean, input_std, size_px or Input.size_px)
    loaded = load_pretrained(os.fspath(weights), backbone, input)
    if loaded.record["assumed"]:
        # Three decorators stand between this and the caller.
        warn(f"the input of weights is assumed: {loaded}", stacklevel=5)
    return Model(loaded, size_px)


def _pixels(picture: Picture, reading: Reading) -> Tensor:
    """Return an image as uint8 [3, H, W], turned upright."""
    if isinstance(picture, Tensor):
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
            raise ValueError(f"a tensor {picture.dtype} {tuple(picture.shape)}: give uint8 [3, H, W]")
        return picture
    if isinstance(picture, np.ndarray):
        is_image = picture.ndim == 2 or picture.shape[2:] == (3,)
        if picture.dtype != np.uint8 or not is_image or not picture.size:
            raise ValueError(f"an array {picture.dtype} {picture.shape}: give uint8 [H, W, 3] or [H, W]")
        picture = Image.fromarray(picture)
    try:
        if isinstance(picture, Image.Image):
            pixels = convert_pillow(picture, reading)
        elif isinstance(picture, str | os.PathLike):
            pixels = decode_any(read_image_file(Path(at_home(picture))), reading)
        else:
            kind = type(picture).__name__
            raise ValueError(f"{kind} is no image: give a path, a PIL image or a uint8 array")  # noqa: TRY004
    except (OSError, BadImage) as error:
        raise_of_the_system(picture, error)
        name = "the PIL image" if isinstance(picture, Image.Image) else os.fspath(picture)
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"{name} cannot be read as an image ({reason}): give the path of an image file"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1)
