"""benchmarks/: the usual solutions that the scripts are compared with."""

import numpy as np

from benchmarks import plain_vae


def test_the_plain_vae_of_the_benchmark_trains():
    images = np.random.default_rng(0).random((64, 784)).astype(np.float32)
    model = plain_vae.train(images, epochs=1)
    assert model.decode(model.encode(plain_vae.torch.from_numpy(images))[0]).shape == (64, 784)
