//! The components of a chunk, and what a model offers that can run them one by one.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::execute::Work;

/// Which half of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Half {
    /// The forward.
    Forward,
    /// The backward, for inputs and for weights.
    Backward,
}

impl Half {
    /// The letter: `F` or `B`.
    pub fn letter(self) -> char {
        match self {
            Half::Forward => 'F',
            Half::Backward => 'B',
        }
    }
}

impl fmt::Display for Half {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letter())
    }
}

/// What a component does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ComponentKind {
    /// What comes before the first layer: the embedding in a forward; head and loss, backward for inputs, in a backward.
    Enter,
    /// Attention with its norms, and the router: all before the dispatch. Forward.
    Attention,
    /// Rows travel to their experts. Communicates.
    Dispatch,
    /// The experts (or the dense feed-forward). Forward.
    Mlp,
    /// Rows travel back and are summed. Communicates.
    Combine,
    /// Gradients of the sums travel to the experts. Communicates.
    CombineBackward,
    /// The experts, backward for inputs.
    MlpInput,
    /// The experts, backward for weights.
    MlpWeight,
    /// Gradients of the rows travel back. Communicates.
    DispatchBackward,
    /// Attention, backward for inputs.
    AttentionInput,
    /// Attention, backward for weights.
    AttentionWeight,
    /// What comes after the last layer: head and loss in a forward; whatever is left of the backward for inputs.
    Leave,
}

impl ComponentKind {
    /// All kinds.
    pub const ALL: [ComponentKind; 12] = [
        ComponentKind::Enter,
        ComponentKind::Attention,
        ComponentKind::Dispatch,
        ComponentKind::Mlp,
        ComponentKind::Combine,
        ComponentKind::CombineBackward,
        ComponentKind::MlpInput,
        ComponentKind::MlpWeight,
        ComponentKind::DispatchBackward,
        ComponentKind::AttentionInput,
        ComponentKind::AttentionWeight,
        ComponentKind::Leave,
    ];

    /// The name in text.
    pub fn name(self) -> &'static str {
        match self {
            ComponentKind::Enter => "enter",
            ComponentKind::Attention => "attention",
            ComponentKind::Dispatch => "dispatch",
            ComponentKind::Mlp => "mlp",
            ComponentKind::Combine => "combine",
            ComponentKind::CombineBackward => "combine-backward",
            ComponentKind::MlpInput => "mlp-input",
            ComponentKind::MlpWeight => "mlp-weight",
            ComponentKind::DispatchBackward => "dispatch-backward",
            ComponentKind::AttentionInput => "attention-input",
            ComponentKind::AttentionWeight => "attention-weight",
            ComponentKind::Leave => "leave",
        }
    }

    /// Whether it communicates: it is started, and finished later. The others compute.
    pub fn communicates(self) -> bool {
        matches!(
            self,
            ComponentKind::Dispatch | ComponentKind::Combine | ComponentKind::CombineBackward | ComponentKind::DispatchBackward
        )
    }

    /// Whether it is a backward for weights: nothing that leaves the chunk waits for it.
    pub fn is_weight(self) -> bool {
        matches!(self, ComponentKind::MlpWeight | ComponentKind::AttentionWeight)
    }
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ComponentKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<ComponentKind> {
        ComponentKind::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| Error::Shape {
            what: "component".into(),
            expected: format!("one of {}", ComponentKind::ALL.map(ComponentKind::name).join(", ")),
            got: format!("'{text}'"),
        })
    }
}

/// One component of a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Component {
    /// What it does.
    pub kind: ComponentKind,
    /// The layer it belongs to; for [`ComponentKind::Enter`] and [`ComponentKind::Leave`] any number.
    pub layer: usize,
    /// The components, earlier in the same list, that must be done before: computed, or finished.
    pub after: Vec<usize>,
}

impl Component {
    /// A component from its three parts.
    pub fn new(kind: ComponentKind, layer: usize, after: impl Into<Vec<usize>>) -> Component {
        Component { kind, layer, after: after.into() }
    }
}

impl fmt::Display for Component {
    /// As in `mlp-input of layer 3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of layer {}", self.kind, self.layer)
    }
}

/// A model that can run its chunks component by component, so that [`crate::execute_with`] can lay the communication of one chunk
/// behind the computation of another. [`crate::Stage::by_components`] offers it.
///
/// A chunk is `begin`; then each of its components once, in any order that [`Component::after`] allows: `compute` for those that
/// compute, `start` and later `finish` for those that communicate; `result` once all components that are not weights are done;
/// `end` when all are done. Components of two chunks alternate in any order, and **every such order must leave the same bits**:
/// what a component writes may depend on nothing but the components it comes after. Two components of one chunk that add to
/// the same gradient must stand in each other's `after`. The components for weights of a chunk that are put off run later, after
/// other chunks have come between, but for each stage always in the order of the schedule.
///
/// The list is the same on all ranks that the components communicate with, so that all of them start the same
/// communications in the same order.
pub trait StageComponents {
    /// Why a call can fail.
    type Error;

    /// The components of a forward, or of a full backward, of this stage, in an order in which they can run one after another.
    /// Empty, for all stages and both halves, where the model is to run by [`crate::Stage::forward`] and its kin.
    fn components(&self, half: Half, stage: usize) -> Vec<Component>;

    /// A chunk begins. `work.input` is as for [`crate::Stage::forward`] and [`crate::Stage::backward_input`].
    ///
    /// # Errors
    /// Whatever the model says.
    fn begin(&mut self, half: Half, work: Work) -> Result<(), Self::Error>;

    /// Runs a component that computes.
    ///
    /// # Errors
    /// Whatever the model says.
    fn compute(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<(), Self::Error>;

    /// A component that communicates leaves. Must not wait.
    ///
    /// # Errors
    /// Whatever the model says.
    fn start(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<(), Self::Error>;

    /// Waits for what [`start`](StageComponents::start) of this component set off.
    ///
    /// # Errors
    /// Whatever the model says.
    fn finish(&mut self, half: Half, stage: usize, micro_batch: usize, component: usize) -> Result<(), Self::Error>;

    /// The activation, or the gradient of the input: asked once, when all components that are not weights are done. `None` at the
    /// ends of the pipeline, as [`crate::Stage::forward`] and [`crate::Stage::backward_input`].
    ///
    /// # Errors
    /// Whatever the model says.
    fn result(&mut self, half: Half, stage: usize, micro_batch: usize) -> Result<Option<Vec<f32>>, Self::Error>;

    /// All components of the chunk are done, those for weights included, and its result was taken.
    ///
    /// # Errors
    /// Whatever the model says.
    fn end(&mut self, half: Half, stage: usize, micro_batch: usize) -> Result<(), Self::Error>;
}

/// The components of a forward and of a backward that run together, or of one of them alone (the other is empty).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pairing {
    forward: Vec<Component>,
    backward: Vec<Component>,
}

impl Pairing {
    /// Checks that each list is in an order in which it can run, and that nothing but weights comes after weights (they
    /// may be put off beyond the end of the chunk).
    ///
    /// # Errors
    /// Names the component that is not so.
    pub fn new(forward: Vec<Component>, backward: Vec<Component>) -> Result<Pairing> {
        for (half, list) in [(Half::Forward, &forward), (Half::Backward, &backward)] {
            for (index, component) in list.iter().enumerate() {
                let fault = |expected: &str, got: String| {
                    Err(Error::Shape { what: format!("component {half}{index} ({component})"), expected: expected.into(), got })
                };
                if let Some(&late) = component.after.iter().find(|&&other| other >= index) {
                    return fault("to come after earlier components of its list", format!("after {late}"));
                }
                if half == Half::Forward && component.kind.is_weight() {
                    return fault("no weights in a forward", component.kind.to_string());
                }
                if let Some(weight) = component.after.iter().find(|&&other| list[other].kind.is_weight())
                    && !component.kind.is_weight()
                {
                    return fault("to wait for no weights, which may be put off", format!("after {weight}"));
                }
            }
        }
        Ok(Pairing { forward, backward })
    }

    /// The components of a half; none where it is not there.
    pub fn half(&self, half: Half) -> &[Component] {
        match half {
            Half::Forward => &self.forward,
            Half::Backward => &self.backward,
        }
    }
}
