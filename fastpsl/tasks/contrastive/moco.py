"""Train MoCo v2 in PSL's levels (PSL, section 3.3.3, Table 3 and section 4.1; MoCo and MoCo v2).

PSL: "we apply PSL on the data-augmentation part of MoCov2". We read this as the levels of Table 3 with the
values of MoCo v2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from fastpsl.engine.distributed import gathered, place_among_ranks
from fastpsl.engine.plan import Stage
from fastpsl.engine.stage_blocks import Metrics, StageBlocks
from fastpsl.engine.task import Task
from fastpsl.kernels.colour import ColourDistortion
from fastpsl.models.layers import AveragePool
from fastpsl.pipelines.data.dataset import Dataset
from fastpsl.pipelines.loader.batch import Batch
from fastpsl.pipelines.views import ViewSpec
from fastpsl.tasks.contrastive.momentum_encoder import KeyEncoder
from fastpsl.tasks.contrastive.shuffled_batchnorm import encode_shuffled, shuffled_order
from fastpsl.tasks.contrastive.views import NUM_LEVELS, SOBEL_P, contrastive_view, drawn, side_by_side


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
        batch_size: Images of one batch over all ranks. A step has this number times the accumulated batches.
        queue_size: Number of keys in the queue, a multiple of the images of a step.
        momentum: Momentum of the key encoder, in [0, 1].
        temperature: Divisor of the similarities, above 0.
        key_group: Images that are normalised together, 2 or more.
        width: Length of a key.
        size_px: Side of a view, in pixels.
        sobel_p: Probability of Sobel at level T3; 0 for MoCo v2 as published.

    Raises:
        ValueError: A value is out of range.
    """

    num_levels = NUM_LEVELS
    fixed_exchange = False  # of images between the ranks that hold and that encode them

    def __init__(
        self,
        *,
        seed: int,
        batch_size: int,
        queue_size: int,
        momentum: float,
        temperature: float,
        key_group: int,
        width: int,
        size_px: int,
        sobel_p: float = SOBEL_P,
    ):
        if key_group < 2:
            raise ValueError(f"--key-group {key_group}: statistics need 2 images; give 2 or more")
        if width < 1:
            raise ValueError(f"--embedding-width {width}: it must be 1 or more")
        if temperature <= 0:
            raise ValueError(f"--temperature {temperature}: it must be above 0")
        if not 0 <= momentum <= 1:
            raise ValueError(f"--momentum {momentum}: it must be 0 to 1")
        self.seed, self.batch_size, self.queue_size, self.key_group = seed, batch_size, queue_size, key_group
        self.momentum, self.temperature, self.width, self.size_px = momentum, temperature, width, size_px
        self.sobel_p = sobel_p

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
        share = self.batch_size // place_among_ranks()[1]
        if share % self.key_group:
            raise ValueError(
                f"--key-group {self.key_group} does not divide the {share} images of a rank's batch: give "
                f"a divisor of {share}, or another --batch-size, --accumulate or number of ranks"
            )

    @override
    def start_stage(self, stage: Stage, blocks: StageBlocks, head: nn.Module) -> None:
        """Copy the query encoder to the key encoder, and empty the queue."""
        self.key_encoder = KeyEncoder(blocks, head, self.momentum)
        device = next(head.parameters()).device
        self.queue = torch.zeros(self.queue_size, self.width, device=device)
        self.slot = torch.zeros((), dtype=torch.int64, device=device)  # of the next key
        self.num_filled = 0

    @override
    def num_warm_up_batches(self, stage: Stage) -> int:
        """Return the number of batches that fill the queue."""
        return self.queue_size // self.batch_size

    @override
    def warm_up(self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch) -> None:
        """Add the batch's keys to the queue."""
        keys = self._keys(inputs[1], batch, gathered(batch.indices) >= 0)
        self._enqueue(keys)
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
    def loss(
        self, blocks: StageBlocks, head: nn.Module, inputs: Sequence[Tensor], batch: Batch
    ) -> tuple[Tensor, Metrics]:
        """Return InfoNCE in float32 (MoCo, equation 1).

        Accuracy is the share of images whose own key is nearer than all keys of the queue.
        """
        assert self.num_filled == self.queue_size, "the queue is not filled: call warm_up first"
        all_valid = gathered(batch.indices) >= 0
        keys = self._keys(inputs[1], batch, all_valid)
        batch.extra["keys"] = keys
        size, (rank, world) = len(batch.indices), place_among_ranks()
        features = head(blocks(inputs[0]))
        with torch.autocast(features.device.type, enabled=False):
            queries = F.normalize(features.float())
            positive = (queries * keys[rank * size : (rank + 1) * size]).sum(1, keepdim=True)
            logits = torch.cat([positive, queries @ self.queue.T], 1) / self.temperature
            losses = F.cross_entropy(logits, logits.new_zeros(size, dtype=torch.long), reduction="none")
        valid = all_valid[rank * size : (rank + 1) * size].float()
        total = (losses * valid).sum()
        right = ((logits.argmax(1) == 0) * valid).sum()
        metrics = {"loss": (total.detach(), valid.sum()), "accuracy": (right, valid.sum())}
        # DDP takes the mean over the ranks, and ranks may have skipped different numbers of samples.
        return total * world / all_valid.sum().clamp(min=1), metrics

    @override
    def after_step(self, extras: Sequence[Mapping[str, Tensor]]) -> None:
        """Update the key encoder and enqueue the keys of all accumulated batches, once per step."""
        self.key_encoder.follow()
        self._enqueue(torch.cat([extra["keys"] for extra in extras]))

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
        """Return the accuracy of guessing."""
        return 1 / (self.queue_size + 1)

    @override
    def contact_sheet(self, inputs: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the query's and the key's view of each image, side by side."""
        return side_by_side(inputs, self.views(1))

    @override
    def captions(self, batch: Batch) -> list[str]:
        """Return the ops that were drawn for both views."""
        return drawn(batch, self.views(self.num_levels)[0])

    def _keys(self, images: Tensor, batch: Batch, all_valid: Tensor) -> Tensor:
        """Return the keys of all ranks' images, float32 [world * B, width], in the order of the ranks."""
        return encode_shuffled(
            self.key_encoder, images, all_valid, batch.extra["order"], self.key_group, self.host_order
        )

    def _enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys, in order, so that the queue is the same for any number of ranks.

        A key that is not finite leaves the old one in its place.
        """
        places = (self.slot + torch.arange(len(keys), device=keys.device)) % self.queue_size
        finite = keys.isfinite().all(1, keepdim=True)
        self.queue.index_copy_(0, places, torch.where(finite, keys, self.queue[places]))
        self.slot.add_(len(keys)).remainder_(self.queue_size)
