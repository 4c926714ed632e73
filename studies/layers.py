"""Layers that compute what torch's own do, for where those are slow or wrong, and that take their places in a network
written with torch's own. Parameters and their names stay the same, so checkpoints fit either.

[1] Ioffe & Szegedy 2015 (batch norm), arXiv:1502.03167
[2] Dumoulin & Visin 2016, A guide to convolution arithmetic for deep learning, arXiv:1603.07285, chapter 4
"""
import torch
import torch.nn.functional as F
from torch import distributed, nn


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation [1] over the rows of all processes, which nn.SyncBatchNorm does on CUDA alone. In one
    process, and in evaluation, what nn.BatchNorm does; on MPS it does so in contiguous memory, for in any other order
    its gradients are wrong there (pytorch/pytorch#175189)."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not (self.training and distributed.is_initialized() and distributed.get_world_size() > 1):
            if x.device.type != "mps":
                return super().forward(x)
            y = super().forward(x.contiguous())
            if y.requires_grad:
                y.register_hook(torch.Tensor.contiguous)
            return y
        from torch.distributed.nn.functional import all_reduce
        axes, shape = [0, *range(2, x.dim())], (1, -1) + (1,) * (x.dim() - 2)
        wide = x.float()
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        distributed.all_reduce(count)
        mean = all_reduce(wide.sum(axes)) / count
        centred = wide - mean.view(shape)
        variance = all_reduce((centred * centred).sum(axes)) / count
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked += 1
                rate = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, rate)
                self.running_var.lerp_(variance * count / (count - 1), rate)
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


class DoublingToOneChannel(nn.ConvTranspose2d):
    """Transposed convolution [2] to one channel of twice the side: kernel 3, stride 2, padding 1, output padding 1. A
    convolution of 1 x 1 gives the 3 x 3 contributions of each position, and those that meet on a pixel are added up:
    on a CPU that takes a fraction of the time of torch's own, which is made for many channels."""

    @staticmethod
    def can_replace(layer):
        """Whether a module is an nn.ConvTranspose2d of this kind."""
        return type(layer) is nn.ConvTranspose2d and (
            layer.out_channels, layer.groups, layer.kernel_size, layer.stride, layer.padding, layer.output_padding,
            layer.dilation) == (1, 1, (3, 3), (2, 2), (1, 1), (1, 1), (1, 1))

    def forward(self, x):
        """Features (B, C, H, W) -> (B, 1, 2 H, 2 W)."""
        taps = self.weight[:, 0].permute(1, 2, 0).reshape(9, -1, 1, 1)
        contributions = F.conv2d(x, taps).permute(0, 2, 3, 1).unflatten(3, (3, 3))  # (B, H, W, row, column)
        y = _overlap_add(_overlap_add(contributions, 2, 4), 1, 3)[:, None]
        return y if self.bias is None else y + self.bias.view(1, 1, 1, 1)


def _overlap_add(contributions, axis, taps):
    """Adds up along `axis`, which doubles: what lies at 0, 1 and 2 of the axis `taps` goes from position i to the
    positions 2 i - 1, 2 i and 2 i + 1."""
    before, on, after = contributions.unbind(taps)
    following = before.narrow(axis, 1, before.shape[axis] - 1)
    odd = after + F.pad(following, [0, 0] * (before.dim() - 1 - axis) + [0, 1])
    return torch.stack((on, odd), axis + 1).flatten(axis, axis + 1)


def fit_for(module, device, processes=1):
    """The module with layers exchanged, in place, where this device or several processes ask for it."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)) and (processes > 1 or device.type == "mps"):
            part.__class__ = GlobalBatchNorm
        elif device.type == "cpu" and DoublingToOneChannel.can_replace(part):
            part.__class__ = DoublingToOneChannel
    return module
