//! DeepSeek-V3-format models: configuration, weights, training and generation, composed of the six pieces
