//! The router.

/// Which experts each token goes to, and with what weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Number of tokens T.
    pub tokens: usize,
    /// Experts per token k.
    pub top_k: usize,
    /// Logical expert ids `[T, k]`.
    pub indices: Vec<u32>,
    /// Weights `[T, k]`.
    pub weights: Vec<f32>,
    /// Affinities of all experts `[T, E]`.
    pub scores: Vec<f32>,
}
