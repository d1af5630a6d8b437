"""Architectures of the transformers library in tiny configurations with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

Made = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

IDS = {"input_ids": torch.arange(1, 13).reshape(2, 6)}
PAIR = {**IDS, "decoder_input_ids": torch.arange(3, 13).reshape(2, 5)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)}
WAVE = {"input_values": torch.sin(torch.arange(2 * 2000).reshape(2, 2000) / 7)}
BASE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GQA = {**BASE, "num_key_value_heads": 1, "max_position_embeddings": 32}
BERT = {**BASE, "max_position_embeddings": 32, "type_vocab_size": 2}
IMAGE = {k: v for k, v in BASE.items() if k != "vocab_size"} | {"image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {"vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2} | {
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
CONVOLUTIONS = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2} | {
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
SPEECH = {**BASE, **CONVOLUTIONS}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# Kind: configuration class -> what to change in it, and the inputs.
ARCHITECTURES: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "encoder": {
        "BertConfig": (BERT, IDS),
        "RobertaConfig": (BERT, IDS),
        "AlbertConfig": ({**BERT, "embedding_size": 8}, IDS),
        "ElectraConfig": ({**BERT, "embedding_size": 8}, IDS),
        "DistilBertConfig": ({"vocab_size": 50, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}, IDS),
        "DebertaV2Config": ({**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, IDS),
        "MPNetConfig": (BERT, IDS),
        "ConvBertConfig": ({**BERT, "embedding_size": 16}, IDS),
        "FNetConfig": ({**BERT, "tpu_short_seq_length": 6}, IDS),
        "RoFormerConfig": ({**BERT, "embedding_size": 16}, IDS),
        "SqueezeBertConfig": ({**BERT, "embedding_size": 16}, IDS),
        "ModernBertConfig": ({**BERT, **TOKENS, "cls_token_id": 1, "sep_token_id": 2}, IDS),
        "LongformerConfig": ({**BERT, "attention_window": 4}, IDS),
        "NystromformerConfig": ({**BERT, "segment_means_seq_len": 6, "num_landmarks": 3}, IDS),
        "XLNetConfig": ({"vocab_size": 50, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, IDS),
        "MegatronBertConfig": (BERT, IDS),
    },
    "decoder": {
        "GPT2Config": ({"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}, IDS),
        "GPTNeoXConfig": ({**BASE, "max_position_embeddings": 32}, IDS),
        "GPTJConfig": ({"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}, IDS),
        "LlamaConfig": (GQA, IDS),
        "MistralConfig": ({**GQA, "sliding_window": 4}, IDS),
        "GemmaConfig": ({**GQA, "head_dim": 8}, IDS),
        "Gemma2Config": ({**GQA, "head_dim": 8, "sliding_window": 4}, IDS),
        "Qwen2Config": (GQA, IDS),
        "Qwen3Config": ({**GQA, "head_dim": 8}, IDS),
        "PhiConfig": ({**GQA, "num_key_value_heads": 2}, IDS),
        "OPTConfig": ({**BASE, "ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 32}, IDS),
        "BloomConfig": ({"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}, IDS),
        "FalconConfig": ({**BASE, "alibi": False}, IDS),
        "StableLmConfig": (GQA, IDS),
        "OlmoConfig": (GQA, IDS),
        "CohereConfig": (GQA, IDS),
        "CTRLConfig": ({"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "dff": 24, "n_positions": 32}, IDS),
    },
    "encoder and decoder": {
        "T5Config": (T5, PAIR),
        "MT5Config": (T5, PAIR),
        "LongT5Config": ({**T5, "local_radius": 2}, PAIR),
        "BartConfig": (BART, PAIR),
        "MBartConfig": (BART, PAIR),
        "PegasusConfig": (BART, PAIR),
        "MarianConfig": (BART, PAIR),
        "BlenderbotConfig": (BART, PAIR),
        "ProphetNetConfig": (
            {"vocab_size": 50, "hidden_size": 16, "num_encoder_layers": 1, "num_decoder_layers": 1}
            | {"num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
            | {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32},
            PAIR,
        ),
    },
    "vision": {
        "ViTConfig": (IMAGE, PIXELS),
        "DeiTConfig": (IMAGE, PIXELS),
        "BeitConfig": (IMAGE, PIXELS),
        "Dinov2Config": (IMAGE, PIXELS),
        "SwinConfig": (
            {"image_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
            PIXELS,
        ),
        "ConvNextConfig": ({"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, PIXELS),
        "ResNetConfig": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, PIXELS),
        "PoolFormerConfig": ({"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}, PIXELS),
        "MobileViTConfig": ({"image_size": 32, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8] * 7}, PIXELS),
        "CLIPVisionConfig": ({**IMAGE, "projection_dim": 8}, PIXELS),
        "SiglipVisionConfig": (IMAGE, PIXELS),
    },
    "audio": {
        "Wav2Vec2Config": (SPEECH, WAVE),
        "HubertConfig": (SPEECH, WAVE),
        "WavLMConfig": (SPEECH, WAVE),
        "SEWConfig": ({**SPEECH, "squeeze_factor": 2}, WAVE),
        "WhisperConfig": (
            {**BART, "num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 12},
            {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": PAIR["decoder_input_ids"]},
        ),
        "ASTConfig": (
            {**IMAGE, "max_length": 32, "num_mel_bins": 16, "time_stride": 8, "frequency_stride": 8},
            {"input_values": torch.randn(2, 32, 16)},
        ),
    },
    "state space": {
        "MambaConfig": ({"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, IDS),
        "Mamba2Config": (
            {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4}
            | {"head_dim": 8, "n_groups": 1, "chunk_size": 4},
            IDS,
        ),
        "FalconMambaConfig": ({"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, IDS),
        "RecurrentGemmaConfig": ({**GQA, "lru_width": 16, "attention_window_size": 4, "num_hidden_layers": 3}, IDS),
        "RwkvConfig": ({"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 8}, IDS),
    },
    "mixture of experts": {
        "MixtralConfig": ({**GQA, "num_local_experts": 3}, IDS),
        "Qwen2MoeConfig": (
            {**GQA, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
            | {"shared_expert_intermediate_size": 8},
            IDS,
        ),
        "OlmoeConfig": ({**GQA, "num_experts": 3, "num_experts_per_tok": 2}, IDS),
        "SwitchTransformersConfig": ({**T5, "num_experts": 3, "num_sparse_encoder_layers": 1}, PAIR),
        "PhimoeConfig": ({**GQA, "num_local_experts": 3}, IDS),
        "JetMoeConfig": ({**GQA, "num_local_experts": 3, "kv_channels": 8}, IDS),
        "DeepseekV3Config": (
            {**GQA, "num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2}
            | {"n_group": 2, "topk_group": 1}
            | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
            | {"moe_intermediate_size": 8, "first_k_dense_replace": 1},
            IDS,
        ),
        "GraniteMoeConfig": ({**GQA, "num_local_experts": 3}, IDS),
    },
}


def language_models(kinds: tuple[str, ...] = tuple(ARCHITECTURES)) -> Iterator[tuple[str, Callable[[], Made]]]:
    """Names, and functions that make a model and its inputs."""
    for kind in kinds:
        for name, (changes, inputs) in ARCHITECTURES[kind].items():
            yield f"{name.removesuffix('Config')} ({kind})", _maker(name, changes, inputs)


def _maker(name: str, changes: dict[str, Any], inputs: dict[str, Any]) -> Callable[[], Made]:
    def make() -> Made:
        import transformers

        config = getattr(transformers, name)(**{**TOKENS, **changes})
        vision = {"CLIPVisionConfig": "CLIPVisionModel", "SiglipVisionConfig": "SiglipVisionModel"}
        if name in vision:
            return getattr(transformers, vision[name])(config), (), inputs
        return transformers.AutoModel.from_config(config), (), inputs

    return make
