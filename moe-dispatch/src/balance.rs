//! Load balance.
