//! Multi-head latent attention: prefill forward and backward, absorbed decode over a paged latent cache, RoPE and YaRN
