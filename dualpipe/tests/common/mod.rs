//! Components as a model of attention and experts has them.

use dualpipe::{Component, ComponentCost, ComponentCosts, ComponentKind, Half, Ports};

use ComponentKind::*;

/// The components of a chunk of these layers.
pub fn moe_layers(half: Half, layers: std::ops::Range<usize>) -> Vec<Component> {
    let mut list: Vec<Component> = Vec::new();
    let last = |list: &Vec<Component>| list.len().checked_sub(1).into_iter().collect::<Vec<_>>();
    match half {
        Half::Forward => {
            for layer in layers {
                for kind in [Attention, Dispatch, Mlp, Combine] {
                    let after = last(&list);
                    list.push(Component::new(kind, layer, after));
                }
            }
        }
        Half::Backward => {
            let mut before: Vec<usize> = Vec::new();
            for layer in layers.rev() {
                let first = list.len();
                list.push(Component::new(CombineBackward, layer, before));
                list.push(Component::new(MlpInput, layer, [first]));
                list.push(Component::new(MlpWeight, layer, [first + 1]));
                list.push(Component::new(DispatchBackward, layer, [first + 1]));
                list.push(Component::new(AttentionInput, layer, [first + 3]));
                list.push(Component::new(AttentionWeight, layer, [first + 4]));
                before = vec![first + 4];
            }
        }
    }
    list
}

/// Computation in these times (attention, MLP: forward, inputs, weights), communication of which all four together take `ratio`
/// of the computation of a layer.
pub fn moe_costs(attention: [f64; 3], mlp: [f64; 3], ratio: f64, ports: Ports) -> ComponentCosts {
    let mut costs = ComponentCosts::new(ports);
    let kinds = [Attention, AttentionInput, AttentionWeight, Mlp, MlpInput, MlpWeight];
    let mut computing = 0.0;
    for (index, (kind, time)) in kinds.into_iter().zip(attention.into_iter().chain(mlp)).enumerate() {
        let half = if index % 3 == 0 { Half::Forward } else { Half::Backward };
        costs.set(half, kind, None, ComponentCost::compute(time));
        computing += time;
    }
    let each = ComponentCost::communicate(ratio * computing / 4.0, 0.0, 0.0);
    for (half, kind) in [
        (Half::Forward, Dispatch),
        (Half::Forward, Combine),
        (Half::Backward, CombineBackward),
        (Half::Backward, DispatchBackward),
    ] {
        costs.set(half, kind, None, each);
    }
    costs
}
