"""The assignment's own snippets, word for word, on the trained model of this project."""
# ruff: noqa: W291, W293
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

matplotlib.use("Agg")
MODELS = Path(__file__).resolve().parent.parent / "models"

SHOW_RECONSTRUCTION = """
def show_reconstruction(model, val_loader, n=10):
    model.eval()
    data, labels = next(iter(val_loader))
  
    data = data.to(device)
    recon_data, _, _ = model(data)
  
    fig, axes = plt.subplots(2, n, figsize=(15, 4))
    for i in range(n):
        # Original images
        axes[0, i].imshow(data[i].cpu().numpy().squeeze(), cmap='gray')
        axes[0, i].axis('off')
        # Reconstructed images
        axes[1, i].imshow(recon_data[i].cpu().view(28, 28).detach().numpy(), cmap='gray')
        axes[1, i].axis('off')
    plt.show()

show_reconstruction(vae, val_loader)
"""

LOSS_FUNCTION = """
# Here recon_x is reconstructed image and x is input image 
def loss_function(recon_x, x, mu, logvar):
    BCE = nn.functional.binary_cross_entropy(recon_x.view(-1, 784), x.view(-1, 784), reduction='sum')
    KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return BCE + KLD
"""

PLOT_2D_MANIFOLD = """
import numpy as np
import torch
import matplotlib.pyplot as plt
from scipy.stats import norm

def plot_2d_manifold(vae, latent_dim=2, n=20, digit_size=28, device='cuda'):
    figure = np.zeros((digit_size * n, digit_size * n))

    # Generate a grid of values between 0.05 and 0.95 percentiles of a normal distribution
    grid_x = norm.ppf(np.linspace(0.05, 0.95, n))
    grid_y = norm.ppf(np.linspace(0.05, 0.95, n))

    vae.eval()  # Set VAE to evaluation mode
    with torch.no_grad():
        for i, yi in enumerate(grid_x):
            for j, xi in enumerate(grid_y):
                z_sample = torch.tensor([[xi, yi]], device=device).float()
              
                # Pass z to VAE Decoder 
                digit = vae.decode(z_sample).cpu().numpy().reshape(digit_size, digit_size)

                figure[i * digit_size: (i + 1) * digit_size,
                       j * digit_size: (j + 1) * digit_size] = digit

    plt.figure(figsize=(10, 10))
    plt.imshow(figure, cmap='gnuplot2')
    plt.axis('off')
    plt.show()
"""  # the line `digit = ...` is the one that the assignment leaves to write

LOADING = """
#Load model 
PATH =load_model_path
model = ModelClass()
model.load_state_dict(torch.load(PATH))
model.eval()
"""


@pytest.fixture
def names(vae):
    """What the snippets expect to be defined: the trained model, torch, pyplot, here without windows."""
    import matplotlib.pyplot as plt
    found = {"torch": torch, "nn": nn, "plt": plt, "device": "cpu", "ModelClass": vae.VAE,
             "load_model_path": str(MODELS / "vae.pth")}
    exec(LOADING, found)
    found["vae"] = found["model"]
    yield found
    plt.close("all")


@pytest.fixture(params=[(28, 28), (1, 28, 28), (784,), "DigitDataset"], ids=str)
def val_loader(request, names, vae):
    """Fifteen digits with labels, decoded by the model itself, because the real ones are not in this project."""
    means, labels = names["vae"].prior_means.repeat(5, 1), torch.arange(15) % 3
    with torch.no_grad():
        images = names["vae"].decode(means + 0.2 * torch.randn(15, 2, generator=torch.Generator().manual_seed(0)))
    if request.param == "DigitDataset":
        return DataLoader(vae.DigitDataset(images, labels), batch_size=15)
    return DataLoader(TensorDataset(images.view(15, *request.param), labels), batch_size=15)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_show_reconstruction_and_loss_function(names, val_loader):
    x, _ = next(iter(val_loader))
    recon_x, mu, logvar = names["vae"](x)
    assert (recon_x.shape, mu.shape, logvar.shape) == ((15, 784), (15, 2), (15, 2))
    exec(LOSS_FUNCTION, names)
    loss = names["loss_function"](recon_x, x, mu, logvar)
    assert loss.isfinite() and loss < 0.7 * names["loss_function"](torch.full((15, 784), 0.1), x, mu, logvar)
    if x.shape == (15, 784):  # the snippet's imshow cannot show a row of 784 pixels
        return
    exec(SHOW_RECONSTRUCTION, {**names, "val_loader": val_loader})
    axes = names["plt"].gcf().axes
    assert len(axes) == 20
    for original, drawn in zip(axes[:10], axes[10:]):
        error = (original.images[0].get_array() - drawn.images[0].get_array()) ** 2
        assert error.mean() < 0.02, "the reconstruction is another digit"


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_plot_2d_manifold_shows_digits(names, vae):
    """Nearly every cell resembles an image that the model decodes from a sample of its mixture."""
    exec(PLOT_2D_MANIFOLD, names)
    names["plot_2d_manifold"](names["vae"], latent_dim=2, n=20, digit_size=28, device="cpu")
    figure = np.asarray(names["plt"].gca().images[0].get_array()).reshape(20, 28, 20, 28)
    cells = torch.from_numpy(figure).float().permute(0, 2, 1, 3).reshape(400, 784)
    assert 0 <= float(cells.min()) and float(cells.max()) <= 1 and float(cells.max(1)[0].min()) > 0.8
    z = vae.load_mixture(str(MODELS / "gmm_params.pkl"), names["vae"])[0].sample(1500)[0]
    with torch.no_grad():
        digits = names["vae"].decode(torch.from_numpy(z).float())
    nearest = torch.cdist(cells, digits).topk(50, largest=False)[1]  # SSIM with all 1,500 would take a minute
    best = vae.ssim(cells.repeat_interleave(50, 0), digits[nearest.flatten()]).view(400, 50).max(1)[0]
    assert (best < 0.5).float().mean() <= 0.01


def test_committed_model_classifies_and_its_latents_resemble_n_0_i(vae):
    """By the mixture that EM fitted to their means: mean 0, covariance I within 0.15, 75 % within the grid."""
    model = vae.load_checkpoint(str(MODELS / "vae.pth"))
    mixture, labels = vae.load_mixture(str(MODELS / "gmm_params.pkl"), model)
    drawn = model.decode(torch.tensor(mixture.means_, dtype=torch.float32)).detach().numpy()
    assert (MODELS / "vae.pth").stat().st_size < 4_000_000 and drawn.shape == (3, 784) and drawn.max() > 0.5
    assert labels.tolist() == vae.classify(model, mixture, labels, vae.DigitDataset(drawn)).tolist() == [1, 4, 8]
    mean, points = mixture.weights_ @ mixture.means_, mixture.means_
    moments = np.einsum("k,kij->ij", mixture.weights_, mixture.covariances_ + points[:, :, None] * points[:, None])
    assert mean == pytest.approx(0, abs=0.15)
    assert moments - np.outer(mean, mean) == pytest.approx(np.eye(2), abs=0.15)
    assert (np.abs(mixture.sample(20_000)[0]) <= 1.645).all(1).mean() >= 0.75
    distance = np.linalg.norm(points[:, None] - points, axis=2) + 99 * np.eye(3)
    assert distance.min() > 4 * np.sqrt(mixture.covariances_.max())  # clusters apart
