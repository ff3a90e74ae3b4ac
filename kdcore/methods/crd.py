"""Contrastive Representation Distillation. Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from kdcore.contract import method
from kdcore.contract.method import Method, Mixing, full_precision
from kdcore.contract.network_pair import NetworkPair
from kdcore.contract.published import Benchmark, Published
from kdcore.contract.searched import Choice, Span
from kdcore.contract.taps import Batch, Tap, Taps
from kdcore.errors import DataError

# Shorter vectors are divided by this, which keeps gradients bounded. Lengths are usually about 1.
_SHORTEST = 1e-4

# Momentum of the running mean of the normalisers.
_NORMALIZER_MEMORY = 0.99


class _PickedProducts(torch.autograd.Function):
    """Inner products of every anchor with its rows of the bank.

    A matrix product with the whole bank gives B x N numbers, which are freed right after they are
    used. So there is no tensor of size B x K x D, and none of B x N is saved for the backward pass,
    as autograd would for `gather`.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, bank: Tensor, positions: Tensor) -> Tensor:
        ctx.save_for_backward(bank, positions)
        return (anchor @ bank.T).gather(1, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        bank, positions = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            # Deterministic although a GPU adds in any order: rows that an anchor has drawn twice
            # have the same score, and so the same gradient.
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
    """Noise-contrastive estimation: one positive per anchor against K negatives.

    With x = exp(score) / Z the critic is h = x / (x + K / N) (equation 19), and the loss is
    -log h(positive) - sum over negatives of log(1 - h) (equation 18).

    Args:
        scores: [B, 1 + K]; column 0 has the positives.
        log_normalizer: scalar, log Z.
        train_images: N.

    Returns:
        Scalar, nats, mean over the batch. Positive; near 0 for a perfect critic.
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
        Scalar, nats, mean over the batch, sum over the two networks as anchors. Positive;
        near 0 for a perfect critic.
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
    """Cross-entropy of finding an image's counterpart among K others, which may be the batch.

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
        gradient, if all images have one class.
    """
    same_class = labels[:, None] == other_labels[None, :]
    positive = (student_embedding * teacher_embedding).sum(1, keepdim=True) / temperature

    def surprise(anchor: Tensor, others: Tensor) -> Tensor:
        negative = ((anchor / temperature) @ others.T).masked_fill(same_class, -math.inf)
        return torch.cat([positive, negative], dim=1).logsumexp(1).mean() - positive.mean()

    return surprise(student_embedding, teacher_others) + surprise(teacher_embedding, student_others)


def _unit_rows(rows: int, width: int) -> Tensor:
    """Uniformly random directions, the initial content of a memory."""
    return normalize(torch.randn(rows, width), dim=1)


class UnitEmbedding(nn.Linear):
    """A linear layer, in full precision, with outputs scaled to length 1."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            embedding = super().forward(input.to(self.weight.dtype))
            return normalize(embedding, dim=1, eps=_SHORTEST)


class OtherClassSampler(nn.Module):
    """Draws training images of other classes uniformly, with replacement.

    Sorted by class, the images of other classes are those before and those after the class's own
    run. One uniform integer below their number picks one, whatever the sizes of the classes,
    without rejection and without synchronising with the device.

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
                f"all {len(train_labels)} training images have class {int(sizes.argmax())}, but "
                f"crd needs images of other classes; train on two classes or more"
            )
        # Derived from the data, so not in checkpoints.
        self.register_buffer("sorted_images", train_labels.argsort(stable=True), persistent=False)
        self.register_buffer("class_starts", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("class_sizes", sizes, persistent=False)

    def forward(self, labels: Tensor, draws: int) -> Tensor:
        """Positions in the training split, [B, draws], of images with other classes."""
        starts = self.class_starts[labels][:, None]
        sizes = self.class_sizes[labels][:, None]
        bits = torch.randint(2**62, (len(labels), draws), device=labels.device)
        # The bias of the remainder is below N / 2^62.
        rank = bits % (len(self.sorted_images) - sizes)
        return self.sorted_images[rank + sizes * (rank >= starts)]


class CRD(Method):
    """Contrastive: an image's two embeddings agree, and differ from those of other classes."""

    paper: ClassVar[str] = "arXiv:1910.10699"
    published: ClassVar[Mapping[Benchmark, Published]] = {
        "cifar": Published("RepDistiller, scripts/run_cifar_distill.sh"),
        "imagenet": Published("mdistiller, configs/imagenet/r34_r18/crd.yaml"),
    }
    needs: frozenset[Tap] = frozenset({Tap.EMBEDDING})
    batch_symmetric: ClassVar[bool] = False
    mixing: ClassVar[Mixing] = "dominant class"
    compares_images: bool = True

    class Params(method.Params):
        """The parameters of CRD.

        Args:
            weight: of the term.
            temperature: of the cosines.
            negatives: source of the negatives. `bank`: embeddings of all training images, as
                published. `queue`: the latest embeddings. `batch`: the batch itself. Only the bank
                grows with the training set.
            negative_images: K. For `bank`, drawn for each image with replacement, at most the
                number of training images outside the largest class. For `queue`, its length, at
                most the number of training images.
            momentum: of a bank's row when its image is seen again.
            width: D, of the compared embeddings.
            normalizer: Z of `bank`: from the `first batch` and then fixed, as published, or a
                `running mean`.
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

    def __init__(self, params: Params, networks: NetworkPair) -> None:
        super().__init__(params, networks)
        images, width = networks.train_images, params.width
        self.student_embedding = UnitEmbedding(networks.student.embedding_width, width)
        self.teacher_embedding = UnitEmbedding(networks.teacher.embedding_width, width)
        self.sampler = OtherClassSampler(networks.train_labels, networks.student.num_classes)
        if params.negatives == "bank":
            self.negative_images = min(params.negative_images, self.sampler.fewest_others)
            self._add_memory(images)
            # Infinite until the first batch.
            self.register_buffer("log_normalizers", torch.full((2,), math.inf))
        elif params.negatives == "queue":
            self.negative_images = min(params.negative_images, images)
            self._add_memory(self.negative_images)
            # -1: a random direction without a class, which is a negative for every image.
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
        """`crd_loss`, with normalisers updated by its own scores."""
        drawn = self.sampler(batch.labels, self.negative_images)
        positions = torch.cat([batch.indices[:, None], drawn], dim=1)
        temperature, images = self.params.temperature, len(self.student_memory)
        anchored = (
            bank_scores(ours, self.teacher_memory, positions, temperature=temperature),
            bank_scores(theirs, self.student_memory, positions, temperature=temperature),
        )
        found = torch.stack([log_normalizer(scores, train_images=images) for scores in anchored])
        updated = self.log_normalizers
        if self.params.normalizer == "running mean":
            updated = torch.logaddexp(
                updated + math.log(_NORMALIZER_MEMORY), found + math.log(1 - _NORMALIZER_MEMORY)
            )
        log_normalizers = torch.where(self.log_normalizers.isinf(), found, updated)
        self._new_log_normalizers = log_normalizers
        first, second = (
            nce_loss(scores, log_z, train_images=images)
            for scores, log_z in zip(anchored, log_normalizers, strict=True)
        )
        return first + second

    @torch.no_grad()
    def after_step(self) -> None:
        """Stores the batch's embeddings, which `loss` alone does not."""
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
        # If an image is in the batch twice, both rows write its last embedding, so that the order
        # of writes does not matter.
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
