"""Qwen3: Llama with norms on query and key, and a head size that is not hidden / heads."""

from prunelab.models.family import LLAMA_ATTENTION, LLAMA_INPUTS, LLAMA_MLP, Family

FAMILY = Family(
    name="qwen3",
    model_types=("qwen3",),
    blocks="model.layers",
    inputs=LLAMA_INPUTS,
    mlp=LLAMA_MLP,
    attention=LLAMA_ATTENTION,
    random={
        "vocab_size": 64,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
        "head_dim": 8,
    },
)
