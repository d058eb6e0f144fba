"""Writes a stressed twin of a denoiser: the same function with scattered channel scales.

Every channel of a norm's output is multiplied by a log-normal factor and the next weights are
divided by it, wherever that is exact (function-preserving synthetic stress, not a trained model).

    python -m benchmarks.stressed_twin MODEL.onnx TWIN.onnx [--sigma 1.5] [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qvd_trt.calibrators.bits import FLOAT_BITS
from qvd_trt.calibrators.plan import ActivationQuant, DensePlan, LayerQuant
from qvd_trt.calibrators.sites import Layer, Site
from qvd_trt.export.graph.affine_producer import find_affine_producer
from qvd_trt.export.graph.interface import read_signature
from qvd_trt.export.graph.layers import layer_input
from qvd_trt.export.graph.sites import find_sites
from qvd_trt.export.model_file import load_model, save_model
from qvd_trt.export.passes.fold_scri import FoldScri
from qvd_trt.export.passes.prepare import Prepare


def stressed_twin(model: ir.Model, sigma: float, seed: int) -> tuple[ir.Model, int]:
    """The twin and the number of norm/linear pairs that were rescaled.

    Args:
        model: A float denoiser; left as it is.
        sigma: Standard deviation of the factors' natural logarithm.
        seed: Of the factors.
    """
    twin = model.clone()
    Prepare()(twin)
    sites = find_sites(twin.graph, read_signature(twin.graph))
    generator = np.random.default_rng(seed)
    plans = []
    for site in sites.dense:
        if _has_norm(twin.graph, site):
            factors = np.exp(generator.normal(0.0, sigma, site.channels)).astype(np.float32)
            layers = tuple(LayerQuant(layer.name, None) for layer in site.layers)
            grid = ActivationQuant(FLOAT_BITS, 1.0, smooth=np.float32(1) / factors)
            plans.append(DensePlan(site.tensor, site.channel_axis, grid, layers))
    by_name: dict[str, Layer] = {layer.name: layer for layer in sites.all_layers}
    FoldScri(plans, by_name)(twin)
    return twin, len(plans)


def _has_norm(graph: ir.Graph, site: Site) -> bool:
    names = {layer.name for layer in site.layers}
    readers = [node for node in graph if node.name in names]
    value = layer_input(readers[0])
    return find_affine_producer(value, site.channel_axis, site.channels, readers) is not None


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--sigma", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    twin, pairs = stressed_twin(load_model(options.model), options.sigma, options.seed)
    save_model(twin, options.twin)
    print(f"{pairs} norm/linear pairs rescaled, sigma {options.sigma}: {options.twin}")


if __name__ == "__main__":
    main()
