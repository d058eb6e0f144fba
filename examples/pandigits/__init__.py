"""PanDigits: moving digits over panned photographs, and the small models trained on them."""
