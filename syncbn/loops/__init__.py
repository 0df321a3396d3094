"""The four passes over a batch, written three times: plain (always right), for the CPU, for CUDA. `syncbn.kernels` says what they share."""
