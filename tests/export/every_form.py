"""A hand-made denoiser with one layer of every form that a plan can hold."""

from __future__ import annotations

import numpy as np
import onnx

from tests.export.graphs import GraphBuilder


def every_form_net(opset: int = 20) -> onnx.ModelProto:
    """sample [batch, 4, 6, 6], timestep [batch], encoder_hidden_states [batch, tokens, 20].

    Returns a prediction of the sample's shape.

    Convolutions: padded unevenly, a 1x1 shortcut that shares their input, grouped and dilated, over
    time (3x1x1). Linear layers: Gemm with and without bias, MatMul with and without Add, two that
    share a LayerNorm. Two projections read one temporal feature. All norms can absorb a map.
    """
    net = GraphBuilder(seed=5, opset=opset)
    sample = net.input("sample", ["batch", 4, 6, 6])
    time = net.input("timestep", ["batch"])
    context = net.input("encoder_hidden_states", ["batch", "tokens", 20])
    image_axes = net.constant("image_axes", np.array([2, 3]))

    feature = _time_embedding(net, time)
    x = net.conv(sample, 4, 32, (3, 3), "conv_in", pads=[1, 1, 1, 1])
    bias = net.linear(feature, 32, 32, "time_proj_1")
    x = net.op("Add", x, net.op("Unsqueeze", bias, image_axes, name="time_1_4d"), name="timed_1")
    x = net.op("Relu", x, name="positive")  # asymmetric: worth a shift
    spread = np.exp(net.rng.normal(0, 1, (1, 32, 1, 1))).astype(np.float32)
    x = net.op("Mul", x, net.constant("spread", spread), name="scattered")
    wide = net.conv(x, 32, 32, (3, 3), "padded", pads=[2, 1, 0, 1])
    short = net.conv(x, 32, 32, (1, 1), "shortcut", bias=False)
    x = net.op("Add", wide, short, name="joined")
    x = net.group_norm(x, 32, 4, ("batch", 32, 6, 6), "group_norm")
    x = net.conv(x, 32, 64, (3, 3), "grouped", group=2, pads=[2, 2, 2, 2], dilations=[2, 2])
    bias = net.gemm(feature, 32, 64, "time_proj_2")
    x = net.op("Add", x, net.op("Unsqueeze", bias, image_axes, name="time_2_4d"), name="timed_2")
    video = net.reshape(x, [0, 64, 3, 2, 6], "video")
    video = net.conv(video, 64, 32, (3, 1, 1), "over_time", pads=[1, 0, 0, 1, 0, 0])
    pixels = net.reshape(video, [0, 32, 36], "pixels")
    x = net.op("Transpose", pixels, name="tokens", perm=[0, 2, 1])

    normal = net.layer_norm(x, 32, "layer_norm")
    query = net.linear(normal, 32, 32, "query", bias=False)
    key = net.linear(normal, 32, 32, "key")
    text = net.linear(context, 20, 32, "text", bias=False)
    keys = net.op("Concat", key, text, name="keys", axis=1)
    turned = net.op("Transpose", keys, name="turned", perm=[0, 2, 1])
    product = net.op("MatMul", query, turned, name="qk")
    weights = net.op("Softmax", product, name="softmax", axis=-1)
    x = net.op("Add", x, net.op("MatMul", weights, keys, name="pv"), name="residual")
    x = net.reshape(x, [-1, 32], "rows")
    x = net.gemm(x, 32, 64, "widen", bias=False)
    x = net.op("Relu", x, name="positive_rows")
    x = net.gemm(x, 64, 32, "narrow")
    x = net.linear(x, 32, 4, "conv_out")
    x = net.op("Transpose", net.reshape(x, [-1, 36, 4], "out"), name="turned_out", perm=[0, 2, 1])
    x = net.reshape(x, [-1, 4, 6, 6], "prediction")
    return net.model({x: ["batch", 4, 6, 6]})


def _time_embedding(net: GraphBuilder, time: str) -> str:
    frequencies = net.constant("frequencies", np.geomspace(1, 1e-3, 16, dtype=np.float32)[None])
    column = net.op("Unsqueeze", time, net.constant("last", np.array([1])), name="time_column")
    angles = net.op("Mul", column, frequencies, name="angles")
    sine, cosine = net.op("Sin", angles, name="sin"), net.op("Cos", angles, name="cos")
    x = net.op("Concat", sine, cosine, name="waves", axis=1)
    for index in (1, 2):
        x = net.gemm(x, 32, 32, f"time_mlp_{index}")
        x = net.op("Mul", x, net.op("Sigmoid", x, name=f"gate_{index}"), name=f"silu_{index}")
    return x
