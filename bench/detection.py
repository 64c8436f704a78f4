"""How long detection's training step takes: ours, and that of torchvision's FasterRCNN of the same parts.

    python bench/detection.py  ResNet-50 C4 at the protocol's values on a GPU; on a CPU ResNet-18, small

Forward, backward, optimiser on the same uint8 images on the device, in turn. torchvision's model gets our
weights, so that as many boxes come out of each of its parts: a ResNet with FrozenBatchNorm2d up to layer3,
14 x 14 RoIs from one map, and layer4 as the box head. Optimiser, loop and layout are those of its reference
scripts.
"""

import gc
import itertools
import os
import statistics
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch comes: see throughput.py

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is a folder of programs, not installed
from bench.charts import publish
from bench.program import check_positive, in_turn, options_of, progress, run_program
from bench.schema import RUNS, environment, over, spread
from fastpsl.engine.distributed import World, join_world
from fastpsl.engine.experiment import Experiment, make_train_step, place_backbone
from fastpsl.engine.gpu import milliseconds, synchronise
from fastpsl.engine.optim.optimisers import sgd
from fastpsl.engine.options import TrainingOptions
from fastpsl.engine.train_step import DTYPES, TrainStep
from fastpsl.models.factory import make_backbone
from fastpsl.pipelines.loader.annotated import AnnotatedBatch
from fastpsl.pipelines.views import Input
from fastpsl.transfer.detection.detector import MIN_SCORE, RATIOS, Detector
from fastpsl.transfer.detection.protocols import PROTOCOLS, DetectionProtocol
from fastpsl.transfer.detection.task import Detection

PROTOCOL, NUM_CLASSES, NUM_OBJECTS, NUM_BATCHES = "pirl", 20, 3, 2
LR = 1e-7  # so small that the weights, and with them the numbers of boxes, stay the same
SIDES = (375, 500)  # the most frequent size in VOC, in either orientation


@dataclass(frozen=True, kw_only=True)
class Options:
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backbone: Literal["resnet18", "resnet34", "resnet50"] | None = None
    """Default: resnet50 on CUDA, else resnet18."""
    size: int | None = None
    """Shorter side of the images, px; the longer one is 4/3 of it. Default: 640 on CUDA, else 128."""
    batch_size: int | None = None  # Default: the protocol's 16 on CUDA, else 2.
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    repeats: int | None = None  # Default: 7 on CUDA, else 5.
    limit_s: float | None = None
    """No further repeat begins after so many seconds, but for the first. Default: 240 on CUDA, else 60."""
    out: Path = RUNS / "detection.json"  # The result.

    def check(self) -> None:
        """Raise ValueError if an option is out of range."""
        check_positive(self, "size", "batch_size", "repeats", "limit_s")


@dataclass
class Peer:
    """One implementation: its whole training step, what trains, and the RoI pooling before the head."""

    step: Callable[[], object]
    model: nn.Module
    pool: nn.Module
    first_step_s: float = 0.0
    peak_bytes: int = 0
    ms: list[float] = field(default_factory=list)  # milliseconds per step, one value per repeat

    @property
    def num_learning(self) -> int:
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad)

    def boxes_in_a_step(self) -> int:
        """Return the number of boxes that the head reads in a step."""
        counts: list[int] = []
        handle = self.pool.register_forward_hook(lambda _, inputs, outputs: counts.append(len(outputs)))
        self.step()
        handle.remove()
        return sum(counts)


def drawn_batches(num: int, batch_size: int, short_px: int, device: torch.device) -> list[AnnotatedBatch]:
    """Return batches of noise images on the device, 3:4 or 4:3 at random, with three objects each."""
    random = np.random.default_rng(0)
    batches = []
    for _ in range(num):
        images, targets = [], []
        for _ in range(batch_size):
            sides = [round(side * short_px / SIDES[0]) for side in SIDES]
            height, width = sides if random.random() < 0.5 else sides[::-1]
            images.append(torch.from_numpy(random.integers(0, 256, (3, height, width), np.uint8)).to(device))
            corners = random.uniform(0, 0.5, (NUM_OBJECTS, 2))
            far = corners + random.uniform(0.2, 0.5, (NUM_OBJECTS, 2))
            boxes = np.concatenate([corners, far], 1) * [width, height, width, height]
            labels = random.integers(1, NUM_CLASSES + 1, NUM_OBJECTS)
            targets.append({
                "boxes": torch.from_numpy(boxes.astype(np.float32)).to(device),
                "labels": torch.from_numpy(labels).to(device),
            })  # fmt: skip
        numbers = torch.arange(batch_size, device=device)
        batches.append(AnnotatedBatch(images, targets, numbers, torch.full_like(numbers, -1), 0, 0))
    return batches


def our_train_step(
    protocol: DetectionProtocol, backbone_name: str, options: TrainingOptions, world: World
) -> TrainStep:
    """Return the recipe's training step with random weights.

    The scales of BatchNorm are halved, so that activations do not grow from block to block.
    """
    torch.manual_seed(0)
    backbone = make_backbone(backbone_name)
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.constant_(part.weight, 0.5)
    task = Detection(protocol, backbone, Input(), options.seed)
    task.train = cast(Any, SimpleNamespace(num_classes=NUM_CLASSES))
    experiment = Experiment(
        task=task, backbone=backbone, stages=(task.stage(),), schedule=protocol.schedule(options.batch_size),
        optimiser=partial(sgd, weight_decay=protocol.weight_decay, decay_biases=protocol.decay_biases),
        batchnorm=protocol.batchnorm,
    )  # fmt: skip
    place_backbone(experiment, options, world)
    return make_train_step(experiment, 0, options, world)


def ours(train_step: TrainStep, batches: Iterator[Any]) -> Peer:
    """Return our implementation as a peer."""
    pool = train_step.module.head.roi_heads.box_roi_pool  # type: ignore[union-attr]
    return Peer(lambda: train_step.step([next(batches)], LR), train_step.module, cast(nn.Module, pool))


def torchvisions_model(protocol: DetectionProtocol, backbone_name: str, train_step: TrainStep) -> FasterRCNN:
    """Return torchvision's FasterRCNN with the weights of `train_step`, on its device."""
    blocks, head = train_step.module.blocks, train_step.module.head
    assert isinstance(head, Detector) and head.rpn is not None
    named = torchvision.models.get_model(backbone_name, weights=None, norm_layer=FrozenBatchNorm2d)
    named.load_state_dict(_by_torchvisions_names([*blocks.frozen, *blocks.learning], named))
    parts = OrderedDict(named.named_children())
    layer4, channels = parts.pop("layer4"), parts.pop("fc").in_features
    del parts["avgpool"]
    for name in ("conv1", "layer1")[: protocol.first_learning - 1]:
        parts[name].requires_grad_(False)
    maps = nn.Sequential(parts)
    maps.out_channels = channels // 2
    before, after = zip(protocol.rpn_train, protocol.rpn_test, strict=True)
    model = FasterRCNN(
        maps, min_size=1, _skip_resize=True,
        rpn_anchor_generator=AnchorGenerator((protocol.anchor_px,), (RATIOS,)),
        rpn_head=RPNHead(channels // 2, len(RATIOS) * len(protocol.anchor_px)),
        rpn_pre_nms_top_n_train=before[0], rpn_pre_nms_top_n_test=before[1],
        rpn_post_nms_top_n_train=after[0], rpn_post_nms_top_n_test=after[1],
        box_roi_pool=MultiScaleRoIAlign(["0"], protocol.roi_side, 0),
        box_head=nn.Sequential(layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        box_predictor=FastRCNNPredictor(channels, NUM_CLASSES + 1),
        box_score_thresh=MIN_SCORE, box_nms_thresh=protocol.nms, box_batch_size_per_image=protocol.num_rois,
    )  # fmt: skip
    model.rpn.head.load_state_dict(head.rpn.head.state_dict())
    model.roi_heads.box_predictor.load_state_dict(head.roi_heads.box_predictor.state_dict())
    return model.to(train_step.world.device)


def _by_torchvisions_names(blocks: Sequence[nn.Module], named: nn.Module) -> dict[str, Tensor]:
    """Return the blocks' values under torchvision's names, which have the same order, beside its own fc."""
    values = [
        value for block in blocks for name, value in block.state_dict().items() if "num_batches" not in name
    ]
    state = named.state_dict()
    names = [name for name in state if not name.startswith("fc.")]
    assert [state[name].shape for name in names] == [value.shape for value in values]
    return state | dict(zip(names, values, strict=True))


def torchvisions(
    model: FasterRCNN, batches: Iterator[AnnotatedBatch], protocol: DetectionProtocol, precision: str
) -> Peer:
    """Return torchvision's model as a peer with its reference loop: images in [0, 1], plain SGD."""
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learning, LR, momentum=0.9, weight_decay=protocol.weight_decay)
    device = learning[0].device.type
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")

    def step() -> None:
        batch = next(batches)
        with torch.autocast(device, dtype=DTYPES[precision], enabled=precision != "fp32"):
            losses = model([image / 255 for image in batch.images], batch.targets)
            loss = torch.stack(list(losses.values())).sum()
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()

    return Peer(step, model, cast(nn.Module, model.roi_heads.box_roi_pool))


def first_step(make: Callable[[], Peer], device: torch.device) -> Peer:
    """Make a peer, and run its first steps; peak memory is less what the other implementations hold."""
    is_cuda = device.type == "cuda"
    before_bytes = torch.cuda.memory_allocated(device) if is_cuda else 0
    peer, started = make(), time.perf_counter()
    peer.step()
    synchronise(device)
    peer.first_step_s = time.perf_counter() - started
    if is_cuda:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        peer.step()
        peer.peak_bytes = torch.cuda.max_memory_allocated(device) - before_bytes
    return peer


def main() -> None:
    options = options_of(Options, __doc__)
    started, world = time.perf_counter(), join_world(options.device, timeout_s=600.0)
    machine, device, is_cuda = environment(world.device), world.device, world.device.type == "cuda"
    backbone = options.backbone or ("resnet50" if is_cuda else "resnet18")
    size_px = options.size or (640 if is_cuda else 128)
    batch_size = options.batch_size or (16 if is_cuda else 2)
    repeats = options.repeats or (7 if is_cuda else 5)
    limit_s = options.limit_s or (240.0 if is_cuda else 60.0)
    num_steps = 3 if is_cuda else 1  # per repeat, after one that is not counted
    protocol = PROTOCOLS[PROTOCOL]
    if not is_cuda:  # because a head on 512 boxes per image takes minutes there
        protocol = replace(protocol, num_rois=32, rpn_train=(600, 100))
    training = TrainingOptions(batch_size=batch_size, device=device.type, precision=options.precision)  # type: ignore[arg-type]
    precision = training.resolved_precision(device)
    train_step = our_train_step(protocol, backbone, training, world)
    batches = drawn_batches(NUM_BATCHES, batch_size, size_px, device)
    turns: Iterator[AnnotatedBatch] = itertools.cycle(batches)
    peers: dict[str, Peer] = {}
    missing = []
    with progress() as log:
        for name, make in (
            ("ours", lambda: ours(train_step, turns)),
            ("torchvision", lambda: torchvisions(
                torchvisions_model(protocol, backbone, train_step), turns, protocol, precision
            )),
        ):  # fmt: skip
            log(f"{name}: first step")
            try:
                peers[name] = first_step(make, device)
            except torch.OutOfMemoryError:
                missing.append({"what": name, "reason": "out of GPU memory"})
        boxes = {name: peer.boxes_in_a_step() for name, peer in peers.items()}
        for peer in in_turn(peers.values(), repeats, log, deadline=started + limit_s):
            peer.ms.append(statistics.median(milliseconds(peer.step, device, num_steps)))
    rows = [
        {
            "measured": "step", "variant": name, "backbone": backbone, "unit": "ms",
            "images_per_s": round(1e3 * batch_size / statistics.median(peer.ms), 2),
            "boxes_per_image": boxes[name] / batch_size,
            "learning_parameters": peer.num_learning, "first_step_s": round(peer.first_step_s, 2),
            "peak_mib": round(peer.peak_bytes / 2**20) or None, **spread(peer.ms),
        }
        for name, peer in peers.items()
    ]  # fmt: skip
    ratios = [
        {"what": f"{name}'s ms / ours", "backbone": backbone, **over(peer.ms, peers["ours"].ms)}
        for name, peer in peers.items() if name != "ours" and "ours" in peers
    ]  # fmt: skip
    publish(
        options.out, "detection", machine, "variant backbone images_per_s boxes_per_image peak_mib",
        data={"name": "noise on the device", "num_samples": NUM_BATCHES * batch_size},
        settings={
            "repeats": repeats, "steps_per_repeat": num_steps, "batch_size": batch_size,
            "precision": precision, "device": device.type, "backbone": backbone, "short_px": size_px,
            "protocol": PROTOCOL, "num_rois": protocol.num_rois, "rpn_train": list(protocol.rpn_train),
            "limit_s": limit_s,
            "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        },
        rows=rows, ratios=ratios, not_measured=missing,
    )  # fmt: skip


if __name__ == "__main__":
    run_program(main)
