"""Losses of published methods, for a training loop that you write.

They compute in float32, also under autocast. `valid` says which samples count, bool [B], such as
`indices >= 0` of a loader's batch; None means all. Under torch.distributed, a loss is that of the batch of
all ranks: the mean of the gradients, which DDP takes, is the gradient of the whole batch's loss. Every rank
calls it, with the same number of samples.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from typing_extensions import override

from fastpsl.console.offered import offer_only_all
from fastpsl.engine.distributed import gathered, place_among_ranks, total_over_ranks
from fastpsl.kernels.tf32 import no_tf32
from fastpsl.tasks.contrastive.info_nce import enqueue, info_nce
from fastpsl.tasks.contrastive.nt_xent import nt_xent

__all__ = ["BYOL", "DINO", "BarlowTwins", "InfoNCE", "NTXent", "SwAV", "VICReg"]
offer_only_all(__name__)

_LEAST_EPSILON = 0.01  # of SwAV: below it, a row's exp underflows beside the largest score


class _Remembering(nn.Module):
    """A loss whose buffers keep their dtype where a model that holds it takes another one."""

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Remembering":
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self


class NTXent(nn.Module):
    """A module of NT-Xent, SimCLR's contrastive loss (arXiv 2002.05709, equation 1).

    The embeddings of all ranks are negatives.

    Args:
        temperature: Divisor of the similarities, above 0.

    Raises:
        ValueError: The temperature is not above 0.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = _positive("temperature", temperature)

    @override
    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss of the anchors.

        Args:
            first: Embeddings of the first view, float [B, D], of any length.
            second: Embeddings of the second view, float [B, D].
            valid: Which samples count, bool [B].

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or are not [B, D].
        """
        valid = _checked((first, second), valid)
        return nt_xent(first, second, valid, self.temperature).loss


class InfoNCE(_Remembering):
    """A module of InfoNCE with a queue, MoCo's contrastive loss (arXiv 1911.05722, equation 1).

    A query is compared with its own key and with the keys of earlier batches. In train mode, the call puts
    the keys of all ranks into the queue. The queue begins with random keys, the same on all ranks, and is
    part of the module's state.

    Args:
        width: Length of the embeddings, D.
        queue_size: Number of keys in the queue.
        temperature: Divisor of the similarities, above 0.

    Attributes:
        queue: The keys, float32 [queue_size, width], of length 1.

    Raises:
        ValueError: A value is not above 0.
    """

    queue: Tensor
    slot: Tensor

    def __init__(self, width: int = 128, queue_size: int = 65536, temperature: float = 0.2):
        super().__init__()
        self.temperature = _positive("temperature", temperature)
        size = (int(_positive("queue_size", queue_size)), int(_positive("width", width)))
        keys = torch.randn(size, generator=torch.Generator().manual_seed(0), device="cpu")
        self.register_buffer("queue", F.normalize(keys))
        self.register_buffer("slot", torch.zeros((), dtype=torch.int64))

    @override
    def forward(self, queries: Tensor, keys: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss of the queries.

        Args:
            queries: Embeddings of the encoder that learns, float [B, D], of any length.
            keys: Embeddings of the other view by the momentum encoder, float [B, D]. They get no gradient.
            valid: Which samples count, bool [B]. Keys of the others do not enter the queue.

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or are not [B, D], or the queue is smaller than the batch of all
                ranks.
        """
        valid = _checked((queries, keys), valid)
        if queries.shape[1] != self.queue.shape[1]:
            raise ValueError(f"embeddings of width {queries.shape[1]}: the queue's is {self.queue.shape[1]}")
        num = len(keys) * place_among_ranks()[1]
        if num > len(self.queue):
            raise ValueError(f"queue_size {len(self.queue)} for {num} keys per step: give {num} or more")
        with _float32(queries), torch.no_grad():
            keys = F.normalize(_zeroed(keys, valid))
        with no_tf32():
            queries = _zeroed(queries, valid)
            loss_sum = info_nce(queries, keys, self.queue.clone(), valid, self.temperature).loss_sum
        if self.training:
            enqueue(self.queue, self.slot, gathered(keys.masked_fill(~valid[:, None], torch.nan)))
        return _mean(loss_sum, valid)


class BYOL(nn.Module):
    """A module of BYOL's loss, the squared distance of unit vectors (arXiv 2006.07733, equation 2).

    It is 2 - 2 cos. BYOL adds the losses of both directions: call it for each.
    """

    @override
    def forward(self, predictions: Tensor, targets: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the mean loss of the samples.

        Args:
            predictions: The predictor's outputs for one view, float [B, D], of any length.
            targets: The target network's projections of the other view, float [B, D]. They get no gradient.
            valid: Which samples count, bool [B].

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or are not [B, D].
        """
        valid = _checked((predictions, targets), valid)
        with _float32(predictions):
            cosines = F.cosine_similarity(_zeroed(predictions, valid), _zeroed(targets.detach(), valid))
            return _mean(((2 - 2 * cosines) * valid).sum(), valid)


class BarlowTwins(nn.Module):
    """A module of Barlow Twins' loss on the cross-correlation of two views (arXiv 2103.03230, equation 1).

    Embeddings are normalised over the batch of all ranks. As in the paper's code, that is BatchNorm without
    scale and shift: the standard deviation is the biased one, and 1e-5 is added to the variance.

    Args:
        off_diagonal: Weight of the correlations of different features, the paper's lambda.
    """

    def __init__(self, off_diagonal: float = 0.005):
        super().__init__()
        self.off_diagonal = off_diagonal

    @override
    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the loss of the batch.

        Args:
            first: Embeddings of the first view, float [B, D].
            second: Embeddings of the second view, float [B, D].
            valid: Which samples count, bool [B].

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or are not [B, D].
        """
        valid = _checked((first, second), valid)
        with _float32(first):
            centred, num = _centred(_stacked((first, second), valid), valid)
            variance = _Sum.apply(centred.square().sum(1), False) / num
            normal = centred / (variance + 1e-5).sqrt()[:, None]
            correlations = _Sum.apply(normal[0].T @ normal[1], True) / num
            on_diagonal = correlations.diagonal()
            others = correlations.square().sum() - on_diagonal.square().sum()
            return (on_diagonal - 1).square().sum() + self.off_diagonal * others


class VICReg(nn.Module):
    """A module of VICReg's loss: invariance, variance and covariance (arXiv 2105.04906).

    The constants are those of the paper's code. Its invariance is a mean over D, where equation 5 has a sum,
    and it takes half of equation 6's variances. Variances and covariances are over the batch of all ranks.

    Args:
        invariance: Weight of the mean squared distance of the two views.
        variance: Weight of the distance of the features' standard deviations from 1, if they are smaller.
        covariance: Weight of the squared covariances of different features.
        epsilon: Added to the variances.
    """

    def __init__(
        self,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        epsilon: float = 1e-4,
    ):
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.epsilon = epsilon

    @override
    def forward(self, first: Tensor, second: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the loss of the batch.

        Args:
            first: Embeddings of the first view, float [B, D].
            second: Embeddings of the second view, float [B, D].
            valid: Which samples count, bool [B].

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or are not [B, D].
        """
        valid = _checked((first, second), valid)
        with _float32(first):
            views = _stacked((first, second), valid)
            apart = _mean((views[0] - views[1]).square().mean(1).sum(), valid)
            centred, num = _centred(views, valid)
            covariances = _Sum.apply(centred.mT @ centred, True) / (num - 1).clamp(min=1)
            variances = covariances.diagonal(dim1=1, dim2=2)
            spread = F.relu(1 - (variances + self.epsilon).sqrt()).mean()
            others = (covariances.square().sum() - variances.square().sum()) / first.shape[1]
            return self.invariance * apart + self.variance * spread + self.covariance * others


class SwAV(nn.Module):
    """A module of SwAV's loss: a view predicts the code of another (arXiv 2006.09882, equations 1 to 5).

    The Sinkhorn-Knopp algorithm makes the codes from the scores of all ranks, so that they use all prototypes
    equally.

    Args:
        temperature: Divisor of the scores that predict, above 0.
        epsilon: Divisor of the scores that become codes, 0.01 or more; a larger one makes smoother codes.
        num_iterations: Iterations of the Sinkhorn-Knopp algorithm.

    Raises:
        ValueError: A value is not above 0, or epsilon is below 0.01.
    """

    def __init__(self, temperature: float = 0.1, epsilon: float = 0.05, num_iterations: int = 3):
        super().__init__()
        self.temperature, self.epsilon = _positive("temperature", temperature), epsilon
        if not epsilon >= _LEAST_EPSILON:
            raise ValueError(f"epsilon {epsilon}: codes underflow in float32; give {_LEAST_EPSILON} or more")
        self.num_iterations = int(_positive("num_iterations", num_iterations))

    @override
    def forward(
        self,
        large: Sequence[Tensor],
        small: Sequence[Tensor] = (),
        valid: Tensor | None = None,
        *,
        queued: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Return the mean loss over the pairs of a code and another view.

        Args:
            large: Scores of each large view for K prototypes, float [B, K], which are products of unit
                vectors. Each view becomes a code, which all others predict.
            small: Scores of each small view, float [B, K]. They predict only.
            valid: Which samples count, bool [B].
            queued: Scores of earlier embeddings for each large view, float [Q, K]. They share in the codes.

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or there are fewer than two views.
        """
        views = (*large, *small)
        valid = _checked(views, valid)
        if not large or len(views) < 2:
            raise ValueError(f"{len(large)} large and {len(small)} small views: give a large one and another")
        if queued is not None and len(queued) != len(large):
            raise ValueError(
                f"queued scores of {len(queued)} views: give those of the {len(large)} large ones"
            )
        with _float32(views[0]):
            logs = [F.log_softmax(_zeroed(scores, valid) / self.temperature, 1) for scores in views]
            every, loss_sum = sum(logs[1:], logs[0]), logs[0].new_zeros(())
            for number, scores in enumerate(large):
                codes = self._codes(scores, valid, None if queued is None else queued[number])
                loss_sum = loss_sum - (codes * (every - logs[number])).sum()
            return _mean(loss_sum, valid) / (len(large) * (len(views) - 1))

    @torch.no_grad()
    def _codes(self, scores: Tensor, valid: Tensor, queued: Tensor | None) -> Tensor:
        """Return the codes [B, K], rows of which add up to 1; 0 for samples that do not count."""
        counts = valid
        if queued is not None:
            scores = torch.cat([scores, queued])
            counts = torch.cat([valid, valid.new_ones(len(queued))])
        logits = (scores.float() / self.epsilon).masked_fill(~counts[:, None], -torch.inf)
        most = logits.amax() if len(logits) else logits.new_tensor(-torch.inf)
        if place_among_ranks()[1] > 1:
            dist.all_reduce(most, op=dist.ReduceOp.MAX)
        codes = (logits - most.clamp(min=torch.finfo(torch.float32).min)).exp()
        for _ in range(self.num_iterations):
            codes = codes / total_over_ranks(codes.sum(0)).clamp(min=torch.finfo(torch.float32).tiny)
            codes = codes / codes.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return codes[: len(valid)]


class DINO(_Remembering):
    """A module of DINO's loss, by which the student predicts the teacher (arXiv 2104.14294, section 3.1).

    The centre is a moving mean of the teacher's outputs on all ranks, and is part of the module's state. A
    call in train mode moves it.

    Args:
        width: Number of outputs, K.
        student_temperature: Divisor of the student's outputs, above 0.
        teacher_temperature: Divisor of the teacher's outputs, above 0. The paper's rises from 0.04 to 0.07 in
            30 epochs.
        momentum: Share of the centre that stays in a call, in [0, 1].

    Attributes:
        center: The centre, float32 [width].
        teacher_temperature: As above. Set it to follow a schedule.

    Raises:
        ValueError: A value is out of range.
    """

    center: Tensor

    def __init__(
        self,
        width: int = 65536,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        momentum: float = 0.9,
    ):
        super().__init__()
        self.student_temperature = _positive("student_temperature", student_temperature)
        self.teacher_temperature = _positive("teacher_temperature", teacher_temperature)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum {momentum}: it must be 0 to 1")
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(int(_positive("width", width))))

    @override
    def forward(
        self, students: Sequence[Tensor], teachers: Sequence[Tensor], valid: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss over the pairs of a teacher's view and another view of the student.

        Args:
            students: The student's outputs for each view, float [B, K], those of the teacher's views first.
            teachers: The teacher's outputs for each large view, float [B, K]. They get no gradient.
            valid: Which samples count, bool [B].

        Returns:
            The loss, a float32 scalar.

        Raises:
            ValueError: The shapes differ, or there are too few views.
        """
        valid = _checked((*students, *teachers), valid)
        num_pairs = len(teachers) * len(students) - min(len(teachers), len(students))
        if not num_pairs:
            raise ValueError(
                f"{len(students)} views of the student and {len(teachers)} of the teacher: give one of the "
                "teacher, and another of the student"
            )
        if len(self.center) != students[0].shape[1]:
            raise ValueError(f"outputs of width {students[0].shape[1]}: the centre's is {len(self.center)}")
        with _float32(students[0]):
            logs = [F.log_softmax(_zeroed(each, valid) / self.student_temperature, 1) for each in students]
            outputs = [_zeroed(each.detach(), valid) for each in teachers]
            every, loss_sum = sum(logs[1:], logs[0]), logs[0].new_zeros(())
            for number, output in enumerate(outputs):
                target = F.softmax((output - self.center) / self.teacher_temperature, 1) * valid[:, None]
                others = every - logs[number] if number < len(logs) else every
                loss_sum = loss_sum - (target * others).sum()
            if self.training:
                self._move_center(outputs, valid)
            return _mean(loss_sum, valid) / num_pairs

    @torch.no_grad()
    def _move_center(self, outputs: Sequence[Tensor], valid: Tensor) -> None:
        sums = torch.stack(list(outputs)).sum((0, 1))
        total = total_over_ranks(torch.cat([sums, len(outputs) * valid.sum()[None]]))
        mean = torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1), self.center)
        self.center.lerp_(mean, 1 - self.momentum)


class _Sum(Function):
    """The sum of a tensor over all ranks, whose gradient is that of the sum of all ranks' losses.

    If the ranks compute the same from the sum, their gradients are the same too, and need no message.
    """

    @staticmethod
    @override
    def forward(ctx: Any, tensor: Tensor, is_same: bool) -> Tensor:
        ctx.is_same = is_same
        return total_over_ranks(tensor)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    @override
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        world = place_among_ranks()[1]
        return (gradient * world if ctx.is_same else total_over_ranks(gradient)), None


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} {value}: it must be above 0")
    return value


def _checked(embeddings: Sequence[Tensor], valid: Tensor | None) -> Tensor:
    """Return which samples count; ValueError if the embeddings have different shapes."""
    shapes = list(dict.fromkeys(tuple(each.shape) for each in embeddings))
    if len(shapes) != 1 or len(shapes[0]) != 2:
        words = " and ".join(map(str, shapes)) or "no views"
        raise ValueError(f"embeddings of shapes {words}: give all in one shape [B, D], a row per sample")
    if valid is None:
        return embeddings[0].new_ones(shapes[0][0], dtype=torch.bool)
    if valid.shape != shapes[0][:1] or valid.dtype != torch.bool:
        raise ValueError(
            f"valid is {valid.dtype} {tuple(valid.shape)}: give torch.bool {shapes[0][:1]}, such as "
            "indices >= 0"
        )
    return valid


@contextmanager
def _float32(tensor: Tensor) -> Iterator[None]:
    with no_tf32(), torch.autocast(tensor.device.type, enabled=False):
        yield


def _zeroed(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Return float32 embeddings with zeros for samples that do not count, which may be infinite or NaN."""
    return embeddings.float().masked_fill(~valid[:, None], 0)


def _stacked(views: Sequence[Tensor], valid: Tensor) -> Tensor:
    return torch.stack([_zeroed(each, valid) for each in views])


def _mean(loss_sum: Tensor, valid: Tensor) -> Tensor:
    """Return this rank's part of the mean over all ranks' samples, times the number of ranks."""
    return loss_sum * place_among_ranks()[1] / total_over_ranks(valid.sum()).clamp(min=1)


def _centred(views: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return views [views, B, D] minus their means over all ranks, and the number of samples.

    Rows of samples that do not count are 0, before and after.
    """
    num = total_over_ranks(valid.sum().float()).clamp(min=1)
    means = _Sum.apply(views.sum(1), False) / num
    return (views - means[:, None]) * valid[:, None], num
