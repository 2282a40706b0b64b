"""The code on the card of an export: an image file becomes logits by the other library, with the pixels of evaluation.

    code = code_of("onnx", trained.preprocessing)
    code.script()                            what the card prints
    answer = runner(code, Path("exported"), trained.preprocessing)      the same code, run
    answer(code.images, Path("image.jpg")).logits

The check of every export runs what its card prints.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...config import Preprocessing
from ..pixels import pixels_of

OPSET = 18  # of ONNX files


@dataclass(frozen=True)
class Code:
    """Parts of a script, in this order; each uses the names of those before it."""

    imports: str
    model: str  # out of `folder`
    images: str  # `file` -> `images`, float32 (1, 3, S, S): the pixels of evaluation; or `image`, as it was decoded
    logits: str  # of those -> `logits`, (1, C); or, of `image`, `logits` (C) and `pixels`, uint8 (S, S, 3)
    label: str  # prints the likeliest class
    own: str = ""  # `images` as the library alone prepares them; "" where it has no code for that, or that is `images`

    def script(self) -> str:
        return f"""{self.imports}

folder, file = ".", "image.jpg"
{self.model}

{self.images}

{self.logits}
{self.label}"""


def code_of(to: str, preprocessing: Preprocessing, takes: str = "image") -> Code:
    """For one of `FORMS`, "onnx", "timm" or "hf"; an ONNX file takes an image or a tensor."""
    stored = 'Image.open(file).convert("RGB")'
    pillow, image = "from PIL import Image", stored
    if preprocessing.exif_orientation:
        pillow, image = "from PIL import Image, ImageOps", 'ImageOps.exif_transpose(Image.open(file)).convert("RGB")'
    # torchvision's Resize, CenterCrop, ToTensor and Normalize, which evaluation equals, without torchvision.
    exact = f"""image = {image}
shorter = min(image.size)
image = image.resize([int(resized * side / shorter) for side in image.size], resample)
left, top = (round((side - size) / 2) for side in image.size)
pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
images = ((pixels - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)[None]"""
    if to == "timm":
        images, own = (f"images = transform({opened})[None]" for opened in (image, stored))
        return Code(
            f"import timm\nimport torch\n{pillow}",
            """model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))""",
            images,
            """with torch.no_grad():
    logits = model(images)""",
            'print(model.pretrained_cfg["label_names"][logits.argmax()])',
            own if own != images else "",
        )
    if to == "hf":
        return Code(
            f"""import numpy as np
import torch
{pillow}
from transformers import AutoImageProcessor, AutoModelForImageClassification""",
            """model = AutoModelForImageClassification.from_pretrained(folder).eval()
processor = AutoImageProcessor.from_pretrained(folder)
size, resized, resample = processor.crop_size["height"], processor.size["shortest_edge"], processor.resample
mean, std = processor.image_mean, processor.image_std""",
            exact,
            """with torch.no_grad():
    logits = model(torch.from_numpy(images)).logits""",
            "print(model.config.id2label[logits.argmax().item()])",
            f'images = processor({stored}, return_tensors="np")["pixel_values"]',
        )
    if takes == "image":
        return Code(
            f"import json\n\nimport numpy as np\nimport onnxruntime\n{pillow}",
            """session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])""",
            f"image = np.asarray({image})",
            'probabilities, labels, logits, pixels = session.run(None, {"image": image})',
            "print(classes[labels[0]])",
        )
    return Code(
        f"import json\n\nimport numpy as np\nimport onnxruntime\n{pillow}",
        """session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
facts = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
size, mean, std = facts["image_size"], facts["mean"], facts["std"]
resized, resample = int(size / facts["crop_ratio"]), Image.Resampling[facts["interpolation"].upper()]""",
        exact,
        '(logits,) = session.run(["logits"], {"images": images})',
        'print(facts["classes"][logits[0].argmax()])',
    )


class Answer(NamedTuple):
    """What an exported model makes of an image file."""

    logits: Tensor  # (1, C)
    pixels: NDArray[np.uint8]  # (S, S, 3), what it saw before they were normalised


def runner(code: Code, folder: Path, preprocessing: Preprocessing) -> Callable[[str, Path], Answer]:
    """A function of (`code.images` or `code.own`, image file) that runs the exported model."""
    names: dict[str, Any] = {"folder": str(folder)}
    exec(f"{code.imports}\n{code.model}", names)
    compiled = functools.cache(lambda source: compile(source, "README.md", "exec"))

    def answer(images: str, file: Path) -> Answer:
        names["file"] = str(file)
        exec(compiled(f"{images}\n{code.logits}"), names)
        if "images" in names:
            names["pixels"] = pixels_of(torch.as_tensor(names["images"]), preprocessing)[0]
        return Answer(torch.as_tensor(names["logits"]).reshape(1, -1), names["pixels"])

    return answer
