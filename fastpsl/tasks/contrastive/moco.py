"""MoCo v2 in PSL's levels (psl.txt, section 3.3.3, Table 3 and section 4.1 "Contrastive learning"; MoCo and MoCo v2).

PSL: "we apply PSL on the data-augmentation part of MoCov2". That its levels are those of Table 3, with MoCo v2's own values,
is our reading.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.task import Task
from fastpsl.engine.trunk import Metrics, Trunk
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.pipelines.batch import Batch
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.momentum_encoder import KeyEncoder
from fastpsl.tasks.contrastive.shuffled_batchnorm import encode_shuffled, shuffled_order
from fastpsl.tasks.contrastive.views import NUM_LEVELS, contrastive_view, drawn, side_by_side


class MoCo(Task):
    """Tell the key of an image's other view from a queue of earlier images' keys.

    Values by default are MoCo v2's. Keys are made in shuffled groups of `key_group` images (shuffled_groups.py), also in
    held-out passes, where the query has running statistics: so held-out keys are made as those in the queue were.
    At a stage change (the papers are silent): the key encoder becomes a copy of the query's blocks and new head, and the
    queue is filled anew by batches that are no steps, as keys of the old stage have another meaning.

    seed: of the shuffled order. batch_size: images of one batch over all ranks, so a step's by the number of accumulated
    batches. queue_size: keys; a multiple of a step's images. size_px: side of a view.
    """

    num_levels = NUM_LEVELS

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        queue_size: int = 65_536,
        momentum: float = 0.999,
        temperature: float = 0.2,
        key_group: int = 32,
        width: int = 128,
        size_px: int = 224,
    ):
        if key_group < 2:
            raise ValueError(f"--key-group {key_group}: statistics need 2 images or more")
        if width < 1:
            raise ValueError(f"--embedding-width {width}: it must be 1 or more")
        if temperature <= 0 or not 0 <= momentum <= 1:
            raise ValueError(
                f"--temperature {temperature}, --momentum {momentum}: the first must be above 0, the second in [0, 1]"
            )
        self.seed, self.batch_size, self.queue_size, self.key_group = seed, batch_size, queue_size, key_group
        self.momentum, self.temperature, self.width, self.size_px = momentum, temperature, width, size_px
        self.num_filled = self.next_slot = 0
        self.new_keys: list[Tensor] = []  # of the step under way

    @override
    def views(self, level: int) -> tuple[ViewSpec, ...]:
        """Two views of one kind, for the query and the key: MoCo v2's crop, jitter, grey, blur and flip, and PSL's Sobel."""
        colour = ColourDistortion(0.4, 0.4, 0.4, 0.1)
        return (contrastive_view(level, self.size_px, scale=(0.2, 1.0), colour=colour),) * 2

    @override
    def head(self, level: int, channels: int) -> nn.Module:
        """Average pool, Linear C→C, ReLU, Linear C→128, without BatchNorm.

        MoCo v2's hidden width 2048 is that of its features; PSL does not state the one on B3 and B4: here the block's.
        """
        hidden = nn.Linear(channels, channels)
        last = nn.Linear(channels, self.width)
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), hidden, nn.ReLU(inplace=True), last)

    @override
    def check_data(self, data: Dataset, batch_size: int) -> None:
        """ValueError where queue, batch and set do not suit each other. batch_size: images of a step."""
        size, most = self.queue_size, data.num_samples // batch_size * batch_size
        if size < 1 or size % batch_size:
            raise ValueError(
                f"--queue-size {size} is no multiple of --batch-size {batch_size}, and a step's keys must replace as "
                f"many: give {max(size // batch_size, 1) * batch_size}, or another batch"
            )
        if size > data.num_samples:
            raise ValueError(
                f"--queue-size {size} for {data.num_samples} training images, so an image would meet its own key as a "
                f"negative: give at most {most}"
            )
        share = self.batch_size // place_among_ranks()[1]
        if share % self.key_group:
            raise ValueError(
                f"--key-group {self.key_group} does not divide the {share} images of a rank's batch: give a divisor of "
                f"{share}, or another --batch-size, --accumulate or number of ranks"
            )

    @override
    def start_stage(self, stage: Stage, trunk: Trunk, head: nn.Module) -> None:
        """Key encoder := query encoder; an empty queue."""
        self.key_encoder = KeyEncoder(trunk, head, self.momentum)
        self.queue = torch.zeros(self.queue_size, self.width, device=next(head.parameters()).device)
        self.num_filled = self.next_slot = 0
        self.new_keys.clear()

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        """Batches that fill the queue."""
        return self.queue_size // self.batch_size

    @override
    def warm_up(self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Fill the queue on; no step."""
        self._enqueue(self._keys(inputs[1], batch, gathered(batch.indices) >= 0))

    @override
    def loss(
        self, trunk: Trunk, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """InfoNCE in float32 (MoCo, equation 1); accuracy = images whose own key is nearer than the whole queue."""
        assert self.num_filled == self.queue_size, "the queue is not filled: call warm_up first"
        all_valid = gathered(batch.indices) >= 0
        keys = self._keys(inputs[1], batch, all_valid)
        if head.training:
            self.new_keys.append(keys)
        size, (rank, world) = len(batch.indices), place_among_ranks()
        features = head(trunk(inputs[0]))
        with torch.autocast(features.device.type, enabled=False):
            queries = F.normalize(features.float())
            positive = (queries * keys[rank * size : (rank + 1) * size]).sum(1, keepdim=True)
            logits = torch.cat([positive, queries @ self.queue.T], 1) / self.temperature
            losses = F.cross_entropy(logits, logits.new_zeros(size, dtype=torch.long), reduction="none")
        valid = all_valid[rank * size : (rank + 1) * size].float()
        total = (losses * valid).sum()
        right = ((logits.argmax(1) == 0) * valid).sum()
        metrics = {"loss": (total.detach(), valid.sum()), "accuracy": (right, valid.sum())}
        # DDP takes the mean over the ranks, which may have skipped unlike numbers of samples.
        return total * world / all_valid.sum().clamp(min=1), metrics

    @override
    def after_step(self) -> None:
        """One momentum update and one enqueue a step, of all accumulated batches' keys together."""
        self.key_encoder.follow()
        self._enqueue(torch.cat(self.new_keys))
        self.new_keys.clear()

    @override
    def state_dict(self) -> dict[str, Any]:
        slots = {"num_filled": self.num_filled, "next_slot": self.next_slot}
        return {"queue": self.queue, "key_encoder": self.key_encoder.state_dict(), **slots}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.queue.copy_(state["queue"])
        self.key_encoder.load_state_dict(state["key_encoder"])
        self.num_filled, self.next_slot = state["num_filled"], state["next_slot"]

    @override
    def chance(self, level: int) -> float:
        """Accuracy of guessing."""
        return 1 / (self.queue_size + 1)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """The query's and the key's view of each image, side by side."""
        return side_by_side(inputs, self.views(1))

    @override
    def captions(self, batch: Batch) -> list[str]:
        """What was drawn for both views."""
        return drawn(batch, self.views(self.num_levels)[0])

    def _keys(self, images: Tensor, batch: Batch, all_valid: Tensor) -> Tensor:
        """float32 [world * B, width]: keys of all ranks' images, in the order of the ranks."""
        order = shuffled_order(self.seed, batch.epoch, batch.step, len(all_valid))
        return encode_shuffled(self.key_encoder, images, all_valid, order, self.key_group)

    def _enqueue(self, keys: Tensor) -> None:
        """The oldest keys give way; in order, so that the queue is the same for any number of ranks."""
        end = self.next_slot + len(keys)
        assert end <= self.queue_size, (self.next_slot, len(keys), self.queue_size)
        self.queue[self.next_slot : end] = keys
        self.next_slot = end % self.queue_size
        self.num_filled = min(self.num_filled + len(keys), self.queue_size)
