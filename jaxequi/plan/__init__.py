"""What a run would do on a machine that is not here; `python -m jaxequi.plan`."""
