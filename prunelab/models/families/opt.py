"""OPT: learned positions, LayerNorm, biases everywhere, ReLU MLP; arXiv:2205.01068."""

from prunelab.models.family import Family

FAMILY = Family(
    name="opt",
    model_types=("opt",),
    blocks="model.decoder.layers",
    inputs=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    ),
    mlp=(("fc1",), "fc2"),
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    random={
        "vocab_size": 64,
        "hidden_size": 24,
        # narrower embeddings (as in OPT-350m) so that project_in and project_out are exercised
        "word_embed_proj_dim": 16,
        "ffn_dim": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    },
)
