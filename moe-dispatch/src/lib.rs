//! Mixture-of-experts routing, load balance, dispatch and combine over ranks, and expert placement
