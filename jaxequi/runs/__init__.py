"""Many runs side by side, as one table with figures: `python -m jaxequi.report RUN RUN ...`"""
