"""The options of ``qvd-export``; imports nothing heavy, so that ``--help`` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from qvd_trt.tools.sampling_options import add_sampling

EPILOG = """\
examples:
  qvd-export model.onnx --calib recorded/ --bits w8a8
  qvd-export model.onnx --sampler ddim --steps 25 --prediction v_prediction --inputs prompts.npz
  qvd-export model.onnx --stats model.stats.npz --bits w6a6 -o model.w6a6.onnx
  qvd-export model.onnx --plan edited.plan.json -o model.w8a8.onnx --target trt8
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``qvd-export``."""
    parser = argparse.ArgumentParser(
        prog="qvd-export",
        description="Quantize a float ONNX video denoiser with QVD (SCRI and HTDQ) and write a "
        "QDQ ONNX file for TensorRT and ONNX Runtime.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="float32 ONNX denoiser; never written to")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help="QDQ model to write (default: MODEL with .w8a8.onnx); the plan and the report go "
        "beside it as .plan.json and .report.json",
    )
    _add_quantization(parser)
    _add_calibration(parser)
    add_sampling(parser, "sampling calibration trajectories from the model")
    _add_target(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="list every layer kept float")
    return parser


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("quantization")
    group.add_argument(
        "--bits",
        metavar="wNaM",
        help="widths of weights and activations, 2 to 8, or 16 for float (default: w8a8). Only "
        "w8a8 is faster; fewer bits are carried in int8 and tell about accuracy; w16a16 writes the "
        "float model for the target, to compare with",
    )
    group.add_argument(
        "--algorithm",
        metavar="NAME",
        help="qvd (default), or a baseline: shift, smoothquant, mse, percentile, minmax",
    )
    group.add_argument(
        "--temporal",
        metavar="NAME",
        help="codebook of the temporal sites: hidi, lloyd-max, mu-law, log2-uniform, log2, "
        "uniform, uniform-asymmetric, or float (default: the algorithm's own)",
    )
    group.add_argument(
        "--keep",
        metavar="PATTERN",
        action="append",
        default=[],
        help="keep layers float whose node, weight, torch module or operator has this whole name "
        "(shell pattern); repeat",
    )
    group.add_argument(
        "--min-sqnr",
        type=float,
        metavar="DB",
        help="keep layers float whose output SQNR on calibration rows is lower",
    )
    group.add_argument(
        "--plan", type=Path, metavar="FILE", help="apply this (edited) plan instead of solving one"
    )


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("calibration")
    group.add_argument(
        "--calib",
        type=Path,
        nargs="+",
        metavar="PATH",
        default=[],
        help=".npz trajectories or a folder of them, Polygraphy .json inputs, or a .py script "
        "with load_data(); without it trajectories are sampled from the model itself",
    )
    group.add_argument(
        "--stats",
        type=Path,
        metavar="FILE",
        help="statistics cache (.npz): read when it exists, else written",
    )
    group.add_argument("--timestep-input", metavar="NAME", help="name of the timestep input")
    group.add_argument("--latent-input", metavar="NAME", help="name of the noisy latent input")
    group.add_argument(
        "--temporal-timesteps",
        choices=("auto", "calibration", "training"),
        default="auto",
        help="timesteps that temporal codebooks are made for: those of the calibration calls, or "
        "all of training (auto: training with --calib, else calibration)",
    )
    group.add_argument(
        "--provider", choices=("cpu", "cuda"), default="cpu", help="where calibration runs"
    )


def _add_target(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("target")
    group.add_argument(
        "--target",
        metavar="NAME",
        help="trt (TensorRT 10 and 11, default), rtx (TensorRT-RTX), trt8 (TensorRT 8.6) or ort",
    )
    group.add_argument(
        "--dtype",
        metavar="TYPE",
        help="type of the rest of the graph: fp16, bf16 or fp32 (default: fp16 for trt and rtx, "
        "fp32 for trt8 and ort)",
    )
    group.add_argument(
        "--htdq",
        metavar="FORM",
        help="form of HTDQ nodes: function (default), inline (default of trt8) or plugin",
    )
