"""The assignment's own snippets, word for word, on the trained model of this project."""
# ruff: noqa: W291, W293
import os
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

EVALUATE_GMM_PERFORMANCE = """
def evaluate_gmm_performance(labels_true, labels_pred):
  
    accuracy = accuracy_score(labels_true, labels_pred)
    precision_macro = precision_score(labels_true, labels_pred, average='macro')  # Macro precision
    recall_macro = recall_score(labels_true, labels_pred, average='macro')  # Macro recall
    f1_macro = f1_score(labels_true, labels_pred, average='macro')  # Macro F1

    # Return metrics as a dictionary
    return {
        'accuracy': accuracy,
        'precision_macro': precision_macro,
        'recall_macro': recall_macro,
        'f1_macro': f1_macro
    }

# Example usage:
metrics = evaluate_gmm_performance(labels_val, gmm_pred_val)
"""

LOADING = """
#Load model 
PATH =load_model_path
model = ModelClass()
model.load_state_dict(torch.load(PATH))
model.eval()
"""


@pytest.fixture
def names(vae, monkeypatch):
    """What the snippets' surroundings define: the trained model, torch, pyplot, whose windows do not open."""
    import matplotlib.pyplot as plt
    found = {"torch": torch, "nn": nn, "plt": plt, "device": "cpu", "ModelClass": vae.VAE,
             "load_model_path": str(MODELS / "vae.pth")}
    exec(LOADING, found)
    found["vae"] = found["model"]
    yield found
    plt.close("all")


@pytest.fixture(params=[(28, 28), (1, 28, 28), (784,)], ids=["28 x 28", "1 x 28 x 28", "784"])
def val_loader(request, names):
    """Fifteen digits with labels, as the model itself draws them: the real ones are not in this project."""
    means = names["vae"].prior_means.repeat(5, 1)
    with torch.no_grad():
        images = names["vae"].decode(means + 0.2 * torch.randn(15, 2, generator=torch.Generator().manual_seed(0)))
    return DataLoader(TensorDataset(images.view(15, *request.param), torch.arange(15) % 3), batch_size=15)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_show_reconstruction(names, val_loader):
    if len(val_loader.dataset[0][0]) == 784:  # imshow of a row of 784 is no picture: the snippet's own limit
        with pytest.raises(TypeError):
            exec(SHOW_RECONSTRUCTION, {**names, "val_loader": val_loader})
        return
    exec(SHOW_RECONSTRUCTION, {**names, "val_loader": val_loader})
    axes = names["plt"].gcf().axes
    assert len(axes) == 20
    for original, drawn in zip(axes[:10], axes[10:]):
        error = (original.images[0].get_array() - drawn.images[0].get_array()) ** 2
        assert error.mean() < 0.02, "the reconstruction is another digit"


def test_loss_function(names, val_loader):
    exec(LOSS_FUNCTION, names)
    x, _ = next(iter(val_loader))
    recon_x, mu, logvar = names["vae"](x)
    assert (recon_x.shape, mu.shape, logvar.shape) == ((15, 784), (15, 2), (15, 2))
    loss = names["loss_function"](recon_x, x, mu, logvar)
    blank = names["loss_function"](torch.full((15, 784), 0.1), x, mu, logvar)
    assert loss.isfinite() and loss < 0.7 * blank


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_plot_2d_manifold_shows_digits(names):
    exec(PLOT_2D_MANIFOLD, names)
    names["plot_2d_manifold"](names["vae"], latent_dim=2, n=20, digit_size=28, device="cpu")
    figure = np.asarray(names["plt"].gca().images[0].get_array()).reshape(20, 28, 20, 28).transpose(0, 2, 1, 3)
    ink = figure.mean((2, 3))
    assert figure.shape == (20, 20, 28, 28) and 0 <= figure.min() and figure.max() <= 1
    assert ((0.02 < ink) & (ink < 0.35)).mean() > 0.95  # of MNIST's digits 1, 4 and 8 nearly all have 0.03 to 0.25
    margin = (figure.sum((2, 3)) - figure[:, :, 2:-2, 2:-2].sum((2, 3))) / (28 ** 2 - 24 ** 2)
    assert (margin < 0.05).mean() > 0.9  # a digit leaves its margin free, noise, as far from all components, does not


def test_evaluate_gmm_performance(names):
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
    found = {**names, "accuracy_score": accuracy_score, "precision_score": precision_score,
             "recall_score": recall_score, "f1_score": f1_score,
             "labels_val": np.array([1, 4, 8, 8]), "gmm_pred_val": np.array([1, 4, 8, 4])}
    exec(EVALUATE_GMM_PERFORMANCE, found)
    assert set(found["metrics"]) == {"accuracy", "precision_macro", "recall_macro", "f1_macro"}
    assert found["metrics"]["accuracy"] == 0.75


def test_the_latents_of_the_training_images_lie_where_n_0_i_would_have_them(vae):
    """The mixture that EM fitted to their means tells: mean 0, covariance I within 0.15, 75 % within the grid."""
    mixture, labels = vae.load_mixture(str(MODELS / "gmm_params.pkl"))
    assert labels.tolist() == [1, 4, 8]
    mean = mixture.weights_ @ mixture.means_
    moments = np.einsum("k,kij->ij", mixture.weights_, mixture.covariances_ + np.einsum(
        "ki,kj->kij", mixture.means_, mixture.means_))
    assert mean == pytest.approx(0, abs=0.15)
    assert moments - np.outer(mean, mean) == pytest.approx(np.eye(2), abs=0.15)
    assert (np.abs(mixture.sample(20_000)[0]) <= 1.645).all(1).mean() >= 0.75
    distance = np.linalg.norm(mixture.means_[:, None] - mixture.means_, axis=2) + 99 * np.eye(3)
    assert distance.min() > 4 * np.sqrt(mixture.covariances_.max())  # clusters apart


@pytest.mark.slow
@pytest.mark.skipif("DIGITS" not in os.environ, reason="DIGITS names no folder with the real digits")
def test_the_real_digits_on_the_trained_model(vae):
    """On 286 digits that were not trained on: what the snippets show is good, and the latents lie as promised."""
    from handin.scores import average_f1, mean_ssim
    model = vae.load_model(str(MODELS / "vae.pth"))
    images, labels = vae.load_labelled(os.path.join(os.environ["DIGITS"], "mnist_1_4_8_dev_test.npz"))
    with torch.no_grad():
        drawn, mean, _ = model(torch.from_numpy(images).view(-1, 28, 28))
    truth = images.reshape(-1, 28, 28)
    assert mean_ssim(truth, drawn.numpy().reshape(-1, 28, 28)) > 0.74
    assert mean_ssim(truth, vae.reconstruct(model, images)) > 0.77
    assert average_f1(labels, vae.classify(model, *vae.load_mixture(str(MODELS / "gmm_params.pkl")), images)) > 0.99
    assert (mean.abs() <= 1.645).all(1).float().mean() >= 0.75
    assert mean.mean(0).numpy() == pytest.approx(0, abs=0.25)  # of so few, a class more or less moves it
