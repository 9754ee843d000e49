"""Names of the modules of each model: ours against torch's."""
