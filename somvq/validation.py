"""What a run measures on a whole set of scans; runs.METRICS says each number in words."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from somvq import metrics
from somvq.codebooks.grid import Grid
from somvq.codebooks.psom import PSOM
from somvq.codebooks.som import SOM
from somvq.config import Split
from somvq.data.cohort import Cohort
from somvq.data.preprocess import Box
from somvq.files import locked, write_json
from somvq.models import Model, body_of
from somvq.models.discrete import DiscreteAE, flatten
from somvq.runs import Row

TOKENS_AT_ONCE = 4096  # where a matrix of tokens and nodes is made
LARGEST_MAP = 1024  # nodes up to which 199 permutations take seconds; of larger maps there are 39
NULL_SEED = 0  # of permutations: the same for all runs, so that they differ by their maps alone
SHORTER = {"neighbour_correlation": "neighbour_r", "neighbour_correlation_raw": "neighbour_r_raw"}  # in METRICS


class Validation(NamedTuple):
    """What a pass over a set of scans gives; the last four only where there is a codebook."""

    row: Row
    scan: Tensor  # the first one, (X, Y, Z)
    image: Tensor  # its x'_e
    image_q: Tensor | None = None
    tokens: Tensor | None = None  # (N, C)
    nodes: Tensor | None = None  # (B, x, y, z)
    hits: Tensor | None = None  # (K,)


@torch.no_grad()
def validate(
    model: Model, batches: Iterable[Tensor], autocast: Callable[[], AbstractContextManager[None]]
) -> Validation:
    """Every metric of an epoch over all of `batches`, in eval mode."""
    model.eval()
    sums: dict[str, float] = {}
    count, parts = 0, []
    for scans in batches:
        part = validate_batch(model, scans, autocast)
        parts.append(part)
        count += len(scans)
        for name, value in part.row.items():
            sums[name] = sums.get(name, 0.0) + value * len(scans)
    row = {name: value / count for name, value in sums.items()}
    if not isinstance(model, DiscreteAE):
        return parts[0]._replace(row=row)
    tokens = torch.cat([part.tokens for part in parts if part.tokens is not None])
    nodes = torch.cat([part.nodes for part in parts if part.nodes is not None])
    hits = metrics.count_hits(nodes, model.codebook.grid.nodes)
    row |= codebook_row(model, tokens, nodes, hits)
    return parts[0]._replace(row=row, tokens=tokens, nodes=nodes, hits=hits)


def validate_batch(model: Model, scans: Tensor, autocast: Callable[[], AbstractContextManager[None]]) -> Validation:
    """Losses and reconstruction metrics of a batch, each a mean over its scans."""
    with autocast():
        output = model(scans)
    terms = {"loss": objective(model, output.losses), **output.losses}
    row = {f"val/{name}": float(term) for name, term in terms.items()}
    image = output.reconstruction.float()
    row |= reconstruction_row(scans, image)
    if output.reconstruction_q is None:
        return Validation(row, scans[0, 0], image[0, 0])
    image_q = output.reconstruction_q.float()
    row |= {f"{name}_q": value for name, value in reconstruction_row(scans, image_q).items()}
    return Validation(row, scans[0, 0], image[0, 0], image_q[0, 0], flatten(output.z).float(), output.nodes)


def objective(model: Model, losses: dict[str, Tensor]) -> Tensor:
    """What is minimised: the terms by the model's weights."""
    return torch.stack([model.weights[name] * term for name, term in losses.items()]).sum()


def reconstruction_row(scans: Tensor, images: Tensor) -> Row:
    """SSIM, PSNR and squared error of `images`, means over scans."""
    return {
        "val/mse": float(metrics.mse(scans, images).mean()),
        "val/ssim": float(metrics.ssim(scans, images).mean()),
        "val/psnr": float(metrics.psnr(scans, images, metrics.scan_range(scans)).mean()),
        "val/psnr_max": float(metrics.psnr(scans, images, metrics.scan_maximum(scans)).mean()),
    }


def codebook_row(model: DiscreteAE, tokens: Tensor, nodes: Tensor, hits: Tensor) -> Row:
    """How the codebook is used, and how well it is a map; what has no value (codes all alike) is left out."""
    codebook, grid = model.codebook, model.codebook.grid
    codes = codebook.codes.detach()
    used = metrics.codes_used(hits)
    apart, nearest_two = metrics.nearest_two(tokens, codes)
    row = {
        "codebook/used": used,
        "codebook/used_share": used / grid.nodes,
        "codebook/dead": metrics.dead_codes(hits),
        "codebook/used_per_scan": float(metrics.codes_per_scan(nodes.flatten(1), grid.nodes).float().mean()),
        "codebook/perplexity": metrics.perplexity(hits),
        "codebook/quantisation_error": metrics.relative_error(tokens, apart[:, 0]),
        "codebook/mixing": metrics.mixing(tokens, codes),
        "codebook/norm_ratio": metrics.norm_ratio(tokens, codes),
    }
    if isinstance(codebook, PSOM):
        parts = [metrics.assignment_entropy(codebook.assign(part)) * len(part) for part in tokens.split(TOKENS_AT_ONCE)]
        row["codebook/entropy"] = sum(parts) / len(tokens)
    if isinstance(codebook, PSOM | SOM):
        row |= {
            "map/neighbour_r": metrics.neighbour_correlation(codes, grid, centred=True),
            "map/neighbour_r_raw": metrics.neighbour_correlation(codes, grid, centred=False),
            "map/morans_i": metrics.morans_i(codes, grid),
            "map/topographic_error": metrics.topographic_error_of(nearest_two, grid),
            "map/topographic_error_8": metrics.topographic_error_of(nearest_two, grid, neighbours=8),
        }
    return {name: value for name, value in row.items() if np.isfinite(value)}


@torch.no_grad()
def survey(
    model: Model,
    cohort: Cohort,
    rows: Sequence[int],
    read: Callable[[Sequence[int]], Tensor],
    autocast: Callable[[], AbstractContextManager[None]],
    validation: Validation,
) -> Row:
    """What is measured once, of a trained model on scans `rows`: other SSIMs, maps and locality against chance."""
    model.eval()
    boxes = [cohort.index.scans[row].box for row in rows]
    parts = []
    for row, box in zip(rows, boxes, strict=True):
        scan, brain = read([row]), torch.from_numpy(cohort.brain(row))[None, None]
        with autocast():
            output = model(scan)
        part: Row = {}
        for suffix, image in (("", output.reconstruction), ("_q", output.reconstruction_q)):
            found = {} if image is None else ssim_row(scan, image.float(), brain.to(scan.device), box)
            part |= {f"{name}{suffix}": value for name, value in found.items()}
        body = body_of(model)
        if body.decoder.skip:
            with autocast():
                encoded = body.encode(scan)
                past = body.decode(torch.zeros_like(encoded.z), encoded.features).float()
            part["val/ssim_without_tokens"] = float(metrics.ssim(scan, past))
        parts.append(part)
    measured = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    if isinstance(model, DiscreteAE):
        assert validation.nodes is not None
        assert validation.tokens is not None
        brain_share = torch.from_numpy(cohort.share_of_brain(rows))
        measured |= foreground_row(model, validation.nodes.cpu(), brain_share > 0.5)
        measured["codebook/overlap"] = metrics.token_overlap(validation.tokens, model.codebook.codes)
        if isinstance(model.codebook, SOM | PSOM):
            measured |= map_row(model, validation.tokens)
            measured |= order_row(model.codebook.grid, validation.nodes.cpu(), brain_share > 0.5)
        measured |= meaning_row(validation.nodes.cpu(), brain_share > 0.5, cohort, rows)
    return {name: value for name, value in measured.items() if np.isfinite(value)}


def ssim_row(scan: Tensor, image: Tensor, brain: Tensor, box: Box) -> Row:
    """SSIM of one scan by other conventions, and of less than the whole volume."""
    return {
        "val/ssim_skimage": float(metrics.ssim(scan, image, "skimage")),
        "val/ssim_gaussian": float(metrics.ssim(scan, image, "gaussian")),
        "val/ssim_brain": float(metrics.ssim(scan, image, mask=brain)),
        "val/ssim_unpadded": float(metrics.ssim(metrics.crop(scan, box), metrics.crop(image, box))),
    }


def foreground_row(model: DiscreteAE, nodes: Tensor, brain: Tensor) -> Row:
    """How many codes stand for brain."""
    hits = metrics.count_hits(nodes[brain], model.codebook.grid.nodes)
    return {
        "codebook/used_brain": metrics.codes_used(hits),
        "codebook/used_brain_per_scan": float(
            metrics.codes_per_scan(nodes.flatten(1), model.codebook.grid.nodes, brain.flatten(1)).float().mean()
        ),
    }


def map_row(model: DiscreteAE, tokens: Tensor) -> Row:
    """Each metric of the map beside its mean under permutation of nodes, and the share of permutations as good."""
    codebook = model.codebook
    _, two = metrics.nearest_two(tokens, codebook.codes)
    permutations = 199 if codebook.grid.nodes <= LARGEST_MAP else 39
    nulls = metrics.map_nulls(codebook.codes, codebook.grid, two, permutations=permutations, seed=NULL_SEED)
    return {
        key: value
        for name, null in nulls.items()
        for key, value in beside_chance(f"map/{SHORTER.get(name, name)}", null)
    }


def order_row(grid: Grid, nodes: Tensor, brain: Tensor) -> Row:
    """Whether nodes near on the map stand for places near in the brain, and for the same places in all subjects."""
    nulls = {
        "place": metrics.anatomical_locality(nodes, grid, brain, seed=NULL_SEED),
        "order": metrics.anatomical_locality(nodes, grid, brain, shuffle="nodes", seed=NULL_SEED),
        "agreement": metrics.across_subject_agreement(nodes, grid, brain, seed=NULL_SEED),
    }
    return {key: value for name, null in nulls.items() for key, value in beside_chance(f"locality/{name}", null)}


def meaning_row(nodes: Tensor, brain: Tensor, cohort: Cohort, rows: Sequence[int]) -> Row:
    """What nodes tell of tissue and of what is known of subjects, and how often a place has one node in all."""
    tissues = [
        metrics.tissue_of_tokens(torch.from_numpy(cohort.read([row])), torch.from_numpy(cohort.brain(row))[None, None])
        for row in rows
    ]
    tissue = torch.stack(tissues).flatten()
    inside = brain.flatten() & (tissue > 0)
    nulls = {"tissue": metrics.mutual_information(nodes.flatten()[inside], tissue[inside], seed=NULL_SEED)}
    for factor, values in cohort.factors(rows).items():
        known = torch.tensor(values, dtype=torch.float64)
        nulls[factor] = metrics.factor_information(nodes.flatten(1), known, brain.flatten(1), seed=NULL_SEED)
    row = {key: value for name, null in nulls.items() for key, value in beside_chance(f"locality/{name}", null)}
    row["locality/same_node"] = metrics.same_node_share(nodes, brain)
    if len(rows) > 1:
        of_place = metrics.position_baseline(nodes, brain).flatten()
        row["locality/tissue_by_place"] = metrics.mutual_information(
            of_place[inside], tissue[inside], seed=NULL_SEED
        ).value
    return row


def beside_chance(name: str, null: metrics.Null) -> list[tuple[str, float]]:
    """A metric, its mean under permutation, and the share of permutations as good."""
    return [(name, null.value), (f"{name}_null", null.mean), (f"{name}_p", null.p)]


def blank_error(cohort: Cohort) -> float:
    """What an image of zeros scores on the validation set, squared error per voxel: 1 where whole volumes are z-scored.

    It is above 1 where z-scores are the brain's (`normalise: brain`), whose background is far from 0.
    """
    return float(np.mean([np.square(cohort.read([row]), dtype=np.float64).mean() for row in cohort.rows["val"]]))


def mean_image_baseline(cohort: Cohort, split: Split = "val") -> Row:
    """What printing the training set's mean scores on `split`; measured once a cohort, kept beside it.

    A model that is no better has learned nothing about anyone. The keys are those of METRICS, whatever the split.
    """
    path = cohort.folder / ("baseline.json" if split == "val" else f"baseline_{split}.json")
    with locked(cohort.folder / ".baseline.lock"):
        if path.exists():
            kept: Row = json.loads(path.read_text())
            return kept
        train = cohort.rows["train"]
        total = sum(cohort.read([row]).astype(np.float64) for row in train)  # one at a time: all take gigabytes
        mean = torch.from_numpy(np.float32(total / len(train)))
        parts = [reconstruction_row(torch.from_numpy(cohort.read([row])), mean) for row in cohort.rows[split]]
        row = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
        write_json(path, row)
        return row
