//! Two devices that see each other's memory, and the programs that need them.

use super::{Run, Text, equal};
use crate::args;
use ptx_emu::{Arg, Config, Loaded, Machine, Shape, StreamId};

/// Two devices that see each other's memory, with a module and a stream on each.
pub struct Pair {
    /// The machine.
    pub machine: Machine,
    loaded: [Loaded; 2],
    streams: [StreamId; 2],
}

impl Pair {
    /// A machine of its own.
    pub fn new(text: &Text, config: Config) -> Pair {
        let machine = Machine::new(Config { devices: 2, ..config });
        machine.memory().enable_peer(0, 1).unwrap();
        machine.memory().enable_peer(1, 0).unwrap();
        let loaded = [0, 1].map(|device| machine.load(&text.module, device).unwrap());
        let streams = [0, 1].map(|device| machine.stream(device).unwrap());
        Pair { machine, loaded, streams }
    }

    /// Memory of a device with these values.
    pub fn upload(&self, device: u32, values: &[u32]) -> u64 {
        let address = self.room(device, values.len());
        self.machine.memory().write(address, bytemuck::cast_slice(values)).unwrap();
        address
    }

    /// Memory of a device that nothing has written, of `n` u32.
    pub fn room(&self, device: u32, n: usize) -> u64 {
        self.machine.memory().alloc(device, n as u64 * 4).unwrap()
    }

    /// Launches one kernel on each device at the same time and waits for both.
    pub fn run(&self, kernels: [(&str, &[Arg]); 2], shape: Shape) -> Run {
        for (device, (kernel, args)) in kernels.into_iter().enumerate() {
            self.machine.launch(self.streams[device], &self.loaded[device], kernel, shape, args)?;
        }
        Ok(self.machine.synchronize()?)
    }

    /// Compares memory with what it must hold.
    pub fn expect(&self, what: &str, address: u64, expected: &[u32]) -> Run {
        let mut got = vec![0u32; expected.len()];
        self.machine.memory().read(address, bytemuck::cast_slice_mut(&mut got)).unwrap();
        equal(what, &got, expected)
    }
}

/// Sizes of a producer and a consumer.
#[derive(Clone, Copy)]
pub struct Pipe {
    /// Blocks on each side.
    pub blocks: usize,
    /// Chunks of 256 values that each block sends.
    pub chunks: usize,
    /// Slots of each block's ring.
    pub slots: usize,
    /// The device whose memory holds the ring.
    pub ring_on: u32,
}

/// `produce` on device 0 sends to `consume` on device 1 (or another such pair of kernels).
pub fn pipe(text: &Text, config: Config, kernels: [&str; 2], pipe: Pipe) -> Run {
    let Pipe { blocks, chunks, slots, ring_on } = pipe;
    let pair = Pair::new(text, config);
    let x: Vec<u32> = (0..blocks * chunks * 256).map(|i| (i as u32).wrapping_mul(2654435761)).collect();
    let flags = vec![0u32; blocks * slots];
    let (ring, full, empty) =
        (pair.room(ring_on, blocks * slots * 256), pair.upload(ring_on, &flags), pair.upload(1 - ring_on, &flags));
    let y = pair.room(1, x.len());
    let sizes = args![chunks as u32, slots as u32];
    let produce = [&args![pair.upload(0, &x), ring, full, empty][..], &sizes].concat();
    let consume = [&args![ring, full, empty, y][..], &sizes].concat();
    pair.run([(kernels[0], &produce), (kernels[1], &consume)], Shape::new(blocks as u32, 256))?;
    pair.expect("y", y, &x.iter().map(|x| x.wrapping_mul(3).wrapping_add(1)).collect::<Vec<_>>())
}
