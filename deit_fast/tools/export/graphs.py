"""What surrounds the model in an ONNX file: a decoded image of any size to exactly the pixels of `predict`; the answer.

    before = preprocessing_graph(trained.preprocessing)     # image -> pixels, images
    behind = answer_graph(classes=37)                       # batch_logits -> probabilities, labels, logits

ONNX's own Resize cannot do this. On uint8, onnxruntime runs Pillow's two passes with weights of 22 bits, but computes
them in float32, so that up to seven bytes in ten thousand are a level off; on floats it neither rounds nor clips
between the passes. Here both passes are matrix products of whole numbers, whose sums stay below 2^53, in float64:
exact in any order of summation. The weights are computed as Pillow 12 computes them (src/libImaging/Resample.c,
precompute_coeffs and normalize_coeffs_8bpc). Only what the crop reads is resized. The outputs come in blocks, each
multiplied with the part of the image that it reads: ten times fewer products than with one matrix for a whole side.
"""

# onnxscript reads annotations as they are evaluated, so not from __future__ import annotations.
import onnx
from onnx import inliner
from onnxscript import DOUBLE, FLOAT, INT64, UINT8, OnnxFunction, optimizer, script
from onnxscript import opset18 as op

from ...config import Preprocessing

BLOCK = 16  # outputs that share the part of the image that they read
IMAGE = UINT8["height", "width", 3]
IR = 10  # of the file; onnxruntime 1.22 reads up to 10


@script(default_opset=op)
def bicubic(distance: DOUBLE) -> DOUBLE:
    x = op.Abs(distance)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return op.Where(x < 1.0, near, op.Where(x < 2.0, far, op.CastLike(0.0, x)))


@script(default_opset=op)
def bilinear(distance: DOUBLE) -> DOUBLE:
    x = op.Abs(distance)
    return op.Where(x < 1.0, 1.0 - x, op.CastLike(0.0, x))


@script(default_opset=op)
def scale_of(before: INT64, after: INT64) -> DOUBLE:
    return op.Cast(before, to=onnx.TensorProto.DOUBLE) / op.Cast(after, to=onnx.TensorProto.DOUBLE)


@script(default_opset=op)
def centre_of(output: INT64, scale: DOUBLE) -> DOUBLE:
    return (op.Cast(output, to=onnx.TensorProto.DOUBLE) + 0.5) * scale


@script(default_opset=op)
def first_read(centre: DOUBLE, reach: DOUBLE) -> INT64:
    return op.Max(op.Cast(centre - reach + 0.5, to=onnx.TensorProto.INT64), op.Constant(value_int=0))


@script(default_opset=op)
def end_read(centre: DOUBLE, reach: DOUBLE, before: INT64) -> INT64:
    return op.Min(op.Cast(centre + reach + 0.5, to=onnx.TensorProto.INT64), before)


@script(default_opset=op)
def fixed_point(share: DOUBLE) -> DOUBLE:
    """Shares (N, B, L) of each output, divided by their sum, as whole multiples of 2^-22."""
    # Summed one after the other, as in C: the order decides the last bit. The shares of pixels not read are 0.
    total = op.Gather(op.CumSum(share, op.Constant(value_int=2)), op.Constant(value_ints=[-1]), axis=2)
    share = share / op.Where(total == 0.0, op.CastLike(1.0, total), total)
    half = op.Where(share < 0.0, op.CastLike(-0.5, share), op.CastLike(0.5, share))
    whole = op.Cast(share * 4194304.0 + half, to=onnx.TensorProto.INT64)  # rounds towards 0
    return op.Cast(whole, to=onnx.TensorProto.DOUBLE)


def preprocessing_graph(preprocessing: Preprocessing) -> onnx.ModelProto:
    """Inputs: image, uint8 (height, width, 3). Outputs: pixels, uint8 (S, S, 3); images, float32 (1, 3, S, S)."""
    size, resized = preprocessing.image_size, preprocessing.resized
    weigh, radius = {"bicubic": (bicubic, 2.0), "bilinear": (bilinear, 1.0)}[preprocessing.interpolation]
    blocks = -(-size // BLOCK)
    padded = blocks * BLOCK
    mean, std = (list(values) for values in preprocessing.normalisation)
    double, integer, byte, single = (getattr(onnx.TensorProto, name) for name in ("DOUBLE", "INT64", "UINT8", "FLOAT"))
    block, last = BLOCK, BLOCK - 1

    @script(default_opset=op)
    def window(before: INT64, after: INT64, start: INT64):
        """The first source pixel that the crop reads, and the one behind its last."""
        scale = scale_of(before, after)
        reach = radius * op.Max(scale, op.CastLike(1.0, scale))
        return first_read(centre_of(start, scale), reach), end_read(centre_of(start + (size - 1), scale), reach, before)

    @script(default_opset=op)
    def resize_pass(lines: UINT8, offset: INT64, before: INT64, after: INT64, start: INT64) -> UINT8:
        """The source's lines (…, K) from `offset` on -> those of the crop (S, K)."""
        scale = scale_of(before, after)
        stretch = op.Max(scale, op.CastLike(1.0, scale))
        reach = radius * stretch
        output = op.Reshape(op.Range(0, padded, 1) + start, op.Constant(value_ints=[blocks, block]))
        centre = centre_of(output, scale)
        first, end = first_read(centre, reach), end_read(centre, reach, before)
        begin = op.Slice(first, [0], [1], [1])
        reads = op.ReduceMax(
            op.Slice(end, op.Constant(value_ints=[last]), op.Constant(value_ints=[block]), [1]) - begin, keepdims=0
        )
        source = begin + op.Range(op.CastLike(0, reads), reads, op.CastLike(1, reads))
        at = op.Unsqueeze(source, [1])
        inside = op.And(at >= op.Unsqueeze(first, [2]), at < op.Unsqueeze(end, [2]))
        distance = op.Cast(at, to=double) - op.Unsqueeze(centre, [2]) + 0.5
        share = weigh(distance * (1.0 / stretch))
        weight = fixed_point(op.Where(inside, share, op.CastLike(0.0, share)))
        # A block behind the crop's end may lie outside the image: it is cut off below.
        most = op.Gather(op.Shape(lines), op.Constant(value_int=0)) - 1
        line = op.Clip(source - offset, op.CastLike(0, offset), most)
        total = op.MatMul(weight, op.Cast(op.Gather(lines, line, axis=0), to=double))
        level = op.Floor((total + 2097152.0) * op.CastLike(2.384185791015625e-07, total))
        level = op.Cast(op.Clip(level, op.CastLike(0.0, level), op.CastLike(255.0, level)), to=byte)
        return op.Slice(
            op.Reshape(level, op.Constant(value_ints=[padded, -1])), [0], op.Constant(value_ints=[size]), [0]
        )

    @script(default_opset=op)
    def preprocess(image: IMAGE) -> tuple[UINT8[size, size, 3], FLOAT[1, 3, size, size]]:
        sides = op.Slice(op.Shape(image), [0], [2])
        after = sides * resized / op.ReduceMin(sides)
        start = op.Cast(op.Round(op.Cast(after - size, to=double) * 0.5), to=integer)  # half to even, as in Python
        height, width = op.Gather(sides, op.Constant(value_int=0)), op.Gather(sides, op.Constant(value_int=1))
        tall, wide = op.Gather(after, op.Constant(value_int=0)), op.Gather(after, op.Constant(value_int=1))
        top, left = op.Gather(start, op.Constant(value_int=0)), op.Gather(start, op.Constant(value_int=1))
        row, row_end = window(height, tall, top)
        column, column_end = window(width, wide, left)
        corner = op.Concat(op.Reshape(row, [1]), op.Reshape(column, [1]), axis=0)
        opposite = op.Concat(op.Reshape(row_end, [1]), op.Reshape(column_end, [1]), axis=0)
        part = op.Transpose(op.Slice(image, corner, opposite, [0, 1]), perm=[1, 0, 2])  # columns first
        across = resize_pass(op.Reshape(part, op.Constant(value_ints=[0, -1])), column, width, wide, left)
        across = op.Transpose(op.Reshape(across, op.Constant(value_ints=[0, -1, 3])), perm=[1, 0, 2])
        down = resize_pass(op.Reshape(across, op.Constant(value_ints=[0, -1])), row, height, tall, top)
        pixels = op.Reshape(down, op.Constant(value_ints=[size, size, 3]))
        values = op.Cast(pixels, to=single) / 255.0
        values = (values - op.Constant(value_floats=mean)) / op.Constant(value_floats=std)
        images = op.Unsqueeze(op.Transpose(values, perm=[2, 0, 1]), [0])
        return pixels, images

    return _model(preprocess)


def answer_graph(classes: int) -> onnx.ModelProto:
    """Input: batch_logits, float32 (1, C). Outputs: probabilities (C), labels, int64 (C), and logits (C)."""

    @script(default_opset=op)
    def answer(
        batch_logits: FLOAT[1, classes],
    ) -> tuple[FLOAT[classes], INT64[classes], FLOAT[classes]]:
        logits = op.Squeeze(batch_logits, [0])
        probabilities = op.Softmax(logits, axis=-1)
        _, labels = op.TopK(logits, op.Constant(value_ints=[classes]), axis=-1)
        return probabilities, labels, logits

    return _model(answer)


def _model(function: OnnxFunction) -> onnx.ModelProto:
    model = optimizer.optimize(inliner.inline_local_functions(function.to_model_proto()))
    model.ir_version = IR
    return model
