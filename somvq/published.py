"""All the places where the paper's code and its sources differ, and the table of them."""

from typing import Any

from somvq import config, initialisers, models
from somvq.codebooks import averages, grid, psom, som
from somvq.data import preprocess
from somvq.initialisers import kmeans, kohonen
from somvq.models import vae
from somvq.readings import Difference

DIFFERENCES: tuple[Difference[Any], ...] = (
    preprocess.PADDING_OF,
    config.ESTIMATOR,
    averages.START,
    averages.SMOOTHED_SIZES_ARE_KEPT,
    som.ATTRACTION,
    grid.TORUS,
    psom.TOKENS,
    psom.TARGET_OF_EPOCH,
    psom.HARDENING,
    config.HARDENING_WEIGHT,
    psom.SMOOTHING,
    config.NEIGHBOUR_WEIGHT,
    vae.KL,
    config.KL_WEIGHT,
    vae.BATCH_NORM,
    vae.SAMPLES_IN_EVALUATION,
    models.DECODER_OF_AE,
    initialisers.TOKENS_OF_ONE_BATCH,
    kmeans.CENTRES,
    kohonen.MAP,
    initialisers.CENTRES_OF_AE,
)
SAME = (  # in both readings: what the paper says, and what is done
    ("Last convolution of the encoder", "batch norm and ReLU everywhere", "neither: tokens are signed"),
    ("Filters", "4, doubling; the last is the embedding's 32", "4, 8, 16, 32"),
    ("Skip connections", "turned off: suboptimal", "`skip: concatenate`; what they decode without tokens is measured"),
    ("Training", "Adam, 0.005, batches of 32", "the same, last epoch; seeded, and at least four steps an epoch"),
    ("Eq. (1): alpha", "weight of a codebook term", "moving averages (decay 0.99); `update: gradient` has the term"),
    ("Eq. (1): beta = 6", "of a sum of squared norms", "of a mean over elements: 6 / 32 on a squared norm"),
    ("Reconstruction", "a squared norm", "a mean over voxels"),
    ("Eq. (2): gammas", "0.8 and 0.2 chosen, 0.5 and 0.5 in the table too", "`gamma_q`; gamma_e is the rest to 1"),
    ("Eq. (3): beta", "a sum over neighbours", "squared norms, a mean over pairs of token and node, its own too"),
    ("Eq. (3b): distance", "a norm", "its square"),
    ("Eq. (3b): alpha", "called df in the text", "10; not the alpha of eq. (1) and (3)"),
    ("Eq. (4): denominator", "j under a sum over j'", "rows of t sum to 1"),
    ("SSIM", "a uniform kernel", "9x9x9, valid, biased variances, range of the scan; others beside it at the end"),
    ("SSIM and PSNR of Table 1", "of the reconstruction",
     "of x'_e for eq. (2), (3) and (5), of x'_q for eq. (1): we print both"),
    ("PSNR", "in dB", "of the scan's range, and with its maximum as peak, as the paper's"),
    ("Neighbours' r above 0.95", "the map preserves topology", "raw and with the codes' mean removed, beside chance"),
    ("Loss Eqn (4) of Table 1", "(4)", "eq. (5); and two equations are called (3)"),
    ("'Voxel'", "a voxel of the latent", "a token: a block of 16 voxels a side"),
    ("MSE of Table 1", "train (val) MSE", "was the whole loss over the batch, 32 (23): we print MSE and every term"),
    ("Unique embeddings", "on a selected image", "per scan, over the whole set, and where there is brain"),
    ("AE k-means, random weights", "codes only", "`init: ae-kmeans-codes`"),
    ("Row PSOM-VAE, gamma 10", "AE KM", "its notebook has random codes, and says k-means diverged: `init: ae`"),
)  # fmt: skip


def table() -> str:
    """Both lists, in Markdown."""
    lines = ["| where | the paper says | `reading: published` does | `reading: corrected` does |", "|---|---|---|---|"]
    lines += [f"| {d.item} | {d.paper} | {d.published.words} | {d.corrected.words} |" for d in DIFFERENCES]
    lines += ["", "The same in both:", "", "| where | the paper says | both do |", "|---|---|---|"]
    lines += [f"| {item} | {paper} | {both} |" for item, paper, both in SAME]
    return "\n".join(line.replace("||", "&#124;&#124;") if "||" in line else line for line in lines) + "\n"
