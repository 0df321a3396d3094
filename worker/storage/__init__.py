"""Where checkpoints lie: one interface over a local directory and object stores, for ranks and controller alike. Torch-free."""
