"""The video denoisers of diffusers, tiny and with random weights, as `export_denoiser` takes them.

`VIDEO_CLASSES` maps a short name to a builder, in the order of docs/exporting.md. Where a model
takes only tensors, it is the bare diffusers model; else one of `tests.models.video_wrappers` stands
around it.

Needs torch and diffusers: import this module only in tests that have them.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.models import video_transformers as dit
from tests.models import video_unets as unet
from tests.models.architectures import Denoiser

VIDEO_CLASSES: dict[str, Callable[[], Denoiser]] = {
    build.__name__: build
    for build in (
        *(unet.animatediff, unet.modelscope, unet.svd, unet.i2vgen),
        *(dit.latte, dit.cogvideox_2b, dit.cogvideox_5b, dit.wan, dit.wan_vace, dit.ltx, dit.ltx2),
        *(dit.hunyuan, dit.hunyuan15, dit.mochi, dit.allegro, dit.sana, dit.cosmos),
        *(dit.kandinsky5, dit.easyanimate, dit.anyflow),
    )
}

# Why an axis is a number in the exported file, for docs/exporting.md.
NOT_DYNAMIC = {
    "svd": "one image token",
    "latte": "frames: table of `video_length`",
    "cogvideox_2b": "tokens: one table for text and video",
    "mochi": "batch: attention loops over items",
    "easyanimate": "height, width: crop rounded by Python",
}
