"""`TrtDenoiser`: what does not need a GPU, and one run that does."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from qvd_trt.export.errors import UserError
from qvd_trt.tools.denoisers.graph_inputs import fit_tensors, name_arguments
from qvd_trt.tools.denoisers.trt_denoiser import TrtDenoiser, aligned, graph_specs
from qvd_trt.tools.engine.engine_session import EngineTensor


def test_engine_inputs_take_a_pipelines_arguments() -> None:
    """An engine has no names for its extents, and TensorRT 8.6 takes int32 timesteps."""
    specs = graph_specs(
        {
            "sample": EngineTensor("sample", "float16", (-1, 4, -1, 8, 8)),
            "timestep": EngineTensor("timestep", "int32", (-1,)),
        }
    )
    assert specs[0].shape == ("batch", 4, "sample_2", 8, 8)
    values = name_arguments(specs, [torch.ones(2, 4, 3, 8, 8)], {"timestep": torch.tensor(999)})
    tensors, extents = fit_tensors(specs, values, torch.device("cpu"))
    assert extents == {"batch": 2, "sample_2": 3}
    assert tensors["sample"].dtype == torch.float16
    assert tensors["timestep"].tolist() == [999, 999]
    assert tensors["timestep"].dtype == torch.int32


def test_a_step_of_the_timesteps_is_copied() -> None:
    """TensorRT asks for addresses that are multiples of 256 bytes."""
    steps = torch.arange(64)
    places = {aligned(step).data_ptr() == step.data_ptr() for step in steps}
    assert places == {True, False}
    assert [int(aligned(step)) for step in steps] == list(range(64))
    assert all(
        aligned(step).data_ptr() != step.data_ptr() for step in steps if step.data_ptr() % 256
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU")
def test_without_a_gpu() -> None:
    with pytest.raises(UserError, match="NVIDIA GPU"):
        TrtDenoiser(Path("engine.plan"))
