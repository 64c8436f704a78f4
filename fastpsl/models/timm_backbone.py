"""timm's models as backbones: `--backbone timm/NAME`. The only file that imports timm."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext
from torchvision.ops import Permute
from typing_extensions import override

from fastpsl.console.installed import install
from fastpsl.console.words import similar
from fastpsl.files.system_errors import raise_of_the_system
from fastpsl.models.convolutional import first_convolution
from fastpsl.models.foreign_weights import first_three
from fastpsl.models.names import TIMM
from fastpsl.models.own_backbone import UNREADABLE, Wrapped, image_of, reason_of


def maps_of(tokens: Tensor, height: int, width: int, num_prefix: int) -> Tensor:
    """Arrange tokens as maps, in channels-last memory.

    The class token and the registers have no position. They become channels behind those of the patches,
    equal at all positions. So the map alone holds all that the next block reads, and its mean is the mean of
    the patches beside the class token.
    """
    prefix = tokens[:, :num_prefix].flatten(1)[:, None].expand(-1, height * width, -1)
    return torch.cat((tokens[:, num_prefix:], prefix), 2).unflatten(1, (height, width)).permute(0, 3, 1, 2)


def tokens_of(maps: Tensor, num_prefix: int) -> Tensor:
    """Return the tokens that `maps_of` arranged."""
    vectors = maps.permute(0, 2, 3, 1).flatten(1, 2)
    width = vectors.shape[2] // (1 + num_prefix)
    prefix = vectors[:, 0, width:].reshape(len(maps), num_prefix, width)
    return torch.cat((prefix, vectors[:, :, :width]), 1)


# What `_pos_embed` of timm's VisionTransformer and Eva reads. dist_token is DeiT's second class token.
_READ = ("cls_token", "reg_token", "dist_token", "pos_embed", "pos_drop", "patch_embed", "norm_pre",
         "num_prefix_tokens", "no_embed_class", "dynamic_img_size")  # fmt: skip


class Embedding(nn.Module):
    """The layers of a vision transformer of timm before its transformer blocks.

    It holds the network's own layers and tokens, but not the network, whose other weights are not its own.
    """

    # Eva would compute its rotary embedding here, too. Networks that drop patches are refused.
    rope = patch_drop = None

    def __init__(self, network: nn.Module):
        super().__init__()
        for name in _READ:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        # It adds the class token and the positions. Of its network it reads the attributes above.
        self.embed: Callable[[nn.Module, Tensor], Any] = type(network)._pos_embed  # type: ignore[attr-defined]

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return maps of tokens for images [B, C, H, W]."""
        parts: Any = self
        patches = parts.patch_embed(images)  # [B, h, w, C]
        embedded = self.embed(self, patches)
        tokens = parts.norm_pre(embedded[0] if isinstance(embedded, tuple) else embedded)
        return maps_of(tokens, patches.shape[1], patches.shape[2], parts.num_prefix_tokens)


class OnTokens(nn.Module):
    """A block of layers that read and return tokens. The block itself reads and returns maps.

    With `rope`, timm's rotary embedding, each layer reads the positions of the map, too. It has no weights.
    """

    def __init__(self, layers: Sequence[nn.Module], norm: nn.Module, num_prefix: int, rope: nn.Module | None):
        super().__init__()
        self.layers, self.norm, self.num_prefix, self.rope = nn.ModuleList(layers), norm, num_prefix, rope

    @override
    def forward(self, maps: Tensor) -> Tensor:
        tokens, (height, width) = tokens_of(maps, self.num_prefix), maps.shape[2:]
        positions = {}
        if self.rope is not None:
            # timm computes DINOv3's grid on the default device, and a step would wait for its copy.
            # torch.compile cannot enter `maps.device` itself.
            with DeviceContext(maps.device):
                positions["rope"] = self.rope.get_embed((height, width))  # type: ignore[operator]
        for layer in self.layers:
            tokens = layer(tokens, **positions)
        return maps_of(self.norm(tokens), height, width, self.num_prefix)


# A stage of PSL's default plan learns all but two blocks.
MIN_BLOCKS = 3
# As many as ResNets have, if the model has so many parts. Evaluations of blocks are made for five.
NUM_BLOCKS = 5
FAMILIES = "such as ResNet, RegNet, EfficientNet, ConvNeXt, Swin and ViT"
# The arguments with which families read images of any size, by the files of timm that define them. Images are
# padded with zeros to whole patches; a ViT's positions are interpolated.
_TOKENS = {"dynamic_img_size": True, "dynamic_img_pad": True}
_WINDOWS = {"strict_img_size": False}
_ANY_SIZE: dict[str, dict[str, Any]] = {
    "deit": _TOKENS,
    "eva": _TOKENS,
    "vision_transformer": _TOKENS,
    "vision_transformer_hybrid": _TOKENS,
    "vitamin": _TOKENS,
    "swin_transformer": _WINDOWS,
    "swin_transformer_v2": _WINDOWS,
}


class TimmBackbone(Wrapped):
    """A model of timm as blocks. Together they compute its `forward_features`.

    - A network of stages: B1 is the stem, and every stage is a block. Layers after the last stage belong to
      the last block. If timm counts five stages, the stem belongs to the first one.
    - A vision transformer: B1 is the embedding; B2 to B5 are a quarter of the transformer blocks each, B5
      with the norm at the end (`fastpsl.models.timm_backbone`).

    The last linear layer is not built. Other layers behind `forward_features`, such as ConvNeXt's
    `head.norm`, belong to no block and keep their values.
    """

    def __init__(self, name: str, num_channels: int = 3, network: nn.Module | None = None):
        """Build the model with random weights, or take one that timm made with other arguments."""
        timm = _timm(name)
        self.sizes: dict[str, Any] = {}
        if network is None:
            network, self.sizes = _made(timm, name, num_channels)
        elif hasattr(network, "reset_classifier"):
            network.reset_classifier(0)  # type: ignore[operator]
        super().__init__(name, network)
        if first_convolution(network) is None:
            raise self._refusal("it has no convolution that reads images")
        self._tokens = _is_vision_transformer(timm, network)
        if self._tokens:
            self._check_layers_apart()
        # Whether the layers read and return [B, h, w, C].
        self._channels_last = getattr(network, "output_fmt", "") == "NHWC" and not self._tokens
        network.eval()
        with torch.no_grad():
            self._groups = _transformer_groups(network) if self._tokens else _stage_groups(network)
            self.block_names = tuple(self._groups)
            self._measure()
        network.train()

    def pooled_by_timm(self) -> str:
        """Return code with timm's `model` and images `x` that gives our features' mean over positions."""
        if not self._tokens:
            return f"model.forward_features(x).mean({(1, 2) if self._channels_last else (2, 3)})"
        num_prefix: int = self.network.num_prefix_tokens  # type: ignore[assignment]
        if not num_prefix:
            return "model.forward_features(x).mean(1)"
        tokens = f"t = model.forward_features(x), as torch.cat((t[:, {num_prefix}:].mean(1), "
        return f"{tokens}t[:, :{num_prefix}].flatten(1)), 1)"

    @override
    def blocks(self) -> list[nn.Module]:
        network = self.network
        parts = [[network.get_submodule(path) for path in paths] for paths in self._groups.values()]
        if self._tokens:
            num_prefix, rope = network.num_prefix_tokens, getattr(network, "rope", None)
            norms = [*(nn.Identity() for _ in parts[2:]), network.norm]
            on_tokens = (
                OnTokens(layers, norm, num_prefix, rope)  # type: ignore[arg-type]
                for layers, norm in zip(parts[1:], norms, strict=True)
            )
            return [Embedding(network), *on_tokens]
        if not self._channels_last:
            return [nn.Sequential(*layers) for layers in parts]
        to_maps, from_maps = Permute([0, 3, 1, 2]), Permute([0, 2, 3, 1])
        return [
            nn.Sequential(*([from_maps] if number else []), *layers, to_maps)
            for number, layers in enumerate(parts)
        ]

    @override
    def synchronise_batchnorms(self) -> None:
        # torch's own conversion would lose the activations that timm's BatchNorms hold.
        _timm(self.name).layers.convert_sync_batchnorm(self.network)

    def _check_layers_apart(self) -> None:
        """Check that each layer of a vision transformer can learn and compute without the others."""
        rope = getattr(self.network, "rope", None)
        if rope is not None and any(True for _ in rope.parameters()):
            raise self._refusal("the positions of all its layers are one parameter, rope.freqs")
        if getattr(rope, "aug_active", False):
            raise self._refusal("in training, one random draw moves the positions of all its layers")
        if drops_patches(self.network):
            raise self._refusal("it drops patches in training: make it with patch_drop_rate=0")

    def _measure(self) -> None:
        """Set `channels` and `min_px`, after a check that the blocks compute what the network does."""
        if len(self._groups) < MIN_BLOCKS:
            raise self._refusal("its stages are no chain of three or more")
        self.min_px = self._smallest_px()
        short, long = max(64, self.min_px), 3 * max(64, self.min_px) // 2
        shapes = []
        for height, width in ((short, long), (long, short)):
            image = image_of(self.network, height, width)
            try:
                outputs = self._outputs(image)
                expected = self.network.forward_features(image)  # type: ignore[operator]
            except UNREADABLE as error:
                raise self._refusal(f"it cannot read {height} x {width} px: {reason_of(error)}") from error
            if self._tokens:
                num_prefix: int = self.network.num_prefix_tokens  # type: ignore[assignment]
                expected = maps_of(expected, outputs[-1].shape[2], outputs[-1].shape[3], num_prefix)
            elif self._channels_last:
                expected = expected.permute(0, 3, 1, 2)
            if not image.is_meta and not torch.equal(outputs[-1], expected):
                raise self._refusal("its layers in sequence have another result")
            shapes.append([tuple(output.shape[1:]) for output in outputs])
        # Turned images have turned maps. Otherwise what is called channels are rows.
        if shapes[0] != [(channels, height, width) for channels, width, height in shapes[1]]:
            raise self._refusal("the outputs of its layers are no maps")
        self.channels = tuple(shape[0] for shape in shapes[0])

    def _smallest_px(self) -> int:
        """Find the smallest side that all blocks read, by halving between powers of two."""
        enough = next((2**power for power in range(9) if self._reads(2**power)), 0)
        if not enough:
            fixed = getattr(self.network, "dynamic_img_size", True) is False
            remedy = ", or a fixed one: make it with dynamic_img_size=True" if fixed else ""
            raise self._refusal(f"its layers in sequence read no size of images{remedy}")
        too_small = enough // 2
        while enough - too_small > 1:
            middle = (too_small + enough) // 2
            too_small, enough = (too_small, middle) if self._reads(middle) else (middle, enough)
        return enough

    def _reads(self, side_px: int) -> bool:
        try:
            return self._outputs(image_of(self.network, side_px, side_px))[-1].numel() > 0
        except UNREADABLE:
            return False

    def _outputs(self, image: Tensor) -> list[Tensor]:
        outputs = [image]
        for block in self.blocks():
            outputs.append(block(outputs[-1]))
            if outputs[-1].dim() != 4:
                raise ValueError(f"the output of a block has {outputs[-1].dim()} dimensions")
        return outputs[1:]

    def _refusal(self, reason: str) -> ValueError:
        return ValueError(
            f"--backbone {self.name}: it cannot be cut into blocks that hand on maps ({reason}); give a "
            f"model of timm that is a chain of stages, {FAMILIES}"
        )


def _timm(name: str, option: str = "--backbone ") -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ValueError(f"{option}{name}: timm is not installed; {install('timm')}") from None
    return timm


def model_of(weights: str) -> str:
    """Return the backbone of weights of `--init`, such as timm/resnet50 for timm/resnet50.a1_in1k.

    Raises:
        ValueError: timm has no such model.
    """
    backbone = weights.partition(".")[0]
    _check_name(_timm(backbone, ""), backbone, "")
    return backbone


def config_of(weights: str) -> dict[str, Any]:
    """Return timm's `pretrained_cfg` of weights or of a model; nothing is downloaded.

    Raises:
        ValueError: timm knows none of this name.
    """
    try:
        config = _timm(weights, "").get_pretrained_cfg(weights.removeprefix(TIMM), allow_unregistered=False)
    except RuntimeError as error:
        raise ValueError(f"{weights}: {error}") from None
    found: dict[str, Any] = config.to_dict()
    return found


def license_of(weights: str) -> str:
    """Return the license that timm has of published weights, such as timm/resnet18.a1_in1k.

    It is "" where timm is not installed, or knows neither the weights nor their license.
    """
    try:
        config = _timm(weights, "").get_pretrained_cfg(weights.removeprefix(TIMM), allow_unregistered=True)
    except (ValueError, RuntimeError):
        return ""
    return str(getattr(config, "license", None) or "")


def published(name: str) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """Download weights by timm, into its cache.

    Args:
        name: The name, such as timm/resnet50 or timm/resnet50.a1_in1k.

    Returns:
        The backbone's name, the tensors by timm's names, and timm's `pretrained_cfg`.

    Raises:
        ValueError: timm has no such weights, or they cannot be downloaded.
    """
    timm, backbone, model = _timm(name, ""), model_of(name), name.removeprefix(TIMM)
    known = timm.list_pretrained(f"{backbone.removeprefix(TIMM)}.*")
    if not known or (model not in known and backbone != name):
        theirs = f"it has {first_three(known)}" if known else "it has none of this model"
        raise ValueError(f"{name}: timm {timm.__version__} has no such weights; {theirs}")
    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
    except Exception as error:  # of the network, the server or the file, by several libraries
        raise_of_the_system(name, error)
        raise ValueError(
            f"{name}: timm could not fetch it ({reason_of(error)}); look at the network, or give a file"
        ) from error
    return backbone, network.state_dict(), network.pretrained_cfg


def _made(timm: ModuleType, name: str, num_channels: int) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model with random weights, and the arguments with which it reads images of any size."""
    _check_name(timm, name)
    model = name.removeprefix(TIMM)
    family = timm.models.model_entrypoint(model).__module__.rpartition(".")[2]
    sizes = _ANY_SIZE.get(family, {})
    try:
        network = timm.create_model(model, pretrained=False, num_classes=0, in_chans=num_channels, **sizes)
    except UNREADABLE as error:
        raise_of_the_system(f"--backbone {name}", error)
        raise ValueError(
            f"--backbone {name}: timm cannot build it ({reason_of(error)}); give another model"
        ) from error
    return network, sizes


def _check_name(timm: ModuleType, name: str, option: str = "--backbone ") -> None:
    model = name.removeprefix(TIMM)
    known = timm.list_models()
    if model in known:
        return
    near = similar(model, known, num=4, least=0.4)
    nearest = (
        f"the nearest are {', '.join(TIMM + other for other in near)}" if near else "see timm.list_models()"
    )
    if model.partition(".")[0] in known:
        nearest = f"give {TIMM}{model.partition('.')[0]}, because a tag is the name of weights"
    raise ValueError(f"{option}{name}: timm {timm.__version__} has no model {model!r}; {nearest}")


def _is_vision_transformer(timm: ModuleType, network: nn.Module) -> bool:
    bases = (timm.models.VisionTransformer, timm.models.Eva)
    forward = getattr(type(network), "forward_features", None)
    return any(isinstance(network, base) and forward is base.forward_features for base in bases)


def drops_patches(network: nn.Module) -> bool:
    """Return whether a transformer of timm drops patches in training."""
    return bool(getattr(getattr(network, "patch_drop", None), "prob", 0))


def _transformer_groups(network: nn.Module) -> dict[str, list[str]]:
    depth = len(network.blocks)  # type: ignore[arg-type]
    num = min(NUM_BLOCKS - 1, depth)
    bounds = [depth * number // num for number in range(num + 1)]
    groups = {"embedding": list[str]()}
    for first, end in pairwise(bounds):
        name = f"blocks.{first}" if end == first + 1 else f"blocks.{first}-{end - 1}"
        groups[name] = [f"blocks.{number}" for number in range(first, end)]
    return groups


def _stage_groups(network: nn.Module) -> dict[str, list[str]]:
    """Return the paths of each block's layers, in order, by the block's name.

    A block ends where timm's `feature_info` has a feature.
    """
    ends = [info["module"] for info in getattr(network, "feature_info", [])]
    layers = dict(_layers(network, ends))
    called = _called(network, layers)
    if not ends or len(set(ends)) < len(ends) or not set(ends) <= set(called):
        return {}
    groups: dict[str, list[str]] = {}
    start = 0
    for end in ends:
        groups[end] = called[start : called.index(end) + 1]
        start = called.index(end) + 1
    groups[ends[-1]] += called[start:]
    *stem, stage = groups[ends[0]]
    if len(ends) < NUM_BLOCKS and stem:
        groups = {"stem": stem} | groups | {ends[0]: [stage]}
    return groups


def _called(network: nn.Module, layers: dict[str, nn.Module]) -> list[str]:
    """Return the paths of the layers that `forward_features` calls, in the order of the calls."""
    called: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, path=path: called.append(path))
        for path, layer in layers.items()
    ]
    for side_px in (64, 256):
        called.clear()
        try:
            network.forward_features(image_of(network, side_px, side_px))  # type: ignore[operator]
            break
        except UNREADABLE:
            continue
    for hook in hooks:
        hook.remove()
    return called


def _layers(network: nn.Module, ends: list[str], prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a network. One that contains a feature's end yields its own children."""
    for name, child in network.named_children():
        path = f"{prefix}{name}"
        if any(end.startswith(f"{path}.") for end in ends):
            yield from _layers(child, ends, f"{path}.")
        else:
            yield path, child
