//! The virtual clock: times by hand.

use std::time::Duration;

use v3_ranks::{Clock, Comm, Link, LinkModel, Result, WorldConfig, run_threads};

/// 1 second and 4 bytes a second between nodes, half a second and 8 bytes a second inside.
fn link() -> LinkModel {
    LinkModel {
        fast: Link { latency: Duration::from_millis(500), bandwidth: 8.0 },
        slow: Link { latency: Duration::from_secs(1), bandwidth: 4.0 },
    }
}

#[test]
fn a_message_arrives_after_latency_and_transfer() {
    let config = WorldConfig::new(2).ranks_per_node(1).link(link()).clock(Clock::Virtual);
    let got = run_threads(config, |comm: Comm| -> Result<_> {
        if comm.rank() == 0 {
            comm.advance(2.0)?;
            comm.send(1, 0, vec![0u8; 12])?;
            Ok((comm.now(), comm.waits()))
        } else {
            comm.recv::<u8>(0, 0)?;
            Ok((comm.now(), comm.waits()))
        }
    })
    .unwrap();
    assert_eq!(got[0].0, 2.0);
    assert_eq!(got[1].0, 6.0);
    assert_eq!((got[1].1.exposed, got[1].1.bubble), (4.0, 2.0));
}
