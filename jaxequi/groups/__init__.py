"""Groups, their representations, quaternions: numpy tables, no learning."""
