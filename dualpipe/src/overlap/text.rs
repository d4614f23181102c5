//! Arrangements as text, for a file.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::overlap::arrangement::{Arrangement, Op};
use crate::overlap::component::{Component, ComponentKind, Half, Pairing};
use crate::overlap::set::Arrangements;

/// The first line of a file.
const HEAD: &str = "arrangements 1";

impl fmt::Display for Arrangements {
    /// The text of a file. `#` begins a comment. After the line `arrangements 1`, four lines for each arrangement:
    ///
    /// ```text
    /// pair
    /// forward attention:0 dispatch:0<0 mlp:0<1 combine:0<2
    /// backward combine-backward:3 mlp-input:3<0 mlp-weight:3<1 dispatch-backward:3<1 attention-input:3<3 attention-weight:3<4
    /// order B0> F0 F1> B0< B1 B3> B2 F1< F2 F3> B3< B4 F3< B5
    /// ```
    ///
    /// The lists of components that it is for, each with its layer and, after `<`, the numbers of those it comes after; `-` is an
    /// empty list. In the order, `F2` computes component 2 of the forward, `F1>` starts a communication, `F1<` finishes it, `*` is a
    /// place to fill.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}")?;
        for (pairing, arrangement) in self.iter() {
            writeln!(f, "pair")?;
            for (name, half) in [("forward", Half::Forward), ("backward", Half::Backward)] {
                write!(f, "{name}")?;
                if pairing.half(half).is_empty() {
                    write!(f, " -")?;
                }
                for component in pairing.half(half) {
                    write!(f, " {}:{}", component.kind, component.layer)?;
                    let after: Vec<String> = component.after.iter().map(usize::to_string).collect();
                    if !after.is_empty() {
                        write!(f, "<{}", after.join(","))?;
                    }
                }
                writeln!(f)?;
            }
            write!(f, "order")?;
            for op in arrangement.ops() {
                write!(f, " {op}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    /// As in a file: `F2`, `F1>`, `F1<` or `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Compute(half, component) => write!(f, "{half}{component}"),
            Op::Start(half, component) => write!(f, "{half}{component}>"),
            Op::Finish(half, component) => write!(f, "{half}{component}<"),
            Op::Fill => write!(f, "*"),
        }
    }
}

impl FromStr for Arrangements {
    type Err = Error;

    /// Reads what [`Arrangements`] writes. Every order is checked against its components.
    fn from_str(text: &str) -> Result<Arrangements> {
        let mut set = Arrangements::new();
        let mut lines =
            text.lines().enumerate().map(|(index, line)| (index + 1, line.split('#').next().unwrap_or_default().trim()));
        let mut next = || lines.find(|(_, line)| !line.is_empty());
        match next() {
            Some((_, HEAD)) => {}
            other => {
                return Err(fault(
                    other.map_or(1, |(number, _)| number),
                    &format!("'{HEAD}'"),
                    other.map_or("", |(_, line)| line),
                ));
            }
        }
        while let Some((number, line)) = next() {
            if line != "pair" {
                return Err(fault(number, "'pair'", line));
            }
            let mut entry = |name: &str| {
                let (number, line) =
                    next().ok_or_else(|| fault(number, &format!("a line '{name} ...' after 'pair'"), "the end"))?;
                let rest = line.strip_prefix(name).filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
                let rest = rest.ok_or_else(|| fault(number, &format!("a line '{name} ...'"), line))?;
                Ok::<_, Error>((number, rest.trim()))
            };
            let (forward, backward, order) = (entry("forward")?, entry("backward")?, entry("order")?);
            let pairing = Pairing::new(components(forward)?, components(backward)?)
                .map_err(|error| fault(forward.0, "components in an order in which they can run", &error.to_string()))?;
            let words = order.1.split_whitespace();
            let read = |word: &str| read_op(word).ok_or_else(|| fault(order.0, "an entry such as F2, F1>, F1< or *", word));
            let ops = words.map(read).collect::<Result<Vec<Op>>>()?;
            let arrangement = Arrangement::new(&pairing, ops)
                .map_err(|error| fault(order.0, "an order of the components above", &error.to_string()))?;
            if set.get(&pairing).is_some() {
                return Err(fault(number, "each pair of lists once", "one twice"));
            }
            set.insert(pairing, arrangement)?;
        }
        Ok(set)
    }
}

fn fault(line: usize, expected: &str, got: &str) -> Error {
    Error::Shape { what: format!("arrangements: line {line}"), expected: expected.into(), got: format!("'{got}'") }
}

fn components((number, text): (usize, &str)) -> Result<Vec<Component>> {
    if text == "-" {
        return Ok(Vec::new());
    }
    let read = |word: &str| {
        let form = || fault(number, "a component such as mlp:3<1,2", word);
        let (name, after) = word.split_once('<').map_or((word, ""), |(name, after)| (name, after));
        let (kind, layer) = name.split_once(':').ok_or_else(form)?;
        let kind: ComponentKind = kind.parse().map_err(|_| form())?;
        let layer = layer.parse().map_err(|_| form())?;
        let after = after.split(',').filter(|part| !part.is_empty());
        let after = after.map(|part| part.parse().map_err(|_| form())).collect::<Result<Vec<usize>>>()?;
        Ok(Component::new(kind, layer, after))
    };
    text.split_whitespace().map(read).collect()
}

fn read_op(word: &str) -> Option<Op> {
    if word == "*" {
        return Some(Op::Fill);
    }
    let (half, rest) = match word.strip_prefix('F') {
        Some(rest) => (Half::Forward, rest),
        None => (Half::Backward, word.strip_prefix('B')?),
    };
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<usize>().ok()).flatten();
    if let Some(component) = rest.strip_suffix('>') {
        return Some(Op::Start(half, number(component)?));
    }
    if let Some(component) = rest.strip_suffix('<') {
        return Some(Op::Finish(half, number(component)?));
    }
    Some(Op::Compute(half, number(rest)?))
}

impl Arrangement {
    /// What each lane does, in order, in the words of Figure 4 of the report: two lines, to print. `FILL` are weights that were put
    /// off before.
    ///
    /// ```text
    /// computes:     ATTN(F)0 MLP(B)3 MLP(W)3 ...
    /// communicates: COMBINE(B)3 DISPATCH(F)0 ...
    /// ```
    pub fn describe(&self, pairing: &Pairing) -> String {
        let mut lanes = [String::from("computes:    "), String::from("communicates:")];
        for op in self.ops() {
            if *op == Op::Fill {
                lanes[0] += " FILL";
            }
            let (lane, half, index) = match *op {
                Op::Compute(half, index) => (0, half, index),
                Op::Start(half, index) => (1, half, index),
                Op::Finish(..) | Op::Fill => continue,
            };
            let Some(component) = pairing.half(half).get(index) else { continue };
            let (name, part) = match component.kind {
                ComponentKind::Enter => ("ENTER", half.letter()),
                ComponentKind::Leave => ("LEAVE", half.letter()),
                ComponentKind::Attention => ("ATTN", 'F'),
                ComponentKind::AttentionInput => ("ATTN", 'B'),
                ComponentKind::AttentionWeight => ("ATTN", 'W'),
                ComponentKind::Mlp => ("MLP", 'F'),
                ComponentKind::MlpInput => ("MLP", 'B'),
                ComponentKind::MlpWeight => ("MLP", 'W'),
                ComponentKind::Dispatch => ("DISPATCH", 'F'),
                ComponentKind::DispatchBackward => ("DISPATCH", 'B'),
                ComponentKind::Combine => ("COMBINE", 'F'),
                ComponentKind::CombineBackward => ("COMBINE", 'B'),
            };
            lanes[lane] += &format!(" {name}({part}){}", component.layer);
        }
        lanes.join("\n") + "\n"
    }
}
