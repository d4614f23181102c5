//! The router, obviously.
