"""Tiny randomly initialised models of the real classes, saved to disk."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from stlib.generation.story import FRAME

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A Llama of 2 layers with a byte-level BPE tokenizer learned from the frame."""
    folder = tmp_path_factory.mktemp("llama")
    return _saved(LlamaForCausalLM, LlamaConfig(vocab_size=_bpe(folder), max_position_embeddings=512, **SMALL), folder)


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory):
    """A Qwen2 of 2 layers."""
    folder = tmp_path_factory.mktemp("qwen")
    return _saved(Qwen2ForCausalLM, Qwen2Config(vocab_size=_bpe(folder), max_position_embeddings=512, **SMALL), folder)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory):
    """A GPT-2 of 2 layers."""
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(vocab_size=_bpe(folder), n_embd=32, n_layer=2, n_head=2, n_positions=512, bos_token_id=0,
                        eos_token_id=1)
    return _saved(GPT2LMHeadModel, config, folder)


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory):
    """A StableDiffusionPipeline with a CLIP text encoder of 2 layers."""
    folder = tmp_path_factory.mktemp("sd")
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=_vae(), unet=_unet(cross_attention_dim=32), text_encoder=CLIPTextModel(_clip()),
        tokenizer=_clip_tokenizer(), scheduler=DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory):
    """A StableDiffusionXLPipeline with its two CLIP text encoders."""
    folder = tmp_path_factory.mktemp("sdxl")
    torch.manual_seed(0)
    unet = _unet(cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
                 projection_class_embeddings_input_dim=8 * 6 + 32)
    StableDiffusionXLPipeline(
        vae=_vae(), unet=unet, text_encoder=CLIPTextModel(_clip()), tokenizer=_clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip()), tokenizer_2=_clip_tokenizer(),
        scheduler=EulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory):
    """A FluxPipeline: a transformer over latents of which 2 x 2 are packed into channels, and a VAE of factor 8."""
    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=len(_clip_tokenizer()), d_model=32, d_ff=37, d_kv=8, num_layers=1, num_heads=2)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8))
    FluxPipeline(
        vae=_vae(levels=4, shift_factor=0.1), transformer=transformer, text_encoder=CLIPTextModel(_clip()),
        tokenizer=_clip_tokenizer(), text_encoder_2=T5EncoderModel(t5), tokenizer_2=_clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3(tmp_path_factory):
    """A StableDiffusion3Pipeline with its three text encoders."""
    folder = tmp_path_factory.mktemp("sd3")
    torch.manual_seed(0)
    t5 = T5Config(vocab_size=len(_clip_tokenizer()), d_model=64, d_ff=37, d_kv=8, num_layers=1, num_heads=2)
    transformer = SD3Transformer2DModel(sample_size=32, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8,
                                        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=64,
                                        pooled_projection_dim=64, out_channels=4)
    StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.06), transformer=transformer, text_encoder=CLIPTextModelWithProjection(_clip()),
        tokenizer=_clip_tokenizer(), text_encoder_2=CLIPTextModelWithProjection(_clip()),
        tokenizer_2=_clip_tokenizer(), text_encoder_3=T5EncoderModel(t5), tokenizer_3=_clip_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)
    return folder


def _bpe(folder):
    """Save a byte-level BPE tokenizer learned from the frame; its number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet,
                                  show_progress=False)
    tokenizer.train_from_iterator([FRAME], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return tokenizer.get_vocab_size()


def _saved(kind, config, folder):
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder


def _vae(levels=2, **options):
    return AutoencoderKL(block_out_channels=(16, *(32,) * (levels - 1)), latent_channels=4, norm_num_groups=8,
                         down_block_types=("DownEncoderBlock2D",) * levels,
                         up_block_types=("UpDecoderBlock2D",) * levels, sample_size=64, **options)


def _unet(**options):
    return UNet2DConditionModel(block_out_channels=(16, 32), layers_per_block=1, sample_size=32, norm_num_groups=8,
                                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8, **options)


def _clip():
    return CLIPTextConfig(vocab_size=len(_clip_tokenizer()), hidden_size=32, intermediate_size=37, projection_dim=32,
                          num_hidden_layers=2, num_attention_heads=4, bos_token_id=0, eos_token_id=1)


def _clip_tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocab = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=20)
