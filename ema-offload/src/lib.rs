//! Exponential moving average of model weights in host memory, updated behind the training step
