"""What a training run will need, before it runs: memory, arithmetic, traffic and time on a mesh that need not exist."""
