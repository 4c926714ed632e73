"""Layers that take the places of torch's own: the same values, gradients and parameters."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from studies import engine, fashion, layers

OPTIONS = {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}


def values_and_gradients(layer, x):
    """The layer's output for x and, of the sum of its sines, the gradients by x and each parameter."""
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.sin().sum(), [x, *layer.parameters()])]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans())
def test_the_doubling_layer_is_a_transposed_convolution(batch, channels, height, width, bias, channels_last):
    with engine.seeded(batch, channels, height, width):
        layer = nn.ConvTranspose2d(channels, 1, bias=bias, **OPTIONS).double()
        x = torch.randn(batch, channels, height, width, dtype=torch.float64)
    if channels_last:
        layer, x = layer.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    expected, names = values_and_gradients(layer, x), list(layer.state_dict())
    layers.fit_for(nn.Sequential(layer), torch.device("cpu"))
    assert type(layer) is layers.DoublingToOneChannel and list(layer.state_dict()) == names
    found = values_and_gradients(layer, x)
    assert found[0].shape == (batch, 1, 2 * height, 2 * width)
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("change", [{"kernel_size": 4, "output_padding": 0}, {"stride": 3}, {"padding": 0},
                                    {"output_padding": 0}, {"dilation": 2}, {"out_channels": 2},
                                    {"in_channels": 2, "out_channels": 2, "groups": 2}])
def test_other_transposed_convolutions_stay_as_they_are(change):
    layer = nn.ConvTranspose2d(**{"in_channels": 4, "out_channels": 1, **OPTIONS, **change})
    layers.fit_for(nn.Sequential(layer), torch.device("cpu"))
    assert type(layer) is nn.ConvTranspose2d


@pytest.mark.parametrize("device, processes, exchanged", [
    ("cpu", 1, {layers.DoublingToOneChannel}), ("cpu", 2, {layers.DoublingToOneChannel, layers.GlobalBatchNorm}),
    ("cuda", 1, set()), ("cuda", 2, {layers.GlobalBatchNorm}), ("mps", 1, {layers.GlobalBatchNorm})])
def test_layers_are_exchanged_where_they_should_be(device, processes, exchanged):
    model = fashion.ConvVAE(fashion.Settings())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert layers.fit_for(model, torch.device(device), processes) is model
    assert {type(part) for part in model.modules()} & {layers.DoublingToOneChannel, layers.GlobalBatchNorm} == exchanged
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("processes", (1, 2))
def test_the_whole_network_gives_the_same_with_exchanged_layers(processes):
    with engine.seeded(0):
        model = fashion.ConvVAE(fashion.Settings()).double()
        x, noise = torch.rand(9, 1, 28, 28, dtype=torch.float64), torch.randn(9, 16, dtype=torch.float64)

    def gradients():
        logits, mean, log_variance = model(x, noise)
        return [logits, *torch.autograd.grad(logits.sin().sum() + (mean * log_variance).sum(), model.parameters())]

    expected = gradients()
    layers.fit_for(model, torch.device("cpu"), processes)
    for one, other in zip(gradients(), expected):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-8)
