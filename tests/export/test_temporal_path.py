"""Which temporal layers are the trunk, and which layers see token sequences."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qvd_trt.export.graph.temporal_path import TemporalPath, find_temporal_path
from tests.export.graphs import GraphBuilder, opened, prepared

LATE = 6


class TestTrunk:
    @pytest.mark.parametrize(
        ("fed", "is_trunk"), [(1, False), (2, False), (3, True), (4, True), (5, True), (6, True)]
    )
    def test_majority_of_the_layers_that_do_not_come_before(self, fed: int, is_trunk: bool) -> None:
        """Of six projections `fed` come after `second`, the others after `first` alone.

        `first` comes before `second` and so does not count: it takes three of six, not of seven.
        """
        net = EmbeddingNet()
        first = net.gemm(net.waves, 32, 32, "first")
        second = net.gemm(first, 32, 32, "second")
        for index in range(LATE):
            net.project(second if index < fed else first, f"proj_{index}")
        path = net.temporal_path()
        projections = {f"proj_{index}" for index in range(LATE)}
        if is_trunk:
            assert path.trunk == {"first", "second"}
            assert path.projections == projections
        else:
            assert path.trunk == {"first"}
            assert path.projections == projections | {"second"}

    @pytest.mark.parametrize("blocks", [2, 3, 5])
    def test_a_low_rank_pair_inside_a_block_is_no_trunk(self, blocks: int) -> None:
        """As Cosmos has it: one half of the pair feeds the other, and nothing else.

        With two blocks that is one layer of the three that do not come before it.
        """
        net = EmbeddingNet()
        trunk = net.gemm(net.gemm(net.waves, 32, 32, "trunk_1"), 32, 32, "trunk_2")
        for block in range(blocks):
            net.project(net.gemm(trunk, 32, 8, f"down_{block}"), f"up_{block}", rows=8)
        path = net.temporal_path()
        assert path.trunk == {"trunk_1", "trunk_2"}
        assert path.projections == {
            f"{half}_{block}" for half in ("down", "up") for block in range(blocks)
        }

    def test_a_layer_that_nothing_temporal_follows_is_no_trunk(self) -> None:
        net = EmbeddingNet()
        net.project(net.waves, "only")
        path = net.temporal_path()
        assert path.trunk == frozenset()
        assert path.projections == {"only"}


class TestTokenAxis:
    """Conditioning by token sequences leaves a feature temporal once the token axis is gone."""

    def test_a_gemm_reads_no_token_axis_even_where_no_shape_is_known(self) -> None:
        """The axes of the mean are computed, so that inference does not know its rank."""
        net = EmbeddingNet()
        net.project(net.unknown_rank_with_text(), "gemm_proj")
        model = net.prepared_model()
        graph = model.graph
        assert input_of(graph, "gemm_proj").shape is None
        path = net.path_of(model)
        assert path.projections == {"gemm_proj"}
        assert path.strict == frozenset()

    def test_a_matmul_may_read_one(self) -> None:
        """Negative control: of a MatMul's operand of unknown rank it must be assumed."""
        net = EmbeddingNet()
        net.project(net.unknown_rank_with_text(), "matmul_proj", gemm=False)
        model = net.prepared_model()
        graph = model.graph
        assert input_of(graph, "matmul_proj").shape is None
        path = net.path_of(model)
        assert path.projections == frozenset()

    def test_a_matmul_on_a_feature_of_known_rank(self) -> None:
        net = EmbeddingNet()
        axes = net.constant("token_axis", np.array([1]))
        text = net.op("ReduceMean", net.text(), axes, name="pooled", keepdims=0)
        net.project(net.op("Add", net.waves, text, name="mixed"), "matmul_proj", gemm=False)
        assert net.temporal_path().projections == {"matmul_proj"}


class EmbeddingNet(GraphBuilder):
    """Sine waves of a timestep; what is projected is added to the latent."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = self.input("sample", ["batch", 16, 8, 8])
        time = self.input("timestep", ["batch"])
        column = self.op("Unsqueeze", time, self.constant("last", np.array([1])), name="column")
        angles = self.op("Mul", column, self.weight("frequencies", 1, 32), name="angles")
        self.waves = self.op("Sin", angles, name="waves")

    def text(self) -> str:
        return self.input("text", ["batch", 9, 32])

    def unknown_rank_with_text(self) -> str:
        """Waves and the mean over all tokens; the mean's axes are computed from another input."""
        text = self.text()
        axes = self.op(
            "Compress",
            self.constant("axis_numbers", np.array([0, 1, 2])),
            self.constant("chosen", np.array([False, True, False])),
            name="axes",
        )
        pooled = self.op("ReduceMean", text, axes, name="pooled", keepdims=0)
        return self.op("Add", self.waves, pooled, name="mixed")

    def project(self, x: str, name: str, rows: int = 32, *, gemm: bool = True) -> None:
        """One projection of an embedding, added to the latent."""
        make = self.gemm if gemm else self.linear
        added = make(x, rows, 16, name)
        spatial = self.constant(f"{name}.spatial", np.array([2, 3]))
        added = self.op("Unsqueeze", added, spatial, name=f"{name}_map")
        self.latent = self.op("Add", self.latent, added, name=f"{name}_added")

    def prepared_model(self) -> ir.Model:
        return prepared(self.model({self.latent: ["batch", 16, 8, 8]}))

    def temporal_path(self) -> TemporalPath:
        return self.path_of(self.prepared_model())

    def path_of(self, model: ir.Model) -> TemporalPath:
        return find_temporal_path(opened(model))


def input_of(graph: ir.Graph, name: str) -> ir.Value:
    (node,) = (node for node in graph if node.name == name)
    value = node.inputs[0]
    assert value is not None
    return value
