"""The one loop: state, step, mesh, optimizer, checkpoints, log."""
