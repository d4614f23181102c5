//! Expert placement.
