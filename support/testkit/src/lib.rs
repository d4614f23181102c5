//! Comparators, generators and skip bookkeeping for the tests of this workspace
