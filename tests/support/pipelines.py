"""Write small DeepFloyd IF pipeline folders with random weights, using diffusers."""

from pathlib import Path
from typing import Any

import torch
from published import SMALL_I, SMALL_II, SMALL_III
from torch import nn

WORDS = ["a", "red", "green", "apple", "train", "octopus", "on", "the", "table"]
SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "thresholding": True}


def random_unet(config: dict[str, Any]) -> nn.Module:
    """Return a diffusers U-Net. Its norms are random too, so that swapped norms change the output."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(**config).eval()
    for parameter in unet.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)
    return unet


def tokenizer_and_encoder() -> tuple[Any, Any]:
    """Return a tokenizer for the words in WORDS and a T5 encoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = T5Config(vocab_size=len(vocabulary), d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    return fast, T5EncoderModel(config).eval()


def save_pipeline(folder: Path, stage: int, **scheduler: Any) -> Path:
    """Write the pipeline folder of stage 1, 2 or 3, and return it. scheduler: changed fields of its config."""
    from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline

    tokenizer, text_encoder = tokenizer_and_encoder()
    limit = {"dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5 if stage == 1 else 1.0}
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": random_unet({1: SMALL_I, 2: SMALL_II, 3: SMALL_III}[stage]),
        "scheduler": DDPMScheduler(**SCHEDULER | limit | scheduler),
        **dict.fromkeys(["safety_checker", "feature_extractor", "watermarker"]),
        "requires_safety_checker": False,
    }
    if stage == 1:
        IFPipeline(**parts).save_pretrained(folder)
    else:
        noising = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        IFSuperResolutionPipeline(**parts, image_noising_scheduler=noising).save_pretrained(folder)
    return folder
