"""Image augmentation for behaviour cloning; never used in preference training (method.md 1.2)."""

from dataclasses import replace

from hapo_ros.policies.base import Batch


def random_shift(images, pixels: int, generator):
    """(B, H, W, 3) uint8 images moved by up to ``pixels`` each way, one shift an image.

    Pads with the edge's pixels and crops; uniform over whole pixels. generator: torch.Generator.
    """
    import torch
    from torch.nn import functional as F

    count, height, width, _ = images.shape
    shift = torch.randint(0, 2 * pixels + 1, (count, 2, 1), generator=generator)
    rows = (shift[:, 0] + torch.arange(height))[:, :, None]
    columns = (shift[:, 1] + torch.arange(width))[:, None, :]
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (pixels,) * 4, mode="replicate")
    padded = padded.to(torch.uint8).permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows, columns]


def augment(batch: Batch, pixels: int, generator) -> Batch:
    """The batch with shifted images, each camera by shifts of its own; 0 pixels: the batch."""
    if pixels == 0 or not batch.images:
        return batch
    images = {n: random_shift(x, pixels, generator) for n, x in batch.images.items()}
    return replace(batch, images=images)
