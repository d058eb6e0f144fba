"""Target profiles: what each runtime wants of opset, scales, weights and the HTDQ node."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qvd_trt.export.errors import UserError


class FloatType(str, Enum):
    """Type of the graph around the INT8 layers."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class ScaleType(str, Enum):
    """Type of the Q/DQ scales."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"


class CodeType(str, Enum):
    """Type of the codes of activations and weights; their zero point is its middle."""

    INT8 = "int8"
    """Zero point 0."""
    UINT8 = "uint8"
    """Zero point 128. ONNX Runtime multiplies uint8 by int8 with ``vpmaddubsw`` on x86 CPUs without
    VNNI, whose int16 sums of two products saturate; its kernels for uint8 by uint8 sum in int32."""


class WeightForm(str, Enum):
    """How a quantized weight is stored."""

    CODES = "codes"
    """Codes and a DequantizeLinear: a quarter of the size."""
    FLOAT_QDQ = "float-qdq"
    """Float weights and a QuantizeLinear-DequantizeLinear pair."""


class HtdqForm(str, Enum):
    """How the HTDQ node appears."""

    FUNCTION = "function"
    """A ``qvd::HTDQ`` node with a model-local function body: plugin where loaded, else the body."""
    INLINE = "inline"
    """The body's standard operators in place of the node."""
    PLUGIN = "plugin"
    """The node alone: only runs where the plugin library is loaded."""


@dataclass(frozen=True, slots=True)
class TargetProfile:
    """What one runtime wants (docs/design.md#targets).

    Attributes:
        name: As written in ``--target``.
        base_opset: Lowest ONNX opset of an emitted fp32 or fp16 file.
        max_opset: Highest one.
        float_types: Allowed types of the rest of the graph; the first is the default.
        low_precision_scales: Whether Q/DQ scales may have the graph's low type. Otherwise Q, DQ
            and the layer stay float32 between Casts.
        weight_form: How weights are stored.
        code_type: Type of the codes.
        negative_axis: Whether the channel axis of a weight that a float input meets is counted from
            the end. ONNX Runtime fuses such weights of axis 1 into MatMulNBits, which rounds the
            float input to 8 bits; it does not see that -1 is the same axis.
        htdq_forms: How HTDQ nodes may be written so that the runtime loads them; the first is the
            default.
        shifts_padded: Whether plans solved for it may shift in front of a zero-padded convolution.
            A given plan is applied as it is.
        keeps_attention: Whether Attention nodes may stay. TensorRT-RTX builds them in fp16 alone,
            and not every form; written out, those become the same kernel.
        foreign_operators: Whether operators of ONNX Runtime's own domains may stay.
        spares_tensorrt8: Whether to leave out what TensorRT 8.6 misreads or cannot build
            (docs/tensorrt8.md).
    """

    name: str
    base_opset: int
    max_opset: int
    float_types: tuple[FloatType, ...]
    low_precision_scales: bool
    weight_form: WeightForm
    htdq_forms: tuple[HtdqForm, ...]
    code_type: CodeType = CodeType.INT8
    negative_axis: bool = False
    shifts_padded: bool = True
    keeps_attention: bool = False
    foreign_operators: bool = False
    spares_tensorrt8: bool = False

    @property
    def htdq_form(self) -> HtdqForm:
        """How HTDQ nodes are written by default."""
        return self.htdq_forms[0]

    def min_opset(self, float_type: FloatType) -> int:
        """Lowest opset of the emitted file; ONNX has bf16 convolutions and norms from 22 on."""
        return max(self.base_opset, 22) if float_type is FloatType.BF16 else self.base_opset

    def scale_type(self, float_type: FloatType) -> ScaleType:
        """Type of the scales. bf16 scales would flip a tenth of the codes: float32 there."""
        if self.low_precision_scales and float_type is FloatType.FP16:
            return ScaleType.FLOAT16
        return ScaleType.FLOAT32


TARGETS: dict[str, TargetProfile] = {
    profile.name: profile
    for profile in (
        TargetProfile(
            name="trt",
            base_opset=19,
            max_opset=23,
            float_types=(FloatType.FP16, FloatType.BF16, FloatType.FP32),
            low_precision_scales=True,
            weight_form=WeightForm.CODES,
            htdq_forms=(HtdqForm.FUNCTION, HtdqForm.INLINE, HtdqForm.PLUGIN),
        ),
        TargetProfile(
            name="rtx",
            base_opset=17,
            max_opset=23,
            float_types=(FloatType.FP16, FloatType.BF16, FloatType.FP32),
            low_precision_scales=False,
            weight_form=WeightForm.CODES,
            htdq_forms=(HtdqForm.FUNCTION, HtdqForm.INLINE),
        ),
        TargetProfile(
            name="trt8",
            base_opset=17,
            max_opset=17,
            float_types=(FloatType.FP32,),
            low_precision_scales=False,
            weight_form=WeightForm.FLOAT_QDQ,
            htdq_forms=(HtdqForm.INLINE, HtdqForm.PLUGIN),
            shifts_padded=False,
            spares_tensorrt8=True,
        ),
        TargetProfile(
            name="ort",
            base_opset=17,
            max_opset=23,
            float_types=(FloatType.FP32, FloatType.FP16),
            low_precision_scales=False,
            weight_form=WeightForm.CODES,
            code_type=CodeType.UINT8,
            negative_axis=True,
            keeps_attention=True,
            foreign_operators=True,
            htdq_forms=(HtdqForm.FUNCTION, HtdqForm.INLINE),
        ),
    )
}


def default_float_type(profile: TargetProfile, stored: FloatType = FloatType.FP32) -> FloatType:
    """The type of the rest of the graph where none is asked for.

    Args:
        profile: The target; one whose default is float32 has that whatever the weights are.
        stored: Type of the float model's weights; 16 bits are followed.
    """
    default = profile.float_types[0]
    follows = FloatType.FP32 not in (default, stored) and stored in profile.float_types
    return stored if follows else default


def choose_float_type(profile: TargetProfile, text: str | None) -> FloatType:
    """The type that ``--dtype`` names, or the profile's default.

    Raises:
        UserError: the profile does not take that type.
    """
    if text is None:
        return default_float_type(profile)
    found = FloatType(text)
    if found not in profile.float_types:
        allowed = ", ".join(entry.value for entry in profile.float_types)
        hint = "; build it with trtexec --int8 --fp16" if profile.name == "trt8" else ""
        raise UserError(f"--dtype {text}: target {profile.name} takes {allowed}{hint}")
    return found


_WHY_NOT = {
    HtdqForm.FUNCTION: "cannot read functions in a file",
    HtdqForm.PLUGIN: "cannot load the plugin",
}


def choose_htdq_form(profile: TargetProfile, text: str | None) -> HtdqForm:
    """The form that ``--htdq`` names, or the profile's default.

    Raises:
        UserError: the runtime cannot load HTDQ nodes of that form.
    """
    if text is None:
        return profile.htdq_form
    found = HtdqForm(text)
    if found not in profile.htdq_forms:
        allowed = " or ".join(entry.value for entry in profile.htdq_forms)
        raise UserError(
            f"--htdq {text}: target {profile.name} {_WHY_NOT.get(found, 'does not take it')}; "
            f"give --htdq {allowed}, or leave it out"
        )
    return found
