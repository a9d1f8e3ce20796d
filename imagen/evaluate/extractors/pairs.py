"""Compute the PSNR and SSIM of each image of super-resolution against the real image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from imagen.data.shards.dataset import ShardedDataset
from imagen.distribution import missing
from imagen.evaluate.real import images

_PEAK = 255.0


class Pairs:
    """Compare image number i with sample `indices`[i] of a data set."""

    name = "psnr-ssim"
    description = "PSNR and SSIM (2004, Gaussian window of 11) per image, of uint8 RGB"

    def __init__(self, dataset: ShardedDataset, indices: Sequence[int], resolution: int):
        """Raises UserError if torchmetrics is not installed."""
        try:
            from torchmetrics.functional.image import structural_similarity_index_measure
        except ImportError:
            raise missing("SSIM needs the package torchmetrics", "eval") from None
        self._ssim = structural_similarity_index_measure
        self.dataset, self.indices, self.resolution = dataset, indices, resolution

    def __call__(self, images_BCHW: Tensor, numbers: range) -> Tensor:
        """Return PSNR in dB and SSIM, float32 [B, 2], of uint8 images with these numbers."""
        chosen = [self.indices[number] for number in numbers]
        truth_BCHW = next(images(self.dataset, chosen, self.resolution, batch=len(chosen))).float()
        made_BCHW = images_BCHW.float()
        mse_B = (made_BCHW - truth_BCHW).double().square().mean((1, 2, 3))
        psnr_B = (10 * torch.log10(_PEAK**2 / mse_B.clamp(min=1e-10))).float()  # at most 148 dB, of equal images
        ssim_B = self._ssim(made_BCHW, truth_BCHW, data_range=_PEAK, reduction="none")
        assert isinstance(ssim_B, Tensor)
        return torch.stack([psnr_B, ssim_B], 1)
