//! The parameters that one rank holds: one flat buffer of values. Gradients have the same layout in a buffer of their own.
//!
//! A name has one allocation on a rank, however many of its stages use it: the embedding of a first stage and that of a
//! multi-token-prediction module, or the output head and a module's, are the same memory when they meet on one rank.
//! Parameters are laid out by *bucket*, the set of ranks that hold them, so that a bucket's gradients are one contiguous
//! range: that range is reduced, updated in shards and gathered again as one message.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use mtp::{RequestRng, Uniform};

use crate::checkpoint::Checkpoint;
use crate::config::{TensorKind, TensorSpec};
use crate::error::{Error, Result};

/// One parameter tensor of a rank.
#[derive(Debug, Clone)]
pub struct Param {
    /// The published name.
    pub name: String,
    /// The published shape, `[out_features, in_features]` for matrices.
    pub shape: Vec<usize>,
    /// What it is; norms take no weight decay, the router bias no gradient.
    pub kind: TensorKind,
    /// Where its values start in the flat buffer.
    pub offset: usize,
    /// The number of values.
    pub len: usize,
    /// The ranks that hold it, ascending.
    pub holders: Vec<usize>,
}

impl Param {
    /// The range of its values in the flat buffers.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len
    }

    /// Whether the optimiser updates it (all but the router bias).
    pub fn is_trained(&self) -> bool {
        self.kind != TensorKind::RouterBias
    }
}

/// A contiguous range of parameters with the same holders.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// The ranks that hold every parameter of this bucket, ascending.
    pub holders: Vec<usize>,
    /// The range in the flat buffers.
    pub range: Range<usize>,
}

/// Where the parameters of one rank lie: every rank can work out every other rank's.
#[derive(Debug)]
pub struct ParamLayout {
    params: Vec<Param>,
    index: HashMap<String, usize>,
    buckets: Vec<Bucket>,
    len: usize,
}

/// The parameters of one rank.
#[derive(Debug)]
pub struct ParamStore {
    layout: Arc<ParamLayout>,
    /// Values, f32: the master copy and the working copy are the same.
    pub weights: Vec<f32>,
}

impl ParamLayout {
    /// Lays out `specs`, each with the ranks that hold it; a name that occurs again is the same parameter. The given order is
    /// kept inside a bucket: tensors that one GEMM reads together must follow each other and have the same holders.
    /// Untrained tensors (the router bias) come after all buckets.
    pub fn new(specs: Vec<(TensorSpec, Vec<usize>)>) -> Self {
        let mut by_holders: BTreeMap<(bool, Vec<usize>), Vec<TensorSpec>> = BTreeMap::new();
        let mut seen = HashSet::new();
        for (spec, holders) in specs {
            if seen.insert(spec.name.clone()) {
                let untrained = spec.kind == TensorKind::RouterBias;
                by_holders.entry((untrained, holders)).or_default().push(spec);
            }
        }
        let (mut params, mut buckets, mut offset) = (Vec::new(), Vec::new(), 0);
        for ((untrained, holders), specs) in by_holders {
            let start = offset;
            for spec in specs {
                let len = spec.len();
                params.push(Param { name: spec.name, shape: spec.shape, kind: spec.kind, offset, len, holders: holders.clone() });
                offset += len;
            }
            if !untrained {
                buckets.push(Bucket { holders, range: start..offset });
            }
        }
        let index = params.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect();
        Self { params, index, buckets, len: offset }
    }

    /// All parameters, in memory order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The buckets, in memory order; every trained parameter is in exactly one.
    pub fn buckets(&self) -> &[Bucket] {
        &self.buckets
    }

    /// The parameter called `name`, if this rank holds it.
    pub fn find(&self, name: &str) -> Option<&Param> {
        self.index.get(name).map(|&i| &self.params[i])
    }
}

impl ParamStore {
    /// Zeros in the given layout.
    pub fn zeroed(layout: Arc<ParamLayout>) -> Self {
        Self { weights: vec![0.0; layout.len], layout }
    }

    /// Where everything lies.
    pub fn layout(&self) -> &Arc<ParamLayout> {
        &self.layout
    }

    /// The parameter called `name`.
    pub fn param(&self, name: &str) -> Result<&Param> {
        let missing = || Error::Piece { piece: "v3-model", message: format!("no parameter {name} on this rank") };
        self.layout.find(name).ok_or_else(missing)
    }

    /// The values at a range found earlier.
    pub fn at(&self, range: &Range<usize>) -> &[f32] {
        &self.weights[range.clone()]
    }

    /// The range that `names` cover, which must follow each other without a gap.
    pub fn contiguous(&self, names: &[String]) -> Result<Range<usize>> {
        let first = self.param(&names[0])?.offset;
        let mut end = first;
        for name in names {
            let p = self.param(name)?;
            if p.offset != end {
                return Err(Error::Piece {
                    piece: "v3-model",
                    message: format!("{name} does not follow its neighbour in memory"),
                });
            }
            end += p.len;
        }
        Ok(first..end)
    }

    /// Fills every parameter from `checkpoint`.
    pub fn load(&mut self, checkpoint: &Checkpoint) -> Result<()> {
        let layout = Arc::clone(&self.layout);
        layout.params.iter().try_for_each(|p| checkpoint.tensor_f32_into(&p.name, &p.shape, &mut self.weights[p.range()]))
    }

    /// Fills every parameter with its initial value: normal with deviation `std`, norms 1, router biases 0. A tensor's values
    /// depend on the seed and its name only, not on the rank or its neighbours.
    pub fn initialise(&mut self, seed: u64, std: f64) {
        let layout = Arc::clone(&self.layout);
        for p in &layout.params {
            let values = &mut self.weights[p.range()];
            match p.kind {
                TensorKind::Norm => values.fill(1.0),
                TensorKind::RouterBias => values.fill(0.0),
                _ => {
                    // FNV-1a of the name: a stream of its own for every tensor.
                    let stream =
                        p.name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
                    let mut rng = RequestRng::new(seed, stream);
                    values.iter_mut().for_each(|v| *v = (normal(&mut rng) * std) as f32);
                }
            }
        }
    }
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut RequestRng) -> f64 {
    let (u, v) = (1.0 - rng.uniform(), rng.uniform());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, len: usize, kind: TensorKind) -> TensorSpec {
        TensorSpec { name: name.into(), shape: vec![len], kind, layer: None, copy_of: None }
    }

    fn store() -> ParamStore {
        let specs = vec![
            (spec("embed", 6, TensorKind::Embedding), vec![0, 1]),
            (spec("a", 2, TensorKind::Norm), vec![0]),
            (spec("bias", 3, TensorKind::RouterBias), vec![0]),
            (spec("b", 4, TensorKind::Linear), vec![0]),
            (spec("embed", 6, TensorKind::Embedding), vec![0, 1]),
        ];
        ParamStore::zeroed(Arc::new(ParamLayout::new(specs)))
    }

    #[test]
    fn a_shared_name_has_one_allocation_and_buckets_cover_what_is_trained() {
        let store = store();
        assert_eq!(store.layout().params().len(), 4);
        assert_eq!(store.weights.len(), 15);
        let covered: usize = store.layout().buckets().iter().map(|b| b.range.len()).sum();
        assert_eq!(covered, 12, "the router bias is in no bucket");
        assert_eq!(store.contiguous(&["a".into(), "b".into()]).unwrap().len(), 6);
        assert!(store.contiguous(&["b".into(), "a".into()]).is_err());
        assert!(store.param("nothing").is_err());
    }

    #[test]
    fn initial_values_depend_on_seed_and_name_only() {
        let (mut x, mut y, mut z) = (store(), store(), store());
        x.initialise(1, 0.5);
        y.initialise(1, 0.5);
        z.initialise(2, 0.5);
        assert_eq!(x.weights, y.weights);
        assert_ne!(x.weights, z.weights);
        assert_eq!(x.at(&x.param("a").unwrap().range()), [1.0, 1.0]);
        assert_eq!(x.at(&x.param("bias").unwrap().range()), [0.0; 3]);
    }
}
