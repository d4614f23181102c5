//! Multi-token prediction: training modules and loss, draft verification by exact rejection sampling
