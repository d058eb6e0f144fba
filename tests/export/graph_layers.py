"""The layers and norms of the grammar of denoisers, in the forms that files have."""

from __future__ import annotations

from typing import Any

from tests.export.graph_grammar import Grammar


def convolve(net: Grammar, x: str, rows: int, filters: int) -> str:
    """A convolution that keeps the extents."""
    rank = net.spatial
    kernel = [net.one_of(1, 2, 3) for _ in range(rank)]
    groups = net.one_of(*(g for g in (1, 2, rows) if rows % g == 0 == filters % g))
    weight = net.matrix(filters, rows // groups, *kernel, fan_in=rows // groups * max(kernel))
    operands = [x, weight, *net.bias(filters)]
    dilations = [net.one_of(1, 2) for _ in range(rank)]
    attributes: dict[str, Any] = {"group": groups, "dilations": dilations}
    kind = net.one_of("explicit", "SAME_UPPER", "SAME_LOWER", "VALID")
    total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    before = [net.one_of(t // 2, 0, t) for t in total]
    pads = [*before, *(t - b for t, b in zip(total, before, strict=True))]
    if kind == "explicit":
        return net.add("Conv", *operands, pads=pads, **attributes)
    if kind == "VALID":
        full = net.ints(0, 0, *pads[:rank], 0, 0, *pads[rank:])
        operands[0] = net.add("Pad", x, full, mode=net.one_of("constant", "edge"))
        return net.add("Conv", *operands, auto_pad=kind, **attributes)
    attributes["dilations"] = [1] * rank  # ONNX Runtime refuses dilated SAME
    return net.add("Conv", *operands, auto_pad=kind, **attributes)


def linear(net: Grammar, x: str, rows: int, columns: int) -> str:
    """A linear layer of tokens in one of the forms that files have."""
    kind = net.one_of(
        "matmul", "matmul", "batched", "left", "einsum", "gemm", "alpha", "trans_a", "heads",
        "rank 4", "rank 2", "vectors",
    )  # fmt: skip
    bias = net.bias(columns)
    if kind == "matmul":
        y = net.add("MatMul", x, net.matrix(rows, columns))
    elif kind == "batched":
        y = net.add("MatMul", x, net.matrix(1, rows, columns, fan_in=rows))
    elif kind == "left":
        weight = net.matrix(columns, rows, fan_in=rows)
        y = net.add("MatMul", weight, net.add("Transpose", x, perm=[0, 2, 1]))
        y = net.add("Transpose", y, perm=[0, 2, 1])
    elif kind == "einsum":
        equation, turned = net.one_of(
            ("bsk,kn->bsn", False), ("bsk,nk->bsn", True), ("...k,kn->...n", False),
            ("kn,bsk->bsn", False), ("nk,...k->...n", True), ("bsk,nk->bns", True),
            ("bsk,kn->nbs", False),
        )  # fmt: skip
        shape = (columns, rows) if turned else (rows, columns)
        weight = net.matrix(*shape, fan_in=rows)
        operands = (weight, x) if equation[:2] in ("kn", "nk") else (x, weight)
        y = net.add("Einsum", *operands, equation=equation)
        if equation.endswith("bns"):
            y = net.add("Transpose", y, perm=[0, 2, 1])
        if equation.endswith("nbs"):
            y = net.add("Transpose", y, perm=[1, 2, 0])
    elif kind == "rank 4":
        split = net.add("Reshape", x, net.ints(0, 1, -1, rows))
        weight = net.matrix(*net.one_of((), (1,), (1, 1)), rows, columns, fan_in=rows)
        y = net.add("Reshape", net.add("MatMul", split, weight), net.shaped_like(x, 2, columns))
    elif kind == "rank 2":
        flat = net.add("Reshape", x, net.ints(-1, rows))
        weight = net.matrix(*net.one_of((), (1,)), rows, columns, fan_in=rows)
        y = net.add("MatMul", flat, weight)
        y = net.add("Reshape", y, net.shaped_like(x, 2, columns))
    elif kind == "vectors":  # a weight for each head
        heads = net.add(
            "Transpose", net.add("Reshape", x, net.ints(0, 0, 2, -1)), perm=[0, 2, 1, 3]
        )
        weight = net.matrix(2, rows // 2, columns // 2, fan_in=rows // 2)
        y = net.add("Transpose", net.add("MatMul", heads, weight), perm=[0, 2, 1, 3])
        y = net.add("Reshape", y, net.ints(0, 0, columns))
    elif kind == "heads":
        weight = net.matrix(rows, 4, columns // 4)
        order = net.one_of("bshd", "bhsd")
        split = net.add("Einsum", x, weight, equation=f"bsk,khd->{order}")
        if order == "bhsd":
            split = net.add("Transpose", split, perm=[0, 2, 1, 3])
        y = net.add("Reshape", split, net.ints(0, 0, columns))
    else:
        return _gemm(net, x, rows, columns, kind, bias)
    if not bias:
        return y
    if net.one_of(False, False, True):
        bias = [net.add("Unsqueeze", bias[0], net.ints(0))]
    return net.add("Add", *((y, bias[0]) if net.maybe() else (bias[0], y)))


def _gemm(net: Grammar, x: str, rows: int, columns: int, kind: str, bias: list[str]) -> str:
    back = net.shaped_like(x, 2, columns)
    flat = net.add("Reshape", x, net.ints(-1, rows))
    turned = net.one_of(0, 1)
    weight = net.matrix(*((columns, rows) if turned else (rows, columns)), fan_in=rows)
    attributes: dict[str, Any] = {"transB": turned}
    if kind == "alpha":
        attributes |= {"alpha": net.one_of(0.5, 1.0), "beta": net.one_of(1.0, 2.0)}
    if kind == "trans_a":
        flat = net.add("Transpose", flat, perm=[1, 0])
        if net.maybe():  # (x W)^T = W^T x^T
            turned_y = net.add("Gemm", weight, flat, transA=1 - turned)
            return net.add("Reshape", net.add("Transpose", turned_y, perm=[1, 0]), back)
        attributes["transA"] = 1
    return net.add("Reshape", net.add("Gemm", flat, weight, *bias, **attributes), back)


def layer_norm(net: Grammar, x: str) -> str:
    """LayerNormalization, or what it was before opset 17."""
    gamma, beta = net.vector(net.width, 1), net.vector(net.width)
    if net.opset >= 23 and net.maybe():
        return net.add("RMSNormalization", x, gamma, epsilon=1e-3)
    if net.opset >= 17 and net.maybe():
        operands = [x, gamma, *([beta] if net.maybe() else [])]
        attributes = {"axis": net.one_of(-1, 2), "outputs": net.one_of(1, 2, 3)}
        return net.add("LayerNormalization", *operands, epsilon=1e-3, **attributes)
    axes: dict[str, Any] = {"axes": [-1]} if net.opset < 18 else {}
    given = [] if net.opset < 18 else [net.ints(-1)]
    centred = net.add("Sub", x, net.add("ReduceMean", x, *given, keepdims=1, **axes))
    square = net.add("Mul", centred, centred)
    variance = net.add("ReduceMean", square, *given, keepdims=1, **axes)
    root = net.add("Sqrt", net.add("Add", variance, net.floats(1e-3)))
    return net.add("Add", net.add("Mul", net.add("Div", centred, root), gamma), beta)
