"""Image augmentation for behaviour cloning; never used in preference training (method.md 1.2)."""

from dataclasses import replace

from hapo_ros.policies.base import Batch


def draw_shifts(count: int, cameras: int, pixels: int, generator):
    """(count, cameras, 2) whole numbers from 0 to 2 * pixels: where to crop each image of ``count``
    samples from once it is padded. generator: torch.Generator, not used for 0 pixels.
    """
    import torch

    shifts = torch.zeros((count, cameras, 2), dtype=torch.long)
    for camera in range(cameras if pixels else 0):
        shifts[:, camera] = torch.randint(0, 2 * pixels + 1, (count, 2), generator=generator)
    return shifts


def shift_images(images, pixels: int, shifts):
    """(B, H, W, 3) uint8 images moved by up to ``pixels`` each way: padded with the edge's pixels,
    and cropped from shifts (B, 2) on."""
    import torch
    from torch.nn import functional as F

    count, height, width, _ = images.shape
    shifts = shifts[..., None]
    rows = (shifts[:, 0] + torch.arange(height))[:, :, None]
    columns = (shifts[:, 1] + torch.arange(width))[:, None, :]
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (pixels,) * 4, mode="replicate")
    padded = padded.to(torch.uint8).permute(0, 2, 3, 1)
    return padded[torch.arange(count)[:, None, None], rows, columns]


def augment(batch: Batch, pixels: int, shifts) -> Batch:
    """The batch with shifted images, by shifts (B, cameras, 2) of up to ``pixels``; 0 pixels: the
    batch."""
    if pixels == 0 or not batch.images:
        return batch
    images = {
        name: shift_images(images, pixels, shifts[:, camera])
        for camera, (name, images) in enumerate(batch.images.items())
    }
    return replace(batch, images=images)
