"""Train MoCo v2 in PSL's levels (PSL, section 3.3.3, Table 3 and section 4.1; MoCo and MoCo v2).

PSL: "we apply PSL on the data-augmentation part of MoCov2". We read this as the levels of Table 3 with the
values of MoCo v2.

Query and key must not share batch statistics, because the network could match them by these alone. MoCo
shuffles the keys' images between GPUs, so a group is a GPU's share. Here a group has a fixed size, and the
order is a function of (seed, epoch, step). The groups are cut from the batch of all ranks. One GPU therefore
computes the same keys as eight.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.step_modes import IS_SKIPPED
from fastpsl.engine.task import Task
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.kernels.draws import Keys, Slot, words
from fastpsl.models.backbone import cast_layers
from fastpsl.models.convolutional import AveragePool
from fastpsl.pipelines.decoders.memory import to_device
from fastpsl.pipelines.interface.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.info_nce import InfoNCE, enqueue, info_nce
from fastpsl.tasks.contrastive.simclr import NUM_LEVELS, SOBEL_P, contrastive_view, drawn, side_by_side


def shuffled_order(seed: int, epoch: int, step: int, num: int) -> np.ndarray:
    """Return a permutation of 0 … num - 1, int64 [num]; place p of the shuffled batch has image order[p].

    Batch `step` of `epoch` has the positions step * num to (step + 1) * num of that epoch, and each position
    has its own 64 random bits.
    """
    positions = np.arange(step * num, (step + 1) * num, dtype=np.int64)
    high, low = words(Keys(seed, epoch, positions), Slot.TASK, 2).astype(np.uint64).T
    # Stable, so that equal bits have one order everywhere.
    return np.argsort((high << np.uint64(32)) | low, kind="stable")


def encode_shuffled(
    encode: Callable[[Tensor, int], Tensor], images: Tensor, valid: Tensor, order: Tensor, group_size: int,
    host_order: np.ndarray | None = None,
) -> Tensor:  # fmt: skip
    """Encode all ranks' images in shuffled groups, each rank its share of the groups.

    An invalid image (padding, or one that could not be decoded) is replaced by a valid one of its group. So
    it is in no group's statistics, and its row holds the key of a real image, unless its group has none. A
    rank receives as many images as it has, whatever the number of ranks.
    """
    size = len(images)
    if size % group_size:
        raise ValueError(
            f"--key-group {group_size} does not divide the {size} images of a rank's batch: "
            f"choose a divisor of {size}, or another --batch-size or --accumulate"
        )
    rank, world = place_among_ranks()
    # Each rank encodes a part of the shuffled batch, and not of its own images: a group is cut from all.
    places = order[rank * size : (rank + 1) * size]
    if world == 1:
        share = images[places]
    else:
        assert host_order is not None  # counted on the device, the rows to send would be a wait
        share = redistributed(images, host_order)
    groups = valid[places].view(-1, group_size)
    starts = torch.arange(0, size, group_size, device=images.device)[:, None]
    # Before the encoding, because one image of NaN would make all keys of its group NaN.
    share = share[(starts + substitutes(groups)).flatten()].contiguous(memory_format=torch.channels_last)
    # Of all ranks, because each has the whole queue.
    shuffled = gathered(encode(share, group_size))
    return torch.empty_like(shuffled).index_copy_(0, order, shuffled)


def redistributed(rows: Tensor, order: np.ndarray) -> Tensor:
    """Return this rank's part of the rows of all ranks in another order, without gradients."""
    size, (rank, world) = len(rows), place_among_ranks()
    owners = order // size
    places = np.flatnonzero(owners == rank)  # of this rank's rows; ascending, so by the rank that gets them
    sent = rows.detach()[on_device(order[places] - rank * size, rows.device)].contiguous()
    if world == 1:
        return sent
    senders = owners[rank * size : (rank + 1) * size]
    num_sent, num_received = (np.bincount(ranks, minlength=world) for ranks in (places // size, senders))
    received = torch.empty_like(sent)
    # To each rank only the rows that it encodes. To gather the images would send them to all.
    dist.all_to_all_single(received, sent, num_received.tolist(), num_sent.tolist())
    by_sender = on_device(np.argsort(senders, kind="stable"), rows.device)
    return torch.empty_like(received).index_copy_(0, by_sender, received)


def substitutes(valid: Tensor) -> Tensor:
    """Map the valid places of each group to themselves and the others to its valid places in turn.

    `valid` is bool [groups, n], and the result int64 [groups, n]. Without a valid place it is the first.
    """
    places = torch.arange(valid.shape[1], device=valid.device).expand_as(valid)
    valid_first = torch.argsort(~valid, dim=1, stable=True)
    return torch.where(valid, places, valid_first.gather(1, places % valid.sum(1, keepdim=True).clamp(min=1)))


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to `device`; to a GPU from pinned memory, so that the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else to_device(tensor, device)


Module = TypeVar("Module", bound=nn.Module)


class KeyEncoder:
    """A copy of the learning blocks and the head, without gradients, that follows them by momentum.

    Its BatchNorm uses the statistics of the images of the call, in training and in validation passes. Only
    where learning blocks keep the statistics of their weights (learning_batchnorm "eval") does their copy,
    too. The encoder is not part of the stage's module, so DDP and the optimiser do not see it. Its blocks run
    as the backbone's do, folded and compiled where those are.
    """

    def __init__(self, blocks: StageBlocks, head: nn.Module, momentum: float):
        self.blocks = blocks
        frozen, learning = blocks.frozen, blocks.learning
        # Below a part of `--plan blockwise`, all blocks learn.
        if any(weights.requires_grad for weights in frozen.parameters()):
            frozen, learning = frozen[:0], nn.ModuleList([*frozen, *learning])
        # Frozen blocks are equal in both encoders. By batch statistics, keys would change their running ones.
        shared = blocks.frozen_batchnorm == "eval"
        self.frozen = frozen if shared else _by_batch_statistics(frozen)
        # By the call's images, so that a key does not depend on what its rank saw before.
        copied = _by_batch_statistics if blocks.batchnorm == "train" else _frozen_copy
        self.learning, self.head = copied(learning), _by_batch_statistics(head)
        self._mine: list[Tensor] = [*self.learning.parameters(), *self.head.parameters()]
        self._theirs = [*learning.parameters(), *head.parameters()]
        # k - (1 - momentum) * (k - q) by torch's one kernel that does nothing in a skipped step.
        self._update = torch.optim.SGD(
            self._mine, lr=1 - momentum, weight_decay=1.0, maximize=True, fused=True
        )
        self._cast: tuple[nn.ModuleList, nn.Module] | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, group_size: int) -> Tensor:
        """Return keys of length 1, float32 [B, width], of images [B, C, H, W].

        Each group of images is normalised by its own statistics, unless learning blocks keep theirs; its size
        divides B. Frozen blocks that normalise by running statistics see all images at once.
        """
        blocks = self.blocks
        learning, head = self._as_run(images.device.type)
        is_shared = self.frozen is blocks.frozen
        if is_shared:
            images = blocks.run(blocks.frozen_as_run, images)
        keys = []
        for group in images.split(group_size):
            if not is_shared:
                group = blocks.run(self.frozen, group)  # type: ignore[arg-type]  # a ModuleList is a sequence
            keys.append(F.normalize(head(blocks.run(learning, group)).float()))  # type: ignore[arg-type]
        return torch.cat(keys)

    def _as_run(self, device_type: str) -> tuple[nn.ModuleList, nn.Module]:
        """Return the learning blocks and the head, under autocast with weights of its type."""
        if not torch.is_autocast_enabled(device_type):
            return self.learning, self.head
        # Autocast would cast weights without gradients in every call, and there is a call per group: 424
        # casts per step for ResNet-50 and 8 groups instead of 53.
        if self._cast is None:
            dtype = torch.get_autocast_dtype(device_type)
            self._cast = copy.deepcopy((self.learning, self.head))
            for part in self._cast:
                cast_layers(part, dtype)
        # The two dtypes one after the other: torch 2.10 takes all destinations for the first one's.
        pairs = list(zip((p for part in self._cast for p in part.parameters()), self._mine, strict=True))
        for is_cast in (True, False):
            chosen = [pair for pair in pairs if (pair[0].dtype != pair[1].dtype) == is_cast]
            if chosen:
                torch._foreach_copy_([copied for copied, _ in chosen], [mine for _, mine in chosen])
        return self._cast

    def follow(self, is_skipped: Tensor | None = None) -> None:
        """Update every parameter after a step: k ← momentum * k + (1 - momentum) * q (MoCo, equation 2).

        If `is_skipped`, a float32 number on the device, is not 0, all stay.
        """
        for mine, theirs in zip(self._mine, self._theirs, strict=True):
            mine.grad = theirs.detach()  # the weights themselves, without a copy
        self._update.found_inf = is_skipped  # type: ignore[attr-defined]
        self._update.step()
        self._update.zero_grad()
        self._update.found_inf = None  # type: ignore[attr-defined]  # it may lie in a graph's memory

    def parameters(self) -> list[Tensor]:
        """Return the parameters that `follow` writes."""
        return self._mine

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"learning": self.learning.state_dict(), "head": self.head.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        self.learning.load_state_dict(state["learning"])
        self.head.load_state_dict(state["head"])


def _frozen_copy(module: Module) -> Module:
    """Return a copy without gradients, in evaluation mode."""
    return copy.deepcopy(module).requires_grad_(False).eval()


def _by_batch_statistics(module: Module) -> Module:
    """Return a `_frozen_copy` whose BatchNorm uses the batch statistics of this rank alone."""
    module = _frozen_copy(module)
    # In eval mode without running statistics, torch normalises by the batch. In train mode, SyncBatchNorm
    # would join the groups of all ranks.
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.track_running_stats = False
            part.running_mean = part.running_var = part.num_batches_tracked = None
    return module


class MoCo(Task):
    """A task that tells the key of an image's other view from a queue of earlier images' keys.

    It is MoCo v2 in the levels of PSL, section 3.3.3 and Table 3. Keys are computed in shuffled groups of
    `key_group` images, in validation passes too, so that all keys are computed alike. The query of a
    validation pass is normalised by running statistics.

    The papers do not state what happens at a stage change. Here, the key encoder becomes a copy of the
    query's blocks and new head. Batches without a step then fill the queue anew, because keys of the previous
    stage have another meaning.

    Args:
        seed: Seed of the shuffled order.
        batch_size: Images of a step over all ranks, where a stage has no number of its own.
        queue_size: Number of keys in the queue, a multiple of the images of a step.
        momentum: Momentum of the key encoder, in [0, 1].
        temperature: Divisor of the similarities, above 0.
        key_group: Images that are normalised together, 2 or more.
        width: Length of a key.
        size_px: Side of a view, in pixels.
        sobel_p: Probability of Sobel at level T3; 0 for MoCo v2 as published.
        accumulate: Batches of a step.

    Raises:
        ValueError: A value is out of range.
    """

    num_levels = NUM_LEVELS
    fixed_exchange = False  # of images between the ranks that hold and that encode them
    accuracy_name = "accuracy in finding the other view"

    def __init__(
        self, *, seed: int, batch_size: int, queue_size: int, momentum: float, temperature: float,
        key_group: int, width: int, size_px: int, sobel_p: float = SOBEL_P, accumulate: int = 1,
    ):  # fmt: skip
        if key_group < 2:
            raise ValueError(f"--key-group {key_group}: statistics need 2 images; give 2 or more")
        if width < 1:
            raise ValueError(f"--embedding-width {width}: it must be 1 or more")
        if not temperature > 0:
            raise ValueError(f"--temperature {temperature}: it must be above 0")
        if not 0 <= momentum <= 1:
            raise ValueError(f"--momentum {momentum}: it must be 0 to 1")
        self.seed, self.batch_size, self.queue_size, self.key_group = seed, batch_size, queue_size, key_group
        self.momentum, self.temperature, self.width, self.size_px = momentum, temperature, width, size_px
        self.sobel_p, self.accumulate = sobel_p, accumulate

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Return two views of one kind, for query and key: MoCo v2's, with PSL's Sobel."""
        colour = ColourDistortion(0.4, 0.4, 0.4, 0.1)
        view = contrastive_view(level, self.size_px, scale=(0.2, 1.0), colour=colour, sobel_p=self.sobel_p)
        return (view, view)

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Build the head: average pool, Linear C→C, ReLU, Linear C→width, without BatchNorm.

        MoCo v2's hidden width of 2048 is that of its features. PSL does not state the hidden width on B3 and
        B4; here it is the block's.
        """
        hidden = nn.Linear(channels, channels)
        last = nn.Linear(channels, self.width)
        return nn.Sequential(AveragePool(), nn.Flatten(), hidden, nn.ReLU(inplace=True), last)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """Raise ValueError if queue, batch and data do not fit together; `batch_size` is a step's."""
        size, most = self.queue_size, data.num_samples // batch_size * batch_size
        if size < 1 or size % batch_size:
            raise ValueError(
                f"--queue-size {size} is no multiple of --batch-size {batch_size}, so steps could not "
                f"replace all keys in turn: give {max(size // batch_size, 1) * batch_size}, or another "
                f"--batch-size"
            )
        if size > data.num_samples >= batch_size:  # fewer images than one batch are refused after this
            raise ValueError(
                f"--queue-size {size} for {data.num_samples} training images, so an image would meet "
                f"its own key as a negative: give at most {most}"
            )
        share = batch_size // self.accumulate // place_among_ranks()[1]
        if share % self.key_group:
            raise ValueError(
                f"--key-group {self.key_group} does not divide the {share} images of a rank's batch: give "
                f"a divisor of {share}, or another --batch-size, --accumulate or number of ranks"
            )

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Copy the query encoder to the key encoder, and empty the queue."""
        self.batch_size = stage.batch_size or self.batch_size
        self.key_encoder = KeyEncoder(blocks, head, self.momentum)
        device = next(head.parameters()).device
        self.queue = torch.zeros(self.queue_size, self.width, device=device)
        # Of the next key. On the device, because a captured step would keep a number of the host.
        self.slot = torch.zeros((), dtype=torch.int64, device=device)
        self.num_filled = 0  # on the host: it changes in the warm-up alone, which is no step

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        return self.queue_size * self.accumulate // (stage.batch_size or self.batch_size)

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        keys = self._keys(inputs[1], batch, gathered(batch.indices) >= 0)
        enqueue(self.queue, self.slot, keys)
        self.num_filled = min(self.num_filled + len(keys), self.queue_size)

    @override
    def batch_tensors(self, epoch: int, step: int, num_images: int) -> dict[str, Tensor]:
        """Return the shuffled order of the batch's keys, and keep it for ranks that exchange images by it."""
        self.host_order = shuffled_order(self.seed, epoch, step, num_images)
        return {"order": torch.from_numpy(self.host_order)}

    @override
    def step_state(self) -> list[Tensor]:
        return [self.queue, self.slot, *self.key_encoder.parameters()]

    @override
    def kept_state(self) -> tuple[()]:
        """Return nothing, because a skipped step does not write the queue and the key encoder."""
        return ()  # copies of both would cost 0.3 ms a step

    @override
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return InfoNCE in float32 (MoCo, equation 1).

        Accuracy is the share of images whose own key is nearer than all keys of the queue.
        """
        result, all_valid = self._compared(blocks, head, inputs, batch)
        num, total = (batch.indices >= 0).sum().float(), result.loss_sum
        metrics = {"loss": (total.detach(), num), "accuracy": (result.num_correct, num)}
        # DDP takes the mean over the ranks, and ranks may have skipped different numbers of samples.
        return total * place_among_ranks()[1] / all_valid.sum().clamp(min=1), metrics

    @override
    def losses(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return self._compared(blocks, head, inputs, batch)[0].losses

    def _compared(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[InfoNCE, Tensor]:
        """Compare this rank's queries with their keys and the queue; return which images of all are valid."""
        assert self.num_filled == self.queue_size, "the queue is not filled: call warm_up first"
        all_valid = gathered(batch.indices) >= 0
        keys = self._keys(inputs[1], batch, all_valid)
        batch.extra["keys"] = keys  # not the task's, where keys of a step that is given up would stay
        size, rank = len(batch.indices), place_among_ranks()[0]
        own = slice(rank * size, (rank + 1) * size)
        features = head(blocks(inputs[0]))
        return info_nce(features, keys[own], self.queue, all_valid[own], self.temperature), all_valid

    @override
    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        """Update the key encoder and enqueue the keys of all accumulated batches, once per step."""
        is_skipped = extras[0].get(IS_SKIPPED)  # one value for the whole step
        self.key_encoder.follow(is_skipped)
        enqueue(self.queue, self.slot, torch.cat([extra["keys"] for extra in extras]), is_skipped)

    @override
    def state_dict(self) -> dict[str, Any]:
        slots = {"num_filled": self.num_filled, "next_slot": self.slot}
        return {"queue": self.queue, "key_encoder": self.key_encoder.state_dict(), **slots}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queue.copy_(state["queue"])
        self.key_encoder.load_state_dict(state["key_encoder"])
        self.num_filled = state["num_filled"]
        self.slot.copy_(state["next_slot"])

    @override
    def chance(self, level: int) -> float:
        return 1 / (self.queue_size + 1)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        return side_by_side(inputs, self.views(1))

    @override
    def captions(self, batch: Batch) -> list[str]:
        return drawn(batch, self.views(self.num_levels)[0])

    def _keys(self, images: Tensor, batch: Batch, all_valid: Tensor) -> Tensor:
        """Return the keys of all ranks' images, float32 [world * B, width], in the order of the ranks."""
        return encode_shuffled(
            self.key_encoder, images, all_valid, batch.extra["order"], self.key_group, self.host_order
        )
