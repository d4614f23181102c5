//! Devices, memory, streams, launches and tensor maps: over the CUDA driver, or over an emulator of PTX.
