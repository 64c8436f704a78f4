"""A short task with a momentum copy, a queue of its keys, and a label for each image.

docs/how_to/add_a_task.md explains its methods.
"""

import copy

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from fastpsl.pretext import Task, ViewSpec, ops, override


class NearestKey(Task):
    """A task that tells the other view of an image from a queue of keys.

    It remembers for each image which entry of the queue was nearest.
    """

    num_levels = 3

    def __init__(self, num_samples: int, queue_size: int = 64, width: int = 16, size_px: int = 32):
        self.queue_size, self.width, self.size_px = queue_size, width, size_px
        # Of the last whole epoch. The last slot is for padding, which has no image.
        self.nearest = torch.full((num_samples + 1,), -1)
        self.coming = self.nearest.clone()  # of the current epoch; each rank writes its own images

    @override
    def views(self, level):  # harder levels crop smaller parts
        crop = ops.RandomResizedCrop(self.size_px, scale=(1 / (1 + level), 1.0))
        return (ViewSpec(crop, (ops.Flip(),)),) * 2

    @override
    def head(self, level, channels):
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self.width))

    @override
    def start_stage(self, stage, blocks, head):
        self.query = nn.Sequential(blocks, head)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        device = next(head.parameters()).device
        self.queue = F.normalize(torch.randn(self.queue_size, self.width)).to(device)
        self.nearest, self.coming = self.nearest.to(device), self.coming.to(device)

    @override
    def loss(self, blocks, head, inputs, batch):
        valid = (batch.indices >= 0).float()
        query = F.normalize(head(blocks(inputs[0])).float())
        with torch.no_grad():
            key = F.normalize(self.key(inputs[1]).float())
        negatives = query @ self.queue.T
        logits = torch.cat([(query * key).sum(1, keepdim=True), negatives], 1) / 0.2
        target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        loss = (F.cross_entropy(logits, target, reduction="none") * valid).sum() / valid.sum().clamp(min=1)
        if head.training:
            batch.extra["key"] = key  # for after_step
            slot = torch.where(batch.indices >= 0, batch.indices, len(self.coming) - 1)
            self.coming[slot] = negatives.argmax(1)
        right = ((logits.argmax(1) == 0) * valid).sum()
        return loss, {"loss": (loss.detach() * valid.sum(), valid.sum()), "accuracy": (right, valid.sum())}

    @override
    def after_step(self, extras):
        new = torch.cat([extra["key"] for extra in extras])  # of all accumulated batches
        keys = [new]
        if dist.is_initialized():  # every rank holds the same queue
            keys = [torch.empty_like(new) for _ in range(dist.get_world_size())]
            dist.all_gather(keys, new)
        self.queue.copy_(torch.cat([*keys, self.queue])[: self.queue_size])
        with torch.no_grad():
            for mine, theirs in zip(self.key.parameters(), self.query.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)

    @override
    def step_state(self):  # a step with non-finite gradients leaves these as they were
        return [self.queue, self.coming, *self.key.state_dict().values()]

    @override
    def end_epoch(self):
        self.nearest.copy_(self._gathered(self.coming))
        self.coming.fill_(-1)

    @override
    def state_dict(self):
        labels = {"nearest": self.nearest, "coming": self._gathered(self.coming)}
        return labels | {"queue": self.queue, "key": self.key.state_dict()}

    @override
    def load_state_dict(self, state):
        for name in ("nearest", "coming", "queue"):
            getattr(self, name).copy_(state[name])
        self.key.load_state_dict(state["key"])

    def _gathered(self, labels):
        labels = labels.clone()
        if dist.is_initialized():
            dist.all_reduce(labels, op=dist.ReduceOp.MAX)
        return labels
