//! Fine-grained FP8, bf16 and f32 matrix multiplication with 128-wide promotion, grouped by expert
