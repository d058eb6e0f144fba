from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qvd_trt.calibrators.sources.calls import DenoiserCall
from qvd_trt.calibrators.sources.npz_files import NpzFiles, read_npz
from qvd_trt.calibrators.sources.open_source import open_source
from qvd_trt.export.arrays import AnyArray
from qvd_trt.export.errors import UserError
from qvd_trt.export.graph.signature import ModelSignature, TensorSpec

SIGNATURE = ModelSignature(
    inputs=(
        TensorSpec("sample", "float32", ("batch", 2, 3)),
        TensorSpec("timestep", "int64", ()),
        TensorSpec("text", "float16", ("batch", 4)),
    ),
    output=TensorSpec("out", "float32", ("batch", 2, 3)),
    timestep="timestep",
    latent="sample",
)


def trajectory(steps: int, seed: int = 0) -> dict[str, AnyArray]:
    random = np.random.default_rng(seed)
    return {
        "sample": random.standard_normal((steps, 1, 2, 3)).astype(np.float32),
        "timestep": np.arange(steps, dtype=np.int64)[::-1] * 100,
        "text": random.standard_normal((1, 4)).astype(np.float16),
    }


def save(path: Path, arrays: dict[str, AnyArray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def collect(source: NpzFiles) -> list[DenoiserCall]:
    calls: list[DenoiserCall] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        calls.append(call)
        return call.inputs["sample"]

    source.drive(denoise)
    return calls


def test_stacked_arrays_are_steps_and_others_are_constant(tmp_path: Path) -> None:
    arrays = trajectory(3)
    calls = collect(NpzFiles(save(tmp_path / "clip.npz", arrays), SIGNATURE))
    assert [(call.trajectory, call.step) for call in calls] == [(0, 0), (0, 1), (0, 2)]
    for step, call in enumerate(calls):
        assert np.array_equal(call.inputs["sample"], arrays["sample"][step])
        assert call.inputs["timestep"].shape == ()
        assert call.inputs["timestep"].dtype == np.int64
        assert int(call.inputs["timestep"]) == (2 - step) * 100
        assert np.array_equal(call.inputs["text"], arrays["text"])


def test_a_constant_may_be_stacked_too(tmp_path: Path) -> None:
    arrays = trajectory(2)
    arrays["text"] = np.stack([arrays["text"], arrays["text"] + 1])
    calls = collect(NpzFiles(save(tmp_path / "clip.npz", arrays), SIGNATURE))
    assert np.array_equal(calls[1].inputs["text"], arrays["text"][1])


def test_nothing_stacked_is_a_single_call(tmp_path: Path) -> None:
    arrays = {name: array for name, array in trajectory(1).items() if name == "text"}
    arrays["sample"] = np.ones((1, 2, 3), np.float32)
    arrays["timestep"] = np.array(7)
    source = NpzFiles(save(tmp_path / "one.npz", arrays), SIGNATURE)
    (call,) = collect(source)
    assert source.calls() == 1
    assert int(call.inputs["timestep"]) == 7


def test_a_folder_is_sorted_by_name_and_counted(tmp_path: Path) -> None:
    for name, steps in (("clip_10", 2), ("clip_02", 3), ("clip_01", 1)):
        save(tmp_path / f"{name}.npz", trajectory(steps, seed=steps))
    source = NpzFiles(tmp_path, SIGNATURE)
    calls = collect(source)
    assert (source.trajectories(), source.calls()) == (3, 6)
    assert [call.trajectory for call in calls] == [0, 1, 1, 1, 2, 2]
    assert np.array_equal(calls[-1].inputs["sample"], trajectory(2, seed=2)["sample"][1])
    assert "3 files" in source.describe()


def test_only_one_file_is_held_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        save(tmp_path / f"{index}.npz", trajectory(2))
    source = NpzFiles(tmp_path, SIGNATURE)
    events: list[str] = []

    def logged(path: Path) -> dict[str, AnyArray]:
        events.append(f"read {path.stem}")
        return read_npz(path)

    def denoise(call: DenoiserCall) -> AnyArray:
        events.append(f"call {call.trajectory}")
        return call.inputs["sample"]

    monkeypatch.setattr("qvd_trt.calibrators.sources.npz_files.read_npz", logged)
    source.drive(denoise)
    assert events == [f"{what} {i}" for i in range(3) for what in ("read", "call", "call")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": np.ones((1, 4))}, r"'text' is float64, the model takes float16"),
        (
            {"sample": np.ones((3, 1, 1, 2, 3), np.float32)},
            r"'sample' has shape \[3, 1, 1, 2, 3\], the model takes \[batch, 2, 3\]",
        ),
        (
            {"sample": np.ones((3, 1, 2, 5), np.float32)},
            r"'sample' has shape \[1, 2, 5\], the model takes",
        ),
        ({"text": np.ones((2, 4), np.float16)}, r"'text' has shape \[2, 4\]"),
        ({"timestep": np.arange(4)}, r"'timestep' has 4 steps but 'sample' has 3"),
        ({"sample": np.ones((0, 1, 2, 3), np.float32)}, r"'sample' has no steps"),
        ({"extra": np.ones(1)}, r"'extra' is no input of the model"),
        ({"text": np.array([None])}, r"'text' is an array of Python objects"),
    ],
)
def test_wrong_arrays_are_refused_on_opening(
    tmp_path: Path, change: dict[str, AnyArray], message: str
) -> None:
    path = save(tmp_path / "clip_00.npz", {**trajectory(3), **change})
    with pytest.raises(UserError, match=message) as caught:
        NpzFiles(path, SIGNATURE)
    assert "clip_00.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_input_is_named(tmp_path: Path) -> None:
    arrays = trajectory(2)
    del arrays["text"]
    with pytest.raises(UserError, match=r"clip\.npz: no array for the model's input 'text'"):
        NpzFiles(save(tmp_path / "clip.npz", arrays), SIGNATURE)


def test_nan_is_reported_with_file_and_step(tmp_path: Path) -> None:
    arrays = trajectory(5)
    arrays["sample"][3, 0, 1, 2] = np.nan
    source = NpzFiles(save(tmp_path / "clip_00.npz", arrays), SIGNATURE)
    with pytest.raises(UserError, match=r"clip_00\.npz, step 3: 'sample' holds NaN or Inf"):
        collect(source)


def test_objects_are_refused_without_unpickling(tmp_path: Path) -> None:
    path = save(tmp_path / "bad.npz", {"sample": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match="Python objects"):
        read_npz(path)


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04broken"])
def test_corrupt_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"clip\.npz is not a complete \.npz file"):
        NpzFiles(path, SIGNATURE)


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "clip.npz", trajectory(4))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete"):
        NpzFiles(path, SIGNATURE)


def test_damaged_data_are_refused_when_read(tmp_path: Path) -> None:
    # Long enough that reading the headers does not come across the damage.
    arrays = trajectory(2000)
    path = save(tmp_path / "clip.npz", arrays)
    content = bytearray(path.read_bytes())
    content[content.index(arrays["sample"][-1].tobytes())] ^= 0xFF
    path.write_bytes(bytes(content))
    source = NpzFiles(path, SIGNATURE)
    with pytest.raises(UserError, match=r"clip\.npz is not a complete \.npz file \(Bad CRC"):
        collect(source)


def test_empty_file_folder_and_missing_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no \.npz file"):
        NpzFiles(tmp_path, SIGNATURE)
    with pytest.raises(UserError, match="holds no array"):
        NpzFiles(save(tmp_path / "empty.npz", {}), SIGNATURE)
    with pytest.raises(UserError, match="does not exist"):
        NpzFiles(tmp_path / "missing.npz", SIGNATURE)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "clip.npz", **trajectory(2))  # type: ignore[arg-type]
    assert len(collect(NpzFiles(tmp_path / "clip.npz", SIGNATURE))) == 2


def test_several_paths_are_chained(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    save(folder / "a.npz", trajectory(1))
    save(folder / "b.npz", trajectory(2))
    single = save(tmp_path / "c.npz", trajectory(3))
    source = open_source([folder, single], SIGNATURE)
    seen: list[tuple[int, int]] = []

    def denoise(call: DenoiserCall) -> AnyArray:
        seen.append((call.trajectory, call.step))
        return call.inputs["sample"]

    source.drive(denoise)
    assert seen == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    assert (source.trajectories(), source.calls()) == (3, 6)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no known kind of calibration data; give \.npz"):
        open_source([path], SIGNATURE)
    with pytest.raises(UserError, match="does not exist"):
        open_source([tmp_path / "missing.npz"], SIGNATURE)
    with pytest.raises(UserError, match="no calibration data"):
        open_source([], SIGNATURE)
