"""The reused classifier's loss, position by position, and its projector, layer by layer."""

from torch import Tensor
from torch.nn.functional import conv2d, relu


def naive_simkd(projected_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The mean of squared differences; of unlike sizes, the larger map's squares are averaged."""
    _, channels, height, width = projected_map.shape
    total, count = projected_map.new_zeros(()), 0
    rows, columns = min(height, teacher_map.shape[2]), min(width, teacher_map.shape[3])
    for own, others in zip(projected_map, teacher_map, strict=True):
        for row in range(rows):
            for column in range(columns):
                one, other = (_cell(maps, row, column, rows, columns) for maps in (own, others))
                total, count = total + ((one - other) ** 2).sum(), count + channels
    return total / count


def _cell(maps: Tensor, row: int, column: int, rows: int, columns: int) -> Tensor:
    """The mean of one of so many equal rectangles, by channel; their sides are whole numbers."""
    height, width = maps.shape[1] // rows, maps.shape[2] // columns
    rectangle = maps[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
    return rectangle.mean((1, 2))


def naive_projection(state: dict[str, Tensor], body_map: Tensor) -> Tensor:
    """In training: 1x1, 3x3 and 1x1 convolutions, each normalised by the batch, and positive."""
    projected = body_map
    for layer, padding in ((0, 0), (3, 1), (6, 0)):
        projected = conv2d(projected, state[f"projector.{layer}.weight"], padding=padding)
        centred = projected - projected.mean((0, 2, 3), keepdim=True)
        deviation = (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        scale, shift = (
            state[f"projector.{layer + 1}.{name}"][:, None, None] for name in ("weight", "bias")
        )
        projected = relu(centred / deviation * scale + shift)
    return projected
