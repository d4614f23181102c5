//! What the components cost, as a file holds it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::overlap::component::{Component, ComponentKind, Half, Pairing};

/// What one component takes, in seconds (or any one unit of time). A computing component has only `compute`; a communicating
/// one has the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ComponentCost {
    /// On the computing lane.
    pub compute: f64,
    /// On the computing lane to start a communication, such as packing.
    pub start: f64,
    /// On the computing lane to finish a communication, such as summing.
    pub finish: f64,
    /// How long a communication occupies the port of the slow links.
    pub slow: f64,
    /// How long it occupies the port of the fast links. Both at once: the hops of a message go in chunks, one behind the other.
    pub fast: f64,
    /// How long after its last byte has left the last message is there.
    pub latency: f64,
}

impl ComponentCost {
    /// A computation.
    pub fn compute(seconds: f64) -> ComponentCost {
        ComponentCost { compute: seconds, ..ComponentCost::default() }
    }

    /// A communication that occupies the port of the slow links so long, and that of the fast links so long.
    pub fn communicate(slow: f64, fast: f64, latency: f64) -> ComponentCost {
        ComponentCost { slow, fast, latency, ..ComponentCost::default() }
    }

    /// How long a communication alone takes, from its start to its arrival.
    pub fn alone(&self) -> f64 {
        self.slow.max(self.fast) + self.latency
    }

    /// What the computing lane has of it.
    pub fn computing(&self) -> f64 {
        self.compute + self.start + self.finish
    }

    fn fields(&self) -> [(&'static str, f64); 5] {
        [("slow", self.slow), ("fast", self.fast), ("latency", self.latency), ("start", self.start), ("finish", self.finish)]
    }
}

/// How communications share the communicating lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Ports {
    /// One at a time, each as long as the slower of its parts.
    One,
    /// The slow and the fast links have a port each, which serves communications in the order of their start.
    #[default]
    Two,
}

/// The costs of all components of a model, and of a transfer between pipeline ranks.
///
/// # File
///
/// Text, one entry a line, `#` begins a comment. Times are seconds. A line without a layer holds for all layers that have no
/// line of their own.
///
/// ```text
/// ports two                                   # or one
/// compute F attention 1.5e-3
/// compute F attention 3 1.6e-3                # of layer 3
/// compute B mlp-weight 8e-4
/// communicate F dispatch slow=9e-4 fast=4e-4 latency=1e-5
/// communicate B combine-backward 3 slow=9e-4 fast=4e-4 latency=1e-5 start=2e-5 finish=0
/// transfer slow=1e-4 fast=0 latency=1e-5      # activation or gradient to the next pipeline rank
/// ```
///
/// The halves are `F` and `B`, the kinds those of [`ComponentKind::name`]. What a line leaves out is 0.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ComponentCosts {
    /// How communications share the communicating lane.
    pub ports: Ports,
    /// A transfer of an activation or gradient to another pipeline rank.
    pub transfer: ComponentCost,
    entries: BTreeMap<(Half, ComponentKind, Option<usize>), ComponentCost>,
}

impl ComponentCosts {
    /// No entries yet.
    pub fn new(ports: Ports) -> ComponentCosts {
        ComponentCosts { ports, ..ComponentCosts::default() }
    }

    /// Sets the cost of a kind in one layer, or in all layers that have none of their own.
    pub fn set(&mut self, half: Half, kind: ComponentKind, layer: Option<usize>, cost: ComponentCost) {
        self.entries.insert((half, kind, layer), cost);
    }

    /// The cost of a component, if there is one.
    pub fn get(&self, half: Half, component: &Component) -> Option<ComponentCost> {
        let own = self.entries.get(&(half, component.kind, Some(component.layer)));
        own.or_else(|| self.entries.get(&(half, component.kind, None))).copied()
    }

    /// What a component for weights takes, in the mean over the entries; 0 where there are none.
    pub(crate) fn mean_weight(&self) -> f64 {
        let weights = self.entries.iter().filter(|((_, kind, _), _)| kind.is_weight()).map(|(_, cost)| cost.compute);
        let (sum, count) = weights.fold((0.0, 0usize), |(sum, count), cost| (sum + cost, count + 1));
        if count > 0 { sum / count as f64 } else { 0.0 }
    }

    /// The cost of a component, if there is one, with only what its kind has.
    pub(crate) fn checked(&self, half: Half, component: &Component) -> Result<Option<ComponentCost>> {
        let Some(found) = self.get(half, component) else { return Ok(None) };
        good(&found).map_err(|got| Error::Shape {
            what: format!("cost of {half} {component}"),
            expected: "finite times, 0 or more".into(),
            got,
        })?;
        Ok(Some(match component.kind.communicates() {
            true => ComponentCost { compute: 0.0, ..found },
            false => ComponentCost::compute(found.compute),
        }))
    }

    /// The costs of these components.
    ///
    /// # Errors
    /// A component without cost; a cost that is negative or not finite.
    pub fn of(&self, pairing: &Pairing) -> Result<PairCosts> {
        let half = |half: Half| {
            let cost = |component: &Component| {
                self.checked(half, component)?.ok_or_else(|| Error::Shape {
                    what: "component costs".into(),
                    expected: format!("a cost of {half} {component}"),
                    got: "none".into(),
                })
            };
            pairing.half(half).iter().map(cost).collect::<Result<Vec<_>>>()
        };
        good(&self.transfer).map_err(|got| Error::Shape {
            what: "cost of a transfer".into(),
            expected: "finite times, 0 or more".into(),
            got,
        })?;
        Ok(PairCosts {
            ports: self.ports,
            transfer: self.transfer,
            forward: half(Half::Forward)?,
            backward: half(Half::Backward)?,
        })
    }
}

fn good(cost: &ComponentCost) -> std::result::Result<(), String> {
    let all = cost.fields().into_iter().chain([("compute", cost.compute)]);
    match all.into_iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
        None => Ok(()),
        Some((name, value)) => Err(format!("{name} = {value}")),
    }
}

/// The costs of the components of a [`Pairing`], by their place in its lists.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PairCosts {
    /// How communications share the communicating lane.
    pub ports: Ports,
    /// A transfer to another pipeline rank.
    pub transfer: ComponentCost,
    /// Of the forward's components.
    pub forward: Vec<ComponentCost>,
    /// Of the backward's components.
    pub backward: Vec<ComponentCost>,
}

impl PairCosts {
    /// Those of one half.
    pub fn half(&self, half: Half) -> &[ComponentCost] {
        match half {
            Half::Forward => &self.forward,
            Half::Backward => &self.backward,
        }
    }
}

impl fmt::Display for ComponentCosts {
    /// The text of a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match self.ports {
            Ports::One => "one",
            Ports::Two => "two",
        };
        writeln!(f, "# Costs of the components of a chunk, in seconds.")?;
        writeln!(f, "ports {ports}")?;
        for ((half, kind, layer), cost) in &self.entries {
            let verb = if kind.communicates() { "communicate" } else { "compute" };
            write!(f, "{verb} {half} {kind}")?;
            if let Some(layer) = layer {
                write!(f, " {layer}")?;
            }
            match kind.communicates() {
                true => write_fields(f, cost)?,
                false => writeln!(f, " {:e}", cost.compute)?,
            }
        }
        write!(f, "transfer")?;
        write_fields(f, &self.transfer)
    }
}

fn write_fields(f: &mut fmt::Formatter<'_>, cost: &ComponentCost) -> fmt::Result {
    for (name, value) in cost.fields() {
        write!(f, " {name}={value:e}")?;
    }
    writeln!(f)
}

impl FromStr for ComponentCosts {
    type Err = Error;

    fn from_str(text: &str) -> Result<ComponentCosts> {
        let mut costs = ComponentCosts::default();
        let (mut ports, mut transfer) = (false, false);
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let fault = |expected: &str, got: &str| Error::Shape {
                what: format!("component costs: line {}", index + 1),
                expected: expected.into(),
                got: format!("'{got}'"),
            };
            let mut words = line.split_whitespace();
            let verb = words.next().unwrap_or_default();
            match verb {
                "ports" => {
                    costs.ports = match (words.next(), words.next()) {
                        (Some("one"), None) => Ports::One,
                        (Some("two"), None) => Ports::Two,
                        _ => return Err(fault("'ports one' or 'ports two'", line)),
                    };
                    if std::mem::replace(&mut ports, true) {
                        return Err(fault("one line of ports", line));
                    }
                }
                "transfer" => {
                    costs.transfer = read_fields(words, &fault)?;
                    if std::mem::replace(&mut transfer, true) {
                        return Err(fault("one line of transfers", line));
                    }
                }
                "compute" | "communicate" => {
                    let half = match words.next() {
                        Some("F") => Half::Forward,
                        Some("B") => Half::Backward,
                        other => return Err(fault("a half, F or B", other.unwrap_or_default())),
                    };
                    let name = words.next().unwrap_or_default();
                    let kind: ComponentKind = name.parse().map_err(|_| {
                        fault(&format!("a component: {}", ComponentKind::ALL.map(ComponentKind::name).join(", ")), name)
                    })?;
                    if kind.communicates() != (verb == "communicate") {
                        return Err(fault("'compute' for what computes, 'communicate' for what communicates", line));
                    }
                    let mut rest = words.clone();
                    let layer = rest.next().and_then(|word| word.parse::<usize>().ok());
                    // A single whole number is a time.
                    let layer = layer.filter(|_| kind.communicates() || rest.next().is_some());
                    if layer.is_some() {
                        words.next();
                    }
                    let cost = match kind.communicates() {
                        true => read_fields(words, &fault)?,
                        false => {
                            let (time, more) = (words.next().unwrap_or_default(), words.next());
                            if let Some(more) = more {
                                return Err(fault("nothing after the time", more));
                            }
                            ComponentCost::compute(read_time(time, &fault)?)
                        }
                    };
                    if costs.entries.insert((half, kind, layer), cost).is_some() {
                        return Err(fault("one line for each component", line));
                    }
                }
                _ => return Err(fault("a line that begins with ports, compute, communicate or transfer", line)),
            }
        }
        Ok(costs)
    }
}

fn read_time(text: &str, fault: &dyn Fn(&str, &str) -> Error) -> Result<f64> {
    let time = text.parse::<f64>().ok().filter(|time| time.is_finite() && *time >= 0.0);
    time.ok_or_else(|| fault("a time in seconds, finite, 0 or more", text))
}

fn read_fields<'a>(words: impl Iterator<Item = &'a str>, fault: &dyn Fn(&str, &str) -> Error) -> Result<ComponentCost> {
    let mut cost = ComponentCost::default();
    let mut seen: Vec<&str> = Vec::new();
    for word in words {
        let form = "NAME=SECONDS, each at most once, with NAME one of slow, fast, latency, start, finish";
        let (name, value) = word.split_once('=').ok_or_else(|| fault(form, word))?;
        let field = match name {
            "slow" => &mut cost.slow,
            "fast" => &mut cost.fast,
            "latency" => &mut cost.latency,
            "start" => &mut cost.start,
            "finish" => &mut cost.finish,
            _ => return Err(fault(form, word)),
        };
        if seen.contains(&name) {
            return Err(fault(form, word));
        }
        seen.push(name);
        *field = read_time(value, fault)?;
    }
    Ok(cost)
}
