"""From storage to host batches: sources, host transforms, order, loader."""
