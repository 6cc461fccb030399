"""Towers that published checkpoints name instead of holding."""

from __future__ import annotations

from pumice.formats.sizes import Tower

# LLaVA reads CLIP's features before the last block; the last block of SigLIP is deleted from its checkpoints.
CLIP_L_336 = Tower("clip", width=1024, layers=24, ffn=4096, tile=336, patch=14, used=23)
CLIP_L_224 = Tower("clip", width=1024, layers=24, ffn=4096, tile=224, patch=14, used=23)
CLIP_B_32 = Tower("clip", width=768, layers=12, ffn=3072, tile=224, patch=32, used=11)
SIGLIP_SO400M = Tower("siglip", width=1152, layers=26, ffn=4304, tile=384, patch=14, used=26)

HUB_TOWERS = {
    "openai/clip-vit-large-patch14-336": CLIP_L_336,
    "openai/clip-vit-large-patch14": CLIP_L_224,
    "openai/clip-vit-base-patch32": CLIP_B_32,
    "gwkrsrch/elva-encoder-base-patch32": CLIP_B_32,
    "gwkrsrch2/elva-encoder-base-patch32": CLIP_B_32,
    "google/siglip-so400m-patch14-384": SIGLIP_SO400M,
}
"""Towers that an original checkpoint's `mm_vision_tower` may name."""
