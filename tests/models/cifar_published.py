"""The published CIFAR networks, written without the library: names with shapes, and forward passes over them.

From RepDistiller (CRD); the networks ``resnetN_a`` from pytorch_resnet_cifar10, whose own names ``akamaster`` gives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def shapes(name: str, classes: int) -> dict[str, tuple[int, ...]]:
    family, _, rest = name.partition("_")
    if family == "wrn":
        depth, times = rest.split("_")
        return dict(_wide(int(depth), int(times), classes))
    if family.startswith("resnet"):
        depth, _, times = family.removeprefix("resnet").partition("x")
        return dict(_resnet(int(depth), (32, 64, 128, 256) if times else (16, 16, 32, 64), rest != "a", classes))
    return dict(
        {"vgg8": _vgg, "vgg13": _vgg, "mobilenetv2": _mobile, "shufflenetv1": _v1, "shufflenetv2": _v2}[name](
            name, classes
        )
    )


def weights(name: str, classes: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights under the published names for which no layer's output vanishes or explodes."""

    def draw(key: str, shape: tuple[int, ...]) -> Tensor:
        if key.endswith("num_batches_tracked"):
            return torch.tensor(7)
        if key.endswith("running_var") or (len(shape) == 1 and key.endswith("weight")):
            return torch.rand(shape, dtype=dtype) + 0.5
        return torch.randn(shape, dtype=dtype) / math.prod(shape[1:]) ** 0.5

    return {key: draw(key, shape) for key, shape in shapes(name, classes).items()}


def akamaster(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"module." + key.replace("fc.", "linear."): value for key, value in state.items()}


def judge(name: str, state: dict[str, Tensor], images: Tensor, *, training: bool) -> Tensor:
    """Logits by the published forward pass."""
    forward: dict[str, Callable[[_Judge, Tensor], Tensor]] = {
        "resnet": _run_resnet,
        "wrn": _run_wide,
        "vgg": _run_vgg,
        "mobilenetv": _run_mobile,
        "shufflenetv": _run_shuffle,
    }
    return forward[re.findall("[a-z]+", name)[0]](_Judge(state, training), images)


def _conv(name: str, outputs: int, inputs: int, size: int, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, size, size)
    if bias:
        yield f"{name}.bias", (outputs,)


def _bn(name: str, channels: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
    yield f"{name}.num_batches_tracked", ()


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _resnet(depth: int, widths: tuple[int, ...], projected: bool, classes: int) -> Shapes:
    yield from _conv("conv1", widths[0], 3, 3)
    yield from _bn("bn1", widths[0])
    before = widths[0]
    for stage, width in enumerate(widths[1:], 1):
        for block in range((depth - 2) // 6):
            at = f"layer{stage}.{block}"
            yield from _conv(f"{at}.conv1", width, before, 3)
            yield from _bn(f"{at}.bn1", width)
            yield from _conv(f"{at}.conv2", width, width, 3)
            yield from _bn(f"{at}.bn2", width)
            if projected and (before != width or (stage > 1 and block == 0)):
                yield from _conv(f"{at}.downsample.0", width, before, 1)
                yield from _bn(f"{at}.downsample.1", width)
            before = width
    yield from _linear("fc", classes, before)


def _wide(depth: int, times: int, classes: int) -> Shapes:
    yield from _conv("conv1", 16, 3, 3)
    before = 16
    for stage, width in enumerate((16 * times, 32 * times, 64 * times), 1):
        for block in range((depth - 4) // 6):
            at = f"block{stage}.layer.{block}"
            yield from _bn(f"{at}.bn1", before)
            yield from _conv(f"{at}.conv1", width, before, 3)
            yield from _bn(f"{at}.bn2", width)
            yield from _conv(f"{at}.conv2", width, width, 3)
            if before != width:
                yield from _conv(f"{at}.convShortcut", width, before, 1)
            before = width
    yield from _bn("bn1", before)
    yield from _linear("fc", classes, before)


def _vgg(name: str, classes: int) -> Shapes:
    before = 3
    for block, width in enumerate((64, 128, 256, 512, 512)):
        for place in (0, 3)[: 2 if name == "vgg13" else 1]:
            yield from _conv(f"block{block}.{place}", width, before, 3, bias=True)
            yield from _bn(f"block{block}.{place + 1}", width)
            before = width
    yield from _linear("classifier", classes, before)


def _mobile(_: str, classes: int) -> Shapes:
    yield from _conv("conv1.0", 16, 3, 3)
    yield from _bn("conv1.1", 16)
    before = 16
    for stage, (width, blocks) in enumerate(((8, 1), (12, 2), (16, 3), (32, 4), (48, 3), (80, 3), (160, 1))):
        for block in range(blocks):
            at, inner = f"blocks.{stage}.{block}.conv", before * (6 if stage else 1)
            yield from _conv(f"{at}.0", inner, before, 1)
            yield from _bn(f"{at}.1", inner)
            yield from _conv(f"{at}.3", inner, 1, 3)
            yield from _bn(f"{at}.4", inner)
            yield from _conv(f"{at}.6", width, inner, 1)
            yield from _bn(f"{at}.7", width)
            before = width
    yield from _conv("conv2.0", 1280, 160, 1)
    yield from _bn("conv2.1", 1280)
    yield from _linear("classifier.0", classes, 1280)


def _v1(_: str, classes: int) -> Shapes:
    yield from _conv("conv1", 24, 3, 1)
    yield from _bn("bn1", 24)
    before = 24
    for stage, (width, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), 1):
        for block in range(blocks):
            at, out = f"layer{stage}.{block}", width - before if block == 0 else width
            yield from _conv(f"{at}.conv1", out // 4, before if before == 24 else before // 3, 1)
            yield from _bn(f"{at}.bn1", out // 4)
            yield from _conv(f"{at}.conv2", out // 4, 1, 3)
            yield from _bn(f"{at}.bn2", out // 4)
            yield from _conv(f"{at}.conv3", out, out // 4 // 3, 1)
            yield from _bn(f"{at}.bn3", out)
            before = width
    yield from _linear("linear", classes, 960)


def _v2(_: str, classes: int) -> Shapes:
    yield from _conv("conv1", 24, 3, 1)
    yield from _bn("bn1", 24)
    before = 24
    for stage, (width, blocks) in enumerate(((116, 3), (232, 7), (464, 3)), 1):
        half = width // 2
        sizes = [(before, 1, 3), (half, before, 1), (half, before, 1), (half, 1, 3), (half, half, 1)]
        for block in range(blocks + 1):
            for i, (outputs, inputs, size) in enumerate(sizes, 1):
                yield from _conv(f"layer{stage}.{block}.conv{i}", outputs, inputs, size)
                yield from _bn(f"layer{stage}.{block}.bn{i}", outputs)
            sizes = [(half, half, 1), (half, 1, 3), (half, half, 1)]
        before = width
    yield from _conv("conv2", 1024, 464, 1)
    yield from _bn("bn2", 1024)
    yield from _linear("linear", classes, 1024)


class _Judge:
    """Layers by name; the groups of a convolution follow from its shape."""

    def __init__(self, state: dict[str, Tensor], training: bool) -> None:
        self.state, self.training = state, training

    def blocks(self, prefix: str) -> range:
        return range(
            len({key.removeprefix(prefix).split(".")[1] for key in self.state if key.startswith(prefix + ".")})
        )

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = self.state[f"{name}.weight"]
        groups = x.shape[1] // kernel.shape[1]
        return torch.conv2d(x, kernel, self.state.get(f"{name}.bias"), stride, kernel.shape[2] // 2, 1, groups)

    def bn(self, name: str, x: Tensor) -> Tensor:
        scale, shift, mean, var = (self.state[f"{name}.{p}"] for p in ("weight", "bias", "running_mean", "running_var"))
        if self.training:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        column = (1, -1, 1, 1)
        return (x - mean.view(column)) / (var.view(column) + 1e-5).sqrt() * scale.view(column) + shift.view(column)

    def head(self, name: str, x: Tensor) -> Tensor:
        assert x.shape[2:] == (1, 1)
        return x[:, :, 0, 0] @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def active(self, conv: str, bn: str, x: Tensor, stride: int = 1) -> Tensor:
        return self.bn(bn, self.conv(conv, x, stride)).relu()


def _run_resnet(net: _Judge, x: Tensor) -> Tensor:
    x = net.active("conv1", "bn1", x)
    for stage in (1, 2, 3):
        for block in net.blocks(f"layer{stage}"):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = net.active(f"{at}.conv1", f"{at}.bn1", x, stride)
            y = net.bn(f"{at}.bn2", net.conv(f"{at}.conv2", y))
            if f"{at}.downsample.0.weight" in net.state:
                x = net.bn(f"{at}.downsample.1", net.conv(f"{at}.downsample.0", x, stride))
            elif stride == 2:
                wide = torch.zeros_like(y)
                wide[:, x.shape[1] // 2 : x.shape[1] // 2 + x.shape[1]] = x[:, :, ::2, ::2]
                x = wide
            x = (x + y).relu()
    return net.head("fc", torch.nn.functional.avg_pool2d(x, 8))


def _run_wide(net: _Judge, x: Tensor) -> Tensor:
    x = net.conv("conv1", x)
    for stage in (1, 2, 3):
        for block in net.blocks(f"block{stage}.layer"):
            at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            y = net.bn(f"{at}.bn1", x).relu()
            if f"{at}.convShortcut.weight" in net.state:
                x = net.conv(f"{at}.convShortcut", y, stride)
            x = x + net.conv(f"{at}.conv2", net.active(f"{at}.conv1", f"{at}.bn2", y, stride))
    return net.head("fc", torch.nn.functional.avg_pool2d(net.bn("bn1", x).relu(), 8))


def _run_vgg(net: _Judge, x: Tensor) -> Tensor:
    pooled = 4 if x.shape[2] == 64 else 3
    for block in range(5):
        for place in (0, 3):
            if f"block{block}.{place}.weight" in net.state:
                x = net.active(f"block{block}.{place}", f"block{block}.{place + 1}", x)
        if block < pooled:
            x = torch.max_pool2d(x, 2, 2)
    return net.head("classifier", torch.nn.functional.avg_pool2d(x, 4))


def _run_mobile(net: _Judge, x: Tensor) -> Tensor:
    x = net.active("conv1.0", "conv1.1", x, stride=2)
    for stage in range(7):
        for block in net.blocks(f"blocks.{stage}"):
            at, stride = f"blocks.{stage}.{block}.conv", 2 if stage in (2, 3, 5) and block == 0 else 1
            y = net.active(f"{at}.3", f"{at}.4", net.active(f"{at}.0", f"{at}.1", x), stride)
            y = net.bn(f"{at}.7", net.conv(f"{at}.6", y))
            x = x + y if y.shape == x.shape else y
    return net.head("classifier.0", torch.nn.functional.avg_pool2d(net.active("conv2.0", "conv2.1", x), 2))


def _mix(x: Tensor, groups: int) -> Tensor:
    return x[:, torch.arange(x.shape[1]).view(groups, -1).T.flatten()]


def _run_shuffle(net: _Judge, x: Tensor) -> Tensor:
    second = "conv2.weight" in net.state
    x = net.active("conv1", "bn1", x)
    for stage in (1, 2, 3):
        for block in net.blocks(f"layer{stage}"):
            x = (_second if second else _first)(net, f"layer{stage}.{block}", block == 0, x)
    if second:
        x = net.active("conv2", "bn2", x)
    return net.head("linear", torch.nn.functional.avg_pool2d(x, 4))


def _first(net: _Judge, at: str, halve: bool, x: Tensor) -> Tensor:
    y = _mix(net.active(f"{at}.conv1", f"{at}.bn1", x), 1 if x.shape[1] == 24 else 3)
    y = net.active(f"{at}.conv2", f"{at}.bn2", y, 2 if halve else 1)
    y = net.bn(f"{at}.bn3", net.conv(f"{at}.conv3", y))
    return torch.cat([y, torch.nn.functional.avg_pool2d(x, 3, 2, 1)], 1).relu() if halve else (x + y).relu()


def _second(net: _Judge, at: str, halve: bool, x: Tensor) -> Tensor:
    if halve:
        left = net.bn(f"{at}.bn1", net.conv(f"{at}.conv1", x, 2))
        left = net.active(f"{at}.conv2", f"{at}.bn2", left)
        right = net.bn(f"{at}.bn4", net.conv(f"{at}.conv4", net.active(f"{at}.conv3", f"{at}.bn3", x), 2))
        return _mix(torch.cat([left, net.active(f"{at}.conv5", f"{at}.bn5", right)], 1), 2)
    left, right = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    right = net.bn(f"{at}.bn2", net.conv(f"{at}.conv2", net.active(f"{at}.conv1", f"{at}.bn1", right)))
    return _mix(torch.cat([left, net.active(f"{at}.conv3", f"{at}.bn3", right)], 1), 2)
