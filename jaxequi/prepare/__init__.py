"""Programs that make data sets; nothing imports them."""
