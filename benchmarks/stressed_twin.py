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

from qvd_trt.export.graph.affine_producer import find_affine_producer
from qvd_trt.export.graph.find_sites import find_sites
from qvd_trt.export.graph.float_model import FloatModel
from qvd_trt.export.model_file import open_model, save_model
from qvd_trt.export.passes.fold_scri import FoldScri
from qvd_trt.export.plan.quant_plan import FLOAT_BITS, ActivationQuant, DensePlan, LayerQuant
from qvd_trt.export.plan.site_types import Site


def stressed_twin(model: FloatModel, sigma: float, seed: int) -> tuple[ir.Model, int]:
    """The twin and the number of norm/linear pairs that were rescaled.

    Args:
        model: A float denoiser; left as it is.
        sigma: Standard deviation of the factors' natural logarithm.
        seed: Of the factors.
    """
    sites = find_sites(model)
    generator = np.random.default_rng(seed)
    plans = []
    for site in sites.dense:
        if _has_norm(model, site):
            factors = np.exp(generator.normal(0.0, sigma, site.channels)).astype(np.float32)
            layers = tuple(LayerQuant(layer.name, None) for layer in site.layers)
            grid = ActivationQuant(FLOAT_BITS, 1.0, smooth=np.float32(1) / factors)
            plans.append(DensePlan(site.tensor, site.channel_axis, grid, layers))
    twin = model.prepared.clone()
    FoldScri(plans, model.layers)(twin)
    return twin, len(plans)


def _has_norm(model: FloatModel, site: Site) -> bool:
    readers = [model.nodes[layer.name] for layer in site.layers]
    value = model.input_of(site.layers[0])
    return find_affine_producer(value, site.channel_axis, site.channels, readers) is not None


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("twin", type=Path)
    parser.add_argument("--sigma", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    twin, pairs = stressed_twin(open_model(options.model), options.sigma, options.seed)
    save_model(twin, options.twin)
    print(f"{pairs} norm/linear pairs rescaled, sigma {options.sigma}: {options.twin}")


if __name__ == "__main__":
    main()
