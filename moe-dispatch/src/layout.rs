//! Where the experts are: ranks, nodes, and one or more physical slots for each logical expert.

use crate::error::{Error, Result};

/// Which of an expert's replicas a token goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ReplicaChoice {
    /// The replicas take turns, token by token: the load of an expert is shared evenly.
    #[default]
    Spread,
    /// A replica on the token's own rank if there is one, else one on its node, else any: the least traffic. Equally near ones take turns.
    Nearest,
}

/// The experts of one layer over the ranks of an expert-parallel group.
///
/// Rank r is on node r / `ranks_per_node` and holds the physical slots `r * slots_per_rank..(r + 1) * slots_per_rank`; each slot holds
/// one logical expert, and each logical expert has at least one slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    num_experts: usize,
    ep_size: usize,
    ranks_per_node: usize,
    slots_per_rank: usize,
    phy2log: Vec<u32>,
    /// Slots of expert e, ascending: `replicas[first_replica[e]..first_replica[e + 1]]`.
    replicas: Vec<u32>,
    first_replica: Vec<u32>,
    choice: ReplicaChoice,
}

impl Layout {
    /// Experts in contiguous blocks: rank r holds experts `r * num_experts / ep_size..`, each once.
    ///
    /// # Errors
    /// When a size is zero, or the experts do not divide evenly among the ranks.
    pub fn new(num_experts: usize, ep_size: usize, ranks_per_node: usize) -> Result<Self> {
        let experts = u32::try_from(num_experts)
            .ok()
            .filter(|&n| n <= 1 << 30)
            .ok_or_else(|| Error::Config { what: "number of experts", reason: format!("{num_experts} is more than 2^30") })?;
        let phy2log: Vec<u32> = (0..experts).collect();
        Layout::placed(num_experts, ep_size, ranks_per_node, &phy2log)
    }

    /// Experts anywhere, some of them several times: `phy2log[p]` is the logical expert in slot p, as expert placement
    /// ([`place`](crate::placement::place)) gives it for one layer.
    ///
    /// # Errors
    /// When a size is zero, there are fewer slots than experts, the slots do not divide evenly among the ranks, a slot holds an expert that does not exist, or an expert has no slot.
    pub fn placed(num_experts: usize, ep_size: usize, ranks_per_node: usize, phy2log: &[u32]) -> Result<Self> {
        let refuse = |what, reason: String| Err(Error::Config { what, reason });
        for (what, size) in [("number of experts", num_experts), ("number of ranks", ep_size), ("ranks per node", ranks_per_node)]
        {
            if size == 0 {
                return refuse(what, "expected at least 1, got 0".into());
            }
        }
        if num_experts > phy2log.len() {
            return refuse("expert slots", format!("{} slots cannot hold {num_experts} experts", phy2log.len()));
        }
        if !phy2log.len().is_multiple_of(ep_size) {
            return refuse("expert slots", format!("{} slots cannot be divided among {ep_size} ranks", phy2log.len()));
        }
        let mut first_replica = vec![0u32; num_experts + 1];
        for (slot, &expert) in phy2log.iter().enumerate() {
            match first_replica.get_mut(expert as usize + 1) {
                Some(count) => *count += 1,
                None => return refuse("expert slots", format!("slot {slot} holds expert {expert}, there are {num_experts}")),
            }
        }
        if let Some(expert) = first_replica[1..].iter().position(|&count| count == 0) {
            return refuse("expert slots", format!("expert {expert} has no slot"));
        }
        for expert in 0..num_experts {
            first_replica[expert + 1] += first_replica[expert];
        }
        let mut next = first_replica.clone();
        let mut replicas = vec![0u32; phy2log.len()];
        for (slot, &expert) in phy2log.iter().enumerate() {
            let at = &mut next[expert as usize];
            replicas[*at as usize] = slot as u32;
            *at += 1;
        }
        Ok(Layout {
            num_experts,
            ep_size,
            ranks_per_node,
            slots_per_rank: phy2log.len() / ep_size,
            phy2log: phy2log.to_vec(),
            replicas,
            first_replica,
            choice: ReplicaChoice::Spread,
        })
    }

    /// The same with another way to choose among replicas.
    pub fn with_choice(self, choice: ReplicaChoice) -> Self {
        Layout { choice, ..self }
    }

    /// Number of logical experts.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// Number of ranks.
    pub fn ep_size(&self) -> usize {
        self.ep_size
    }

    /// Ranks per node; the last node may hold fewer.
    pub fn ranks_per_node(&self) -> usize {
        self.ranks_per_node
    }

    /// Number of nodes.
    pub fn nodes(&self) -> usize {
        self.ep_size.div_ceil(self.ranks_per_node)
    }

    /// Expert slots on each rank.
    pub fn slots_per_rank(&self) -> usize {
        self.slots_per_rank
    }

    /// The logical expert in each slot of each rank.
    pub fn phy2log(&self) -> &[u32] {
        &self.phy2log
    }

    /// The logical experts in the slots of one rank, in the order of its expert-major rows.
    pub fn local_experts(&self, rank: usize) -> &[u32] {
        let first = (rank * self.slots_per_rank).min(self.phy2log.len());
        &self.phy2log[first..(first + self.slots_per_rank).min(self.phy2log.len())]
    }

    /// The node of a rank.
    pub fn node(&self, rank: usize) -> usize {
        rank / self.ranks_per_node
    }

    /// The rank that holds a slot.
    pub fn rank_of_slot(&self, slot: usize) -> usize {
        slot / self.slots_per_rank
    }

    /// The ranks of a node.
    pub fn ranks_of_node(&self, node: usize) -> std::ops::Range<usize> {
        let first = (node * self.ranks_per_node).min(self.ep_size);
        first..(first + self.ranks_per_node).min(self.ep_size)
    }

    /// The rank through which the rows of rank `source` enter a node, and its combined rows leave it: `source` itself on its own node,
    /// elsewhere the rank at the same place in the node.
    pub fn gateway(&self, source: usize, node: usize) -> usize {
        if self.node(source) == node {
            return source;
        }
        let ranks = self.ranks_of_node(node);
        ranks.start + source % self.ranks_per_node % ranks.len().max(1)
    }

    /// The slot that token number `token` of rank `source` uses for a logical expert, which must exist. It depends on nothing else.
    pub fn slot_for(&self, expert: usize, source: usize, token: usize) -> usize {
        let replicas = &self.replicas[self.first_replica[expert] as usize..self.first_replica[expert + 1] as usize];
        if let [only] = replicas {
            return *only as usize;
        }
        let turn = |slots: &[u32]| slots[(token + source) % slots.len()] as usize;
        if self.choice == ReplicaChoice::Spread {
            return turn(replicas);
        }
        // Slots are ascending, so those of a rank or of a node are neighbours.
        let within = |first: usize, end: usize| {
            let from = replicas.partition_point(|&slot| (slot as usize) < first * self.slots_per_rank);
            let to = replicas.partition_point(|&slot| (slot as usize) < end * self.slots_per_rank);
            &replicas[from..to]
        };
        let on_rank = within(source, source + 1);
        if !on_rank.is_empty() {
            return turn(on_rank);
        }
        let node = self.ranks_of_node(self.node(source));
        let on_node = within(node.start, node.end);
        if on_node.is_empty() { turn(replicas) } else { turn(on_node) }
    }
}
