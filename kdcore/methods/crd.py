"""Contrastive Representation Distillation. Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699."""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from kdcore.contract import method
from kdcore.contract.method import Method, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.errors import DataError

# Shorter vectors stay short: dividing by a smaller length would make gradients explode. Embeddings
# have lengths of about 1.
_SHORTEST = 1e-4

# How much of the running mean of the normalisers stays at each step.
_NORMALIZER_MEMORY = 0.99


class _PickedProducts(torch.autograd.Function):
    """Inner products of every anchor with the whole bank, of which the drawn ones are kept.

    One product of matrices makes B x N numbers, and both passes drop them at once: neither a tensor
    of size B x K x D is made, nor, as by `gather`, one of B x N kept between the passes.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, bank: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(bank, positions)
        return (anchor @ bank.T).gather(1, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        bank, positions = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            # A GPU adds in any order, but the sums always have the same bits: where an anchor has
            # drawn a row twice, both have the same score, so the same gradient.
            of_all = gradient.new_zeros(len(gradient), len(bank))
            of_all.scatter_add_(1, positions, gradient)
            return of_all @ bank, None, None


@full_precision
def bank_scores(anchor: Tensor, bank: Tensor, positions: Tensor, *, temperature: float) -> Tensor:
    """Cosines between each anchor and its rows of the bank, divided by the temperature.

    Args:
        anchor: [B, D], rows of length 1.
        bank: [N, D], likewise; no gradient reaches it.
        positions: [B, 1 + K], int64 rows of the bank.
        temperature: > 0.

    Returns:
        [B, 1 + K].
    """
    scores: Tensor = _PickedProducts.apply(anchor / temperature, bank, positions)
    return scores


@full_precision
def log_normalizer(scores: Tensor, *, train_images: int) -> Tensor:
    """log Z: the logarithm of N times the mean of exp(score). No gradient flows through it.

    Args:
        scores: [B, 1 + K], from `bank_scores`.
        train_images: N.

    Returns:
        Scalar.
    """
    return scores.detach().logsumexp((0, 1)) + math.log(train_images / scores.numel())


@full_precision
def nce_loss(scores: Tensor, log_normalizer: Tensor, *, train_images: int) -> Tensor:
    """Noise-contrastive estimation: tells the one positive of an anchor from its K negatives.

    With x = exp(score) / Z the critic is h = x / (x + K / N) (equation 19), and the loss is
    -log h(positive) - sum over negatives of log(1 - h) (equation 18).

    Args:
        scores: [B, 1 + K]; column 0 has the positives.
        log_normalizer: scalar, log Z.
        train_images: N.

    Returns:
        Scalar, nats, mean over the batch. Above zero, which only a perfect critic comes near.
    """
    negatives = scores.shape[1] - 1
    # log(x / (K / N)): never x itself, since exp(1 / 0.03) is 3e14.
    log_odds = scores - (log_normalizer + math.log(negatives / train_images))
    positive, negative = torch.split(log_odds, [1, negatives], dim=1)
    return (softplus(-positive).sum() + softplus(negative).sum()) / len(scores)


@full_precision
def crd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_bank: Tensor,
    teacher_bank: Tensor,
    positions: Tensor,
    log_normalizers: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Contrasts each network's embeddings with the other's bank (equations 17 to 19).

    Args:
        student_embedding: [B, D], rows of length 1.
        teacher_embedding: [B, D], likewise.
        student_bank: [N, D], the student's embeddings of all training images.
        teacher_bank: [N, D], the teacher's.
        positions: [B, 1 + K], int64 rows of the banks; column 0 has the images themselves, the
            others have images of other classes.
        log_normalizers: [2], log Z of the student's anchors and of the teacher's.
        temperature: > 0.

    Returns:
        Scalar, nats, mean over the batch, sum over the two networks as anchors. Above zero, which
        only a perfect critic comes near.
    """
    total = torch.zeros_like(log_normalizers[0])
    for anchor, bank, log_z in (
        (student_embedding, teacher_bank, log_normalizers[0]),
        (teacher_embedding, student_bank, log_normalizers[1]),
    ):
        scores = bank_scores(anchor, bank, positions, temperature=temperature)
        total = total + nce_loss(scores, log_z, train_images=len(bank))
    return total


@full_precision
def info_nce_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    student_others: Tensor,
    teacher_others: Tensor,
    labels: Tensor,
    other_labels: Tensor,
    *,
    temperature: float,
) -> Tensor:
    """Cross-entropy of finding an image's pair among K others, which may be the batch itself.

    An anchor's candidates are the other network's embedding of the same image, and the other
    network's embeddings of those others that belong to another class.

    Args:
        student_embedding: [B, D], rows of length 1.
        teacher_embedding: [B, D], likewise.
        student_others: [K, D], the student's embeddings of other images.
        teacher_others: [K, D], the teacher's.
        labels: [B], int64.
        other_labels: [K], int64.
        temperature: > 0.

    Returns:
        Scalar, nats, mean over the batch, sum over the two networks as anchors. Zero, with zero
        gradient, where no other image has another class.
    """
    same_class = labels[:, None] == other_labels[None, :]
    positive = (student_embedding * teacher_embedding).sum(1, keepdim=True) / temperature

    def surprise(anchor: Tensor, others: Tensor) -> Tensor:
        negative = ((anchor / temperature) @ others.T).masked_fill(same_class, -math.inf)
        return torch.cat([positive, negative], dim=1).logsumexp(1).mean() - positive.mean()

    return surprise(student_embedding, teacher_others) + surprise(teacher_embedding, student_others)


def _unit_rows(rows: int, width: int) -> Tensor:
    """Random directions, evenly spread: what a memory holds before it has seen an image."""
    return normalize(torch.randn(rows, width), dim=1)


class UnitEmbedding(nn.Linear):
    """A linear layer to embeddings of length 1, in full precision."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            embedding = super().forward(input.to(self.weight.dtype))
            return normalize(embedding, dim=1, eps=_SHORTEST)


class OtherClassSampler(nn.Module):
    """Draws training images of other classes, each of them equally likely, with replacement.

    With the images sorted by class, those of other classes are the ones before the class's own run
    and the ones behind it. So one uniform integer below their number picks one, whatever the sizes
    of the classes: nothing is rejected, and the device waits for nothing.

    Args:
        train_labels: [N], int64.
        num_classes: K; labels are 0 to K-1.

    Raises:
        DataError: all images have one class.
    """

    sorted_images: Tensor
    class_starts: Tensor
    class_sizes: Tensor

    def __init__(self, train_labels: Tensor, num_classes: int) -> None:
        super().__init__()
        sizes = torch.bincount(train_labels, minlength=num_classes)
        self.fewest_others = len(train_labels) - int(sizes.max())
        if self.fewest_others == 0:
            raise DataError(
                f"all {len(train_labels)} training images have class {int(sizes.argmax())}, but a "
                f"contrast needs images of other classes; train on two classes or more"
            )
        # They follow from the data: a checkpoint need not hold them.
        self.register_buffer("sorted_images", train_labels.argsort(stable=True), persistent=False)
        self.register_buffer("class_starts", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("class_sizes", sizes, persistent=False)

    def forward(self, labels: Tensor, draws: int) -> Tensor:
        """Positions in the training split, [B, draws], none of the class of its row's label."""
        starts = self.class_starts[labels][:, None]
        sizes = self.class_sizes[labels][:, None]
        bits = torch.randint(2**62, (len(labels), draws), device=labels.device)
        # The remainder's bias is below N / 2^62: none.
        rank = bits % (len(self.sorted_images) - sizes)
        return self.sorted_images[rank + sizes * (rank >= starts)]


class CRD(Method):
    """Contrast: an image's two embeddings agree, and differ from those of other classes."""

    paper: ClassVar[str] = "arXiv:1910.10699"
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    batch_symmetric: ClassVar[bool] = False

    class Params(method.Params):
        """The settings of CRD.

        Args:
            weight: beside cross-entropy.
            temperature: of the cosines.
            negatives: where an image's negatives come from. `bank`: an embedding of every training
                image, as published. `queue`: the latest embeddings. `batch`: the batch itself;
                these two do not grow with the training set.
            negative_images: K. For `bank`: drawn for each image, with replacement, and no more than
                there are training images outside the largest class, so that every image has as
                many to draw from. For `queue`: its length, no more than the training images.
            momentum: what stays of a bank's row when its image is seen again.
            width: D, of the embeddings that are compared.
            normalizer: Z of `bank`. `first batch`: what the first batch gives, for ever, as
                published; `running mean`: follows the training.
        """

        weight: Annotated[float, Field(ge=0), Span(0.05, 5.0, log=True)] = 0.8
        temperature: Annotated[float, Field(gt=0), Span(0.03, 0.3, log=True)] = 0.07
        negatives: Annotated[
            Literal["bank", "queue", "batch"], Choice(("bank", "queue", "batch"))
        ] = "bank"
        negative_images: Annotated[int, Field(ge=1), Choice((1024, 4096, 16384))] = 16384
        momentum: Annotated[float, Field(ge=0, lt=1), Span(0.0, 0.9)] = 0.5
        width: Annotated[int, Field(ge=1), Choice((64, 128, 256))] = 128
        normalizer: Literal["first batch", "running mean"] = "first batch"

    params: Params
    student_memory: Tensor
    teacher_memory: Tensor
    memory_labels: Tensor
    next_entry: Tensor
    log_normalizers: Tensor

    def __init__(self, params: Params, setting: NetworkPair) -> None:
        super().__init__(params, setting)
        images, width = setting.train_images, params.width
        self.student_embedding = UnitEmbedding(setting.student.embedding_width, width)
        self.teacher_embedding = UnitEmbedding(setting.teacher.embedding_width, width)
        self.sampler = OtherClassSampler(setting.train_labels, setting.student.num_classes)
        if params.negatives == "bank":
            self.negative_images = min(params.negative_images, self.sampler.fewest_others)
            self._add_memory(images)
            # Infinite until the first batch has given them.
            self.register_buffer("log_normalizers", torch.full((2,), math.inf))
        elif params.negatives == "queue":
            self.negative_images = min(params.negative_images, images)
            self._add_memory(self.negative_images)
            # -1: a random direction of no class, a negative of every image.
            empty = torch.full((self.negative_images,), -1, dtype=torch.int64)
            self.register_buffer("memory_labels", empty)
            self.register_buffer("next_entry", torch.zeros((), dtype=torch.int64))
        self._seen: tuple[Tensor, Tensor, Batch] | None = None
        self._new_log_normalizers: Tensor | None = None

    def _add_memory(self, rows: int) -> None:
        self.register_buffer("student_memory", _unit_rows(rows, self.params.width))
        self.register_buffer("teacher_memory", _unit_rows(rows, self.params.width))

    def loss(self, student: Taps, teacher: Taps, batch: Batch) -> Tensor:
        ours = self.student_embedding(student.embedding)
        theirs = self.teacher_embedding(teacher.embedding)
        self._seen = ours.detach(), theirs.detach(), batch
        if self.params.negatives == "bank":
            return self._against_banks(ours, theirs, batch)
        if self.params.negatives == "queue":
            others = self.student_memory, self.teacher_memory, batch.labels, self.memory_labels
        else:
            others = ours, theirs, batch.labels, batch.labels
        return info_nce_loss(ours, theirs, *others, temperature=self.params.temperature)

    def _against_banks(self, ours: Tensor, theirs: Tensor, batch: Batch) -> Tensor:
        """`crd_loss`, with normalisers that its own scores may give."""
        drawn = self.sampler(batch.labels, self.negative_images)
        positions = torch.cat([batch.indices[:, None], drawn], dim=1)
        temperature, images = self.params.temperature, len(self.student_memory)
        anchored = (
            bank_scores(ours, self.teacher_memory, positions, temperature=temperature),
            bank_scores(theirs, self.student_memory, positions, temperature=temperature),
        )
        found = torch.stack([log_normalizer(scores, train_images=images) for scores in anchored])
        kept = self.log_normalizers
        if self.params.normalizer == "running mean":
            kept = torch.logaddexp(
                kept + math.log(_NORMALIZER_MEMORY), found + math.log(1 - _NORMALIZER_MEMORY)
            )
        log_normalizers = torch.where(self.log_normalizers.isinf(), found, kept)
        self._new_log_normalizers = log_normalizers
        first, second = (
            nce_loss(scores, log_z, train_images=images)
            for scores, log_z in zip(anchored, log_normalizers, strict=True)
        )
        return first + second

    @torch.no_grad()
    def after_step(self) -> None:
        """Remembers the batch's embeddings; what a loss gave without a step leaves no trace."""
        if self._seen is None:
            return
        ours, theirs, batch = self._seen
        self._seen = None
        if self.params.negatives == "bank":
            assert self._new_log_normalizers is not None
            self.log_normalizers.copy_(self._new_log_normalizers)
            self._refresh(self.student_memory, ours, batch.indices)
            self._refresh(self.teacher_memory, theirs, batch.indices)
        elif self.params.negatives == "queue":
            self._enqueue(ours, theirs, batch.labels)

    def _refresh(self, bank: Tensor, embedding: Tensor, indices: Tensor) -> None:
        # Of an image that the batch has twice the last embedding counts. Both write it, so that
        # the order of writing does not matter.
        order = torch.arange(len(indices), device=indices.device)
        last = torch.where(indices[:, None] == indices, order, -1).amax(1)
        mixed = torch.lerp(embedding[last], bank[indices], self.params.momentum)
        bank.index_copy_(0, indices, normalize(mixed, dim=1, eps=_SHORTEST))

    def _enqueue(self, ours: Tensor, theirs: Tensor, labels: Tensor) -> None:
        length = len(self.memory_labels)
        ours, theirs, labels = ours[-length:], theirs[-length:], labels[-length:]
        entries = (self.next_entry + torch.arange(len(labels), device=labels.device)) % length
        self.student_memory.index_copy_(0, entries, ours)
        self.teacher_memory.index_copy_(0, entries, theirs)
        self.memory_labels.index_copy_(0, entries, labels)
        self.next_entry.copy_((self.next_entry + len(labels)) % length)
